"""The share functions against exact solutions and optimality conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from marl_kl.core import allocators

# few sizes, because each is compiled anew
UTILITIES = st.sampled_from([1, 2, 5, 12]).flatmap(
    lambda n: st.lists(st.floats(0, 1e3, width=32), min_size=n, max_size=n)
)
BUDGETS = st.floats(1e-4, 1.0)
EPSILONS = st.sampled_from([1e-8, 1e-6, 1e-4, 1e-2, 1.0, 100.0])
SHARES = {
    "uniform": allocators.uniform,
    "water_filling": allocators.water_filling,
    "natural": allocators.natural,
}


COMPILED = {name: jax.jit(share) for name, share in SHARES.items()}


def exact_water_filling(utility, budget, epsilon):
    """Sorts the agents, and lets the k best share the budget for the largest k that leaves each a positive part."""
    order = np.argsort(-utility)
    thresholds = np.zeros_like(utility)
    for k in range(len(utility), 0, -1):
        active = order[:k]
        level = (budget + k * epsilon) / utility[active].sum()
        if utility[active[-1]] * level > epsilon:
            thresholds[active] = utility[active] * level - epsilon
            return thresholds
    raise AssertionError("the best agent always gets something")


@settings(max_examples=200, deadline=None)
@given(UTILITIES, BUDGETS, EPSILONS)
def test_water_filling_equals_the_exact_solution(utility, budget, epsilon):
    utility = np.asarray(utility)
    assume(utility.max() > 1e-3)
    with jax.enable_x64(True):
        got = np.asarray(COMPILED["water_filling"](jnp.asarray(utility), budget, epsilon))
    np.testing.assert_allclose(got, exact_water_filling(utility, budget, epsilon), atol=1e-9 * budget)


@settings(max_examples=100, deadline=None)
@given(UTILITIES, BUDGETS, EPSILONS)
def test_water_filling_satisfies_its_kkt_conditions(utility, budget, epsilon):
    utility = np.asarray(utility)
    assume(utility.max() > 1e-3)
    with jax.enable_x64(True):
        d = np.asarray(COMPILED["water_filling"](jnp.asarray(utility), budget, epsilon))
    marginal = utility / (d + epsilon)
    level = marginal[np.argmax(utility)]
    moving = d > 1e-9 * budget
    np.testing.assert_allclose(marginal[moving], level, rtol=1e-6)
    assert np.all(marginal[~moving] <= level * (1 + 1e-6))
    np.testing.assert_allclose(d.sum(), budget, rtol=1e-9)


@pytest.mark.parametrize("name", SHARES)
@settings(max_examples=100, deadline=None)
@given(utility=UTILITIES, budget=BUDGETS)
def test_every_share_is_non_negative_and_keeps_the_budget(name, utility, budget):
    """In float32, as in training."""
    d = np.asarray(COMPILED[name](jnp.asarray(utility, jnp.float32), budget), np.float64)
    assert np.all(d >= 0)
    assert d.sum() <= budget * (1 + 1e-6)
    assert d.sum() >= budget * (1 - 1e-4)


@pytest.mark.parametrize("name", SHARES)
def test_shares_follow_scale_and_permutation(name, float64):
    utility = np.random.default_rng(0).uniform(0, 1, 7)
    order = np.random.default_rng(1).permutation(7)
    d = SHARES[name](jnp.asarray(utility), 0.02)
    np.testing.assert_allclose(SHARES[name](jnp.asarray(1e6 * utility), 0.02), d, rtol=1e-9)
    np.testing.assert_allclose(SHARES[name](jnp.asarray(utility[order]), 0.02), d[order], rtol=1e-9)


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("utility", [[0.0, 0.0, 0.0, 0.0], [np.nan] * 4, [-1.0, -2.0, 0.0, -np.inf]])
def test_nothing_to_tell_the_agents_apart_means_equal_parts(name, utility):
    np.testing.assert_allclose(SHARES[name](jnp.asarray(utility), 0.02), 0.005, rtol=1e-6)


@pytest.mark.parametrize("name", ["water_filling", "natural"])
def test_an_agent_with_a_non_finite_utility_gets_no_budget(name):
    d = SHARES[name](jnp.asarray([1.0, jnp.nan, jnp.inf, -1.0]), 0.02)
    np.testing.assert_allclose(d, [0.02, 0, 0, 0], rtol=1e-5)


def test_the_limits_of_water_filling_in_epsilon():
    utility = jnp.array([1.0, 3.0, 2.0])
    np.testing.assert_allclose(allocators.water_filling(utility, 0.06, 1e-9), [0.01, 0.03, 0.02], rtol=1e-4)
    np.testing.assert_allclose(allocators.water_filling(utility, 0.06, 1e3), [0.0, 0.06, 0.0], atol=1e-7)


def test_the_largest_threshold_moves_first_and_equal_ones_in_random_order():
    allocator = allocators.planned(lambda utility, budget: budget * utility)

    @jax.jit
    @jax.vmap
    def order_of(key):
        return allocator.start(key, jnp.array([0.1, 0.3, 0.1, 0.5, 0.1]), jnp.ones(())).order

    orders = np.asarray(order_of(jax.random.split(jax.random.key(0), 600)))
    np.testing.assert_array_equal(orders[:, :2], [[3, 1]] * 600)
    found, times = np.unique(orders[:, 2:], axis=0, return_counts=True)
    assert len(found) == 6 and times.min() > 60 and times.max() < 140, "each of the six orders a hundred times"


def test_natural_is_the_optimum_of_the_local_model(float64):
    """No other split of the budget gains more in sum_i U_i sqrt(d_i)."""
    rng = np.random.default_rng(0)
    utility = rng.uniform(0, 1, 5)

    def gain(d):
        return (utility * np.sqrt(d)).sum(-1)

    best = gain(np.asarray(allocators.natural(jnp.asarray(utility), 0.02)))
    assert np.all(gain(0.02 * rng.dirichlet(np.ones(5), 10_000)) <= best + 1e-12)


def test_vmap_and_jit_give_the_same_shares():
    utility = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (6, 4)), jnp.float32)
    budgets = jnp.linspace(0.01, 0.1, 6)
    batched = jax.jit(jax.vmap(allocators.water_filling))(utility, budgets)
    for row, budget, got in zip(utility, budgets, batched):
        np.testing.assert_allclose(got, allocators.water_filling(row, budget), rtol=1e-5)


def test_greedy_gives_the_best_waiting_agent_its_part():
    score = jnp.array([1.0, 5.0, 3.0, 1.0])
    waiting = jnp.array([True, False, True, True])
    agent, threshold = allocators.greedy_threshold(score, waiting, jnp.array(0.1), "proportional")
    assert agent == 2
    np.testing.assert_allclose(threshold, 0.06)
    agent, threshold = allocators.greedy_threshold(score, waiting, jnp.array(0.1), "all")
    assert (agent, float(threshold)) == (2, pytest.approx(0.1))


def test_the_last_agent_of_greedy_gets_all_that_is_left():
    for score in (2.0, 0.0, -1.0, float("nan")):
        agent, threshold = allocators.greedy_threshold(
            jnp.array([9.0, score]), jnp.array([False, True]), jnp.array(0.01), "proportional"
        )
        assert agent == 1
        np.testing.assert_allclose(threshold, 0.01)
