"""The game where agents matter unequally: allocators of leftover budget, shares and gains against a direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from experiments import stage_games, weighted_game
from marl_kl.core import algorithms, allocators
from marl_kl.core.allocators import AllocationState


def thresholds_of(allocator, utility, spent, budget=1.0):
    """[N] what an allocator gives agents that each spend the share `spent` of it; utilities are the scores too."""
    n = len(utility)
    plan = allocator.start(jax.random.key(3), jnp.asarray(utility), jnp.asarray(budget))
    given, waiting, remaining, unassigned = np.zeros(n), np.ones(n, bool), budget, budget
    for position in range(n):
        now = AllocationState(jnp.int32(position), jnp.asarray(utility), jnp.asarray(waiting), remaining, unassigned)
        agent, threshold = (part.item() for part in allocator.next(plan, now))
        assert waiting[agent]
        given[agent], waiting[agent] = threshold, False
        remaining, unassigned = remaining - spent * threshold, unassigned - threshold
    return given


@pytest.mark.parametrize("share", [allocators.uniform, allocators.water_filling, allocators.natural])
def test_budget_is_carried_over_only_where_some_is_left(share):
    utility = np.array([0.4, 0.1, 0.2, 0.3], np.float32)
    for in_random_order in (False, True):
        allocator = weighted_game.carrying_over(share, in_random_order)
        np.testing.assert_allclose(thresholds_of(allocator, utility, 1.0), share(utility, 1.0), rtol=1e-4)
        half = thresholds_of(allocator, utility, 0.5)
        assert 1 < half.sum() and 0.5 * half.sum() <= 1
    nothing_spent = thresholds_of(weighted_game.carrying_over(allocators.uniform), utility, 0.0)
    np.testing.assert_allclose(np.sort(nothing_spent), [1 / 4, 1 / 3, 1 / 2, 1], rtol=1e-5)


def test_greedy_without_refunds_allocates_the_budget_once():
    """Shares in the ratio of the scores, whatever is spent."""
    scores = np.array([1.0, 4.0, 2.0, 1.0], np.float32)
    allocator = weighted_game.losing(allocators.greedy("proportional"))
    for spent in (0.0, 0.6, 1.0):
        np.testing.assert_allclose(thresholds_of(allocator, scores, spent), scores / 8, rtol=1e-5)
    assert thresholds_of(allocators.greedy("proportional"), scores, 0.6).sum() > 1


def first_update(name, batch, budget=0.04, seeds=4):
    """What `weighted_game` records of one update of its game, leaves [seed, ...]."""
    variant = next(v for v in weighted_game.VARIANTS if v.name == name)
    entry = weighted_game.entry_of(variant)
    env = envs.make("matrix_game", payoff=weighted_game.weighted_payoff())
    config = stage_games.game_config(entry, batch)

    def record(policy, params, metrics):
        names = ("kl_threshold", "kl_total", "utility", "gain", "step_fraction")
        before, after = (weighted_game.right_of(p) for p in (metrics["policy_before"], policy))
        return {name: metrics[name] for name in names} | {"before": before, "after": after}

    runs = {"kl_budget": np.full(seeds, budget)}
    kept = stage_games.learn(env, entry, config, runs, np.arange(seeds), 1, record)
    return {name: values[:, 0] for name, values in kept.items()}, variant


@pytest.mark.rare
@pytest.mark.studies
def test_leftover_budget_in_the_trainer():
    """Carried over or lost, the joint budget is kept; lost, it is allocated once, and carried over, more of it is spent."""
    carried, lost, plain = (first_update(n, 64)[0] for n in ("hatrpo_w-carried", "hatrpo_g-lost", "hatrpo_w"))
    for one in (carried, lost, plain):
        assert (one["kl_total"] <= 0.04).all()
    np.testing.assert_allclose(lost["kl_threshold"].sum(-1), 0.04, rtol=1e-3)
    assert (carried["kl_threshold"].sum(-1) >= plain["kl_threshold"].sum(-1) * 0.999).all()
    assert carried["kl_total"].sum() > 1.1 * plain["kl_total"].sum()
    own = algorithms.get("hatrpo")
    assert algorithms.get(own) == own


@pytest.mark.slow
@pytest.mark.studies
def test_first_update_of_the_weighted_game_against_a_direct_computation():
    """With many samples: predicted gains are those of the KKT formulas, come true, and shares are the rule's own."""
    first, variant = first_update("hatrpo_n", 16384)
    found = weighted_game.gains(first, np.full(4, 0.04), np.zeros(4))
    sizes = weighted_game.WEIGHTS * np.sqrt(first["before"] * (1 - first["before"]))
    by_hand = (sizes * np.sqrt(2 * first["kl_threshold"])).sum(-1)
    np.testing.assert_allclose(found["predicted"], by_hand, rtol=0.05)
    np.testing.assert_allclose(found["real"], found["accepted"], rtol=0.1)
    np.testing.assert_allclose(found["surrogate"], found["real"], rtol=0.1)
    every = np.full(4, 0.04)
    wanted = weighted_game.own_shares(variant, first["before"], every, np.full(4, 1e-4))
    assert weighted_game.apart(first["kl_threshold"] / 0.04, wanted).max() < 0.03


def test_own_shares_by_hand():
    even, budget, epsilon = np.full((1, 4), 1 / 3), np.ones(1), np.full(1, 1e-9)
    ratios = {"hatrpo": [1, 1, 1, 1], "hatrpo_w": [8, 4, 2, 1], "hatrpo_g": [8, 4, 2, 1], "hatrpo_n": [64, 16, 4, 1],
              "hatrpo_g-all": [1, 0, 0, 0]}  # fmt: skip
    for variant in weighted_game.VARIANTS:
        if variant.name in ratios:
            shares = np.array(ratios[variant.name]) / sum(ratios[variant.name])
            got = weighted_game.own_shares(variant, even, budget, epsilon)
            np.testing.assert_allclose(got, shares[None], atol=1e-5)
