"""Generalised advantage estimation with termination and truncation kept apart."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from marl_kl.core import weighted


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    gamma: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> jax.Array:
    """Advantages A_t = delta_t + gamma * lambda * (1 - done_t) * A_{t+1}  (Schulman et al. 2016, eq. 16).

    delta_t = r_t + gamma * (1 - terminated_t) * V(s'_t) - V(s_t), where s'_t is the true successor of s_t, before any
    reset. A terminated step bootstraps with 0, a truncated one with the value of its last state; the sum ends at both.
    Not from rlax: there one discount stands for both kinds of end, which cuts the bootstrap at a truncation.

    Args:
        reward: [T, ...] float.
        value: [T, ...] V(s_t).
        next_value: [T, ...] V(s'_t).
        terminated: bool, broadcastable to [T, ...]: the task ended at this step.
        done: bool, like `terminated`: terminated or truncated.
        gamma: discount. gae_lambda: lambda.

    Returns:
        [T, ...] advantages; `advantages + value` are the targets of the critic.
    """
    chex.assert_equal_shape([reward, value, next_value])
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
    decay = jnp.broadcast_to(jnp.where(done, 0.0, gamma * gae_lambda), reward.shape).astype(delta.dtype)

    def backwards(advantage, step):
        delta_t, decay_t = step
        advantage = delta_t + decay_t * advantage
        return advantage, advantage

    return jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)[1]


def standardize(advantage: jax.Array, pooled: bool = False, alive: jax.Array | None = None) -> jax.Array:
    """Mean 0 and standard deviation 1 over the leading axis [B, V], column by column, or over all of it if `pooled`.

    Given `alive` [B, N], both are those of the samples in which an agent is alive; the advantage of a team, V = 1, counts
    once for every agent alive, so that it remains one advantage for all of them.

    A column (or, if pooled, all of it) that is constant up to rounding becomes exactly 0: the length of a trust-region
    step does not depend on that of the gradient, so rounding noise would otherwise cause steps of full size.
    """
    samples = None if pooled else 0
    if alive is not None and advantage.shape != alive.shape:
        alive = jnp.sum(alive, axis=1, keepdims=True)
    centred = advantage - weighted.mean(advantage, alive, axis=samples)
    std = jnp.sqrt(weighted.mean(jnp.square(centred), alive, axis=samples))
    size = jnp.abs(advantage)
    scale = jnp.max(size if alive is None else jnp.where(alive > 0, size, 0.0), axis=samples)
    constant = std <= 1e-5 * scale
    return jnp.where(constant, 0.0, centred / jnp.where(constant, 1.0, std))
