"""Algorithms and kinds of action: updates are finite, of the right shapes, inside the budget, with available actions only."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from marl_kl.core import advantages, algorithms, evaluation, rollout, sequences
from marl_kl.core.policies import init_actors, init_obs_moments, make_actor
from marl_kl.core.types import Batch
from tests.support import random_run
from tests.support.grids import slow_unless
from tests.support.kinds_env import KINDS, is_available, kinds_env

NUM_ENVS, LENGTH = 4, 8


def config_of(algorithm, kind, shared=False, recurrent=False):
    config_class = algorithms.get(algorithm).config_class
    quick = {"actor_epochs": 2} if config_class is marl_kl.FirstOrderConfig else {"cg_subsample": 0.5}
    return config_class(
        hidden_sizes=(8,), num_envs=NUM_ENVS, rollout_length=LENGTH, squash=kind == "squashed", share_parameters=shared,
        recurrent=recurrent, recurrent_size=4, **quick,
    )  # fmt: skip


@functools.cache
def sampled(kind, shared, recurrent):
    """`batch(key, actors, env_batch) -> (env_batch, Trajectory, Batch)`, actors, env_batch: one program for all algorithms."""
    env, config = kinds_env(kind), config_of("hatrpo", kind, shared, recurrent)
    actor, moments = make_actor(env.spec, config), init_obs_moments(env.spec, config)

    def feed_forward(inputs, done, memory, *others):
        return [jnp.swapaxes(sequences.rows(x), 0, 1) for x in (inputs, *others)]

    def through_time(inputs, done, memory, *others):
        seen = jax.vmap(sequences.from_rollout, (2, None, 0))(inputs, done, memory)
        return [seen, *(jnp.moveaxis(sequences.batch_major(x), 2, 0) for x in others)]

    @jax.jit
    def batch(key, actors, env_batch):
        memory = env_batch.hidden
        env_batch, trajectory = rollout.rollout(key, env, actor, actors, moments, env_batch, LENGTH)
        advantage = advantages.standardize(trajectory.reward.reshape(-1, 3)).reshape(trajectory.reward.shape)
        as_rows = through_time if recurrent else feed_forward
        inputs = actor.inputs(moments, trajectory.obs)
        rows = as_rows(inputs, trajectory.done, memory, trajectory.action, trajectory.action_mask, advantage)
        return env_batch, trajectory, Batch(*rows)

    nothing = actor.initial_carry((3, NUM_ENVS))
    begin = jax.jit(
        lambda key: (init_actors(key, env.spec, config), rollout.init_env_batch(key, env, NUM_ENVS, nothing))
    )
    return batch, *begin(jax.random.key(0))


def check_actions(env, config, trajectory):
    """Of the right shape and type, and all of them available, as the environment gets them; no reward is NaN."""
    spec, actor = env.spec, make_actor(env.spec, config)
    assert trajectory.action.shape == (LENGTH, NUM_ENVS, *spec.action_shape)
    assert trajectory.action.dtype == (jnp.float32 if spec.action_kind == "continuous" else jnp.int32)
    each = jax.vmap(jax.vmap(lambda action, mask: is_available(spec, actor.env_action(action), mask)))
    assert np.all(each(trajectory.action, trajectory.action_mask)) and np.all(np.isfinite(trajectory.reward))


def agent_metrics_of(algorithm):
    """The metrics per agent that it reports by default."""
    is_cross_fitted = algorithm in ("hatrpo_w", "hatrpo_n")
    return {*algorithms.get(algorithm).agent_metrics, *(["signal_fraction"] if is_cross_fitted else [])}


def covering():
    """(algorithm, kind, shared, recurrent): every on-policy algorithm once.

    What an update does with a kind of action or network depends on the family, trust region or first order, not on the
    algorithm: each family meets every kind and both networks, and every kind meets both networks.
    """
    for index, name in enumerate(algorithms.names(marl_kl.OnPolicyConfig)):
        yield name, KINDS[index % len(KINDS)], False, (index + index // len(KINDS)) % 2 == 0


def test_the_covering_cases_cover_all_pairs():
    seen = [(algorithms.get(name).config_class, kind, recurrent) for name, kind, _, recurrent in covering()]
    assert [case[0] for case in covering()] == list(algorithms.names(marl_kl.OnPolicyConfig))
    for one, other in itertools.combinations(range(3), 2):
        pairs = {(case[one], case[other]) for case in seen}
        assert pairs == set(itertools.product(*({case[part] for case in seen} for part in (one, other))))
    assert {kind for _, kind, _ in seen} == set(KINDS) and {recurrent for *_, recurrent in seen} == {False, True}


# a shared network's step is checked on the other kinds in tests/core/test_schemes.py
@pytest.mark.parametrize(
    ("algorithm", "kind", "shared", "recurrent"),
    slow_unless(
        (),
        [*covering(), ("hatrpo", "discrete", True, False), ("hatrpo", "multi_discrete", True, True)],
    ),
)
def test_two_updates_keep_the_contract(algorithm, kind, shared, recurrent):
    config = config_of(algorithm, kind, shared, recurrent)
    env = kinds_env(kind)
    built = algorithms.get(algorithm).build(make_actor(env.spec, config), config)
    batch_of, actors, env_batch = sampled(kind, shared, recurrent)
    state, update = built.init(actors), jax.jit(built.update)
    for key in jax.random.split(jax.random.key(2), 2):
        env_batch, trajectory, batch = batch_of(key, actors, env_batch)
        check_actions(env, config, trajectory)
        new, state, metrics = update(key, actors, state, batch)
        agent_metrics = agent_metrics_of(algorithm)
        assert set(metrics) == {*agent_metrics, "kl_total", "factor_mean", "factor_max"}
        for name, values in metrics.items():
            assert values.shape == ((3,) if name in agent_metrics else ()) and np.all(np.isfinite(values)), name
        assert 0 < metrics["kl_total"] <= getattr(config, "kl_budget", np.inf)
        for before, after in zip(jax.tree.leaves(actors), jax.tree.leaves(new), strict=True):
            assert after.shape == before.shape and after.dtype == before.dtype and np.all(np.isfinite(after))
        actors = new
    *_, trajectory, _ = batch_of(jax.random.key(3), actors, env_batch)
    check_actions(env, config, trajectory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "kind", "shared"),
    [
        ("maddpg", "squashed", False), ("haddpg", "discrete", False), ("matd3", "multi_discrete", False),
        ("hatd3", "squashed", False), ("matd3", "discrete", True),
    ],
)  # fmt: skip
def test_off_policy_updates_keep_the_contract(algorithm, kind, shared):
    """The actions of the warm-up, of exploration and of the policies are available ones, whose reward is not NaN."""
    env, entry = kinds_env(kind), algorithms.get(algorithm)
    config = marl_kl.OffPolicyConfig(
        hidden_sizes=(8,), num_envs=NUM_ENVS, rollout_length=LENGTH, share_parameters=shared, warmup_steps=64,
        replay_size=128, minibatch_size=8, n_step=2,
    )  # fmt: skip
    train = marl_kl.make_train(env, algorithm, config)
    state, update = jax.jit(train.init)(jax.random.key(0)), jax.jit(train.update)
    for number in range(5):
        before = state
        state, metrics = update(state)
        assert set(metrics) == {*entry.team_metrics, *entry.agent_metrics, "nonfinite"}
        is_warm = number > 0  # the second rollout ends the warm-up
        for name, values in metrics.items():
            assert values.shape == dict.fromkeys(entry.agent_metrics, (3,)).get(name, values.shape)
            assert np.all(np.isfinite(values)) == (is_warm or name not in ("q_loss", "q_mean", *entry.agent_metrics)), (
                name
            )
        assert state.healthy and metrics["replay_fill"] == min(1, (number + 1) / 4)
        moved = jax.tree.map(lambda a, b: np.any(a != b), before.learner.actors, state.learner.actors)
        assert all(jax.tree.leaves(moved)) == is_warm
        assert dtypes(before) == dtypes(state)
    actor, learner = make_actor(env.spec, config), state.learner
    _, trajectory = jax.jit(
        lambda key, state: rollout.rollout(
            key, env, actor, learner.actors, learner.obs_moments, state.env_batch, LENGTH
        )
    )(jax.random.key(3), state)
    check_actions(env, config, trajectory)


def dtypes(tree):
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


def test_off_policy_algorithms_refuse_what_they_cannot_do():
    for fields in ({"recurrent": True}, {"recurrent_critic": True}):
        with pytest.raises(
            ValueError, match="recurrent.*; off-policy algorithms have no recurrent networks: their replay"
        ):
            marl_kl.OffPolicyConfig().replace(**fields)
    for name in ("haddpg", "hatd3"):
        with pytest.raises(ValueError, match=r"share_parameters=True; agents .* one after another .*maddpg and matd3"):
            marl_kl.make_train(kinds_env("squashed"), name, marl_kl.OffPolicyConfig(share_parameters=True))
    with pytest.raises(
        ValueError, match="'kinds' has unbounded actions .*; off-policy algorithms need a control range"
    ):
        marl_kl.make_train(kinds_env("continuous"), "maddpg")
    with pytest.raises(ValueError, match="policy_freq=3; it must divide the 50 gradient steps of an update"):
        marl_kl.make_train(kinds_env("squashed"), "matd3", marl_kl.OffPolicyConfig(policy_freq=3))
    for fields, message in (
        ({"updates_per_step": 0.33}, "updates_per_step=0.33; times rollout_length=50 it must be a whole number"),
        ({"replay_size": 400}, "replay_size=400; it must hold .* at least num_envs . rollout_length = 500"),
        ({"n_step": 50, "replay_size": 500}, "replay_size=500; it must hold more than n_step=50"),
        ({"warmup_steps": 1000, "replay_size": 999}, "warmup_steps=1000; .* replay_size=999, rounded down .*: 500"),
    ):
        with pytest.raises(ValueError, match=message):
            marl_kl.OffPolicyConfig(**fields)


@pytest.mark.parametrize(
    ("algorithm", "recurrent", "fields"),
    slow_unless(
        {("hatrpo_w", False, (("utility", "cross_fitted"), ("utility_smoothing", 0.9)))},
        [
            ("hatrpo_w", False, (("utility", "cross_fitted"), ("utility_smoothing", 0.9))),
            ("hatrpo_n", True, (("utility", "cross_fitted"), ("utility_smoothing", 0.9), ("cg_subsample", 1.0))),
            ("hatrpo_g", False, (("utility", "cross_fitted"), ("line_search", "geometric"))),
            ("hatrpo", False, (("measure_signal", True),)),
        ],
    ),
)
def test_utilities_of_halves_keep_the_contract(algorithm, recurrent, fields):
    config = config_of(algorithm, "continuous", False, recurrent).replace(**dict(fields))
    env = kinds_env("continuous")
    built = algorithms.get(algorithm).build(make_actor(env.spec, config), config)
    batch_of, actors, env_batch = sampled("continuous", False, recurrent)
    state, update = built.init(actors), jax.jit(built.update)
    for key in jax.random.split(jax.random.key(2), 3):
        env_batch, _, batch = batch_of(key, actors, env_batch)
        actors, state, metrics = update(key, actors, state, batch)
        assert set(algorithms.get(algorithm).agent_metrics) | {"signal_fraction"} < set(metrics)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((actors, state, metrics)))
        assert 0 < metrics["kl_total"] <= config.kl_budget


def test_halves_need_an_even_number_of_environments():
    env, config = kinds_env("continuous"), config_of("hatrpo_w", "continuous").replace(num_envs=3, critic_minibatches=1)
    marl_kl.make_train(env, "hatrpo", config.replace(utility="cross_fitted"))  # has no use for utilities
    for algorithm, fields in (("hatrpo_w", {"utility": "cross_fitted"}), ("hatrpo", {"measure_signal": True})):
        with pytest.raises(ValueError, match="num_envs=3; it must be even to compare halves of the environments"):
            marl_kl.make_train(env, algorithm, config.replace(**fields))


def test_a_stored_team_acts_in_the_range_of_its_environment(tmp_path):
    """Loaded and evaluated: the squashed mode, or the squashed sample; the evaluation pays NaN for anything else."""
    env, config = kinds_env("squashed"), random_run.CONFIG.replace(squash=True)
    run = marl_kl.load(random_run.store(tmp_path / "run", env, config=config))
    obs = 5.0 * np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32) * env.spec.observation_mask
    learner, actor = run.learner_of(1), make_actor(env.spec, config)
    outputs = actor.team_outputs(learner.actors, actor.inputs(learner.obs_moments, obs))
    policy = actor.distribution(outputs, jnp.asarray(env.spec.action_mask))
    np.testing.assert_allclose(run.policy(1)(obs), actor.env_action(policy.mode()), rtol=1e-5)
    key = jax.random.key(3)
    sampled_action = run.policy(1)(obs, key=key)
    np.testing.assert_allclose(sampled_action, actor.env_action(policy.sample(key)), rtol=1e-5)
    assert is_available(env.spec, sampled_action, env.spec.action_mask)
    scores = evaluation.evaluate_again(env, config, run.seeds, run.update, run.learner)
    assert np.all(np.isfinite(scores.episode_return)) and np.all(scores.episode_length == 3)


def test_a_stored_team_takes_masks_of_its_choices(tmp_path):
    env = kinds_env("multi_discrete")
    policy = marl_kl.load(random_run.store(tmp_path / "run", env)).policy()
    obs, mask = np.zeros((3, 3), np.float32), np.array(env.spec.action_mask)
    mask[0, :2] = False  # of three choices the last
    for key in (None, *jax.random.split(jax.random.key(0), 5)):
        action = policy(obs, key=key, action_mask=mask)
        assert action.shape == (3, 3) and action.dtype == jnp.int32 and action[0, 0] == 2
        assert is_available(env.spec, action, mask)
    with pytest.raises(ValueError, match=r"action_mask has shape \(3, 8\); env 'kinds' has \[N, A\] = \(3, 9\)"):
        policy(obs, action_mask=mask[:, :-1])
