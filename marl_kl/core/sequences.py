"""Conversion between rollouts, time first, and batches, environments first.

So the rows of an environment stay together, and a batch can be divided by environment: into halves, or over devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from marl_kl.core.types import Carry, Sequences


def batch_major(x: jax.Array) -> jax.Array:
    """[T, E, ...] -> [E, T, ...]."""
    return jnp.swapaxes(x, 0, 1)


def rows(x: jax.Array) -> jax.Array:
    """[T, E, ...] -> [B, ...], one environment after another."""
    return batch_major(x).reshape(-1, *x.shape[2:])


def from_rollout(inputs: jax.Array, done: jax.Array, hidden: jax.Array) -> Sequences:
    """Inputs of one network [T, E, I], done [T, E], hidden [E, H] at the rollout's start -> Sequences [E].

    An episode begins at the step after a done. If one begins with the rollout, `hidden` is already zero (`reset_carry`).
    """
    resets = jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])
    return Sequences(batch_major(inputs), batch_major(resets), hidden)


def reset_carry(hidden: Carry, done: jax.Array) -> Carry:
    """hidden [..., E, H], set to zero where the episode has ended, done [E]."""
    return jax.tree.map(lambda leaf: jnp.where(done[:, None], 0.0, leaf), hidden)
