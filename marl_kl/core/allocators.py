"""Allocation of one joint KL budget among the agents, and the order of their updates.

First the plain allocation functions: utilities [N] -> thresholds [N], non-negative, with a sum of at most the budget.
Then `Allocator`s, which add an order, for `marl_kl.core.schemes.sequential`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

_BISECTIONS = 48


def uniform(utility: jax.Array, kl_budget: float | jax.Array) -> jax.Array:
    """Equal thresholds kl_budget / N, whatever the utility [N] (HATRPO; Kuba et al. 2022)."""
    utility = _as_float(utility)
    return jnp.full_like(utility, kl_budget / utility.shape[0])


def water_filling(utility: jax.Array, kl_budget: float | jax.Array, epsilon: float | jax.Array = 1e-4) -> jax.Array:
    """The thresholds of HATRPO-W: max sum_i U_i log(1 + d_i / epsilon) s.t. sum_i d_i <= kl_budget, d_i >= 0.

    KKT gives d_i = max(0, U_i / lambda - epsilon) (Shek, Shi & Tokekar 2025). Instead of lambda we bisect on the
    threshold w of the agent with the largest utility, d_i = max(0, u_i w - epsilon (1 - u_i)) with
    u_i = U_i / max U: the same solution, with the bracket [0, kl_budget] known beforehand and no cancellation
    when epsilon >> kl_budget.

    Args:
        utility: [N]; negative and non-finite entries count as 0. If all are 0, the thresholds are equal.
        kl_budget: [] joint budget, >= 0.
        epsilon: [] > 0; epsilon -> 0 gives d proportional to U, epsilon >> kl_budget the whole budget to the best agent.

    Returns:
        [N] thresholds; their sum is at most kl_budget and within 1e-5 of it, relatively.
    """
    utility = _non_negative(utility)
    best = jnp.max(utility)
    u = utility / jnp.where(best > 0, best, 1.0)

    def thresholds(w):
        return jnp.maximum(0.0, u * w - epsilon * (1 - u))

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        fits = jnp.sum(thresholds(middle)) <= kl_budget
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    budget = jnp.asarray(kl_budget, utility.dtype)
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(budget), budget))
    # a single agent: the solution is the end of the bracket, which bisection only approaches
    low = jnp.where(jnp.sum(thresholds(budget)) <= budget, budget, low)
    return jnp.where(best > 0, thresholds(low), uniform(utility, kl_budget))


def natural(utility: jax.Array, kl_budget: float | jax.Array) -> jax.Array:
    """Thresholds proportional to the squared utility [N]: the exact KKT optimum of TRPO's local model.

    In that model an agent gains U_i sqrt(d_i / d_0) at radius d_i, where U_i is its gain at a common radius d_0.
    Maximising the sum under sum_i d_i = kl_budget gives d_i ~ U_i^2, which for U_i^2 ~ q_i = g_i' F_i^-1 g_i is
    the step of one trust region on the joint policy with block-diagonal Fisher matrix. With damping in conjugate
    gradient U_i^2 ~ (g_i' x_i)^2 / (x_i' F_i x_i): the optimum for the directions x_i that are taken. Ours, not
    published. Negative and non-finite utilities count as 0; if all are 0, the thresholds are equal.
    """
    utility = _non_negative(utility)
    best = jnp.max(utility)
    weight = jnp.square(utility / jnp.where(best > 0, best, 1.0))
    shares = weight / jnp.where(best > 0, jnp.sum(weight), 1.0)
    return jnp.where(best > 0, shares * kl_budget, uniform(utility, kl_budget))


def greedy_threshold(
    score: jax.Array, waiting: jax.Array, remaining: jax.Array, share: Literal["proportional", "all"]
) -> tuple[jax.Array, jax.Array]:
    """The next agent of HATRPO-G and its threshold (Shek, Shi & Tokekar 2025; the allocation rule is our choice).

    Args:
        score: [N] improvement / (KL + epsilon) of each agent's trial step; negative and non-finite count as 0.
        waiting: [N] bool, agents not yet updated.
        remaining: [] budget not yet spent.
        share: "proportional": remaining * score / sum of the waiting agents' scores (equal parts if all are 0), so
            that the last agent gets the whole rest; "all": the whole rest to the best agent.

    Returns:
        [] index of the best waiting agent, [] its threshold.
    """
    score = jnp.where(waiting, _non_negative(score), 0.0)
    agent = jnp.argmax(jnp.where(waiting, score, -1.0))
    if share == "all":
        return agent, remaining
    total = jnp.sum(score)
    part = jnp.where(total > 0, score[agent] / jnp.where(total > 0, total, 1.0), 1.0 / jnp.sum(waiting))
    return agent, remaining * part


class AllocationState(NamedTuple):
    """The input of an allocator before each agent's update.

    Attributes:
        position: [] int32, agents updated so far.
        score: [N] current scores; zeros unless the allocator has `uses = "scores"`.
        waiting: [N] bool, agents not yet updated.
        remaining: [] budget not yet spent, including what earlier agents' line searches left of their thresholds.
        unassigned: [] budget not yet allocated, excluding such leftovers.
    """

    position: jax.Array
    score: jax.Array
    waiting: jax.Array
    remaining: jax.Array
    unassigned: jax.Array


class Allocator(NamedTuple):
    """Chooses the next agent and its KL threshold.

    Attributes:
        uses: "nothing"; "utility": each agent's expected gain before any update; "scores": also scores, recomputed
            after each agent's update.
        start: `start(key, utility[N], kl_budget) -> plan`, any pytree.
        next: `next(plan, allocation_state) -> (agent, threshold)`.
    """

    uses: Literal["nothing", "utility", "scores"]
    start: Callable[[jax.Array, jax.Array, jax.Array], Any]
    next: Callable[[Any, AllocationState], tuple[jax.Array, jax.Array]]


class _Plan(NamedTuple):
    """order: [N] agent indices. thresholds: [N] by agent."""

    order: jax.Array
    thresholds: jax.Array


def _follow(plan: _Plan, state: AllocationState) -> tuple[jax.Array, jax.Array]:
    agent = plan.order[state.position]
    return agent, plan.thresholds[agent]


def equal() -> Allocator:
    """HATRPO: equal thresholds, agents in a new random order in every update."""

    def start(key, utility, kl_budget):
        return _Plan(jax.random.permutation(key, utility.shape[0]), uniform(utility, kl_budget))

    return Allocator("nothing", start, _follow)


def planned(allocate: Callable[[jax.Array, jax.Array], jax.Array]) -> Allocator:
    """Thresholds `allocate(utility, kl_budget)`, fixed before the first update; agents in order of their thresholds,
    the largest first, equal ones in random order: where all are equal, this is HATRPO."""

    def start(key, utility, kl_budget):
        thresholds = allocate(utility, kl_budget)
        shuffled = jax.random.permutation(key, utility.shape[0])
        return _Plan(shuffled[jnp.argsort(-thresholds[shuffled])], thresholds)

    return Allocator("utility", start, _follow)


def greedy(share: Literal["proportional", "all"]) -> Allocator:
    """HATRPO-G: the agent with the best score is next; the KL it has spent is subtracted from the budget."""

    def start(key, utility, kl_budget):
        return ()

    def next_agent(plan, state):
        return greedy_threshold(state.score, state.waiting, state.remaining, share)

    return Allocator("scores", start, next_agent)


def _as_float(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.result_type(jnp.asarray(x), float))


def _non_negative(x: jax.Array) -> jax.Array:
    x = _as_float(x)
    return jnp.where(jnp.isfinite(x), jnp.maximum(x, 0.0), 0.0)
