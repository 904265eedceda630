"""Cross-fitted utilities: how much of an agent's predicted gain is signal (ours, not published).

The slope g'x of a direction x that was fitted to the gradient estimate g contains the sampling noise of g, which is
nearly the same for all agents. So the batch is divided by environment into halves A and B, whose gradients g_A and g_B
are independent, with directions x_A and x_B, each fitted to its own half alone. The mean over B of g_B'x_A is the slope
of the *true* surrogate along x_A. Hence

    signal s = (g_B'x_A + g_A'x_B) / 2

is an unbiased estimate of the true slope along x = (x_A + x_B) / 2, while g'x with g = (g_A + g_B) / 2 is not.
A single batch's estimate is noisy, so that `UtilityAverage` averages utilities over updates and believes differences
between agents as far as they exceed what noise alone would show. `docs/method.md` has the derivation.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from scipy.special import chdtri

from marl_kl.config import TrustRegionConfig
from marl_kl.core.policies import Actor
from marl_kl.core.trust_region import (
    AgentBatch,
    FisherRows,
    Outcome,
    curvature_along,
    natural_direction,
    outcome,
    score,
    step_size,
)
from marl_kl.core.types import Params


class CrossFit(NamedTuple):
    """An agent's trial direction x = (x_A + x_B) / 2; a leading axis [2] is that of the halves A and B.

    Attributes:
        signal: [] s, the unbiased estimate of the true slope along x; may be negative.
        in_sample: [] (g_A'x_A + g_B'x_B) / 2, what s would be on the samples that the directions were fitted to.
        curvature: [] x'Fx on the full batch.
        directions: [2, P] x_A and x_B.
        held_out_curvature: [2] of x_A on B and of x_B on A.
        outputs: the network's outputs at the old parameters, leaves [2, B/2, ...].
    """

    signal: jax.Array
    in_sample: jax.Array
    curvature: jax.Array
    directions: jax.Array
    held_out_curvature: jax.Array
    outputs: Any

    @property
    def signal_fraction(self) -> jax.Array:
        """[] what the other half confirms of a half's slope: 1 without noise, about 0 (or below) without signal.

        Not s / g'x: half of s is in g'x, so that the mean of that noisy ratio would be too small.
        """
        usable = self.in_sample > 0
        return jnp.where(usable, self.signal / jnp.where(usable, self.in_sample, 1.0), 0.0)


def halves(rows: Any) -> Any:
    """[R, ...] -> [2, R/2, ...]: the rows of the first and of the second half of the environments.

    Samples of one trajectory depend on each other, so all rows of an environment are in the same half: rows are those of
    one environment after another (`sequences.rows`).
    """
    return jax.tree.map(lambda leaf: leaf.reshape(2, -1, *leaf.shape[1:]), rows)


def merged(rows: Any) -> Any:
    """The inverse of `halves`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)


def cross_fit(actor: Actor, config: TrustRegionConfig, params: Params, split: AgentBatch) -> CrossFit:
    """Fits a direction to each half of a batch. Two half solves cost about as much as a full one.

    Args:
        split: the `halves` of an agent's batch, leaves [2, B/2, ...]; `subset` [M] indexes the rows of either half.
    """
    theta, unravel = ravel_pytree(params)
    both = split._replace(subset=None)

    def outputs_of(stack):
        return jax.vmap(lambda t, obs: actor.outputs(unravel(t), obs))(stack, both.obs)

    # the same parameters twice, so that one derivative of the stack holds those of both halves
    stack = jnp.stack([theta, theta])
    outputs, jvp = jax.linearize(outputs_of, stack)
    (gradients,) = jax.linear_transpose(jvp, stack)(jax.vmap(functools.partial(score, actor))(both, outputs))
    gradients = jnp.where(jnp.all(jnp.isfinite(gradients)), gradients, 0.0)

    def solve(half, gradient):
        rows = FisherRows.of(half._replace(subset=split.subset))
        return natural_direction(actor, config, params, rows, gradient)[0]

    def curvatures(directions):
        return jax.vmap(functools.partial(curvature_along, actor))(both, outputs, jvp(directions))

    directions = jax.vmap(solve)(both, gradients)
    direction = jnp.mean(directions, axis=0)
    return CrossFit(
        signal=jnp.mean(jnp.sum(gradients[::-1] * directions, axis=1)),
        in_sample=jnp.mean(jnp.sum(gradients * directions, axis=1)),
        curvature=jnp.mean(curvatures(jnp.stack([direction, direction]))),
        directions=directions,
        held_out_curvature=curvatures(directions[::-1])[::-1],
        outputs=outputs,
    )


