"""Actor and critic networks, feed-forward and recurrent, encoders of users' own, and the stacking of one network per agent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvSpec
from envs.validation import first_line, imported
from marl_kl.core.types import Carry, Params, Sequences

HIDDEN_GAIN = float(np.sqrt(2.0))
ACTOR_OUTPUT_GAIN = 0.01
CRITIC_OUTPUT_GAIN = 1.0

_POLAR_ITERATIONS = 40


def orthogonal(gain: float) -> Callable:
    """Initialiser of matrices [rows, columns] with orthonormal columns (or rows, the shorter ones) times `gain`.

    The polar factor of a Gaussian matrix, distributed like the Q of its QR factorisation (Saxe et al. 2014), by the
    Newton-Schulz iteration X <- X (3 I - X' X) / 2. Not `nn.initializers.orthogonal`: its batched QR (one matrix per
    agent and seed) is slow on accelerators, and on CPU jaxlib 0.10 deadlocks if as many batched LAPACK calls run
    concurrently as its pool has threads.
    """

    def init(key, shape, dtype=jnp.float32):
        wide = shape[0] < shape[1]
        x = jax.random.normal(key, shape[::-1] if wide else shape, dtype)
        # converges for any norm >= the largest singular value; the Frobenius norm costs a few more iterations
        x = x / jnp.linalg.norm(x)
        identity = jnp.eye(x.shape[1], dtype=dtype)
        x = jax.lax.fori_loop(0, _POLAR_ITERATIONS, lambda _, x: 0.5 * x @ (3 * identity - x.T @ x), x)
        return gain * (x.T if wide else x)

    return init


class MLP(nn.Module):
    """A multilayer perceptron with orthogonal initialisation: [..., O] -> [..., output_size].

    encoder: here and below, a module before the hidden layers, [..., O] -> [..., F]; None: there is none.
    """

    hidden_sizes: tuple[int, ...]
    output_size: int
    output_gain: float
    activation: str
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _hidden_layers(self.hidden_sizes, self.activation, self.encoder, x)
        return nn.Dense(self.output_size, kernel_init=orthogonal(self.output_gain), name="output")(x)


def _hidden_layers(sizes: tuple[int, ...], activation: str, encoder: nn.Module | None, x: jax.Array) -> jax.Array:
    """An encoder and dense layers of the calling module."""
    x = x if encoder is None else encoder(x)
    for width in sizes:
        x = nn.Dense(width, kernel_init=orthogonal(HIDDEN_GAIN))(x)
        x = getattr(nn, activation)(x)
    return x


class GaussianNetwork(nn.Module):
    """Mean, and a log standard deviation independent of the observation: [..., O] -> ([..., A], [..., A])."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str
    init_std: float | jax.Array
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = MLP(self.hidden_sizes, self.output_size, ACTOR_OUTPUT_GAIN, self.activation, self.encoder, name="mean")(
            obs
        )
        log_std = self.param(
            "log_std", lambda _, shape: jnp.full(shape, jnp.log(self.init_std), jnp.float32), (self.output_size,)
        )
        return mean, jnp.broadcast_to(log_std, mean.shape)


class QNetwork(nn.Module):
    """Q(s, a): state [..., S] and joint action [..., J] -> [...]; the encoder is of the state."""

    hidden_sizes: tuple[int, ...]
    activation: str
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(self, state: jax.Array, action: jax.Array) -> jax.Array:
        features = state if self.encoder is None else self.encoder(state)
        x = jnp.concatenate([features, action], axis=-1)
        x = _hidden_layers(self.hidden_sizes, self.activation, None, x)
        return nn.Dense(1, kernel_init=orthogonal(CRITIC_OUTPUT_GAIN), name="output")(x)[..., 0]


