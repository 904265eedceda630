"""Sums and means over samples of which some weigh nothing: those of agents that are dead (`envs.TimeStep.alive`).

`alive` is None where all samples count alike, and every function is then the plain one, to the bit. Otherwise it is an
array of bools, or of weights >= 0, whose axes are the first ones of the values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def samples(values: jax.Array, alive: jax.Array | None) -> jax.Array:
    """`values` times `alive`; 0 where dead, whatever the value is there."""
    if alive is None:
        return values
    alive = alive.reshape(alive.shape + (1,) * (values.ndim - alive.ndim))
    return jnp.where(alive > 0, values * alive, 0.0)


def count(alive: jax.Array | None, size: int) -> jax.Array | int:
    """[] number (total weight) of the samples, of which there are `size`; 1 if all are dead, so that means are 0."""
    if alive is None:
        return size
    return _or_one(jnp.sum(alive))


def mean(values: jax.Array, alive: jax.Array | None, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The mean of `values` over the axes `axis` of `alive` (None: all axes); 0 where all are dead."""
    if alive is None:
        return jnp.mean(values, axis=axis)
    total = samples(jnp.ones_like(values), alive)
    return jnp.sum(samples(values, alive), axis=axis) / _or_one(jnp.sum(total, axis=axis))


def _or_one(total: jax.Array) -> jax.Array:
    return jnp.where(total > 0, total, 1)
