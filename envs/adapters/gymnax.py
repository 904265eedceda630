"""Single-agent environments with gymnax's interface, as environments of one agent."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from envs.adapters import spaces
from envs.base import Env, EnvSpec, TimeStep, cast_like
from envs.time_limit import with_time_limit


def from_gymnax(env: Any, params: Any = None, *, name: str | None = None, episode_length: int | None = None) -> Env:
    """A gymnax environment, or your own with its interface, as an `Env` of one agent. gymnax need not be installed.

    Actions and observations are converted as in `envs.adapters.spaces`. The state is the observation. `params` are
    `Env.params`, so a vmap over them trains in many variants. This package applies the time limit; if `env` has
    `is_truncated` (gymnax 1.0), its `done` is the end of the task only, otherwise a `done` on the step of the limit is
    interpreted as the limit.

    Args:
        env: has `reset_env(key, params) -> (obs, state)`, `step_env(key, state, action, params) -> (obs, state, reward,
            done, info)` and `action_space(params)` (with `n`, or with `low`, `high` and `shape`). Without `reset_env`
            and `step_env`, `reset` and `step` are called, which must not reset automatically.
        params: of its dynamics; by default `env.default_params`, or `()`.
        name: the name in the spec; by default `env.name`, or the name of the class.
        episode_length: the time limit; by default the current `params.max_steps_in_episode`. Without `is_truncated` it
            must not be longer: a `done` of the inner limit would be mistaken for the end of the task.

    Raises:
        ValueError: no time limit is known, or it is longer than the environment's own; an unsupported action space; a
            wrapper that has `reset_env` or `step_env` only from what it wraps.
    """
    name = str(name or getattr(env, "name", None) or type(env).__name__)
    params = getattr(env, "default_params", ()) if params is None else params
    limited_inside = not hasattr(env, "is_truncated")
    own = getattr(params, "max_steps_in_episode", None)
    if limited_inside or episode_length is None:
        episode_length = spaces.time_limit(name, "max_steps_in_episode", own, episode_length)
    reset_env, step_env = (spaces.own_method(name, env, f"{method}_env", method) for method in ("reset", "step"))
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
        observation_shape=spaces.image_shape([observed]),
        metadata=(("environment", f"{type(env).__module__}.{type(env).__name__}"),),
    )
    example = spec.example_action
    state_shapes = spaces.common_dtypes(fresh, jax.eval_shape(raw_step, key, fresh, example, params)[1])

    def timestep(observed, reward, terminated):
        flat = spaces.flat_observation(observed)
        mask = jnp.asarray(spec.action_mask)
        return TimeStep(flat[None], flat, jnp.reshape(reward, (1,)), terminated, jnp.asarray(False), mask)

    def reset(key, params):
        observed, inner = reset_env(key, params)
        return cast_like(inner, state_shapes), timestep(observed, jnp.zeros(1), jnp.asarray(False))

    def step(key, env_state, action, params):
        observed, inner, reward, done = raw_step(key, env_state, action, params)
        return cast_like(inner, state_shapes), timestep(observed, reward, done)

    return with_time_limit(Env(spec, reset, step, params), limited_inside)