class CategoricalNetwork(nn.Module):
    """Logits: [..., O] -> [..., A]."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        return MLP(
            self.hidden_sizes, self.output_size, ACTOR_OUTPUT_GAIN, self.activation, self.encoder, name="logits"
        )(obs)


class MultiCategoricalNetwork(nn.Module):
    """Logits of several choices: [..., O] -> [..., output_size / num_choices, num_choices]."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str
    num_choices: int
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        logits = MLP(
            self.hidden_sizes, self.output_size, ACTOR_OUTPUT_GAIN, self.activation, self.encoder, name="logits"
        )(obs)
        return logits.reshape(*logits.shape[:-1], -1, self.num_choices)


class GRU(nn.Module):
    """A gated recurrent unit over time: Sequences [..., T, K] -> hidden states [..., T, size] after each step.

    With input projections i_r, i_z, i_n and hidden projections h_r, h_z, h_n (Cho et al. 2014, as in cuDNN and flax):
    r = sigmoid(i_r + h_r), z = sigmoid(i_z + h_z), n = tanh(i_n + r h_n), h' = (1 - z) n + z h. Not `nn.GRUCell`: here
    the input projections of all time steps are one matrix product outside the scan, and episodes reset the state.
    """

    size: int

    @nn.compact
    def __call__(self, sequences: Sequences) -> jax.Array:
        kernel_init = _blocks(3, orthogonal(1.0))
        projections = nn.Dense(3 * self.size, kernel_init=kernel_init, name="inputs")(sequences.inputs)
        kernel = self.param("kernel", kernel_init, (self.size, 3 * self.size))
        bias = self.param("bias", nn.initializers.zeros, (self.size,), jnp.float32)

        def step(state, inputs):
            projection, reset = inputs
            state = jnp.where(reset[..., None], 0.0, state)
            i_r, i_z, i_n = jnp.split(projection, 3, axis=-1)
            h_r, h_z, h_n = jnp.split(state @ kernel, 3, axis=-1)
            keep = nn.sigmoid(i_z + h_z)
            new = jnp.tanh(i_n + nn.sigmoid(i_r + h_r) * (h_n + bias))
            state = (1 - keep) * new + keep * state
            return state, state

        time_major = jnp.moveaxis(projections, -2, 0), jnp.moveaxis(sequences.resets, -1, 0)
        _, states = jax.lax.scan(step, sequences.hidden.astype(projections.dtype), time_major)
        return jnp.moveaxis(states, 0, -2)


def _blocks(count: int, init: Callable) -> Callable:
    """Initialiser of [rows, count * columns], each block of columns by `init`."""

    def init_blocks(key, shape, dtype=jnp.float32):
        block = (shape[0], shape[1] // count)
        return jnp.concatenate([init(k, block, dtype) for k in jax.random.split(key, count)], axis=1)

    return init_blocks


class Recurrent(nn.Module):
    """Hidden layers, a GRU and `head`, whose input is the GRU's hidden state.

    Sequences [..., T, I] -> (outputs of the head, leaves [..., T, A]; hidden [..., T, H] after each step).
    """

    hidden_sizes: tuple[int, ...]
    recurrent_size: int
    activation: str
    head: nn.Module
    encoder: nn.Module | None = None

    @property
    def output_size(self) -> int:
        return self.head.output_size

    @nn.compact
    def __call__(self, sequences: Sequences):
        features = _hidden_layers(self.hidden_sizes, self.activation, self.encoder, sequences.inputs)
        hidden = GRU(self.recurrent_size, name="gru")(sequences._replace(inputs=features))
        return self.head(hidden), hidden


def make_encoder(path: str, spec: EnvSpec, input_size: int) -> nn.Module | None:
    """The module that the function at `path` makes for an environment; None for an empty path.

    Args:
        path: "module:function"; `function(spec) -> nn.Module`, [..., I] -> [..., F], whatever the leading axes.
        spec: the environment's.
        input_size: I.

    Raises:
        ValueError: the path leads nowhere, or the module does not encode inputs of this size.
    """
    return _checked_encoder(imported(path, "encoder"), path, spec, input_size) if path else None


@functools.lru_cache(maxsize=64)
def _checked_encoder(make: Callable[[EnvSpec], nn.Module], path: str, spec: EnvSpec, input_size: int) -> nn.Module:
    module = make(spec)
    if not isinstance(module, nn.Module):
        raise ValueError(f"encoder {path!r} returns a {type(module).__name__}; it must return a flax.linen.Module")
    blank = jax.ShapeDtypeStruct((2, 3, input_size), jnp.float32)
    try:
        features = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], blank)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"encoder {path!r} does not take inputs of shape [..., {input_size}]: {first_line(error)}"
        ) from error
    if len(features.shape) != 3 or features.shape[:2] != blank.shape[:2]:
        raise ValueError(
            f"encoder {path!r} makes {features.shape} of inputs of shape {blank.shape}; it must keep all axes but the last"
        )
    return module


