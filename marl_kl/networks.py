"""Actor and critic networks, and the stacking of one network per agent."""

from __future__ import annotations

from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS: dict[str, Callable] = {"tanh": nn.tanh, "relu": nn.relu, "elu": nn.elu, "silu": nn.silu}

HIDDEN_GAIN = float(np.sqrt(2.0))
ACTOR_OUTPUT_GAIN = 0.01
CRITIC_OUTPUT_GAIN = 1.0


_POLAR_ITERATIONS = 40


def orthogonal(gain: float) -> Callable:
    """Initialiser of matrices [rows, columns] with orthonormal columns (or rows, the shorter ones) times `gain`.

    The polar factor of a Gaussian matrix, which is as uniformly distributed as the Q of its QR factorisation (Saxe
    et al. 2014), by the Newton-Schulz iteration X <- X (3 I - X' X) / 2. Matrix products only, because batched QR
    (one matrix per agent and seed) is slow on accelerators, and on CPU jaxlib 0.10 deadlocks when as many batched
    LAPACK calls run side by side as its thread pool has threads (each waits there for parts of itself).
    """

    def init(key, shape, dtype=jnp.float32):
        wide = shape[0] < shape[1]
        x = jax.random.normal(key, shape[::-1] if wide else shape, dtype)
        # any norm >= the largest singular value will do; the Frobenius norm costs a few more iterations
        x = x / jnp.linalg.norm(x)
        identity = jnp.eye(x.shape[1], dtype=dtype)
        x = jax.lax.fori_loop(0, _POLAR_ITERATIONS, lambda _, x: 0.5 * x @ (3 * identity - x.T @ x), x)
        return gain * (x.T if wide else x)

    return init


class MLP(nn.Module):
    """A multilayer perceptron with orthogonal initialisation: [..., O] -> [..., output_size]."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    output_gain: float
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.hidden_sizes:
            x = nn.Dense(width, kernel_init=orthogonal(HIDDEN_GAIN))(x)
            x = ACTIVATIONS[self.activation](x)
        return nn.Dense(self.output_size, kernel_init=orthogonal(self.output_gain), name="output")(x)


class GaussianNetwork(nn.Module):
    """Mean from the observation, log standard deviation from none: [..., O] -> ([..., A], [..., A])."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str
    init_std: float | jax.Array

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = MLP(self.hidden_sizes, self.output_size, ACTOR_OUTPUT_GAIN, self.activation, name="mean")(obs)
        log_std = self.param("log_std", lambda _, shape: jnp.full(shape, jnp.log(self.init_std)), (self.output_size,))
        return mean, jnp.broadcast_to(log_std, mean.shape)


class CategoricalNetwork(nn.Module):
    """Logits: [..., O] -> [..., A]."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        return MLP(self.hidden_sizes, self.output_size, ACTOR_OUTPUT_GAIN, self.activation, name="logits")(obs)


class MultiCategoricalNetwork(nn.Module):
    """Logits of several choices among as many: [..., O] -> [..., output_size / num_choices, num_choices]."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str
    num_choices: int

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        logits = MLP(self.hidden_sizes, self.output_size, ACTOR_OUTPUT_GAIN, self.activation, name="logits")(obs)
        return logits.reshape(*logits.shape[:-1], -1, self.num_choices)


def init_stacked(
    key: jax.Array,
    make_network: Callable[[int], nn.Module],
    observation_sizes: tuple[int, ...],
    output_sizes: tuple[int, ...],
):
    """One network per agent, each initialised at its true size, padded with zeros and stacked.

    Slicing an orthogonal matrix that was drawn at the padded size would give the smaller agents another
    scale, and would make an agent's start depend on its team mates' sizes.

    Args:
        key: agent i draws from `fold_in(key, i)`.
        make_network: output size -> module.
        observation_sizes, output_sizes: true sizes per agent, length N.

    Returns:
        A pytree like one network's parameters, with leaves [N, ...] of the padded sizes.
    """
    padded = jax.eval_shape(
        make_network(max(output_sizes)).init, jax.random.key(0), jnp.zeros(max(observation_sizes))
    )
    sizes = list(zip(observation_sizes, output_sizes))
    stacked = jax.tree.map(lambda leaf: jnp.zeros((len(sizes), *leaf.shape), leaf.dtype), padded)
    for size in dict.fromkeys(sizes):
        agents = np.asarray([i for i, other in enumerate(sizes) if other == size])
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(agents)
        init = make_network(size[1]).init
        params = jax.vmap(lambda k, obs=jnp.zeros(size[0]): init(k, obs))(keys)
        stacked = jax.tree.map(
            lambda whole, part: whole.at[(agents, *map(slice, part.shape[1:]))].set(part), stacked, params
        )
    return stacked
