"""A task that only recurrent policies can solve."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.base import Env, EnvSpec, TimeStep
from envs.time_limit import with_time_limit


class RecallState(NamedTuple):
    cues: jax.Array
    t: jax.Array


def recall_env(steps=3):
    """Each of two agents observes its cue, -1 or 1, in the first step only, and must choose by it in the last one.

    The reward of the last step is the share of correct agents, of all others 0: policies without a hidden state earn
    0.5 on average. Agent b also observes the time. The state always has the cues.
    """
    spec = EnvSpec("recall", ("a", "b"), (1, 2), (2, 2), "discrete", 3, steps)

    def timestep(state, reward):
        t = state.t.astype(jnp.float32)
        seen = jnp.where(state.t == 0, state.cues, 0.0)
        obs = jnp.array([[seen[0], 0.0], [seen[1], t]])
        no = jnp.zeros((), bool)
        return TimeStep(obs, jnp.append(state.cues, t), jnp.full(2, reward), no, no, jnp.ones((2, 2), bool))

    def reset(key, params):
        state = RecallState(jax.random.rademacher(key, (2,), jnp.float32), jnp.zeros((), jnp.int32))
        return state, timestep(state, 0.0)

    def step(key, state, action, params):
        right = jnp.mean((action == (state.cues > 0)).astype(jnp.float32))
        reward = jnp.where(state.t == steps - 1, right, 0.0)
        state = state._replace(t=state.t + 1)
        return state, timestep(state, reward)

    return with_time_limit(Env(spec, reset, step))
