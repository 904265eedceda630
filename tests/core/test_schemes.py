"""The sequential update against the plain one, its budget, and what padding may not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from benchmarks.plain_hatrpo import plain_update
from envs.base import EnvSpec, multi_discrete_sizes
from marl_kl.core import algorithms
from marl_kl.core.policies import make_actor
from marl_kl.core.types import Batch
from tests.support import jitted
from tests.support.grids import slow_unless

ALGORITHMS = ("hatrpo", "hatrpo_w", "hatrpo_g", "hatrpo_n")
BATCH = 200
OBS_SIZES, ACTION_SIZES = (3, 5, 4), (2, 1, 3)


def make_spec(kind, obs_sizes=OBS_SIZES, action_sizes=ACTION_SIZES):
    names = tuple(f"agent_{i}" for i in range(len(obs_sizes)))
    if kind != "multi_discrete":
        return EnvSpec("synthetic", names, obs_sizes, action_sizes, kind, 4, 100)
    sub_actions = tuple((3, 2, 3)[:size] for size in action_sizes)
    sizes = multi_discrete_sizes(sub_actions)
    return EnvSpec("synthetic", names, obs_sizes, sizes, kind, 4, 100, sub_actions=sub_actions)


def as_default_float(x):
    """Networks are initialised in float32; the oracles want what `jax.enable_x64` says."""
    return x.astype(jnp.zeros(()).dtype)


def make_problem(spec, config, seed=0, influence=(1.0, 1.0, 1.0)):
    """A padded random batch whose advantage depends on agent i's action with weight influence[i]."""
    rng = np.random.default_rng(seed)
    num_agents = spec.num_agents
    actor = make_actor(spec, config)
    actors = jax.tree.map(as_default_float, jitted.init_actors(jax.random.key(seed), spec, config))
    obs = jnp.asarray(rng.normal(size=(num_agents, BATCH, spec.observation_size)))
    obs = jnp.where(spec.observation_mask[:, None], obs, 0.0)
    mask = jnp.broadcast_to(spec.action_mask[:, None], (num_agents, BATCH, spec.action_size))
    action = actor.distribution(actor.team_outputs(actors, obs), mask).sample(jax.random.key(seed + 1))
    first = action if spec.action_kind == "discrete" else action[..., 0]
    advantage = sum(w * jnp.tanh(a * (0.5 + o[:, 0])) for w, a, o in zip(influence, first, obs))
    advantage = advantage + 0.3 * rng.normal(size=BATCH)
    advantage = (advantage - advantage.mean()) / advantage.std()
    return actor, actors, Batch(obs, action, mask, jnp.broadcast_to(advantage, (num_agents, BATCH)))


def small_config(**fields):
    return marl_kl.TrustRegionConfig(hidden_sizes=(6, 5), **{"kl_budget": 0.03, **fields})


@functools.cache
def compiled_update(name, actor, config):
    built = algorithms.get(name).build(actor, config)
    return built.init, jax.jit(built.update)


def update(name, actor, config, actors, batch, key=0):
    init, compiled = compiled_update(name, actor, config)
    new, _, metrics = compiled(jax.random.key(key), actors, init(actors), batch)
    return new, metrics


@pytest.mark.parametrize("kind", slow_unless({"discrete"}, ["continuous", "discrete"]))
def test_hatrpo_equals_the_plain_update(kind, float64):
    """Same order, full batch: parameters, KL and gains agree with the double-backward loop."""
    config = small_config(cg_subsample=1.0, cg_tol=0.0, cg_iters=4, line_search_steps=3, line_search="geometric")
    actor, actors, batch = make_problem(make_spec(kind), config)
    new, metrics = update("hatrpo", actor, config, actors, batch)
    order = np.argsort(metrics["position"]).tolist()
    thresholds = metrics["kl_threshold"]
    plain, spent, gains = jax.jit(lambda *data: plain_update(actor, config, *data, order, thresholds))(actors, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), new, plain)
    np.testing.assert_allclose(metrics["kl"], spent, rtol=1e-6)
    np.testing.assert_allclose(metrics["gain"], gains, rtol=1e-6)
    can_move = np.asarray(ACTION_SIZES) > (1 if kind == "discrete" else 0)
    np.testing.assert_array_equal(np.asarray(metrics["step_fraction"]) > 0, can_move)


