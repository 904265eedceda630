"""The exact parts of the studies of small games match sums by hand; orders and budgets are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.games import two_peaks_expectation
from experiments import (
    bilinear,
    exact_gaussians,
    mixed_motives,
    parameter_sharing,
    stage_games,
    tabular,
    theory,
    two_peaks,
)
from experiments.exact_gaussians import Team
from experiments.styles import TRUST_REGION
from marl_kl.core import allocators


def test_expected_payoff_is_the_sum_over_joint_actions():
    rng = np.random.default_rng(0)
    payoff = rng.normal(size=(2, 3, 2, 3))
    probability = np.array([[0.3, 0.7, 0.0], [0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])
    summed = sum(
        probability[0, a] * probability[1, b] * probability[2, c] * payoff[a, b, c] for a, b, c in np.ndindex(2, 3, 2)
    )
    got = stage_games.expected_payoff(jnp.asarray(probability), jnp.asarray(payoff))
    np.testing.assert_allclose(got, summed, rtol=1e-5)
    small = payoff[:, :2, :, :3]
    even = np.full((3, 2), 0.5)
    regrets = [max(small[..., i].mean(tuple(j for j in range(3) if j != i))) - small[..., i].mean() for i in range(3)]
    got = mixed_motives.total_regret(jnp.asarray(even), jnp.asarray(small))
    np.testing.assert_allclose(got, sum(regrets), rtol=1e-5)


def test_payoff_of_the_sharing_game():
    probability = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.3, 0.7]])
    env = envs.make("parameter_sharing", num_agents=4)
    total = 0.0
    for action in np.ndindex(2, 2, 2, 2):
        reward = env.step(None, env.reset(None, ())[0], jnp.array(action), ())[1].reward[0]
        total += float(reward) * np.prod([probability[i, a] for i, a in enumerate(action)])
    np.testing.assert_allclose(parameter_sharing.expected(jnp.asarray(probability)), total, rtol=1e-6)


@pytest.mark.parametrize("method", TRUST_REGION)
def test_exact_gaussian_updates_keep_the_budget_and_never_lower_the_reward(method, float64):
    update = exact_gaussians.make_update(two_peaks_expectation, exact_gaussians.ALLOCATORS[method](), learn_std=True)
    key, budget = jax.random.key(0), 0.3
    teams, done = jax.jit(lambda team: exact_gaussians.follow(update, key, team, budget, 12))(
        Team(jnp.zeros(2), jnp.zeros(2))
    )
    values = jax.vmap(lambda t: two_peaks_expectation(t.mean, jnp.exp(t.log_std)))(teams)
    assert np.diff(values).min() >= 0 and values[-1] > values[0]
    assert np.asarray(done.kl).sum(-1).max() <= budget * (1 + 1e-6)
    np.testing.assert_array_equal(np.sort(done.position, axis=-1), np.tile([0, 1], (12, 1)))


def test_the_bilinear_game_by_hand(float64):
    """mu = (-1/4, 1/4), KL 1/2 each: both step by 1, E[r] = mu1 mu2 falls to -9/16 simultaneously and rises to
    15/16 sequentially."""
    for simultaneous, after in ((True, -9 / 16), (False, 15 / 16)):
        allocator = exact_gaussians.ALLOCATORS["hatrpo"]()
        update = exact_gaussians.make_update(lambda mean, std: jnp.prod(mean), allocator, False, simultaneous)
        team, _ = update(jax.random.key(0), Team(jnp.array([-0.25, 0.25]), jnp.zeros(2)), 1.0)
        np.testing.assert_allclose(jnp.prod(team.mean), after, rtol=1e-5)


def test_steps_at_the_same_time_by_hand():
    """Every mean moves by 1 towards the sign of the other one, wherever it starts; KL 1/2 each."""
    size = bilinear.Size((1.0,), 5, 1, ())
    found = bilinear.step_exactly(bilinear.SIMULTANEOUS, size)
    a, b = bilinear.starts(5).T
    by_hand = (a + np.sign(b)) * (b + np.sign(a)) - a * b
    np.testing.assert_allclose(found["change"][0], by_hand, atol=1e-5)
    np.testing.assert_allclose(found["worse"], [(by_hand < -1e-4).mean()])


def test_orders_differ_only_in_the_order():
    """Thresholds are those of the share function, the order is that of the utilities even where those are equal."""
    game, policies, _ = theory.random_start(1, 0.5)
    utility = jnp.array([0.2, 0.5, 0.1])
    for share in (allocators.natural, allocators.uniform):
        done = [
            tabular.budgeted_iteration(game, policies, tabular.planned_in(order, share), 0.1, jax.random.key(0))
            for order in theory.ORDERS
        ]
        for one in done[1:]:
            np.testing.assert_allclose(one.thresholds, done[0].thresholds)
        assert abs(done[0].thresholds.sum() - 0.1) < 1e-6
        for order, expected in (("largest", [1, 0, 2]), ("smallest", [2, 0, 1])):
            plan = tabular.planned_in(order, share).start(jax.random.key(0), utility, 0.1)
            np.testing.assert_array_equal(plan[0], expected)


@pytest.mark.slow
@pytest.mark.studies
def test_every_start_has_its_own_orders(monkeypatch):
    """HATRPO's order is random, a different one from each start; water-filling has no randomness."""
    monkeypatch.setattr(two_peaks, "SHOWN_STARTS", np.array([[2.0, 3.0]] * 4))
    size = two_peaks.SIZES["smoke"]._replace(updates=3, grid=2)
    by_chance, planned = (two_peaks.climb_exactly(m, False, size) for m in ("hatrpo", "hatrpo_w"))
    assert by_chance["ended"].shape == (1, 4, size.orders) and planned["ended"].shape == (1, 4, 1)
    assert by_chance["paths"].shape == (4, 3, 2), "every update is drawn"
    assert np.ptp(by_chance["paths"], axis=0).max() > 1e-3
    np.testing.assert_array_equal(np.ptp(planned["paths"], axis=0), 0)
