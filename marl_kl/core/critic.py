"""Critics: V(s) in normalised units, fitted with a clipped Huber loss in minibatch epochs.

`Critic` is one network, of the global state if it is centralised. `IndependentCritics` are several of them, one per
agent, whose inputs are the agents' observations. Both have the same methods. Recurrent critics take a rollout as
`Sequences`: the value of a step depends on the hidden state after the steps before it.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from optax.losses import huber_loss

from marl_kl.config import OnPolicyConfig
from marl_kl.core import networks, normalizers, partition, sequences
from marl_kl.core.networks import CRITIC_OUTPUT_GAIN, MLP, Recurrent
from marl_kl.core.normalizers import Moments
from marl_kl.core.shuffling import random_order
from marl_kl.core.types import Carry, Params, Sequences


class CriticState(NamedTuple):
    """The critic between two updates.

    Attributes:
        params: network parameters; the outputs are values in units of `moments`.
        opt_state: optax state.
        moments: moments [V] of the targets seen so far.
    """

    params: Params
    opt_state: optax.OptState
    moments: Moments


class ValueEstimates(NamedTuple):
    """A critic's values of a rollout.

    Attributes:
        inputs: the inputs for `fit`: [B, S], or `Sequences` [E]; of independent critics [B, N, I], or `Sequences` [N, E].
        value: [T, E, V] V(s_t).
        next_value: [T, E, V] of the true successors, before any reset.
        hidden: hidden state of a recurrent critic after the rollout, zero where an episode has ended: [E, H], of
            independent critics [N, E, H].
    """

    inputs: jax.Array | Sequences
    value: jax.Array
    next_value: jax.Array
    hidden: Carry


class Critic(NamedTuple):
    """One network and its optimiser.

    Attributes:
        network: states [..., S], or `Sequences` of them -> normalised values [..., V].
        optimizer: with its hyperparameters bound.
    """

    network: MLP | Recurrent
    optimizer: optax.GradientTransformation

    def init(self, key: jax.Array, state_size: int) -> CriticState:
        params = networks.init_params(key, self.network, state_size)
        return CriticState(params, self.optimizer.init(params), normalizers.init((self.network.output_size,)))

    def normalized(self, params: Params, states: jax.Array | Sequences) -> jax.Array:
        """V(s) in normalised units: [..., S] standardised states, or `Sequences` of them -> [..., V]."""
        return networks.apply(self.network, params, states)[0]

    def value(self, critic: CriticState, states: jax.Array | Sequences) -> jax.Array:
        """V(s) in reward units, like `normalized`."""
        return _in_reward_units(critic, self.normalized(critic.params, states))

    def estimate(
        self, critic: CriticState, states: jax.Array, next_states: jax.Array, done: jax.Array, hidden: Carry
    ) -> ValueEstimates:
        """Values of a rollout.

        A recurrent critic evaluates the true successor of a step from the hidden state after that step: this is the
        value of the next step wherever the episode continues.

        Args:
            states, next_states: [T, E, S] standardised.
            done: [T, E].
            hidden: [E, H] at the start of the rollout; `initial_carry((E,))` where episodes begin.
        """
        if not self.recurrent:
            value, next_value = (self.value(critic, x) for x in (states, next_states))
            return ValueEstimates(sequences.rows(states), value, next_value, hidden)
        inputs = sequences.from_rollout(states, done, hidden)
        values, hidden_after = networks.apply(self.network, critic.params, inputs)  # [E, T, V], [E, T, H]
        successors = networks.one_step(sequences.batch_major(next_states), hidden_after)
        value, next_value = _in_reward_units(critic, values), self.value(critic, successors)[..., 0, :]
        value, next_value = (jnp.swapaxes(x, 0, 1) for x in (value, next_value))
        return ValueEstimates(inputs, value, next_value, sequences.reset_carry(hidden_after[:, -1], done[-1]))

    @property
    def recurrent(self) -> bool:
        return networks.is_recurrent(self.network)

    def initial_carry(self, axes: tuple[int, ...]) -> Carry:
        """The hidden state at the start of episodes: [*axes, H], or `()`; axes: (E,), of independent critics (N, E)."""
        return networks.initial_carry(self.network, axes)

    def fit(
        self,
        key: jax.Array,
        config: OnPolicyConfig,
        critic: CriticState,
        states: jax.Array | Sequences,
        targets: jax.Array,
    ) -> tuple[CriticState, jax.Array]:
        """See the function `fit`."""
        return fit(key, config, self, critic, states, targets)


def _in_reward_units(critic: CriticState, normalized: jax.Array) -> jax.Array:
    return normalized * critic.moments.std + critic.moments.mean


class IndependentCritics(NamedTuple):
    """The critics of independent learners: G copies of `critic` (one value each), each of N / G agents.

    Their states are stacked, leaves [G, ...]. Each is fitted to the data of its own agents only.
    """

    critic: Critic
    num_critics: int

    def init(self, key: jax.Array, input_size: int) -> CriticState:
        return jax.vmap(lambda k: self.critic.init(k, input_size))(jax.random.split(key, self.num_critics))

    def value(self, critics: CriticState, inputs: jax.Array) -> jax.Array:
        """V(o) in reward units: inputs per agent [..., N, I] -> [..., N]."""
        values = jax.vmap(self.critic.value)(critics, self._pooled(inputs.reshape(-1, *inputs.shape[-2:])))
        return jnp.moveaxis(values.reshape(inputs.shape[-2], *inputs.shape[:-2]), 0, -1)

    def estimate(
        self, critics: CriticState, inputs: jax.Array, next_inputs: jax.Array, done: jax.Array, hidden: Carry
    ) -> ValueEstimates:
        """Like `Critic.estimate`, with inputs per agent [T, E, N, I] and hidden [N, E, H]."""
        if not self.critic.recurrent:
            value, next_value = (self.value(critics, x) for x in (inputs, next_inputs))
            return ValueEstimates(sequences.rows(inputs), value, next_value, hidden)
        agents_per_critic = inputs.shape[2] // self.num_critics
        per_agent = jax.tree.map(lambda leaf: jnp.repeat(leaf, agents_per_critic, axis=0), critics)
        estimates = jax.vmap(self.critic.estimate, (0, 2, 2, None, 0))(per_agent, inputs, next_inputs, done, hidden)
        value, next_value = (jnp.moveaxis(x[..., 0], 0, -1) for x in (estimates.value, estimates.next_value))
        return estimates._replace(value=value, next_value=next_value)

    def fit(
        self,
        key: jax.Array,
        config: OnPolicyConfig,
        critics: CriticState,
        inputs: jax.Array | Sequences,
        targets: jax.Array,
    ) -> tuple[CriticState, jax.Array]:
        """Like the function `fit`, with inputs [B, N, I], or `Sequences` [N, E], and targets [B, N], or [E, T, N]."""

        def fit_one(key, state, inputs, targets):
            return fit(key, config, self.critic, state, inputs, targets)

        keys = jax.random.split(key, self.num_critics)
        pooled = jax.tree.map(self._per_critic, inputs) if isinstance(inputs, Sequences) else self._pooled(inputs)
        states, losses = jax.vmap(fit_one)(keys, critics, pooled, self._pooled(targets[..., None]))
        return states, jnp.mean(losses)

    def initial_carry(self, axes: tuple[int, ...]) -> Carry:
        """See `Critic.initial_carry`."""
        return self.critic.initial_carry(axes)

    def _pooled(self, x: jax.Array) -> jax.Array:
        """[*samples, N, K] -> [G, *samples of each critic's agents, K]."""
        return self._per_critic(jnp.moveaxis(x, -2, 0))

    def _per_critic(self, per_agent: jax.Array) -> jax.Array:
        """[N, rows, ...] -> [G, rows of each critic's agents, ...]."""
        return per_agent.reshape(self.num_critics, -1, *per_agent.shape[2:])


def make_critic(config: OnPolicyConfig, num_values: int, encoder: nn.Module | None = None) -> Critic:
    """A critic with `num_values` heads: 1 for a team reward, one per agent otherwise."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.critic_max_grad_norm), optax.adam(config.critic_lr, eps=1e-5)
    )
    hidden_sizes = () if config.recurrent_critic else config.hidden_sizes
    head_encoder = None if config.recurrent_critic else encoder
    network = MLP(hidden_sizes, num_values, CRITIC_OUTPUT_GAIN, config.activation, head_encoder)
    if config.recurrent_critic:
        network = Recurrent(config.hidden_sizes, config.recurrent_size, config.activation, network, encoder)
    return Critic(network, optimizer)


def rescale_output(params: Params, old: Moments, new: Moments) -> Params:
    """Preserves V(s) in reward units while the moments change from `old` to `new` (PopArt; van Hasselt et al. 2016).

    Before the first fit (`old` holds no samples) the values in normalised units are preserved instead: they are of
    order 1, which in reward units would be far too large an initial value for small rewards.
    """
    fitted = old.count > 0
    ratio = jnp.where(fitted, old.std / new.std, 1.0)
    shift = jnp.where(fitted, (old.mean - new.mean) / new.std, 0.0)

    def rescale(path, leaf):
        names = [entry.key for entry in path]
        if names[-2] != "output" or "encoder" in names:
            return leaf
        return leaf * ratio + shift if names[-1] == "bias" else leaf * ratio

    return jax.tree_util.tree_map_with_path(rescale, params)


def clipped_huber(
    value: jax.Array, old_value: jax.Array, target: jax.Array, clip: jax.Array | float, delta: jax.Array | float
) -> jax.Array:
    """The larger Huber loss of the value and of the value clipped to within `clip` of the old one, elementwise."""
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(huber_loss(value, target, delta=delta), huber_loss(clipped, target, delta=delta))


def fit(
    key: jax.Array,
    config: OnPolicyConfig,
    critic: Critic,
    state: CriticState,
    states: jax.Array | Sequences,
    targets: jax.Array,
) -> tuple[CriticState, jax.Array]:
    """Fits the critic to `targets`.

    Args:
        states: [B, S] standardised states, or `Sequences` [E] of them; minibatches are taken along the leading axis.
        targets: [B, V] in reward units, or [E, T, V].

    Returns:
        The new critic and [] the mean loss over epochs and minibatches.
    """
    moments = normalizers.update(state.moments, targets.reshape(-1, targets.shape[-1]))
    params = rescale_output(state.params, state.moments, moments)
    data = partition.gathered((states, critic.normalized(params, states), (targets - moments.mean) / moments.std))
    num_rows = targets.shape[0]

    def loss(params, minibatch):
        s, old_value, target = minibatch
        value = critic.normalized(params, s)
        return jnp.mean(clipped_huber(value, old_value, target, config.value_clip, config.huber_delta))

    def step(carry, indices):
        params, opt_state = carry
        minibatch = partition.spread(jax.tree.map(lambda leaf: leaf[indices], data))
        value, gradient = jax.value_and_grad(loss)(params, minibatch)
        updates, opt_state = critic.optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def epoch(carry, key):
        order = random_order(key, num_rows).reshape(config.critic_minibatches, -1)
        return jax.lax.scan(step, carry, order)

    keys = jax.random.split(key, config.critic_epochs)
    (params, opt_state), losses = jax.lax.scan(epoch, (params, state.opt_state), keys)
    return CriticState(params, opt_state, moments), jnp.mean(losses)


def explained_variance(value: jax.Array, target: jax.Array) -> jax.Array:
    """1 - Var(target - value) / Var(target) of [..., V], averaged over the heads V; 0 for constant targets."""
    samples = tuple(range(target.ndim - 1))
    variance = jnp.var(target, axis=samples)
    explained = 1 - jnp.var(target - value, axis=samples) / jnp.where(variance > 0, variance, 1.0)
    return jnp.mean(jnp.where(variance > 0, explained, 0.0))
