"""First-order updates against plain loops, and what clipping, annealing, early stop, masks and sharing must do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from marl_kl.core import agent_updates, algorithms, gradient_steps, surrogates
from marl_kl.core.policies import make_actor
from marl_kl.core.trust_region import AgentBatch
from tests.core.test_schemes import make_problem, make_spec
from tests.support.grids import slow_unless

ALGORITHMS = algorithms.names(marl_kl.FirstOrderConfig)


def small_config(**fields):
    return marl_kl.FirstOrderConfig(hidden_sizes=(6, 5), **{"actor_lr": 0.01, "actor_epochs": 3, **fields})


@functools.cache
def compiled_update(name, actor, config):
    algorithm = algorithms.get(name).build(actor, config)
    return algorithm.init, jax.jit(algorithm.update)


def update(name, actor, config, actors, batch):
    """The new actors, the algorithm's state and the metrics."""
    init, step = compiled_update(name, actor, config)
    return step(jax.random.key(0), actors, init(actors), batch)


def assert_same(a, b, atol=1e-10):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


# The plain loop


def clip_and_adam(gradient, memory, config):
    """One descent step's change, in numpy: clipping by the global norm, then Adam (Kingma & Ba 2015, algorithm 1)."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
    leaves = [leaf * config.actor_max_grad_norm / max(norm, config.actor_max_grad_norm) for leaf in leaves]
    m, v, t = memory or ([0.0] * len(leaves), [0.0] * len(leaves), 0)
    m = [0.9 * old + 0.1 * leaf for old, leaf in zip(m, leaves)]
    v = [0.999 * old + 0.001 * leaf**2 for old, leaf in zip(v, leaves)]
    t += 1
    unbiased = [(a / (1 - 0.9**t), b / (1 - 0.999**t)) for a, b in zip(m, v)]
    change = [-config.actor_lr * a / (np.sqrt(b) + 1e-5) for a, b in unbiased]
    return jax.tree.unflatten(jax.tree.structure(gradient), change), (m, v, t)


class PlainAgent:
    """`actor_epochs` whole-batch steps of one agent at a time, in a loop."""

    def __init__(self, actor, config):
        def policy(params, data):
            return actor.distribution(actor.outputs(params, data.obs), data.action_mask)

        def loss(params, data, old_log_prob, weight):
            ratio = jnp.exp(policy(params, data).log_prob(data.action) - old_log_prob)
            low, high = 1 - config.clip_eps, 1 + config.clip_eps
            held = jnp.where(weight > 0, jnp.minimum(ratio, high), jnp.maximum(ratio, low))
            return -jnp.mean(held * weight) - config.ent_coef * jnp.mean(policy(params, data).entropy())

        self.config = config
        self.log_prob = jax.jit(lambda params, data: policy(params, data).log_prob(data.action))
        self.gradient = jax.jit(jax.grad(loss))

    def improve(self, params, data, weight, memory):
        """New parameters, ratios and Adam's memory."""
        old_log_prob = self.log_prob(params, data)
        for _ in range(self.config.actor_epochs):
            gradient = self.gradient(params, data, old_log_prob, weight)
            change, memory = clip_and_adam(gradient, memory, self.config)
            params = jax.tree.map(jnp.add, params, change)
        return params, np.exp(self.log_prob(params, data) - old_log_prob), memory


def plain_happo(plain, actors, batch, order, memories):
    """HAPPO in a loop, one agent after another; `memories` are Adam's."""
    factor = np.ones(batch.advantage.shape[1])
    gains = [None] * len(order)
    new_actors = [jax.tree.map(lambda leaf: leaf[i], actors) for i in range(len(order))]
    for agent in order:
        data = jax.tree.map(lambda leaf: leaf[agent], batch)
        weight = factor * data.advantage
        new_actors[agent], ratio, memories[agent] = plain.improve(new_actors[agent], data, weight, memories[agent])
        gains[agent] = np.mean((ratio - 1) * weight)
        factor = factor * ratio
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *new_actors), gains, factor


