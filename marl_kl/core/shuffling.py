"""Random orders of a batch's rows, for minibatches and subsets."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def random_order(key: jax.Array, num_rows: int) -> jax.Array:
    """[num_rows] int32: every row once.

    Sorts one array of 32-bit words, random bits above the row's number, which takes a quarter to an eighth of
    `jax.random.permutation`'s time on a CPU. Rows whose 32 - log2(num_rows) random bits agree stay in ascending order:
    within a minibatch order is irrelevant, and at most one such group lies across a minibatch's end.
    """
    index_bits = max(1, (num_rows - 1).bit_length())
    words = jax.random.bits(key, (num_rows,), jnp.uint32) << index_bits | jnp.arange(num_rows, dtype=jnp.uint32)
    return (jax.lax.sort(words, is_stable=False) & (2**index_bits - 1)).astype(jnp.int32)
