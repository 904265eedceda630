"""Sequential trust-region updates of Gaussian policies with exact gradients: no samples, no network, no critic.

Each agent plays one Gaussian; the team's expected reward is a known function of all means and standard deviations. The
surrogate of an agent, given those that have moved before it, is then exactly the gain in expected reward, and its KL
and Fisher matrix are closed forms. What is left of the algorithms is the allocation of the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from marl_kl.core import allocators
from marl_kl.core.allocators import AllocationState, Allocator
from marl_kl.core.distributions import Gaussian

EPSILON = 1e-4
"""Of water-filling and of the greedy score."""
_ACCEPT_RATIO, _BACKTRACK, _TRIES = 0.5, 0.8, 10
"""Those of the trainer's line search."""

ALLOCATORS: dict[str, Callable[[], Allocator]] = {
    "hatrpo": allocators.equal,
    "hatrpo_w": lambda: allocators.planned(lambda utility, budget: allocators.water_filling(utility, budget, EPSILON)),
    "hatrpo_g": lambda: allocators.greedy("proportional"),
    "hatrpo_n": lambda: allocators.planned(allocators.natural),
}


class Team(NamedTuple):
    """mean, log_std: [N] each."""

    mean: jax.Array
    log_std: jax.Array


class Update(NamedTuple):
    """What one update of the team did: kl, threshold, position [N]."""

    kl: jax.Array
    threshold: jax.Array
    position: jax.Array


class _Trial(NamedTuple):
    """An agent's natural direction: step [2] in (mean, log_std), slope g'x = q."""

    step: jax.Array
    slope: jax.Array


def make_update(
    expected: Callable[[jax.Array, jax.Array], jax.Array],
    allocator: Allocator,
    learn_std: bool,
    simultaneous: bool = False,
) -> Callable[[jax.Array, Team, jax.Array], tuple[Team, Update]]:
    """`update(key, team, kl_budget)`.

    Args:
        expected: `expected(mean [N], std [N])`, the team's expected reward.
        allocator: who moves next and how far.
        learn_std: whether standard deviations move too; otherwise they stay.
        simultaneous: every agent steps by the gradient and the line search at the old team, as if it were alone.
    """

    def value(team: Team) -> jax.Array:
        return expected(team.mean, jnp.exp(team.log_std))

    def propose(team: Team, agent) -> _Trial:
        gradient = jax.grad(value)(team)
        g = jnp.stack([gradient.mean[agent], gradient.log_std[agent]])
        # Fisher matrix of (mean, log std): diag(1 / std^2, 2)
        step = g * jnp.stack([jnp.exp(2 * team.log_std[agent]), jnp.where(learn_std, 0.5, 0.0)])
        return _Trial(step, g @ step)

    def stepped(team: Team, agent, change) -> Team:
        return Team(team.mean.at[agent].add(change[0]), team.log_std.at[agent].add(change[1]))

    def divergence(old: Team, new: Team, agent) -> jax.Array:
        mask = jnp.ones(1, bool)
        was, becomes = (Gaussian(t.mean[agent][None], t.log_std[agent][None], mask) for t in (old, new))
        return was.kl(becomes)

    def scale(trial: _Trial, radius) -> jax.Array:
        usable = trial.slope > 1e-30
        return jnp.where(usable, jnp.sqrt(2 * radius / jnp.where(usable, trial.slope, 1.0)), 0.0)

    def searched(team: Team, agent, trial: _Trial, radius) -> tuple[Team, jax.Array]:
        """The longest step that the line search accepts, and its KL."""
        fractions = _BACKTRACK ** jnp.arange(_TRIES)
        full = scale(trial, radius)
        attempts = jax.vmap(lambda f: stepped(team, agent, f * full * trial.step))(fractions)
        kl = jax.vmap(lambda t: divergence(team, t, agent))(attempts)
        gain = jax.vmap(value)(attempts) - value(team)
        kept = (kl <= radius * (1 + 1e-6)) & (gain > 0) & (gain >= _ACCEPT_RATIO * fractions * full * trial.slope)
        first = jnp.argmax(kept)
        moved = jax.tree.map(lambda new, old: jnp.where(kept[first], new[first], old), attempts, team)
        return moved, jnp.where(kept[first], kl[first], 0.0)

    def update(key, team: Team, kl_budget):
        n = team.mean.shape[0]
        share = kl_budget / n
        trials = jax.vmap(lambda agent: propose(team, agent))(jnp.arange(n))
        utility = jax.vmap(lambda trial: scale(trial, share) * trial.slope)(trials)
        plan = allocator.start(key, utility, jnp.asarray(kl_budget, utility.dtype))

        def score(now: Team) -> jax.Array:
            """Of every agent's first trial step, given those that have moved."""
            tried = jax.vmap(lambda i, trial: stepped(now, i, scale(trial, share) * trial.step))(jnp.arange(n), trials)
            kl = jax.vmap(lambda i, t: divergence(now, t, i))(jnp.arange(n), tried)
            return (jax.vmap(value)(tried) - value(now)) / (kl + EPSILON)

        def turn(carry, position):
            now, waiting, remaining, unassigned, done = carry
            agent, threshold = allocator.next(
                plan, AllocationState(position, score(now), waiting, remaining, unassigned)
            )
            seen = team if simultaneous else now
            moved, kl = searched(seen, agent, propose(seen, agent), threshold)
            now = Team(now.mean.at[agent].set(moved.mean[agent]), now.log_std.at[agent].set(moved.log_std[agent]))
            done = Update(
                done.kl.at[agent].set(kl),
                done.threshold.at[agent].set(threshold),
                done.position.at[agent].set(position),
            )
            left = (jnp.maximum(remaining - kl, 0.0), jnp.maximum(unassigned - threshold, 0.0))
            return (now, waiting.at[agent].set(False), *left, done), None

        nothing = Update(jnp.zeros(n), jnp.zeros(n), jnp.zeros_like(jnp.arange(n)))
        budget = jnp.asarray(kl_budget, utility.dtype)
        start: Any = (team, jnp.ones(n, bool), budget, budget, nothing)
        (team, *_, done), _ = jax.lax.scan(turn, start, jnp.arange(n))
        return team, done

    return update


def follow(update: Callable, key: jax.Array, team: Team, kl_budget, num_updates: int) -> tuple[Team, Update]:
    """The team after each update, leaves [U, N]; and what the updates did."""

    def one(team, key):
        team, done = update(key, team, kl_budget)
        return team, (team, done)

    return jax.lax.scan(one, team, jax.random.split(key, num_updates))[1]
