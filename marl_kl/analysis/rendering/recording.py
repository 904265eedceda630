"""One episode of trained policies, recorded for drawing."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Env, host_ready
from marl_kl import devices
from marl_kl.config import Config
from marl_kl.core.policies import make_actor
from marl_kl.core.rollout import policy_step
from marl_kl.core.trainer import Learner


class Recording(NamedTuple):
    """An episode of t steps, or its beginning.

    Attributes:
        states: what is drawn after the reset and after every step: of a body its poses [t + 1, nq], else the
            environment's states, leaves [t + 1, ...].
        actions: [t, ...] the joint actions.
        episode_return: [t + 1] cumulative team return.
        ended: "terminated", "truncated", or None if the recording was cut before.
    """

    states: Any
    actions: np.ndarray
    episode_return: np.ndarray
    ended: str | None


def record(env: Env, config: Config, learner: Learner, key: jax.Array, steps: int) -> Recording:
    """Up to `steps` env steps of the deterministic policies, until the episode ends.

    Args:
        env: a body, or an environment with `draw`.
        config, learner: of one training seed.
        key: typed, for reset and steps.
        steps: at least 1.

    Raises:
        ValueError: the environment cannot be drawn, or steps < 1.
    """
    if env.drawing is None and env.draw is None:
        raise ValueError(
            f"env '{env.spec.name}' cannot be drawn; give it a function draw(axes, env_state, action, params), as in "
            "envs.Env(..., draw=draw)"
        )
    if steps < 1:
        raise ValueError(f"steps={steps}; it must be at least 1")
    actor = make_actor(env.spec, config)
    view = host_ready if env.drawing is None else env.drawing.pose
    key_reset, key_steps = jax.random.split(key)

    def env_step(carry, key):
        env_state, timestep, hidden = carry
        observation = timestep.obs[None], timestep.action_mask[None]
        policy, hidden = policy_step(actor, learner.actors, learner.obs_moments, *observation, hidden)
        action = actor.env_action(policy.mode()[:, 0])
        env_state, timestep = env.step(key, env_state, action, env.params)
        frame = view(env_state), action, jnp.mean(timestep.reward), timestep.terminated, timestep.truncated
        return (env_state, timestep, hidden), frame

    def episode(key_reset, key_steps):
        start = (*env.reset(key_reset, env.params), actor.initial_carry((env.spec.num_agents, 1)))
        return view(start[0]), jax.lax.scan(env_step, start, jax.random.split(key_steps, steps))[1]

    options = devices.compiler_options(jax.default_backend(), env.spec.cpu_compiler_options)
    first, rest = jax.device_get(jax.jit(episode, compiler_options=options)(key_reset, key_steps))
    states, actions, rewards, terminated, truncated = rest
    ends = np.flatnonzero(terminated | truncated)
    length = int(ends[0]) + 1 if len(ends) else steps
    ended = None if not len(ends) else "terminated" if terminated[length - 1] else "truncated"
    states = jax.tree.map(lambda first, rest: np.concatenate([first[None], rest[:length]]), first, states)
    returns = np.concatenate([[0.0], np.cumsum(rewards[:length], dtype=np.float64)])
    return Recording(states, actions[:length], returns, ended)
