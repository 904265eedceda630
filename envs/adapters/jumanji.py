"""Jumanji's environments (RobotWarehouse, LevelBasedForaging, Connector, ...) behind the protocol of `envs.base`.

The package is imported only when one of them is made: `pip install 'marl_kl[jumanji]'`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.adapters import spaces
from envs.base import Env, EnvSpec, TimeStep, cast_like
from envs.time_limit import with_time_limit
from envs.validation import first_line

PREFIX = "jumanji/"

NAMES = tuple(
    f"{PREFIX}{name}"
    for name in (
        "Cleaner-v0", "Connector-v3", "Game2048-v1", "JobShop-v0", "LevelBasedForaging-v0", "MMST-v0", "Maze-v0",
        "RobotWarehouse-v0", "SearchAndRescue-v0", "Snake-v1",
    )
)  # fmt: skip
"""Known without the package; other names that an installed one registers are also accepted."""

_VIEWS = ("agents_view", "searcher_views")
"""What agents see of their own, [N, ...], where an observation has it."""


def find(name: str) -> Callable[..., Env] | None:
    """The factory for "jumanji/RobotWarehouse-v0", ...; None for other names.

    The factory takes `episode_length` and the options of Jumanji's own constructor.
    """
    return functools.partial(_make, name) if name.lower().startswith(PREFIX) else None


def _make(name: str, episode_length: int | None = None, **options) -> Env:
    try:
        jumanji = importlib.import_module("jumanji")
    except ImportError as error:
        raise ValueError(
            f"env '{name}' needs Jumanji, which cannot be imported ({first_line(error)}); pip install 'marl_kl[jumanji]'"
        ) from error
    own = name[len(PREFIX) :]
    known = jumanji.registered_environments()
    own = next((registered for registered in known if registered.lower() == own.lower()), own)
    try:
        env = jumanji.make(own, **options)
    except Exception as error:
        registered = f"; registered: {', '.join(sorted(known))}" if own not in known else ""
        raise ValueError(
            f"env '{name}': Jumanji cannot make it with {options}: {first_line(error)}{registered}"
        ) from error
    return from_jumanji(env, PREFIX + own, episode_length=episode_length)


def from_jumanji(env: Any, name: str | None = None, *, episode_length: int | None = None) -> Env:
    """An environment with Jumanji's interface as an `Env`. Jumanji need not be installed.

    One choice per row of the action mask is one agent (RobotWarehouse; the machines of JobShop); an environment with a
    single action is one of one agent. Agents see their own view, where the observation has one, else all that is
    observed; with several agents a one-hot id is appended. The state is all that is observed. Action masks are not part of
    either; an agent without an available choice may choose anything. The end of an episode on the step of
    the time limit is the limit, any other one is the end of the task.

    Args:
        env: has `reset(key) -> (state, timestep)`, `step(state, action) -> (state, timestep)`, `action_spec`, and perhaps
            `time_limit`; a timestep has `observation`, `reward` ([] or [N]) and `last()`. It must not reset automatically.
        name: the name in the spec; that of the class by default.
        episode_length: the time limit in steps, at most `env.time_limit`, which is the default.

    Raises:
        ValueError: no time limit is known, or it is longer than the environment's own; an action of several choices that
            no row of a mask belongs to (Tetris); a wrapper that has `reset` or `step` only from what it wraps.
    """
    name = name or type(env).__name__
    reset_env, step_env = (spaces.own_method(name, env, method) for method in ("reset", "step"))
    episode_length = spaces.time_limit(name, "time_limit", getattr(env, "time_limit", None), episode_length)
    key = jax.random.key(0)
    fresh, first = jax.eval_shape(reset_env, key)
    num_agents, own_actions = _actions(name, env, first.observation)
    actions = spaces.read(name, own_actions)

    def read_observations(observation):
        everything = _without_mask(observation)
        views = next((everything[field] for field in _VIEWS if field in everything), None)
        state = spaces.flat_observation(everything)
        rows = jnp.tile(state, (num_agents, 1)) if views is None else views.reshape(num_agents, -1).astype(jnp.float32)
        return (jnp.concatenate([rows, jnp.eye(num_agents)], axis=1) if num_agents > 1 else rows), state

    def native(action):
        own = actions.native(action)
        return own[0] if num_agents == 1 else jnp.stack(own)

    def raw_step(inner, action):
        inner, after = step_env(inner, native(action))
        reward = jnp.broadcast_to(jnp.asarray(after.reward, jnp.float32), (num_agents,))
        return inner, after.observation, reward, after.last()

    rows, state = jax.eval_shape(read_observations, first.observation)
    spec = EnvSpec(
        name=name,
        agents=tuple(f"agent_{i}" for i in range(num_agents)),
        observation_sizes=(rows.shape[1],) * num_agents,
        **actions.spec_fields,
        state_size=state.shape[0],
        episode_length=episode_length,
        team_reward=first.reward.ndim == 0,
        observation_shape=spaces.image_shape([_without_mask(first.observation)]) if num_agents == 1 else None,
        metadata=(
            ("environment", f"{type(env).__module__}.{type(env).__name__}"),
            ("jumanji", spaces.installed_version("jumanji")),
        ),
    )
    state_shapes = spaces.common_dtypes(fresh, jax.eval_shape(raw_step, fresh, spec.example_action)[0])

    def timestep(observation, reward, terminated):
        rows, state = read_observations(observation)
        mask = jnp.asarray(spec.action_mask)
        if actions.kind == "discrete":
            offered = jnp.reshape(getattr(observation, "action_mask", mask), mask.shape)
            mask &= offered | ~jnp.any(offered, axis=-1, keepdims=True)
        return TimeStep(rows, state, reward, jnp.asarray(terminated, bool), jnp.asarray(False), mask)

    def reset(key, params):
        inner, before = reset_env(key)
        return cast_like(inner, state_shapes), timestep(before.observation, jnp.zeros(num_agents), False)

    def step(key, env_state, action, params):
        inner, observation, reward, is_last = raw_step(env_state, action)
        return cast_like(inner, state_shapes), timestep(observation, reward, is_last)

    return with_time_limit(Env(spec, reset, step), limited_inside=True)


def _without_mask(observation: Any) -> dict[str, Any]:
    """The observation's fields, the action mask left out."""
    fields = getattr(observation, "_asdict", lambda: {"observation": observation})()
    return {field: value for field, value in fields.items() if field != "action_mask"}


def _actions(name: str, env: Any, observation: Any) -> tuple[int, list[Any]]:
    """The number of agents, and the action space of each, as `spaces.read` reads it."""
    spec = env.action_spec
    choices = getattr(spec, "num_values", None)
    if choices is None:
        low, high = (np.broadcast_to(np.asarray(end, np.float32), spec.shape) for end in (spec.minimum, spec.maximum))
        if getattr(env, "num_agents", None) != spec.shape[0]:
            return 1, [SimpleNamespace(low=low, high=high, shape=spec.shape)]
        return spec.shape[0], [SimpleNamespace(low=a, high=b, shape=a.shape) for a, b in zip(low, high)]
    if np.ndim(choices) == 0:
        return 1, [SimpleNamespace(n=int(choices))]
    mask = getattr(observation, "action_mask", None)
    if np.ndim(choices) > 1 or mask is None or mask.shape != (len(choices), max(choices)):
        raise ValueError(
            f"env '{name}': its action is {np.size(choices)} choices of one agent; accepted: one choice per agent, each "
            "with a row in action_mask"
        )
    return len(choices), [SimpleNamespace(n=int(n)) for n in choices]
