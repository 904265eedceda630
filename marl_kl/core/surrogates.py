"""Surrogate objectives of first-order methods, which replace the constraint of a trust region.

Functions `(ratio, advantage, eps) -> objective`, elementwise: ratio r = pi_new(a|o) / pi_old(a|o) > 0, advantage A
(times the compound factor in a sequential scheme), eps > 0 the intended bound of |r - 1|. All agree with r A to first
order at r = 1 and differ in how they penalise other r. They overflow for extreme r: updates use `of_log_ratio`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Surrogate = Callable[[jax.Array, jax.Array, float | jax.Array], jax.Array]
"""`(ratio, advantage, eps) -> objective`, elementwise."""

LARGEST_LOG_RATIO = 10.0
"""Beyond it `of_log_ratio` replaces a surrogate by its tangent: at ratios of 22,000 and 1 / 22,000."""


def of_log_ratio(surrogate: Surrogate, log_ratio: jax.Array, advantage: jax.Array, eps: float | jax.Array) -> jax.Array:
    """`surrogate` as a function of l = log r, finite and with a finite gradient in float32 for every finite l.

    It is surrogate(exp(l), A, eps) for |l| <= L = `LARGEST_LOG_RATIO`, and its tangent in l at the nearer end, +L or
    -L, beyond. (exp alone overflows from l = 88.8 on, the quadratic penalty from 44.4 on, and the gradient of 1/r below
    -44.4.) Clipping l instead would make the objective of outliers constant, without a gradient that pulls them back;
    the tangent keeps the slope d/dl of the bound, and an unbounded penalty stays unbounded.

    Args:
        log_ratio, advantage: broadcastable.

    Returns:
        The objective, elementwise.
    """
    bounded = jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    at = lambda l: surrogate(jnp.exp(l), advantage, eps)  # noqa: E731
    value, slope = jax.jvp(at, (bounded,), (jnp.ones_like(bounded),))
    return value + jax.lax.stop_gradient(slope) * (log_ratio - bounded)


def clipped(ratio: jax.Array, advantage: jax.Array, eps: float | jax.Array) -> jax.Array:
    """min(r A, clip(r, 1 - eps, 1 + eps) A)  (PPO; Schulman et al. 2017, eq. 7).

    Constant beyond 1 + eps for A > 0 and below 1 - eps for A < 0: a sample there has no gradient that pulls it back.
    """
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - eps, 1 + eps) * advantage)


def quadratic(ratio: jax.Array, advantage: jax.Array, eps: float | jax.Array) -> jax.Array:
    """r A - |A| / (2 eps) (r - 1)^2: the penalty of SPO, per agent in MASPO.

    The maximum over r is at 1 + eps for A > 0 and at 1 - eps for A < 0. The penalty is finite at r = 0, |A| / (2 eps),
    so the probability of an action may go to 0; its slope in log r, which reaches the parameters, vanishes with r.
    """
    return ratio * advantage - jnp.abs(advantage) / (2 * eps) * jnp.square(ratio - 1)


def ratio_symmetric(ratio: jax.Array, advantage: jax.Array, eps: float | jax.Array) -> jax.Array:
    """r A - c |A| (r + 1/r - 2), c = (1 + eps)^2 / (eps (2 + eps)): our form of MARS.

    The abstract of MARS (Wijesundara et al. 2026) gives properties, not the formula: the penalty f is symmetric under
    inversion, f(r) = f(1/r), so that doubling a probability costs as much as halving it; it is unbounded as r -> 0; and
    outliers keep a gradient, also in log r, on both sides. f(r) = r + 1/r - 2 = (r - 1)^2 / r is the simplest function
    with these properties: r plus its mirror image 1/r, minus their value at r = 1.

    The constant puts the maximum for A > 0 where SPO has it, at r = 1 + eps:
    d/dr [r - c (r + 1/r - 2)] = 1 - c (1 - 1/r^2) = 0, so c = 1 / (1 - (1 + eps)^-2) = (1 + eps)^2 / (eps (2 + eps)).
    For A < 0 the same c gives 1/r^2 = 1 + 1/c: the maximum is at r = (1 + eps) / sqrt(2 (1 + eps)^2 - 1), which is
    1 - eps to first order in eps.
    """
    c = jnp.square(1 + eps) / (eps * (2 + eps))
    # the quotient form avoids cancellation near r = 1
    return ratio * advantage - c * jnp.abs(advantage) * jnp.square(ratio - 1) / ratio
