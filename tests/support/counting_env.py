"""A small environment with known values, for the tests of rollout, trainer and host loop."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.base import Env, EnvSpec, TimeStep
from envs.time_limit import with_time_limit


class CountingState(NamedTuple):
    start: jax.Array
    t: jax.Array


@functools.cache
def counting_env(episode_length=5, terminate_at=None, nan_start_above=None, team_reward=True):
    """The state is (start, t), start uniform in [0, 1) per reset; the reward of step t is t minus the first agent's
    squared action / 100 (without a team reward: 0 for agent 1); ends at `terminate_at` or by the time limit.

    With `nan_start_above`, episodes whose start is above it pay NaN.
    """
    spec = EnvSpec("counting", ("a", "b"), (2, 2), (1, 1), "continuous", 2, episode_length, team_reward)

    def timestep(state, reward, terminated):
        features = jnp.stack([state.start, state.t.astype(jnp.float32)])
        return TimeStep(
            jnp.tile(features, (2, 1)), features, reward, terminated, jnp.zeros((), bool), jnp.ones((2, 1), bool)
        )

    def reset(key, params):
        state = CountingState(jax.random.uniform(key), jnp.zeros((), jnp.int32))
        return state, timestep(state, jnp.zeros(2), jnp.zeros((), bool))

    def step(key, state, action, params):
        state = state._replace(t=state.t + 1)
        gain = state.t - 0.01 * jnp.square(action[0, 0])
        if nan_start_above is not None:
            gain = jnp.where(state.start > nan_start_above, jnp.nan, gain)
        reward = jnp.full(2, gain) if team_reward else jnp.stack([gain, 0.0 * gain])
        terminated = jnp.zeros((), bool) if terminate_at is None else state.t >= terminate_at
        return state, timestep(state, reward, terminated)

    return with_time_limit(Env(spec, reset, step))