def held_out_trial(actor: Actor, params: Params, split: AgentBatch, fit: CrossFit, radius: jax.Array) -> Outcome:
    """The trial steps at `radius` along x_A and x_B, each assessed on the other half; KL and gain are means of both."""
    theta, unravel = ravel_pytree(params)

    def assess(half, old_outputs, direction, curvature):
        stepped = unravel(theta + step_size(radius, curvature) * direction)
        return outcome(actor, half, old_outputs, actor.outputs(stepped, half.obs))

    both = split._replace(subset=None)
    found = jax.vmap(assess)(both, fit.outputs, fit.directions[::-1], fit.held_out_curvature[::-1])
    return Outcome(merged(found.log_ratio), jnp.mean(found.kl), jnp.mean(found.gain))


class UtilityAverage(NamedTuple):
    """Exponentially weighted sums over updates.

    Attributes:
        total, squares: [N] of the utilities and of their squares.
        weight, weight_squares: [] of the weights and of their squares; 0 before the first update.
    """

    total: jax.Array
    squares: jax.Array
    weight: jax.Array
    weight_squares: jax.Array

    @classmethod
    def empty(cls, num_agents: int, dtype: Any = jnp.float32) -> UtilityAverage:
        return cls(*jnp.zeros((2, num_agents), dtype), *jnp.zeros(2, dtype))

    def updated(self, utility: jax.Array, smoothing: float | jax.Array) -> UtilityAverage:
        """With `utility` [N], of weight 1 - smoothing; those that are not finite count as 0."""
        utility = jnp.where(jnp.isfinite(utility), utility, 0.0)
        new = 1 - smoothing
        return UtilityAverage(
            smoothing * self.total + new * utility,
            smoothing * self.squares + new * jnp.square(utility),
            smoothing * self.weight + new,
            smoothing**2 * self.weight_squares + new**2,
        )

    def shrunk(self, smoothing: float | jax.Array) -> jax.Array:
        """[N] averages, moved towards the team's mean as far as their differences may be noise.

        The averages' noise v comes from the variance of the utilities over updates, their spread t over agents holds
        that noise and the true differences: a difference keeps the part max(0, 1 - c v / t). With c = 1 that is empirical
        Bayes (James and Stein 1961; Efron and Morris 1973); but among a few agents t exceeds v in every other update by
        chance, and unequal shares of agents that are alike gain less than equal ones. So c is the 95 % quantile of
        t / v without differences, chi-squared with N - 1 degrees of freedom over N - 1 (2.6 for four agents). Utilities
        whose differences may all be noise allocate equal shares. Without smoothing the noise is unknown, and utilities
        are returned as they are.
        """
        mean = self.total / self.weight
        if mean.shape[0] == 1:
            return mean
        count = jnp.square(self.weight) / self.weight_squares  # effective number of updates
        variance = jnp.maximum(self.squares / self.weight - jnp.square(mean), 0.0)
        noise = jnp.mean(variance) / jnp.maximum(count - 1, 1e-6)
        by_chance = noise * _largest_by_chance(mean.shape[0])
        spread = jnp.var(mean, ddof=1)
        kept = jnp.where(spread > by_chance, 1 - by_chance / jnp.where(spread > 0, spread, 1.0), 0.0)
        # the first update has no variance yet, which is no reason to believe it
        kept = jnp.where(count > 1.5, kept, 0.0)
        team = jnp.mean(mean)
        return jnp.where(smoothing > 0, team + kept * (mean - team), mean)


def _largest_by_chance(num_agents: int) -> float:
    """The 95 % quantile of the variance over agents of as many standard normal numbers."""
    freedom = num_agents - 1
    return float(chdtri(freedom, 0.05)) / freedom  # chi-squared
