"""Critics: V(s) in normalised units, fitted with a clipped Huber loss in minibatch epochs.

`Critic` is one network, of the global state where it is centralised. `IndependentCritics` are several of them, each
for agents that see no more than their own observations. Both have the same methods. Recurrent ones see a rollout as
`Sequences` and estimate the value of a step by what they remember of the steps before it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from marl_kl.config import Config
from marl_kl.core import networks, normalizers, sequences
from marl_kl.core.networks import CRITIC_OUTPUT_GAIN, MLP, Recurrent
from marl_kl.core.normalizers import Moments
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


class Estimate(NamedTuple):
    """A rollout in the eyes of a critic.

    Attributes:
        seen: what `fit` is given of it: [B, S], or `Sequences` [E]; of independent critics [B, N, I], or `Sequences`
            [N, E].
        value: [T, E, V] V(s_t).
        next_value: [T, E, V] of the true successors, before any reset.
        hidden: what a recurrent critic remembers behind the rollout, zero where an episode has ended: [E, H], of
            independent critics [N, E, H].
    """

    seen: jax.Array | Sequences
    value: jax.Array
    next_value: jax.Array
    hidden: Carry


class Critic(NamedTuple):
    """One network, and how it is fitted.

    Attributes:
        network: states [..., S], or `Sequences` of them -> normalised values [..., V].
        optimizer: with its numbers bound.
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
    ) -> Estimate:
        """Values of a rollout.

        A recurrent critic judges the true successor of a step by that step's hidden: where the episode goes on, this
        is the value of the next step.

        Args:
            states, next_states: [T, E, S] standardised.
            done: [T, E].
            hidden: [E, H] at the start of the rollout; `initial_carry((E,))` where episodes begin.
        """
        if not self.recurrent:
            value, next_value = (self.value(critic, x) for x in (states, next_states))
            return Estimate(states.reshape(-1, *states.shape[2:]), value, next_value, hidden)
        seen = sequences.from_rollout(states, done, hidden)
        values, reached = networks.apply(self.network, critic.params, seen)  # [E, T, V], [E, T, H]
        successors = networks.one_step(sequences.by_environment(next_states), reached)
        value, next_value = _in_reward_units(critic, values), self.value(critic, successors)[..., 0, :]
        value, next_value = (jnp.swapaxes(x, 0, 1) for x in (value, next_value))
        return Estimate(seen, value, next_value, sequences.reset_carry(reached[:, -1], done[-1]))

    @property
    def recurrent(self) -> bool:
        return networks.is_recurrent(self.network)

    def initial_carry(self, axes: tuple[int, ...]) -> Carry:
        """What is remembered where episodes begin: [*axes, H], or `()`; axes: (E,), of independent critics (N, E)."""
        return networks.initial_carry(self.network, axes)

    def fit(
        self, key: jax.Array, config: Config, critic: CriticState, states: jax.Array | Sequences, targets: jax.Array
    ) -> tuple[CriticState, jax.Array]:
        """See the function `fit`."""
        return fit(key, config, self, critic, states, targets)


def _in_reward_units(critic: CriticState, normalized: jax.Array) -> jax.Array:
    return normalized * critic.moments.std + critic.moments.mean


class IndependentCritics(NamedTuple):
    """The critics of independent learners: G copies of `critic` (one value each), N / G agents to each.

    States of the critics are stacked, leaves [G, ...]. They learn from nothing but their own agents' data.
    """

    critic: Critic
    num_critics: int

    def init(self, key: jax.Array, input_size: int) -> CriticState:
        return jax.vmap(lambda k: self.critic.init(k, input_size))(jax.random.split(key, self.num_critics))

    def value(self, critics: CriticState, inputs: jax.Array) -> jax.Array:
        """V(o) in reward units: what each agent sees [..., N, I] -> [..., N]."""
        values = jax.vmap(self.critic.value)(critics, self._pooled(inputs.reshape(-1, *inputs.shape[-2:])))
        return jnp.moveaxis(values.reshape(inputs.shape[-2], *inputs.shape[:-2]), 0, -1)

    def estimate(
        self, critics: CriticState, inputs: jax.Array, next_inputs: jax.Array, done: jax.Array, hidden: Carry
    ) -> Estimate:
        """Like `Critic.estimate`, of what each agent sees: [T, E, N, I], with hidden [N, E, H]."""
        if not self.critic.recurrent:
            value, next_value = (self.value(critics, x) for x in (inputs, next_inputs))
            return Estimate(inputs.reshape(-1, *inputs.shape[2:]), value, next_value, hidden)
        each = inputs.shape[2] // self.num_critics
        of_agents = jax.tree.map(lambda leaf: jnp.repeat(leaf, each, axis=0), critics)
        found = jax.vmap(self.critic.estimate, (0, 2, 2, None, 0))(of_agents, inputs, next_inputs, done, hidden)
        value, next_value = (jnp.moveaxis(x[..., 0], 0, -1) for x in (found.value, found.next_value))
        return found._replace(value=value, next_value=next_value)

    def fit(
        self, key: jax.Array, config: Config, critics: CriticState, inputs: jax.Array | Sequences, targets: jax.Array
    ) -> tuple[CriticState, jax.Array]:
        """Like the function `fit`, with inputs [B, N, I], or `Sequences` [N, E], and targets [B, N], or [E, T, N]."""
        one = lambda k, state, x, y: fit(k, config, self.critic, state, x, y)  # noqa: E731
        keys = jax.random.split(key, self.num_critics)
        pooled = jax.tree.map(self._per_critic, inputs) if isinstance(inputs, Sequences) else self._pooled(inputs)
        states, losses = jax.vmap(one)(keys, critics, pooled, self._pooled(targets[..., None]))
        return states, jnp.mean(losses)

    def initial_carry(self, axes: tuple[int, ...]) -> Carry:
        """See `Critic.initial_carry`."""
        return self.critic.initial_carry(axes)

    def _pooled(self, x: jax.Array) -> jax.Array:
        """[*samples, N, K] -> [G, *samples of each critic's agents, K]."""
        return self._per_critic(jnp.moveaxis(x, -2, 0))

    def _per_critic(self, of_agents: jax.Array) -> jax.Array:
        """[N, rows, ...] -> [G, rows of each critic's agents, ...]."""
        return of_agents.reshape(self.num_critics, -1, *of_agents.shape[2:])


