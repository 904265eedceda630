"""Critics: V(s) in normalised units, fitted with a clipped Huber loss in minibatch epochs.

`Critic` is one network, of the global state where it is centralised. `IndependentCritics` are several of them, each
for agents that see no more than their own observations. Both have the same three methods.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from marl_kl import normalizers
from marl_kl.config import Config
from marl_kl.networks import CRITIC_OUTPUT_GAIN, MLP
from marl_kl.normalizers import Moments
from marl_kl.types import Params


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


class Critic(NamedTuple):
    """network: states [..., S] -> normalised values [..., V]. optimizer: with its numbers bound."""

    network: MLP
    optimizer: optax.GradientTransformation

    def init(self, key: jax.Array, state_size: int) -> CriticState:
        params = self.network.init(key, jnp.zeros(state_size))
        return CriticState(params, self.optimizer.init(params), normalizers.init((self.network.output_size,)))

    def value(self, critic: CriticState, states: jax.Array) -> jax.Array:
        """V(s) in reward units: [..., S] standardised states -> [..., V]."""
        return self.network.apply(critic.params, states) * critic.moments.std + critic.moments.mean

    def fit(self, key: jax.Array, config: Config, critic: CriticState, states: jax.Array, targets: jax.Array):
        """See the function `fit`."""
        return fit(key, config, self, critic, states, targets)


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
        values = jax.vmap(self.critic.value)(critics, self._pooled(inputs))
        return jnp.moveaxis(values.reshape(inputs.shape[-2], *inputs.shape[:-2]), 0, -1)

    def fit(self, key: jax.Array, config: Config, critics: CriticState, inputs: jax.Array, targets: jax.Array):
        """Like the function `fit`, with inputs [B, N, I] and targets [B, N]."""
        one = lambda k, state, x, y: fit(k, config, self.critic, state, x, y)  # noqa: E731
        keys = jax.random.split(key, self.num_critics)
        states, losses = jax.vmap(one)(keys, critics, self._pooled(inputs), self._pooled(targets[..., None]))
        return states, jnp.mean(losses)

    def _pooled(self, x: jax.Array) -> jax.Array:
        """[..., N, K] -> [G, samples, K]: the samples of each critic's agents."""
        return jnp.moveaxis(x, -2, 0).reshape(self.num_critics, -1, x.shape[-1])


def make_critic(config: Config, num_values: int) -> Critic:
    """A critic with `num_values` heads: 1 for a team reward, one per agent otherwise."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.critic_max_grad_norm), optax.adam(config.critic_lr, eps=1e-5)
    )
    return Critic(MLP(config.hidden_sizes, num_values, CRITIC_OUTPUT_GAIN, config.activation), optimizer)


def rescale_output(params: Params, old: Moments, new: Moments) -> Params:
    """Keeps every V(s) in reward units while these change from `old` to `new` (PopArt; van Hasselt et al. 2016).

    Values that nobody has fitted yet (`old` holds no samples) are kept in normalised units instead: those are of
    order 1, and would be far too large a start where rewards are small.
    """
    output = params["params"]["output"]
    fitted = old.count > 0
    ratio = jnp.where(fitted, old.std / new.std, 1.0)
    shift = jnp.where(fitted, (old.mean - new.mean) / new.std, 0.0)
    rescaled = {
        "kernel": output["kernel"] * ratio,
        "bias": output["bias"] * ratio + shift,
    }
    return {"params": {**params["params"], "output": rescaled}}


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
    key: jax.Array, config: Config, critic: Critic, state: CriticState, states: jax.Array, targets: jax.Array
) -> tuple[CriticState, jax.Array]:
    """Moves the critic towards `targets`.

    Args:
        states: [B, S] standardised states.
        targets: [B, V] in reward units.

    Returns:
        The new critic and [] the mean loss over epochs and minibatches.
    """
    moments = normalizers.update(state.moments, targets)
    params = rescale_output(state.params, state.moments, moments)
    data = (states, critic.network.apply(params, states), (targets - moments.mean) / moments.std)
    batch_size = states.shape[0]

    def loss(params, minibatch):
        s, old_value, target = minibatch
        value = critic.network.apply(params, s)
        return jnp.mean(clipped_huber(value, old_value, target, config.value_clip, config.huber_delta))

    def step(carry, indices):
        params, opt_state = carry
        minibatch = jax.tree.map(lambda leaf: leaf[indices], data)
        value, gradient = jax.value_and_grad(loss)(params, minibatch)
        change, opt_state = critic.optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, change), opt_state), value

    def epoch(carry, key):
        order = jax.random.permutation(key, batch_size).reshape(config.critic_minibatches, -1)
        return jax.lax.scan(step, carry, order)

    keys = jax.random.split(key, config.critic_epochs)
    (params, opt_state), losses = jax.lax.scan(epoch, (params, state.opt_state), keys)
    return CriticState(params, opt_state, moments), jnp.mean(losses)


def explained_variance(value: jax.Array, target: jax.Array) -> jax.Array:
    """1 - Var(target - value) / Var(target) over the leading axis, averaged over heads; 0 for constant targets."""
    variance = jnp.var(target, axis=0)
    share = 1 - jnp.var(target - value, axis=0) / jnp.where(variance > 0, variance, 1.0)
    return jnp.mean(jnp.where(variance > 0, share, 0.0))
