"""`check`: does an environment keep the contract of `envs.base`? For those who write one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Env, EnvSpec, TimeStep, timestep_shapes


class Broken(ValueError):
    """An environment does not keep the contract; one sentence says where."""


class Trace(NamedTuple):
    """Random play of E environments over T steps.

    Attributes:
        first: the timesteps after reset, leaves [E, ...].
        steps: those after every step, leaves [E, T, ...], before a reset.
        age: [E, T] int32, steps since the last reset.
    """

    first: TimeStep
    steps: TimeStep
    age: jax.Array


def check(env: Env, *, steps: int | None = None, num_envs: int = 4, seed: int = 0) -> None:
    """Plays `env` with random available actions and checks what every environment promises.

    Shapes and types (equal after reset and step, as `jax.lax.scan` needs them), under jit and vmap; finite numbers;
    zeros where padded; at least one available choice per agent and none beyond its own; `terminated` and `truncated` never
    together, neither after a reset; no episode longer than `episode_length`, nor truncated earlier; equal rewards where
    `team_reward` says so; the same key gives the same play, traced anew (nothing is remembered outside of `env_state`).

    Args:
        env: the environment.
        steps: env steps to play; one more than the longest episode by default, at most 300.
        num_envs: parallel environments.
        seed: of the play.

    Raises:
        Broken: a ValueError; the first promise that is not kept, in one sentence.
    """
    _require(isinstance(env, Env), f"env={env!r} is no envs.Env(spec, reset, step)")
    spec = env.spec
    _require(isinstance(spec, EnvSpec), f"env.spec={spec!r} is no envs.EnvSpec")
    _check_hashable(spec)
    _check_shapes(env)
    steps = min(spec.episode_length + 1, 300) if steps is None else steps
    keys = jax.random.split(jax.random.key(seed), num_envs)
    trace = _played(env, keys, steps)
    _check_values(spec, trace)
    again = _played(env, keys, steps)
    for name, before, after in zip(TimeStep._fields, trace.steps, again.steps):
        same = np.array_equal(before, after, equal_nan=True)
        _require(same, f"env '{spec.name}': the same keys give another {name}; memory outside of env_state")


def random_actions(spec: EnvSpec, key: jax.Array, action_mask: jax.Array) -> jax.Array:
    """One random joint action: [N] or [N, D] int32 among the available choices (0 where there is none), or [N, A]
    standard normal where real."""
    if spec.action_kind != "continuous":
        choices = action_mask.reshape(*spec.action_shape, -1)
        return jax.random.categorical(key, jnp.where(choices, 0.0, -1e9), axis=-1).astype(jnp.int32) * choices.any(-1)
    return jnp.where(action_mask, jax.random.normal(key, action_mask.shape), 0.0)


def _played(env: Env, keys: jax.Array, steps: int) -> Trace:
    """A fresh trace and compilation at every call."""

    def play(key):
        key_reset, key_steps = jax.random.split(key)
        env_state, first = env.reset(key_reset, env.params)

        def env_step(carry, key):
            env_state, timestep, age = carry
            key_action, key_step, key_reset = jax.random.split(key, 3)
            action = random_actions(env.spec, key_action, timestep.action_mask)
            env_state, after = env.step(key_step, env_state, action, env.params)
            fresh = env.reset(key_reset, env.params)
            done = after.terminated | after.truncated
            env_state, timestep = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, (env_state, after))
            return (env_state, timestep, jnp.where(done, 0, age + 1)), (after, age + 1)

        carry = (env_state, first, jnp.zeros((), jnp.int32))
        _, (trace, age) = jax.lax.scan(env_step, carry, jax.random.split(key_steps, steps))
        return Trace(first, trace, age)

    options = dict(env.spec.cpu_compiler_options) if jax.default_backend() == "cpu" else None
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(play), compiler_options=options)(keys))


def _require(holds: bool | np.bool_ | jax.Array, message: str) -> None:
    if not holds:
        raise Broken(message)


def _check_hashable(spec: EnvSpec) -> None:
    try:
        hash(spec)
    except TypeError as error:
        text = f"env '{spec.name}': its spec is not hashable ({error}); use tuples, not lists or arrays"
        raise Broken(text) from None


def _check_shapes(env: Env) -> None:
    spec = env.spec
    key = jax.random.key(0)
    fresh = _outcome(spec, "reset", jax.eval_shape(env.reset, key, env.params))
    stepped = _outcome(spec, "step", jax.eval_shape(env.step, key, fresh[0], spec.example_action, env.params))
    for after, (_, timestep) in (("reset", fresh), ("step", stepped)):
        for field, expected in timestep_shapes(spec).items():
            leaf = getattr(timestep, field)
            text = f"env '{spec.name}': {field} after {after} is {_described(leaf)}"
            same = (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
            _require(same, f"{text}; it must be {_described(expected)}")
    before, after = (jax.tree.structure(outcome[0]) for outcome in (fresh, stepped))
    _require(before == after, f"env '{spec.name}': env_state is {before} after reset and {after} after step")
    leaves = zip(jax.tree.leaves_with_path(fresh[0]), jax.tree.leaves(stepped[0]))
    for (path, reset_leaf), step_leaf in leaves:
        same = (reset_leaf.shape, reset_leaf.dtype) == (step_leaf.shape, step_leaf.dtype)
        text = f"env '{spec.name}': env_state{jax.tree_util.keystr(path)} is {_described(reset_leaf)} after reset"
        _require(same, f"{text} and {_described(step_leaf)} after step")


def _outcome(spec: EnvSpec, function: str, outcome: Any) -> tuple[Any, TimeStep]:
    is_pair = isinstance(outcome, tuple) and len(outcome) == 2 and isinstance(outcome[1], TimeStep)
    _require(is_pair, f"env '{spec.name}': {function} must return (env_state, TimeStep)")
    return outcome


def _described(leaf: Any) -> str:
    return f"{leaf.dtype.name}{list(leaf.shape)}"


def _check_values(spec: EnvSpec, trace: Trace) -> None:
    first, steps, age = trace
    name = f"env '{spec.name}'"
    for after, found in (("reset", first), ("a step", steps)):
        _check_mask(spec, found, after)
        for field in ("obs", "state", "reward"):
            _require(np.isfinite(getattr(found, field)).all(), f"{name}: {field} after {after} is not finite")
        padded = np.where(spec.observation_mask, 0, found.obs)
        _require(not padded.any(), f"{name}: obs after {after} is not 0 beyond observation_sizes")
    _require(not first.reward.any(), f"{name}: reward after reset is not 0")
    _require(not (first.terminated | first.truncated).any(), f"{name}: an episode has ended at its reset")
    both = steps.terminated & steps.truncated
    _require(not both.any(), f"{name}: terminated and truncated at once; truncated is for tasks that have not ended")
    ended = steps.terminated | steps.truncated
    limit = spec.episode_length
    _require(not (~ended & (age >= limit)).any(), f"{name}: an episode goes on after episode_length={limit} steps")
    early = steps.truncated & (age < limit)
    _require(not early.any(), f"{name}: truncated before episode_length={limit}; an end of the task is terminated")
    if spec.team_reward:
        same = (steps.reward == steps.reward[..., :1]).all()
        _require(same, f"{name}: agents are paid differently, but team_reward is True")


def _check_mask(spec: EnvSpec, found: TimeStep, after: str) -> None:
    name = f"env '{spec.name}'"
    beyond = (found.action_mask & ~spec.action_mask).any()
    _require(not beyond, f"{name}: action_mask after {after} allows more than action_sizes")
    if spec.action_kind == "continuous":
        real = (found.action_mask == spec.action_mask).all()
        _require(real, f"{name}: action_mask after {after} is not that of action_sizes")
        return
    if spec.action_kind == "multi_discrete":
        return  # a sub-action without a choice is 0
    # nothing is chosen after an episode's end
    has_choice = found.action_mask.any(-1) | (found.terminated | found.truncated)[..., None]
    _require(has_choice.all(), f"{name}: an agent has no available choice after {after}")
