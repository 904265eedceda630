"""Resets, true successors and episode accounts on an environment that counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from marl_kl.core import normalizers, rollout
from marl_kl.core.policies import make_actor
from tests.support import jitted
from tests.support.counting_env import counting_env

LENGTH, NUM_ENVS = 13, 3


@functools.cache
def compiled(env):
    """Its first batch, and `rollout.rollout` on it."""
    config = marl_kl.TrustRegionConfig(hidden_sizes=(4,))
    actor = make_actor(env.spec, config)
    actors = jitted.init_actors(jax.random.key(0), env.spec, config)
    moments = normalizers.init((2, 2))
    env_batch = rollout.init_env_batch(jax.random.key(1), env, NUM_ENVS)
    return env_batch, jax.jit(lambda key, batch: rollout.rollout(key, env, actor, actors, moments, batch, LENGTH))


def roll(env, num_rollouts=1):
    env_batch, step = compiled(env)
    for key in jax.random.split(jax.random.key(2), num_rollouts):
        env_batch, trajectory = step(key, env_batch)
    return env_batch, trajectory


@pytest.mark.parametrize("terminate_at", [None, 5])
def test_episodes_follow_each_other_with_true_successors(terminate_at):
    env = counting_env(episode_length=5, terminate_at=terminate_at)
    env_batch, trajectory = roll(env)
    t = np.arange(LENGTH) % 5
    np.testing.assert_array_equal(trajectory.state[:, :, 1], np.tile(t[:, None], NUM_ENVS))
    # the successor of an episode's last step is its own last state, not the next episode's first
    np.testing.assert_array_equal(trajectory.next_state[:, :, 1], np.tile(t[:, None] + 1, NUM_ENVS))
    np.testing.assert_array_equal(trajectory.next_state[..., 0], trajectory.state[..., 0])
    np.testing.assert_array_equal(trajectory.done[:, 0], t == 4)
    np.testing.assert_array_equal(trajectory.terminated, trajectory.done & (terminate_at is not None))
    np.testing.assert_array_equal(env_batch.episodes.finished, 2)
    np.testing.assert_array_equal(env_batch.episodes.last_length, 5)


def test_every_episode_has_a_start_of_its_own():
    _, trajectory = roll(counting_env(episode_length=13))
    env_batch, _ = roll(counting_env(episode_length=6))
    starts = np.asarray(trajectory.state[0, :, 0])
    assert len(set(starts.tolist())) == NUM_ENVS
    assert len(set(np.asarray(env_batch.timestep.state[:, 0]).tolist())) == NUM_ENVS


def _ends_early(env):
    """`env`, in which episodes that start below 0.5 end after a step."""

    def step(key, env_state, action, params):
        env_state, timestep = env.step(key, env_state, action, params)
        return env_state, timestep._replace(terminated=timestep.terminated | (timestep.state[0] < 0.5))

    return env._replace(step=step)


def test_states_that_end_early_do_not_become_more_frequent():
    """Half of all restarts would be from them with fresh resets, and hardly more are with a pool; nearly all were when each
    environment had a state of its own."""
    env = _ends_early(counting_env(episode_length=20))
    config = marl_kl.TrustRegionConfig(hidden_sizes=(4,))
    actor, actors = make_actor(env.spec, config), jitted.init_actors(jax.random.key(0), env.spec, config)
    moments, env_batch = normalizers.init((2, 2)), rollout.init_env_batch(jax.random.key(1), env, 16)
    step = jax.jit(lambda key, batch: rollout.rollout(key, env, actor, actors, moments, batch, 40))
    begun = []
    for key in jax.random.split(jax.random.key(2), 60):
        env_batch, trajectory = step(key, env_batch)
        start, t = np.moveaxis(np.asarray(trajectory.state), -1, 0)
        begun += start[1:][t[1:] == 0].tolist()
    assert len(begun) > 2000 and abs(np.mean(np.array(begun) < 0.5) - 0.5) < 0.1


@pytest.mark.parametrize("num_envs, size", [(1, 1), (6, 6), (17, 1), (24, 12), (64, 16)])
def test_environments_take_turns_at_the_initial_states_of_their_neighbours(num_envs, size):
    initial = {"state": jnp.arange(num_envs)[:, None], "key": jax.vmap(jax.random.key)(jnp.arange(num_envs))}
    pool = rollout._Pool.of(initial, num_envs)
    assert pool.size == size
    seen = []
    for offset in range(size):
        at = pool.at(offset)
        seen.append(np.asarray(at["state"])[:, 0])
        np.testing.assert_array_equal(jax.random.key_data(at["key"])[:, 1], seen[-1])
        assert sorted(seen[-1]) == list(range(num_envs))
    assert all(set(own // size) == {env // size} for env, own in enumerate(np.stack(seen, 1)))
    assert all(len(set(own)) == size for own in np.stack(seen, 1))
    assert set(np.asarray(pool.offsets(200)).tolist()) == set(range(size))


def test_returns_are_those_of_the_last_finished_episode():
    env_batch, trajectory = roll(counting_env(episode_length=5))
    last = np.asarray(trajectory.reward[5:10, :, 0]).sum(0)
    np.testing.assert_allclose(env_batch.episodes.last_return, last, rtol=1e-6)
    np.testing.assert_allclose(env_batch.episodes.running_length, 3)
    summary = rollout.episode_metrics(env_batch.episodes)
    np.testing.assert_allclose(summary["episode_return"], last.mean(), rtol=1e-6)
    assert summary["episodes_finished"] == 6


def test_before_the_first_episode_ends_there_is_no_return():
    env_batch, _ = roll(counting_env(episode_length=50))
    assert np.isnan(rollout.episode_metrics(env_batch.episodes)["episode_return"])
    env_batch, _ = roll(counting_env(episode_length=50), num_rollouts=4)
    np.testing.assert_allclose(rollout.episode_metrics(env_batch.episodes)["episode_length"], 50)


def test_actions_come_from_the_policy():
    """Stored actions are samples of the distribution at the stored observations."""
    env = counting_env(episode_length=5)
    config = marl_kl.TrustRegionConfig(hidden_sizes=(4,), init_std=1e-3)
    actor = make_actor(env.spec, config)
    actors = jitted.init_actors(jax.random.key(0), env.spec, config)
    actors = jax.tree.map(lambda x: x * (1 if x.ndim == 2 and x.shape[-1] == 1 else 3), actors)
    moments = normalizers.init((2, 2))
    env_batch = rollout.init_env_batch(jax.random.key(1), env, NUM_ENVS)
    _, trajectory = rollout.rollout(jax.random.key(2), env, actor, actors, moments, env_batch, 4)
    for t in range(4):
        policy, _ = rollout.policy_step(actor, actors, moments, trajectory.obs[t], trajectory.action_mask[t], ())
        np.testing.assert_allclose(jnp.swapaxes(trajectory.action[t], 0, 1), policy.mode(), atol=0.05)
