"""Samples of dead agents: the updates of the actors are those of a batch without them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from marl_kl.core import advantages, algorithms, normalizers, on_policy, rollout, train_state, trainer
from marl_kl.core.policies import make_actor
from marl_kl.core.trust_region import AgentBatch
from marl_kl.core.types import Batch
from tests.core import test_recurrent
from tests.core.test_schemes import BATCH, make_problem, make_spec
from tests.support import jitted
from tests.support.counting_env import counting_env

NUM_ENVS, DEAD_STEPS = 4, 20


def config_of(name, **fields):
    config_class = algorithms.get(name).config_class
    small = {"hidden_sizes": (6, 5), "num_envs": NUM_ENVS, "critic_minibatches": 1}
    own = {"cg_subsample": 1.0} if config_class is marl_kl.TrustRegionConfig else {"actor_epochs": 2, "ent_coef": 0.02}
    return config_class(**{**small, **own, **fields})


def updated(name, actor, config, actors, batch):
    algorithm = algorithms.get(name).build(actor, config)
    update = jax.jit(lambda actors, batch: algorithm.update(jax.random.key(0), actors, algorithm.init(actors), batch))
    actors, _, metrics = update(actors, batch)
    return actors, {key: value for key, value in metrics.items() if not key.startswith("factor_")}


def assert_same(a, b, atol=1e-9):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=atol), a, b)


def with_dead_steps(batch, axis):
    """`batch` with copies of some of its steps, made absurd, in which all agents are dead."""
    absurd = {
        "obs": lambda x: 3 - 5 * x, "action": lambda x: x[::-1], "advantage": lambda x: 50 - 9 * x,
        "alive": jnp.zeros_like,
    }  # fmt: skip

    def grown(name, leaf):
        if axis == 2:
            extra = jax.lax.slice_in_dim(leaf, 0, 3, axis=axis)
            return jnp.concatenate([leaf, absurd.get(name, lambda x: x)(extra)], axis=axis)
        # as many in the first half of the environments as in the second
        halves = jnp.split(leaf, 2, axis=1)
        extra = [absurd.get(name, lambda x: x)(half[:, : DEAD_STEPS // 2]) for half in halves]
        return jnp.concatenate([halves[0], extra[0], halves[1], extra[1]], axis=1)

    others = {name: grown(name, getattr(batch, name)) for name in ("action", "action_mask", "advantage")}
    alive = grown("alive", jnp.ones(batch.advantage.shape, bool))
    if axis == 1:
        return Batch(grown("obs", batch.obs), **others, alive=alive)
    obs = batch.obs._replace(inputs=grown("obs", batch.obs.inputs), resets=grown("resets", batch.obs.resets))
    return Batch(obs, **others, alive=alive)


CASES = [
    *((name, {}) for name in ("hatrpo", "hatrpo_w", "hatrpo_g", "hatrpo_n", "happo", "mappo", "mars", "maspo")),
    ("hatrpo", {"share_parameters": True}),
    ("mars", {"share_parameters": True}),
    ("hatrpo_g", {"utility": "cross_fitted"}),
    ("hatrpo_w", {"utility": "measured"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, fields", CASES)
def test_steps_in_which_all_are_dead_change_nothing(name, fields, float64):
    config = config_of(name, **fields)
    spec = make_spec("discrete", (3, 3, 3), (3, 3, 3)) if config.share_parameters else make_spec("discrete")
    actor, actors, batch = make_problem(spec, config.replace(agent_ids=False))
    without = updated(name, actor, config, actors, batch)
    assert_same(updated(name, actor, config, actors, with_dead_steps(batch, axis=1)), without)
    assert without[1]["kl_total"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hatrpo_w", "happo"])
def test_the_end_of_a_sequence_may_be_dead(name, float64):
    own = {"cg_subsample": 1.0} if name == "hatrpo_w" else {"actor_epochs": 2}
    config = test_recurrent.config_of(algorithms.get(name).config_class, **own)
    actor, actors, batch = test_recurrent.team_problem(config, steps=5)
    without = updated(name, actor, config, actors, batch)
    atol = 1e-8 if name == "hatrpo_w" else 1e-9  # directions fitted to halves amplify rounding
    assert_same(updated(name, actor, config, actors, with_dead_steps(batch, axis=2)), without, atol)
    assert without[1]["kl_total"] > 0


def own_samples(batch, agent, alive):
    """The batch of one agent, without the samples in which it is dead."""
    rows = np.flatnonzero(alive[agent])
    return jax.tree.map(lambda leaf: leaf[agent][rows], batch), rows


@functools.cache
def problem_of_unequal_deaths(name, **fields):
    """Each agent is dead in another half of the steps."""
    config = config_of(name, **fields)
    actor, actors, batch = make_problem(make_spec("continuous"), config)
    rng = np.random.default_rng(3)
    alive = rng.permuted(np.tile(np.arange(BATCH) % 2 == 0, (3, 1)), axis=1)
    return config, actor, actors, batch, alive


@pytest.mark.slow
def test_agents_update_on_their_own_samples_one_after_another(float64):
    """HATRPO in a loop; a dead agent's log ratio is 0 for those that follow."""
    config, actor, actors, batch, alive = problem_of_unequal_deaths("hatrpo", line_search_steps=4)
    new, metrics = updated("hatrpo", actor, config, actors, batch._replace(alive=jnp.asarray(alive)))
    factor = np.ones(BATCH)
    for agent in np.argsort(metrics["position"]):
        own, rows = own_samples(batch, agent, alive)
        params = jax.tree.map(lambda leaf: leaf[agent], actors)
        data = AgentBatch(own.obs, own.action, own.action_mask, factor[rows] * own.advantage)
        proposal = jitted.propose(actor, config, params, data)
        step = jitted.line_search(actor, config, params, data, proposal, metrics["kl_threshold"][agent])
        assert_same(jax.tree.map(lambda leaf: leaf[agent], new), step.params)
        found = [metrics[name][agent] for name in ("kl", "gain", "step_fraction", "entropy")]
        np.testing.assert_allclose(found, [*step.outcome[1:], step.step_fraction, step.entropy], rtol=1e-7)
        factor[rows] *= np.exp(step.outcome.log_ratio)
    assert np.all(metrics["step_fraction"] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mappo", "maspo", "mars"])
def test_simultaneous_agents_update_on_their_own_samples(name, float64):
    config, actor, actors, batch, alive = problem_of_unequal_deaths(name)
    alone = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(own_samples(batch, agent, alive)[0] for agent in range(3))
    )
    with_dead = updated(name, actor, config, actors, batch._replace(alive=jnp.asarray(alive)))
    assert_same(with_dead, updated(name, actor, config, actors, alone))


