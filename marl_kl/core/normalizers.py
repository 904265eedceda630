"""Running mean and variance as pure functions (Chan, Golub & LeVeque 1979, the parallel update)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from marl_kl.core import weighted

_MIN_VARIANCE = 1e-6
_CLIP = 10.0


class Moments(NamedTuple):
    """Moments of all samples so far; before the first sample, `standardize` only clips.

    Attributes:
        count: [] number of samples (float: exact to 2^24, beyond that a weight).
        mean: [...].
        variance: [...] population variance.
    """

    count: jax.Array
    mean: jax.Array
    variance: jax.Array

    @property
    def std(self) -> jax.Array:
        """[...], bounded away from 0 so that constant entries stay finite."""
        return jnp.sqrt(jnp.maximum(self.variance, _MIN_VARIANCE))


def init(shape: tuple[int, ...]) -> Moments:
    """Moments of no samples, for samples of `shape`."""
    return Moments(*(jnp.asarray(x, jnp.float32) for x in (0.0, jnp.zeros(shape), jnp.ones(shape))))


def update(moments: Moments, samples: jax.Array, alive: jax.Array | None = None) -> Moments:
    """Adds samples [B, ...] to `moments`.

    Given `alive` [B] or [B, N], only the samples of living agents, which stand for all B: every batch has the same
    weight, since there is one count for all agents. An agent that is never alive in it keeps its moments.
    """
    batch_count = samples.shape[0]
    batch_mean = weighted.mean(samples, alive, axis=0)
    batch_variance = weighted.mean(jnp.square(samples - batch_mean), alive, axis=0)
    if alive is not None:
        has_samples = jnp.any(alive, axis=0)[..., None]
        batch_mean = jnp.where(has_samples, batch_mean, moments.mean)
        batch_variance = jnp.where(has_samples, batch_variance, moments.variance)
    count = moments.count + batch_count
    weight = batch_count / count
    delta = batch_mean - moments.mean
    return Moments(
        count,
        moments.mean + delta * weight,
        moments.variance * (1 - weight) + batch_variance * weight + jnp.square(delta) * weight * (1 - weight),
    )


def standardize(moments: Moments, x: jax.Array) -> jax.Array:
    """(x - mean) / std, clipped to +-10 to bound the effect of outliers."""
    return jnp.clip((x - moments.mean) / moments.std, -_CLIP, _CLIP)