def is_recurrent(network: nn.Module) -> bool:
    """Whether its inputs are `Sequences` rather than arrays."""
    return isinstance(network, Recurrent)


def initial_carry(network: nn.Module, axes: tuple[int, ...]) -> Carry:
    """The hidden state at the start of an episode: zeros [*axes, H], or `()`."""
    return jnp.zeros((*axes, network.recurrent_size), jnp.float32) if is_recurrent(network) else ()


def apply(network: nn.Module, params: Params, inputs: jax.Array | Sequences) -> tuple[Any, Carry]:
    """The network's outputs and, if it is recurrent, its hidden states [..., T, H] after each step (else `()`)."""
    result: Any = network.apply(params, inputs)
    return result if is_recurrent(network) else (result, ())


def one_step(inputs: jax.Array, hidden: Carry) -> Sequences:
    """Sequences of length 1: inputs [..., I], hidden [..., H]."""
    return Sequences(inputs[..., None, :], jnp.zeros((*inputs.shape[:-1], 1), bool), hidden)


def step(network: nn.Module, params: Params, inputs: jax.Array, hidden: Carry) -> tuple[Any, Carry]:
    """One time step of any network: inputs [..., I], hidden [..., H] -> outputs, leaves [..., A], and the new hidden."""
    if not is_recurrent(network):
        return apply(network, params, inputs)
    time = inputs.ndim - 1
    return jax.tree.map(lambda leaf: jnp.take(leaf, 0, axis=time), apply(network, params, one_step(inputs, hidden)))


def init_params(key: jax.Array, network: nn.Module, input_size: int) -> Params:
    """Parameters of one network."""
    blank = jnp.zeros(input_size, jnp.float32)
    return network.init(key, one_step(blank, initial_carry(network, ())) if is_recurrent(network) else blank)


def init_stacked(
    key: jax.Array,
    make_network: Callable[[int, int], nn.Module],
    observation_sizes: tuple[int, ...],
    output_sizes: tuple[int, ...],
):
    """One network per agent, each initialised at its true size, padded with zeros and stacked.

    Slicing an orthogonal matrix drawn at the padded size would change the scale for smaller agents and make an agent's
    initial parameters depend on the sizes of the others.

    Args:
        key: agent i draws from `fold_in(key, i)`.
        make_network: input size, output size -> module.
        observation_sizes, output_sizes: true sizes per agent, length N.

    Returns:
        A pytree like one network's parameters, with leaves [N, ...] of the padded sizes.
    """
    largest_sizes = max(observation_sizes), max(output_sizes)
    largest = functools.partial(init_params, network=make_network(*largest_sizes), input_size=largest_sizes[0])
    padded = jax.eval_shape(largest, jax.random.key(0))
    sizes = list(zip(observation_sizes, output_sizes))
    stacked = jax.tree.map(lambda leaf: jnp.zeros((len(sizes), *leaf.shape), leaf.dtype), padded)
    for size in dict.fromkeys(sizes):
        agents = np.asarray([i for i, other in enumerate(sizes) if other == size])
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(agents)
        params = jax.vmap(functools.partial(init_params, network=make_network(*size), input_size=size[0]))(keys)
        stacked = jax.tree.map(
            lambda whole, part: whole.at[(agents, *map(slice, part.shape[1:]))].set(part), stacked, params
        )
    return stacked