@pytest.mark.parametrize("name", slow_unless({"hatrpo_w", "hatrpo_g"}, ALGORITHMS))
@pytest.mark.parametrize("kind", slow_unless({"discrete"}, ["continuous", "discrete"]))
def test_every_update_keeps_the_joint_budget(name, kind):
    """In float32, as in training; positions are a permutation, thresholds are kept one by one.

    The budget on all kinds of action: tests/core/test_contracts.py.
    """
    for seed in range(3):
        config = small_config(cg_subsample=0.5)
        actor, actors, batch = make_problem(make_spec(kind), config, seed)
        batch = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, batch)
        _, metrics = update(name, actor, config, actors, batch, key=seed)
        assert metrics["kl_total"] <= config.kl_budget
        assert metrics["kl_total"] > 0
        assert np.all(metrics["kl"] <= metrics["kl_threshold"])
        assert sorted(metrics["position"].tolist()) == [0, 1, 2]
        if name != "hatrpo_g":
            np.testing.assert_allclose(np.sum(metrics["kl_threshold"]), config.kl_budget, rtol=1e-4)


@pytest.mark.parametrize("name", slow_unless({"hatrpo_n"}, ["hatrpo_w", "hatrpo_g", "hatrpo_n"]))
def test_the_budget_goes_to_the_agent_that_can_use_it(name):
    """Only agent 1 influences the advantage: it moves first and gets most; HATRPO gives it a third."""
    config = small_config(cg_subsample=1.0, utility="first_order")
    actor, actors, batch = make_problem(make_spec("continuous"), config, influence=(0.0, 3.0, 0.0))
    _, metrics = update(name, actor, config, actors, batch)
    _, equal = update("hatrpo", actor, config, actors, batch)
    share = metrics["kl_threshold"] / config.kl_budget
    assert np.argmax(metrics["utility"]) == 1 and metrics["position"][1] == 0
    assert share[1] > 0.45 and np.argmax(metrics["kl"]) == 1
    np.testing.assert_allclose(equal["kl_threshold"], config.kl_budget / 3, rtol=1e-5)


@pytest.mark.parametrize(
    "name, same", [("hatrpo_w", {"utility": "cross_fitted"}), ("hatrpo_g", {"utility": "first_order"})]
)
def test_auto_is_cross_fitted_where_utilities_plan_and_published_where_scores_choose(name, same):
    actor, actors, batch = make_problem(make_spec("continuous"), small_config())
    new, metrics = update(name, actor, small_config(), actors, batch)
    other, other_metrics = update(name, actor, small_config(**same), actors, batch)
    jax.tree.map(np.testing.assert_array_equal, (new, metrics), (other, other_metrics))


def test_published_utilities_are_not_smoothed():
    """Two updates, so that there is something to average."""
    config = small_config(utility="first_order")
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    found = []
    for smoothing in (0.0, 0.9):
        init, compiled = compiled_update("hatrpo_w", actor, config.replace(utility_smoothing=smoothing))
        new, state = actors, init(actors)
        for key in range(2):
            new, state, metrics = compiled(jax.random.key(key), new, state, batch)
        found.append((new, metrics))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("name", ["hatrpo_w", "hatrpo_n"])
def test_utilities_that_tell_nothing_apart_make_it_hatrpo(name, float64):
    """The averages of a first update are no reason to believe a difference: shares, order and steps are HATRPO's."""
    config = small_config()
    actor, actors, batch = make_problem(make_spec("continuous"), config, influence=(0.0, 3.0, 0.0))
    for key in range(3):
        new, metrics = update(name, actor, config, actors, batch, key)
        equal, equal_metrics = update("hatrpo", actor, config, actors, batch, key)
        np.testing.assert_array_equal(metrics["position"], equal_metrics["position"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new, equal)


@pytest.mark.parametrize("name", slow_unless({"hatrpo_g"}, ["hatrpo", "hatrpo_w", "hatrpo_g"]))
def test_measuring_signal_changes_nothing_else(name, float64):
    config = small_config() if name == "hatrpo" else small_config(utility="first_order")
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    new, metrics = update(name, actor, config, actors, batch)
    again, measured = update(name, actor, config.replace(measure_signal=True), actors, batch)
    assert set(measured) - set(metrics) == {"signal_fraction"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), again, new)
    for metric, values in metrics.items():
        np.testing.assert_allclose(measured[metric], values, rtol=1e-9, err_msg=metric)


def test_greedy_subtracts_what_was_really_spent():
    config = small_config(cg_subsample=1.0)
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    _, metrics = update("hatrpo_g", actor, config, actors, batch)
    last = int(np.argmax(metrics["position"]))
    left = config.kl_budget - (np.sum(metrics["kl"]) - metrics["kl"][last])
    np.testing.assert_allclose(metrics["kl_threshold"][last], left, rtol=1e-4)


def test_compound_factor_is_the_product_of_the_ratios(float64):
    config = small_config(cg_subsample=1.0)
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    new, metrics = update("hatrpo", actor, config, actors, batch)

    def log_prob(params):
        return actor.distribution(jax.vmap(actor.outputs)(params, batch.obs), batch.action_mask).log_prob(batch.action)

    factor = np.exp(np.sum(log_prob(new) - log_prob(actors), axis=0))
    np.testing.assert_allclose(metrics["factor_mean"], factor.mean(), rtol=1e-9)
    np.testing.assert_allclose(metrics["factor_max"], factor.max(), rtol=1e-9)


