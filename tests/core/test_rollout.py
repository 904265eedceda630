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
