"""Single-agent environments with gymnax's interface, as environments of one agent."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from envs.adapters import spaces
from envs.base import Env, EnvSpec, TimeStep
from envs.time_limit import with_time_limit


def from_gymnax(env: Any, params: Any = None, *, name: str | None = None, episode_length: int | None = None) -> Env:
    """A gymnax environment, or your own with its interface, as an `Env` of one agent. gymnax need not be installed.

    Actions and observations as in `envs.adapters.spaces`. The state is the observation. `params` are `Env.params`, so a vmap
    over them trains in many variants. The time limit is ours; where `env` has `is_truncated` (gymnax 1.0) its `done`
    is the task's end alone, elsewhere a `done` on exactly the limit's step is taken for the limit.

    Args:
        env: has `reset_env(key, params) -> (obs, state)`, `step_env(key, state, action, params) -> (obs, state, reward,
            done, info)` and `action_space(params)` (with `n`, or with `low`, `high` and `shape`). Without `reset_env`
            and `step_env`, `reset` and `step` are called, which then must not reset by themselves.
        params: of its dynamics; `env.default_params` if there are any, else `()`.
        name: what the spec calls it; `env.name` or the class's name by default.
        episode_length: the time limit; `params.max_steps_in_episode` by default, as `params` have it now. Without
            `is_truncated` it may be no longer than that: a `done` of the inner limit would pass for the task's end.

    Raises:
        ValueError: no time limit is known, or one beyond the environment's own; an action space of another kind.
    """
    name = str(name or getattr(env, "name", None) or type(env).__name__)
    params = getattr(env, "default_params", ()) if params is None else params
    limited_inside = not hasattr(env, "is_truncated")
    own = getattr(params, "max_steps_in_episode", None)
    if limited_inside or episode_length is None:
        episode_length = spaces.time_limit(name, "max_steps_in_episode", own, episode_length)
    reset_env = getattr(env, "reset_env", None) or env.reset
    step_env = getattr(env, "step_env", None) or env.step
    actions = spaces.read(name, [env.action_space(params)])

    def raw_step(key, inner, action, params):
        (native,) = actions.native(action)
        observed, inner, reward, done, _ = step_env(key, inner, native, params)
        return observed, inner, jnp.asarray(reward, jnp.float32), jnp.asarray(done, bool)

    key = jax.random.key(0)
    observed, fresh = jax.eval_shape(reset_env, key, params)
    size = jax.eval_shape(spaces.flat_observation, observed).shape[0]
    spec = EnvSpec(
        name=name,
        agents=("agent",),
        observation_sizes=(size,),
        **actions.spec_fields,
        state_size=size,
        episode_length=int(episode_length),
        metadata=(("environment", f"{type(env).__module__}.{type(env).__name__}"),),
    )
    example = spec.example_action
    carried = spaces.common_dtypes(fresh, jax.eval_shape(raw_step, key, fresh, example, params)[1])

    def timestep(observed, reward, terminated):
        flat = spaces.flat_observation(observed)
        mask = jnp.asarray(spec.action_mask)
        return TimeStep(flat[None], flat, jnp.reshape(reward, (1,)), terminated, jnp.asarray(False), mask)

    def reset(key, params):
        observed, inner = reset_env(key, params)
        return spaces.steady(inner, carried), timestep(observed, jnp.zeros(1), jnp.asarray(False))

    def step(key, env_state, action, params):
        observed, inner, reward, done = raw_step(key, env_state, action, params)
        return spaces.steady(inner, carried), timestep(observed, reward, done)

    return with_time_limit(Env(spec, reset, step, params), limited_inside)
