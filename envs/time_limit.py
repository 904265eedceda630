"""The time limit: the only place where episodes are truncated."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.base import Draw, Env, EnvState


class TimedState(NamedTuple):
    """`inner`: the bare environment's state. `t`: [] int32, env steps since the reset."""

    inner: EnvState
    t: jax.Array


def with_time_limit(bare: Env, limited_inside: bool = False) -> Env:
    """Truncates episodes of `bare` after `bare.spec.episode_length` steps, unless they terminate there.

    `bare` never sets `truncated` itself; what it reports there is ignored.

    Args:
        bare: the environment without a time limit.
        limited_inside: `bare` has the same limit built in and reports it as a termination. A termination on the last step
            is then interpreted as the limit, which is wrong only if the task also ended on that step.
    """
    limit = bare.spec.episode_length
    if not 1 <= limit < 2**31:
        raise ValueError(f"env '{bare.spec.name}': episode_length={limit}; it must be at least 1 and below 2^31")

    def reset(key, params):
        inner, timestep = bare.reset(key, params)
        return TimedState(inner, jnp.zeros((), jnp.int32)), timestep

    def step(key, env_state, action, params):
        inner, timestep = bare.step(key, env_state.inner, action, params)
        t = env_state.t + 1
        over = t >= limit
        terminated = timestep.terminated & ~over if limited_inside else timestep.terminated
        return TimedState(inner, t), timestep._replace(terminated=terminated, truncated=over & ~terminated)

    drawing = bare.drawing
    if drawing is not None:
        pose = drawing.pose
        drawing = drawing._replace(pose=lambda env_state: pose(env_state.inner))
    draw = bare.draw and _of_inner(bare.draw)
    return bare._replace(reset=reset, step=step, drawing=drawing, draw=draw)


def _of_inner(draw: Draw) -> Draw:
    return lambda axes, env_state, action, params: draw(axes, env_state.inner, action, params)
