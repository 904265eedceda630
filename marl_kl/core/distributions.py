"""Action distributions in closed form, masks included.

Each distribution is a pytree of its parameters. Masked entries (padded dimensions, padded or unavailable choices) add
exactly 0 to log-probability, KL, entropy and Fisher product. Not distrax, which the tests compare with: its
distributions have neither masks nor the Fisher product in their own parameters.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

UNAVAILABLE = -1e9
"""The logit of a choice that cannot be made."""


class Distribution(Protocol):
    """An action distribution; `[...]` are batch axes."""

    def sample(self, key: jax.Array) -> jax.Array: ...

    def mode(self) -> jax.Array: ...

    def log_prob(self, action: jax.Array) -> jax.Array:
        """log pi(action): [...]."""
        ...

    def entropy(self) -> jax.Array:
        """In nats: [...]."""
        ...

    def kl(self, other: Distribution) -> jax.Array:
        """KL(self || other): [...]."""
        ...

    def fisher_product(self, tangent: Any) -> Any:
        """Fisher matrix of the network's outputs times `tangent`, a pytree like those outputs."""
        ...


class Gaussian(NamedTuple):
    """Diagonal Gaussian; the network's outputs are (mean, log_std).

    Attributes:
        mean: [..., A]. log_std: [..., A]. mask: [..., A] bool, the real dimensions.
    """

    mean: jax.Array
    log_std: jax.Array
    mask: jax.Array

    def sample(self, key):
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return jnp.where(self.mask, self.mean + jnp.exp(self.log_std) * noise, 0.0)

    def mode(self):
        return jnp.where(self.mask, self.mean, 0.0)

    def log_prob(self, action):
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return self._sum(-0.5 * jnp.square(z) - self.log_std - 0.5 * math.log(2 * math.pi))

    def entropy(self):
        return self._sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e))

    def kl(self, other):
        log_ratio = other.log_std - self.log_std
        scaled = jnp.square((self.mean - other.mean) * jnp.exp(-other.log_std))
        # expm1 keeps the precision of the small divergences inside a trust region
        return self._sum(0.5 * (jnp.expm1(-2 * log_ratio) + scaled) + log_ratio)

    def fisher_product(self, tangent):
        mean, log_std = tangent
        return (
            jnp.where(self.mask, mean * jnp.exp(-2 * self.log_std), 0.0),
            jnp.where(self.mask, 2 * log_std, 0.0),
        )

    def _sum(self, values):
        return jnp.sum(jnp.where(self.mask, values, 0.0), axis=-1)


class Categorical(NamedTuple):
    """One choice among A; the network's output is the logits.

    Attributes:
        logits: [..., A]. mask: [..., A] bool, the available choices (at least one).
    """

    logits: jax.Array
    mask: jax.Array

    @property
    def log_probs(self) -> jax.Array:
        """[..., A] normalised log-probabilities; about -1e9 where unavailable."""
        return jax.nn.log_softmax(jnp.where(self.mask, self.logits, UNAVAILABLE), axis=-1)

    def sample(self, key):
        return jax.random.categorical(key, self.log_probs, axis=-1).astype(jnp.int32)

    def mode(self):
        return jnp.argmax(self.log_probs, axis=-1).astype(jnp.int32)

    def log_prob(self, action):
        return jnp.take_along_axis(self.log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self):
        log_p = self.log_probs
        return -jnp.sum(jnp.where(self.mask, jnp.exp(log_p) * log_p, 0.0), axis=-1)

    def kl(self, other):
        log_p, log_q = self.log_probs, other.log_probs
        p, d = jnp.exp(log_p), log_q - log_p
        # sum p (e^d - 1) is 0: with it, every term of a small divergence is small and none cancels another
        is_small = jnp.abs(d) < 1
        small = jnp.where(is_small, d, 0.0)
        terms = jnp.where(is_small, p * (jnp.expm1(small) - small), jnp.exp(log_q) - p - p * d)
        return jnp.sum(jnp.where(self.mask, terms, 0.0), axis=-1)

    def fisher_product(self, tangent):
        p = jnp.exp(self.log_probs)
        return p * (tangent - jnp.sum(p * tangent, axis=-1, keepdims=True))


class MultiCategorical(NamedTuple):
    """One choice among K in each of D sub-actions, drawn independently; the network's output is the logits.

    A sub-action without an available choice is 0 and adds exactly 0 to every sum.

    Attributes:
        logits: [..., D, K]. mask: [..., D * K] bool, the available choices.
    """

    logits: jax.Array
    mask: jax.Array

    def sample(self, key):
        return jnp.where(self._has_choice, self._parts.sample(key), 0)

    def mode(self):
        return jnp.where(self._has_choice, self._parts.mode(), 0)

    def log_prob(self, action):
        return self._sum(self._parts.log_prob(action))

    def entropy(self):
        return self._sum(self._parts.entropy())

    def kl(self, other):
        return self._sum(self._parts.kl(other._parts))

    def fisher_product(self, tangent):
        return jnp.where(self._has_choice[..., None], self._parts.fisher_product(tangent), 0.0)

    @property
    def _parts(self) -> Categorical:
        """The sub-actions, as one more batch axis."""
        return Categorical(self.logits, self.mask.reshape(self.logits.shape))

    @property
    def _has_choice(self) -> jax.Array:
        """[..., D] bool."""
        return jnp.any(self._parts.mask, axis=-1)

    def _sum(self, values):
        return jnp.sum(jnp.where(self._has_choice, values, 0.0), axis=-1)


FAMILIES = {"continuous": Gaussian, "discrete": Categorical, "multi_discrete": MultiCategorical}
"""By `EnvSpec.action_kind`."""