def corner(array):
    """The slices that an array fills of a larger one."""
    return tuple(slice(n) for n in array.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless({"hatrpo_w"}, ALGORITHMS))
def test_padding_changes_nothing(name, float64):
    """Agents of one size, and the same ones beside a dummy width of zeros: the same update to rounding."""
    config = small_config(cg_subsample=1.0)
    actor, actors, batch = make_problem(make_spec("continuous", (3, 3, 3), (2, 2, 2)), config)
    padded_spec = make_spec("continuous", (3, 3, 3, 6), (2, 2, 2, 4))  # a fourth agent sets the padded sizes only
    shapes = jitted.init_actors(jax.random.key(0), padded_spec, config)
    padded_actors = jax.tree.map(
        lambda small, big: jnp.zeros((3, *big.shape[1:])).at[corner(small)].set(small), actors, shapes
    )
    grow = lambda x, n: jnp.concatenate([x, jnp.zeros((*x.shape[:-1], n), x.dtype)], -1)  # noqa: E731
    padded = Batch(grow(batch.obs, 3), grow(batch.action, 2), grow(batch.action_mask, 2), batch.advantage)
    new, metrics = update(name, actor, config, actors, batch)
    padded_new, padded_metrics = update(name, make_actor(padded_spec, config), config, padded_actors, padded)
    for key in metrics:
        np.testing.assert_allclose(padded_metrics[key], metrics[key], rtol=1e-7, atol=1e-12)

    def check(small, big):
        np.testing.assert_allclose(big[corner(small)], small, atol=1e-9)
        np.testing.assert_array_equal(big.at[corner(small)].set(0.0), 0.0)

    jax.tree.map(check, new, padded_new)


@pytest.mark.slow
@pytest.mark.parametrize("kind", slow_unless({"discrete"}, ["continuous", "discrete"]))
def test_one_agent_is_trpo(kind, float64):
    """With nobody else all allocators are TRPO: the whole budget, the same step. Carry: tests/core/test_recurrent.py."""
    config = small_config(cg_subsample=1.0, cg_tol=0.0, cg_iters=4, line_search_steps=3, line_search="geometric")
    actor, actors, batch = make_problem(make_spec(kind, (3,), (2,)), config, influence=(1.0,))
    thresholds = jnp.array([config.kl_budget])
    plain, _, _ = jax.jit(lambda *data: plain_update(actor, config, *data, [0], thresholds))(actors, batch)
    for name in ALGORITHMS:
        new, metrics = update(name, actor, config, actors, batch)
        np.testing.assert_allclose(metrics["kl_threshold"], config.kl_budget, rtol=2e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new, plain)


@pytest.mark.parametrize("name", slow_unless({"hatrpo_w"}, ALGORITHMS))
def test_without_an_advantage_parameters_do_not_change(name):
    config = small_config()
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    new, metrics = update(name, actor, config, actors, batch._replace(advantage=jnp.zeros_like(batch.advantage)))
    jax.tree.map(np.testing.assert_array_equal, new, actors)
    assert metrics["kl_total"] == 0 and metrics["factor_max"] == 1


def test_greedy_can_give_everything_to_the_best():
    config = small_config(cg_subsample=1.0, greedy_share="all")
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    _, metrics = update("hatrpo_g", actor, config, actors, batch)
    first = int(np.argmin(metrics["position"]))
    np.testing.assert_allclose(metrics["kl_threshold"][first], config.kl_budget, rtol=1e-5)


@pytest.mark.slow
def test_measured_utility_is_the_trial_steps_gain():
    actor, actors, batch = make_problem(make_spec("continuous"), small_config())
    configs = (small_config(cg_subsample=1.0, utility=u, kl_budget=1e-4) for u in ("first_order", "measured"))
    first, measured = (update("hatrpo_w", actor, config, actors, batch)[1]["utility"] for config in configs)
    assert not np.array_equal(first, measured)
    np.testing.assert_allclose(first, measured, rtol=0.05)


# One network for all


SHARED = {"share_parameters": True, "agent_ids": False}