def make_critic(config: Config, num_values: int) -> Critic:
    """A critic with `num_values` heads: 1 for a team reward, one per agent otherwise."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.critic_max_grad_norm), optax.adam(config.critic_lr, eps=1e-5)
    )
    hidden_sizes = () if config.recurrent_critic else config.hidden_sizes
    network = MLP(hidden_sizes, num_values, CRITIC_OUTPUT_GAIN, config.activation)
    if config.recurrent_critic:
        network = Recurrent(config.hidden_sizes, config.recurrent_size, config.activation, network)
    return Critic(network, optimizer)


def rescale_output(params: Params, old: Moments, new: Moments) -> Params:
    """Keeps every V(s) in reward units while these change from `old` to `new` (PopArt; van Hasselt et al. 2016).

    Values that nobody has fitted yet (`old` holds no samples) are kept in normalised units instead: those are of
    order 1, and would be far too large a start where rewards are small.
    """
    fitted = old.count > 0
    ratio = jnp.where(fitted, old.std / new.std, 1.0)
    shift = jnp.where(fitted, (old.mean - new.mean) / new.std, 0.0)

    def rescale(path, leaf):
        layer, kind = (entry.key for entry in path[-2:])
        if layer != "output":
            return leaf
        return leaf * ratio + shift if kind == "bias" else leaf * ratio

    return jax.tree_util.tree_map_with_path(rescale, params)


def clipped_huber(
    value: jax.Array, old_value: jax.Array, target: jax.Array, clip: jax.Array | float, delta: jax.Array | float
) -> jax.Array:
    """max of the Huber losses of the value and of the value kept within `clip` of the old one, elementwise."""
    kept = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(huber(value - target, delta), huber(kept - target, delta))


def huber(error: jax.Array, delta: jax.Array | float) -> jax.Array:
    """error^2 / 2 within +-delta, delta (abs(error) - delta / 2) beyond (Huber 1964)."""
    size = jnp.abs(error)
    quadratic = jnp.minimum(size, delta)
    return 0.5 * jnp.square(quadratic) + delta * (size - quadratic)


def fit(
    key: jax.Array,
    config: Config,
    critic: Critic,
    state: CriticState,
    states: jax.Array | Sequences,
    targets: jax.Array,
) -> tuple[CriticState, jax.Array]:
    """Moves the critic towards `targets`.

    Args:
        states: [B, S] standardised states, or `Sequences` [E] of them; minibatches are of the leading axis.
        targets: [B, V] in reward units, or [E, T, V].

    Returns:
        The new critic and [] the mean loss over epochs and minibatches.
    """
    moments = normalizers.update(state.moments, targets.reshape(-1, targets.shape[-1]))
    params = rescale_output(state.params, state.moments, moments)
    data = (states, critic.normalized(params, states), (targets - moments.mean) / moments.std)
    num_rows = targets.shape[0]

    def loss(params, minibatch):
        s, old_value, target = minibatch
        value = critic.normalized(params, s)
        return jnp.mean(clipped_huber(value, old_value, target, config.value_clip, config.huber_delta))

    def step(carry, indices):
        params, opt_state = carry
        minibatch = jax.tree.map(lambda leaf: leaf[indices], data)
        value, gradient = jax.value_and_grad(loss)(params, minibatch)
        change, opt_state = critic.optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, change), opt_state), value

    def epoch(carry, key):
        order = jax.random.permutation(key, num_rows).reshape(config.critic_minibatches, -1)
        return jax.lax.scan(step, carry, order)

    keys = jax.random.split(key, config.critic_epochs)
    (params, opt_state), losses = jax.lax.scan(epoch, (params, state.opt_state), keys)
    return CriticState(params, opt_state, moments), jnp.mean(losses)


def explained_variance(value: jax.Array, target: jax.Array) -> jax.Array:
    """1 - Var(target - value) / Var(target) of [..., V], averaged over the heads V; 0 for constant targets."""
    samples = tuple(range(target.ndim - 1))
    variance = jnp.var(target, axis=samples)
    share = 1 - jnp.var(target - value, axis=samples) / jnp.where(variance > 0, variance, 1.0)
    return jnp.mean(jnp.where(variance > 0, share, 0.0))
