"""Between a rollout, time first, and what recurrent networks see of it, environments first."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from marl_kl.core.types import Carry, Sequences


def by_environment(x: jax.Array) -> jax.Array:
    """[T, E, ...] -> [E, T, ...]."""
    return jnp.swapaxes(x, 0, 1)


def from_rollout(inputs: jax.Array, done: jax.Array, hidden: jax.Array) -> Sequences:
    """What one network saw: inputs [T, E, I], done [T, E], hidden [E, H] at the rollout's start -> Sequences [E].

    Episodes begin behind those that end. If one begins with the rollout, `hidden` is zero already (see `reset_carry`).
    """
    begins = jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])
    return Sequences(by_environment(inputs), by_environment(begins), hidden)


def reset_carry(hidden: Carry, done: jax.Array) -> Carry:
    """hidden [..., E, H], zero where the episode has ended: done [E]."""
    return jax.tree.map(lambda leaf: jnp.where(done[:, None], 0.0, leaf), hidden)