@pytest.mark.slow
def test_a_shared_network_takes_the_step_of_a_direct_solve(float64):
    """Sums over agents in dense linear algebra, and the line search on those very sums."""
    config = small_config(
        cg_subsample=1.0,
        cg_tol=1e-26,
        cg_iters=300,
        line_search="geometric",
        backtrack_coef=0.9,
        kl_budget=0.3,
        **SHARED,
    )
    actor, actors, batch = make_problem(make_spec("continuous"), config, seed=2)
    params = jax.tree.map(lambda leaf: leaf[0], actors)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * np.random.default_rng(1).normal(size=leaf.shape), params)
    actors = jax.tree.map(lambda leaf: leaf[None], params)
    theta, unravel = jax.flatten_util.ravel_pytree(params)

    def of_agents(t):
        """[N] each: mean KL, surrogate gain."""
        old, new = (actor.distribution(actor.outputs(unravel(x), batch.obs), batch.action_mask) for x in (theta, t))
        ratio = jnp.exp(new.log_prob(batch.action) - old.log_prob(batch.action))
        return jnp.mean(old.kl(new), axis=1), jnp.mean((ratio - 1) * batch.advantage, axis=1)

    kl, gain = (lambda t, part=part: jnp.sum(of_agents(t)[part]) for part in (0, 1))
    fisher, gradient = jax.jit(jax.hessian(kl))(theta), jax.jit(jax.grad(gain))(theta)
    direction = jnp.linalg.solve(fisher + 3 * config.cg_damping * jnp.eye(len(theta)), gradient)
    full = jnp.sqrt(2 * config.kl_budget / (direction @ fisher @ direction)) * direction
    new, metrics = update("hatrpo", actor, config, actors, batch)
    measured = jax.jit(of_agents)
    for tries in range(config.line_search_steps):
        fraction = 0.9**tries
        kls, gains = measured(theta + fraction * full)
        if sum(kls) <= config.kl_budget and sum(gains) >= 0.5 * fraction * (gradient @ full):
            break
    assert 0 < tries < config.line_search_steps - 1, "choose a budget at which the line search has work to do"
    np.testing.assert_allclose(metrics["step_fraction"], fraction, rtol=1e-12)
    moved = jax.flatten_util.ravel_pytree(jax.tree.map(lambda leaf: leaf[0], new))[0]
    np.testing.assert_allclose(moved, theta + fraction * full, atol=1e-6)
    np.testing.assert_allclose(metrics["kl"], kls, rtol=1e-5)
    np.testing.assert_allclose(metrics["gain"], gains, rtol=1e-5)
    np.testing.assert_allclose(np.sum(metrics["utility"]), gradient @ full, rtol=1e-5)
    np.testing.assert_array_equal(metrics["position"], 0)


def test_a_shared_network_of_one_agent_equals_a_separate_one(float64):
    """One agent: the same step of the same subsample, the same report."""
    spec, alone, shared = make_spec("continuous", (3,), (2,)), small_config(), small_config(**SHARED)
    actor, actors, batch = make_problem(spec, alone, influence=(1.0,))
    new, metrics = update("hatrpo", actor, alone, actors, batch)
    other, other_metrics = update("hatrpo", make_actor(spec, shared), shared, actors, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), other, new)
    assert set(metrics) == set(other_metrics)
    for name, values in metrics.items():
        np.testing.assert_allclose(other_metrics[name], values, rtol=1e-9, err_msg=name)


@pytest.mark.slow
def test_a_shared_step_keeps_the_joint_budget():
    """In float32; agents spend as much as they do, only their sum is bounded."""
    for seed in range(5):
        config = small_config(cg_subsample=0.5, kl_budget=0.3, **SHARED)
        actor, actors, batch = make_problem(make_spec("multi_discrete"), config, seed, influence=(0.1, 0.0, 2.0))
        batch = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, batch)
        new, metrics = update("hatrpo", actor, config, actors, batch, key=seed)
        assert 0.1 * config.kl_budget < metrics["kl_total"] <= config.kl_budget
        np.testing.assert_allclose(metrics["kl_total"], np.sum(metrics["kl"]), rtol=1e-6)
        assert len(set(metrics["step_fraction"].tolist())) == 1 and metrics["step_fraction"][0] > 0
        assert jax.tree.leaves(new)[0].shape[0] == 1
    nothing_to_gain = batch._replace(advantage=jnp.zeros_like(batch.advantage))
    nobody, metrics = update("hatrpo", actor, config, actors, nothing_to_gain)
    jax.tree.map(np.testing.assert_array_equal, nobody, actors)
    assert metrics["kl_total"] == 0 and metrics["factor_max"] == 1


@pytest.mark.parametrize("name", ["hatrpo_w", "hatrpo_g", "hatrpo_n"])
def test_one_network_has_no_budget_to_share_out(name):
    config = small_config(share_parameters=True)
    sentence = "share_parameters=True; one network takes one step .* hatrpo with share_parameters=True is that step"
    with pytest.raises(ValueError, match=sentence) as e:
        algorithms.get(name).build(make_actor(make_spec("continuous"), config), config)
    assert "\n" not in str(e.value)