@pytest.mark.slow
@pytest.mark.parametrize("name, fields", [("hatrpo_w", {"cg_subsample": 0.2}), ("happo", {"actor_minibatches": 2})])
def test_what_dead_agents_see_and_do_changes_no_bit(name, fields, float64):
    """Fisher products of a part of the batch, and minibatches, too."""
    config, actor, actors, batch, alive = problem_of_unequal_deaths(name, **fields)
    other = jax.tree.map(lambda leaf: leaf if leaf.dtype == bool else 7 - 3 * leaf, batch)
    pick = lambda a, b: jnp.where(alive.reshape(alive.shape + (1,) * (a.ndim - 2)), a, b)  # noqa: E731
    results = [
        updated(name, actor, config, actors, batch._replace(alive=jnp.asarray(alive))),
        updated(name, actor, config, actors, jax.tree.map(pick, batch, other)._replace(alive=jnp.asarray(alive))),
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert np.all(results[0][1]["kl"] > 0)


def test_an_agent_that_is_always_dead_does_not_move(float64):
    config, actor, actors, batch, alive = problem_of_unequal_deaths("hatrpo", line_search_steps=4)
    alive = jnp.asarray(alive).at[1].set(False)
    new, metrics = updated("hatrpo", actor, config, actors, batch._replace(alive=alive))
    np.testing.assert_array_equal(np.asarray(metrics["kl"]) > 0, [True, False, True])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), new, actors)
    assert all(np.all(np.isfinite(values)) for values in metrics.values())