@pytest.mark.parametrize("kind", slow_unless((), ["continuous", "discrete"]))
def test_happo_equals_the_plain_loop(kind, float64):
    """Two updates, so that Adam's memory counts; clipped gradients, ratios beyond the clip, an entropy bonus."""
    config = small_config(ent_coef=0.05, actor_max_grad_norm=0.1, clip_eps=0.02)
    actor, actors, batch = make_problem(make_spec(kind), config)
    init, step = compiled_update("happo", actor, config)
    plain = PlainAgent(actor, config)
    new, expected, state, memories = actors, actors, init(actors), [None] * 3
    for key in jax.random.split(jax.random.key(0), 2):
        new, state, metrics = step(key, new, state, batch)
        order = np.argsort(metrics["position"]).tolist()
        expected, gains, factor = plain_happo(plain, expected, batch, order, memories)
        assert_same(new, expected)
        np.testing.assert_allclose(metrics["gain"], gains, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(metrics["factor_mean"], factor.mean(), rtol=1e-9)
        np.testing.assert_allclose(metrics["factor_max"], factor.max(), rtol=1e-9)
    assert np.max(metrics["grad_norm"]) > config.actor_max_grad_norm and np.max(metrics["clip_fraction"]) > 0
    assert sorted(order) == [0, 1, 2]
    check_contract("happo", kind, new, metrics)


@pytest.mark.slow
def test_one_agent_alone_is_the_same_in_happo_and_mappo(float64):
    """To 1e-12: no ratios of others, the same minibatches. With a GRU: tests/core/test_recurrent.py."""
    config = small_config(actor_minibatches=2)
    actor, actors, batch = make_problem(make_spec("discrete", (3,), (2,)), config, influence=(1.0,))
    one, all_at_once = (update(name, actor, config, actors, batch) for name in ("happo", "mappo"))
    assert_same(one, all_at_once, atol=1e-12)


# Contract


def check_contract(name, kind, actors, metrics):
    """The documented metrics and no others; what an agent of a smaller size does not have stays zero."""
    agent_metrics = algorithms.get(name).agent_metrics
    assert set(metrics) == {*agent_metrics, "kl_total", "factor_mean", "factor_max"}
    for metric, values in metrics.items():
        assert values.shape == ((3,) if metric in agent_metrics else ()), metric
        assert np.all(np.isfinite(values)), metric
    can_move = np.array([True, kind == "continuous", True])  # one choice is none
    np.testing.assert_array_equal(np.asarray(metrics["kl"]) > 0, can_move)
    assert np.all(metrics["epochs"] == small_config().actor_epochs)
    layer = actors["params"]["mean" if kind == "continuous" else "logits"]
    np.testing.assert_array_equal(layer["Dense_0"]["kernel"][0, 3:], 0.0)
    np.testing.assert_array_equal(layer["output"]["kernel"][0, :, 2:], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless({"mappo"}, [name for name in ALGORITHMS if name != "happo"]))
def test_every_simultaneous_update_keeps_the_contract_and_gains(name):
    """In float32, as in training; the discrete kind is in tests/core/test_trainer.py."""
    config = small_config()
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    batch = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, batch)
    new, _, metrics = update(name, actor, config, actors, batch)
    check_contract(name, "continuous", new, metrics)
    assert np.all(metrics["position"] == 0) and np.all(metrics["gain"] > 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs"), [("mappo", 1), *((name, 8) for name in ALGORITHMS)])
def test_steps_that_run_away_leave_finite_parameters(name, epochs):
    """Adam with a step size of 1: log-ratios above 45 after one epoch, which the next ones must survive."""
    config = small_config(actor_lr=1.0, actor_epochs=epochs)
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    new, _, metrics = update(name, actor, config, actors, batch)
    before, after = (
        actor.distribution(actor.team_outputs(params, batch.obs), batch.action_mask).log_prob(batch.action)
        for params in (actors, new)
    )
    assert np.max(np.abs(after - before)) > 45 or epochs > 1, "choose steps that run away"
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(new))
    assert np.isfinite(metrics["factor_max"])


def test_a_factor_that_has_run_away_is_a_finite_weight(float64):
    """HAPPO's second agent where the first one's ratios overflow."""
    _, actors, batch = make_problem(make_spec("continuous"), small_config())
    weight = agent_updates.agent_batch(batch, 1, jnp.full(batch.advantage.shape[1], 200.0)).weight
    np.testing.assert_allclose(weight, np.exp(20.0) * batch.advantage[1], rtol=1e-5)
    moderate = agent_updates.agent_batch(batch, 1, jnp.full(batch.advantage.shape[1], 5.0)).weight
    np.testing.assert_allclose(moderate, np.exp(5.0) * batch.advantage[1], rtol=1e-5)


# One network's steps


def one_network(config, kind="continuous"):
    """The step, fresh parameters and the batch of an agent alone."""
    actor, actors, batch = make_problem(make_spec(kind, (3,), (2,)), config, influence=(1.0,))
    params = jax.tree.map(lambda leaf: leaf[0], actors)
    agent_batch = AgentBatch(*jax.tree.map(lambda leaf: leaf[0], batch), subset=None)
    return gradient_steps.gradient_steps(actor, config, surrogates.clipped), params, agent_batch


def global_norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


@pytest.mark.slow
def test_the_gradient_that_adam_sees_is_bounded_by_the_limit(float64):
    """After one step from nothing Adam's first moment is a tenth of it."""
    _, params, batch = one_network(small_config())

    @jax.jit
    def first_moment(limit):
        config = small_config(actor_epochs=1, actor_max_grad_norm=limit)
        actor = make_actor(make_spec("continuous", (3,), (2,)), config)
        step = gradient_steps.gradient_steps(actor, config, surrogates.clipped)
        improved = step.improve(jax.random.key(0), params, step.init(params), batch)
        return improved.state.opt_state[1].mu, improved.metrics["grad_norm"]

    unbounded, norm = first_moment(jnp.array(1e6))
    np.testing.assert_allclose(global_norm(unbounded), 0.1 * norm, rtol=1e-9)
    for share in (0.01, 0.5, 0.99):
        bounded, reported = first_moment(share * norm)
        np.testing.assert_allclose(global_norm(bounded), 0.1 * share * norm, rtol=1e-9)
        assert_same(bounded, jax.tree.map(lambda leaf: share * leaf, unbounded))
        np.testing.assert_allclose(reported, norm, rtol=1e-9)


