"""The policies of off-policy algorithms: deterministic, with exploration, and encoded for critics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from marl_kl.config import OffPolicyConfig
from marl_kl.core.distributions import FAMILIES, UNAVAILABLE, Categorical, MultiCategorical


class Explored(Protocol):
    """The policy of an off-policy algorithm: deterministic, and with exploration where it is sampled."""

    def sample(self, key: jax.Array) -> jax.Array: ...

    def mode(self) -> jax.Array: ...

    def uniform(self, key: jax.Array) -> jax.Array:
        """An action drawn uniformly, whatever the policy."""
        ...

    def encoded(self, action: jax.Array) -> jax.Array:
        """An action as critics see it: [..., A] in [-1, 1], choices one-hot; 0 where masked."""
        ...

    def relaxed(self, key: jax.Array) -> jax.Array:
        """[..., A] an encoded action of the policy that is differentiable in the network's outputs."""
        ...

    def smoothed(self, key: jax.Array, std: float | jax.Array, limit: float | jax.Array) -> jax.Array:
        """[..., A] an encoded action close to the policy's (target smoothing; Fujimoto et al. 2018)."""
        ...


class Deterministic(NamedTuple):
    """A continuous action in units of half the control range, from its middle; its exploration is Gaussian.

    Attributes:
        action: [..., A] in [-1, 1]. mask: [..., A] bool, the real dimensions. noise: std of the exploration.
    """

    action: jax.Array
    mask: jax.Array
    noise: float | jax.Array

    def sample(self, key):
        return self._moved(self.noise * jax.random.normal(key, self.action.shape, self.action.dtype))

    def mode(self):
        return jnp.where(self.mask, self.action, 0.0)

    def uniform(self, key):
        uniform = jax.random.uniform(key, self.action.shape, self.action.dtype, -1.0, 1.0)
        return jnp.where(self.mask, uniform, 0.0)

    def encoded(self, action):
        return jnp.where(self.mask, action, 0.0)

    def relaxed(self, key):
        return self.mode()

    def smoothed(self, key, std, limit):
        noise = std * jax.random.normal(key, self.action.shape, self.action.dtype)
        return self._moved(jnp.clip(noise, -limit, limit))

    def _moved(self, by: jax.Array) -> jax.Array:
        return jnp.where(self.mask, jnp.clip(self.action + by, -1.0, 1.0), 0.0)


class EpsilonGreedy(NamedTuple):
    """One or several choices: the likeliest, and while exploring one drawn from the softmax or, at times, uniformly.

    Attributes:
        choice: `Categorical` or `MultiCategorical`. epsilon: how often a choice is uniform.
        temperature: of the softmax through which `relaxed` is differentiated.
    """

    choice: Categorical | MultiCategorical
    epsilon: float | jax.Array
    temperature: float | jax.Array

    def sample(self, key):
        key_own, key_uniform, key_coin = jax.random.split(key, 3)
        own = self.choice.sample(key_own)
        is_uniform = jax.random.bernoulli(key_coin, self.epsilon, own.shape)
        return jnp.where(is_uniform, self.uniform(key_uniform), own)

    def mode(self):
        return self.choice.mode()

    def uniform(self, key):
        return self.choice._replace(logits=jnp.zeros_like(self.choice.logits)).sample(key)

    def encoded(self, action):
        mask = self._groups(self.choice.mask)
        one_hot = jax.nn.one_hot(action.reshape(mask.shape[:-1]), mask.shape[-1], dtype=self.choice.logits.dtype)
        return self._entries(one_hot)

    def relaxed(self, key):
        """Straight-through Gumbel-softmax (Jang et al. 2017): one-hot, with the gradient of the softmax."""
        logits = self._groups(self.choice.logits)
        noisy = (logits + jax.random.gumbel(key, logits.shape, logits.dtype)) / self.temperature
        noisy = jnp.where(self._groups(self.choice.mask), noisy, UNAVAILABLE)
        soft = jax.nn.softmax(noisy, axis=-1)
        hard = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), noisy.shape[-1], dtype=soft.dtype)
        return self._entries(hard + (soft - jax.lax.stop_gradient(soft)))

    def smoothed(self, key, std, limit):
        """A draw from the softmax, whatever `std` and `limit`."""
        return self.encoded(self.choice.sample(key))

    def _groups(self, entries: jax.Array) -> jax.Array:
        """[..., D * K] or [..., D, K] -> [..., D, K]; [..., 1, A] for one choice."""
        shape = self.choice.logits.shape
        return entries.reshape(shape if isinstance(self.choice, MultiCategorical) else (*shape[:-1], 1, shape[-1]))

    def _entries(self, one_hot: jax.Array) -> jax.Array:
        """The inverse of `_groups`, 0 in sub-actions without an available choice."""
        has_choice = jnp.any(self._groups(self.choice.mask), axis=-1, keepdims=True)
        return jnp.where(has_choice, one_hot, 0.0).reshape(self.choice.mask.shape)


def explored_family(action_kind: str, config: OffPolicyConfig) -> Callable[..., Explored]:
    """(network outputs, action mask) -> policy, for an `EnvSpec.action_kind`."""
    if action_kind == "continuous":
        return lambda output, mask: Deterministic(jnp.tanh(output), mask, config.exploration_noise)
    choice = FAMILIES[action_kind]
    return lambda logits, mask: EpsilonGreedy(
        choice(logits, mask), config.exploration_epsilon, config.gumbel_temperature
    )