@pytest.mark.parametrize("heads, pooled", [(1, False), (1, True), (3, False), (3, True)])
def test_advantages_are_standardised_over_living_agents(heads, pooled, float64):
    """In a plain loop: per agent, or over all if they share an advantage or a network."""
    rng = np.random.default_rng(0)
    advantage, alive = rng.normal(2.0, 3.0, (40, heads)), rng.random((40, 3)) < 0.6
    got = np.broadcast_to(advantages.standardize(jnp.asarray(advantage), pooled, jnp.asarray(alive)), (40, 3))
    samples = [[advantage[t, agent % heads] for t in range(40) if alive[t, agent]] for agent in range(3)]
    if pooled or heads == 1:
        samples = [sum(samples, [])] * 3
    for agent in range(3):
        expected = (advantage[:, agent % heads] - np.mean(samples[agent])) / np.std(samples[agent])
        np.testing.assert_allclose(got[alive[:, agent], agent], expected[alive[:, agent]], rtol=1e-9)
    np.testing.assert_array_equal(advantages.standardize(jnp.ones((40, heads)), pooled, jnp.asarray(alive)), 0.0)


def test_moments_are_those_of_what_the_living_see(float64):
    rng = np.random.default_rng(0)
    moments, seen = normalizers.init((2, 3)), [[], []]
    for _ in range(2):
        samples, alive = rng.normal(1.0, 2.0, (10, 2, 3)), np.tile([[True, True], [True, False]], (5, 1))
        moments = normalizers.update(moments, jnp.asarray(samples), jnp.asarray(alive))
        for agent in range(2):
            seen[agent].extend(samples[alive[:, agent], agent])
    np.testing.assert_allclose(moments.mean, [np.mean(s, axis=0) for s in seen], rtol=1e-6)
    np.testing.assert_allclose(moments.variance, [np.var(s, axis=0) for s in seen], rtol=1e-6)
    nothing = jnp.asarray(rng.normal(size=(10, 2, 3)))
    after = normalizers.update(moments, nothing, jnp.tile(jnp.array([True, False]), (10, 1)))
    np.testing.assert_allclose(after.mean[1], moments.mean[1], rtol=1e-6)
    np.testing.assert_allclose(after.variance[1], moments.variance[1], rtol=1e-6)
    assert not np.allclose(after.mean[0], moments.mean[0])


@functools.cache
def mortal_env():
    """The counting environment, in which agent b is dead from the second step of an episode on."""
    env = counting_env(episode_length=5)

    def dying(state, timestep):
        return state, timestep._replace(alive=jnp.stack([jnp.ones((), bool), state.t < 2]))

    return env._replace(
        reset=lambda key, params: dying(*env.reset(key, params)),
        step=lambda key, state, action, params: dying(*env.step(key, state, action, params)),
    )


def test_the_batch_says_who_lived_when_the_action_was_chosen():
    config = marl_kl.TrustRegionConfig(hidden_sizes=(4,), num_envs=3, rollout_length=8, critic_minibatches=1)
    train = trainer.make_train(mortal_env(), "hatrpo", config)
    actor = make_actor(mortal_env().spec, config)

    @jax.jit
    def play(key):
        state = train.init(key)
        learner = state.learner
        _, trajectory = rollout.rollout(
            key, mortal_env(), actor, learner.actors, learner.obs_moments, state.env_batch, config.rollout_length
        )
        batch = on_policy.make_batch(actor, state, trajectory, trajectory.reward[..., :1], 2)
        return trajectory, batch, train_state.update_moments(config, learner, trajectory)[0]

    trajectory, batch, moments = play(jax.random.key(0))
    t = trajectory.obs[..., 0, 1]
    np.testing.assert_array_equal(trajectory.alive[..., 1], t < 2)
    np.testing.assert_array_equal(batch.alive, [np.ones(24, bool), (t < 2).T.ravel()])
    np.testing.assert_allclose(moments.mean[:, 1], [np.mean(t), np.mean(t[t < 2])], rtol=1e-6)


@pytest.mark.slow
def test_training_with_deaths_is_finite():
    config = config_of("hatrpo_g", rollout_length=8)
    result = marl_kl.train(
        mortal_env(), "hatrpo_g", config=config, total_env_steps=64, eval_episodes=2, progress="none"
    )
    assert not result.failures and np.all(result.metrics["kl_total"] > 0)