def test_early_stop_ends_at_the_first_estimate_of_kl_above_the_target(float64):
    """Exactly where runs of 1, 2, ... epochs see it; an agent's stop is its own."""
    epochs = 6
    config = small_config(actor_epochs=epochs)
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    batch = batch._replace(advantage=batch.advantage.at[1].set(0.0))  # agent 1 has no reason to move

    def estimates(new):
        """[N] mean of r - 1 - log r."""
        before, after = (
            actor.distribution(actor.team_outputs(team, batch.obs), batch.action_mask).log_prob(batch.action)
            for team in (actors, new)
        )
        log_ratio = after - before
        return jnp.mean(jnp.exp(log_ratio) - 1 - log_ratio, axis=1)

    seen = [
        estimates(update("mappo", actor, config.replace(actor_epochs=k), actors, batch)[0])
        for k in range(1, epochs + 1)
    ]
    seen = np.stack(seen)

    @jax.jit
    def stopped(target):
        algorithm = algorithms.get("mappo").build(actor, config.replace(target_kl=target))
        new, _, metrics = algorithm.update(jax.random.key(0), actors, algorithm.init(actors), batch)
        return new, metrics["epochs"]

    ends = set()
    for target in (*np.geomspace(1e-6, 2.0 * np.max(seen), 12), np.inf):
        new, made = stopped(target)
        above = seen > target
        wanted = np.where(above.any(0), 1 + above.argmax(0), epochs)
        np.testing.assert_array_equal(made, wanted)
        np.testing.assert_allclose(estimates(new), seen[wanted - 1, np.arange(3)], rtol=1e-9, atol=1e-15)
        ends |= set(zip(range(3), wanted.tolist()))
    assert len(ends) > 4 and (1, epochs) in ends


@pytest.mark.slow
def test_an_unavailable_choice_gets_no_gradient(float64):
    """With an entropy bonus and Adam, whose steps do not shrink with the gradient: not a bit may change."""
    config = small_config(ent_coef=0.1)
    actor, actors, batch = make_problem(make_spec("discrete"), config)
    mask = batch.action_mask.at[2, :, 1].set(False)
    policy = actor.distribution(jax.vmap(actor.outputs)(actors, batch.obs), mask)
    batch = batch._replace(action_mask=mask, action=policy.sample(jax.random.key(5)))
    new, _, metrics = update("mappo", actor, config, actors, batch)
    for name in ("kernel", "bias"):
        before, after = (tree["params"]["logits"]["output"][name][2] for tree in (actors, new))
        np.testing.assert_array_equal(after[..., 1], before[..., 1])
        assert np.all(after[..., 0] != before[..., 0])
    assert metrics["entropy"][2] <= np.log(2) + 1e-6


# Sharing


@pytest.mark.slow
def test_a_shared_network_learns_from_all_agents_samples(float64):
    """Three agents and one network: the plain loop on the samples of three."""
    spec = make_spec("continuous", (3, 3, 3), (2, 2, 2))
    config = small_config(share_parameters=True, agent_ids=False)
    separate, actors, batch = make_problem(spec, small_config())
    shared = jax.tree.map(lambda leaf: leaf[:1], actors)
    new, state, metrics = update("mappo", make_actor(spec, config), config, shared, batch)
    pooled = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
    plain = PlainAgent(separate, config)
    expected, ratio, _ = plain.improve(jax.tree.map(lambda leaf: leaf[0], shared), pooled, pooled.advantage, None)
    assert_same(jax.tree.map(lambda leaf: leaf[0], new), expected)
    ratio = ratio.reshape(3, -1)
    np.testing.assert_allclose(metrics["gain"], np.mean((ratio - 1) * batch.advantage, axis=1), rtol=1e-6)
    np.testing.assert_allclose(metrics["factor_max"], np.max(np.prod(ratio, axis=0)), rtol=1e-9)
    assert state.updates.tolist() == [1] and metrics["kl"].shape == metrics["grad_norm"].shape == (3,)


def test_sequentially_updated_agents_cannot_share_a_network():
    config = small_config(share_parameters=True)
    with pytest.raises(ValueError, match="share_parameters=True; agents that update one after another need a network"):
        algorithms.get("happo").build(make_actor(make_spec("continuous"), config), config)


def test_minibatches_must_divide_the_batch():
    with pytest.raises(ValueError, match="actor_minibatches=7 does not divide the batch"):
        small_config(actor_minibatches=7)
