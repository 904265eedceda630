"""`check`: tests that a new environment satisfies the contract of `envs.base`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Env, EnvSpec, EnvState, TimeStep, declared_shapes, host_ready
from envs.compiling import known
from envs.validation import first_line


class ContractError(ValueError):
    """An environment violates the contract."""


class Trace(NamedTuple):
    """E environments with random actions over T steps.

    Attributes:
        first: the timesteps after reset, leaves [E, ...].
        steps: those after every step, leaves [E, T, ...], before a reset.
        age: [E, T] int32, steps since the last reset.
        drawn: env_state after the reset, leaves [E, ...], and env_state and action of every step, [E, T, ...]; None without
            `draw`.
    """

    first: TimeStep
    steps: TimeStep
    age: jax.Array
    drawn: tuple[EnvState, EnvState, jax.Array] | None


def check(env: Env, *, steps: int | None = None, num_envs: int = 4, seed: int = 0) -> None:
    """Runs `env` with random available actions and checks the contract of every environment.

    Shapes and dtypes (equal after reset and step, as required by `jax.lax.scan`), under jit and vmap; finite numbers;
    zeros where padded; at least one available choice per agent and no padded one; `terminated` and `truncated` never
    together and neither after a reset; no episode longer than `episode_length` or truncated earlier; equal rewards if
    `team_reward`; the same key gives the same trajectory when traced again (no hidden state outside of `env_state`); `draw`, if
    there is one, draws a first state and a later one.

    Args:
        env: the environment.
        steps: env steps; one more than the longest episode by default, at most 300.
        num_envs: parallel environments.
        seed: of the random actions and resets.

    Raises:
        ContractError: a ValueError about the first violation.
    """
    _require(isinstance(env, Env), f"env={env!r} is no envs.Env(spec, reset, step)")
    spec = env.spec
    _require(isinstance(spec, EnvSpec), f"env.spec={spec!r} is no envs.EnvSpec")
    _check_hashable(spec)
    _check_shapes(env)
    steps = min(spec.episode_length + 1, 300) if steps is None else steps
    keys = jax.random.split(jax.random.key(seed), num_envs)
    trace = _random_trace(env, keys, steps)
    _check_values(spec, trace)
    _check_draw(env, trace)
    again = _random_trace(env, keys, steps)
    for name, before, after in zip(TimeStep._fields, trace.steps, again.steps):
        same = before is None or after is None or np.array_equal(before, after, equal_nan=True)
        _require(same, f"env '{spec.name}': the same keys give another {name}; there is state outside of env_state")


def random_actions(spec: EnvSpec, key: jax.Array, action_mask: jax.Array) -> jax.Array:
    """A random joint action: [N] or [N, D] int32, uniform over the available choices (0 if there are none), or [N, A]
    standard normal, 0 where padded."""
    if spec.action_kind != "continuous":
        choices = action_mask.reshape(*spec.action_shape, -1)
        return jax.random.categorical(key, jnp.where(choices, 0.0, -1e9), axis=-1).astype(jnp.int32) * choices.any(-1)
    return jnp.where(action_mask, jax.random.normal(key, action_mask.shape), 0.0)


def _random_trace(env: Env, keys: jax.Array, steps: int) -> Trace:
    """Traced and compiled again in every call."""

    def play(key):
        key_reset, key_steps = jax.random.split(key)
        env_state, first = env.reset(key_reset, env.params)

        def env_step(carry, key):
            env_state, timestep, age = carry
            key_action, key_step, key_reset = jax.random.split(key, 3)
            action = random_actions(env.spec, key_action, timestep.action_mask)
            env_state, after = env.step(key_step, env_state, action, env.params)
            stepped = None if env.draw is None else (host_ready(env_state), action)
            fresh = env.reset(key_reset, env.params)
            done = after.terminated | after.truncated
            env_state, timestep = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, (env_state, after))
            return (env_state, timestep, jnp.where(done, 0, age + 1)), (after, age + 1, stepped)

        carry = (env_state, first, jnp.zeros((), jnp.int32))
        _, (trace, age, stepped) = jax.lax.scan(env_step, carry, jax.random.split(key_steps, steps))
        return Trace(first, trace, age, None if stepped is None else (host_ready(env_state), *stepped))

    options = known(env.spec.cpu_compiler_options) if jax.default_backend() == "cpu" else None
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(play), compiler_options=options)(keys))


def _require(holds: bool | np.bool_ | jax.Array, message: str) -> None:
    if not holds:
        raise ContractError(message)


def _check_hashable(spec: EnvSpec) -> None:
    try:
        hash(spec)
    except TypeError as error:
        text = f"env '{spec.name}': its spec is not hashable ({error}); use tuples, not lists or arrays"
        raise ContractError(text) from None


def _check_shapes(env: Env) -> None:
    spec = env.spec
    key = jax.random.key(0)
    fresh = _as_pair(spec, "reset", jax.eval_shape(env.reset, key, env.params))
    stepped = _as_pair(spec, "step", jax.eval_shape(env.step, key, fresh[0], spec.example_action, env.params))
    for after, (_, timestep) in (("reset", fresh), ("step", stepped)):
        for field, expected in declared_shapes(spec, timestep).items():
            leaf = getattr(timestep, field)
            text = f"env '{spec.name}': {field} after {after} is {_described(leaf)}"
            same = (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
            _require(same, f"{text}; it must be {_described(expected)}")
    says = {after: timestep.alive is not None for after, (_, timestep) in (("reset", fresh), ("step", stepped))}
    _require(says["reset"] == says["step"], f"env '{spec.name}': alive is None after one of reset and step only")
    before, after = (jax.tree.structure(pair[0]) for pair in (fresh, stepped))
    _require(before == after, f"env '{spec.name}': env_state is {before} after reset and {after} after step")
    leaves = zip(jax.tree.leaves_with_path(fresh[0]), jax.tree.leaves(stepped[0]))
    for (path, reset_leaf), step_leaf in leaves:
        same = (reset_leaf.shape, reset_leaf.dtype) == (step_leaf.shape, step_leaf.dtype)
        text = f"env '{spec.name}': env_state{jax.tree_util.keystr(path)} is {_described(reset_leaf)} after reset"
        _require(same, f"{text} and {_described(step_leaf)} after step")


def _as_pair(spec: EnvSpec, function: str, result: Any) -> tuple[Any, TimeStep]:
    is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], TimeStep)
    _require(is_pair, f"env '{spec.name}': {function} must return (env_state, TimeStep)")
    return result


def _described(leaf: Any) -> str:
    return f"{leaf.dtype.name}{list(leaf.shape)}"


def _check_values(spec: EnvSpec, trace: Trace) -> None:
    first, steps, age, _ = trace
    name = f"env '{spec.name}'"
    for after, timestep in (("reset", first), ("a step", steps)):
        _check_mask(spec, timestep, after)
        for field in ("obs", "state", "reward"):
            _require(np.isfinite(getattr(timestep, field)).all(), f"{name}: {field} after {after} is not finite")
        padded = np.where(spec.observation_mask, 0, timestep.obs)
        _require(not padded.any(), f"{name}: obs after {after} is not 0 beyond observation_sizes")
    _require(not first.reward.any(), f"{name}: reward after reset is not 0")
    _require(not (first.terminated | first.truncated).any(), f"{name}: an episode has ended at its reset")
    both = steps.terminated & steps.truncated
    _require(not both.any(), f"{name}: terminated and truncated at once; truncated is for tasks that have not ended")
    ended = steps.terminated | steps.truncated
    limit = spec.episode_length
    _require(not (~ended & (age >= limit)).any(), f"{name}: an episode continues after episode_length={limit} steps")
    early = steps.truncated & (age < limit)
    _require(not early.any(), f"{name}: truncated before episode_length={limit}; an end of the task is terminated")
    if spec.team_reward:
        same = (steps.reward == steps.reward[..., :1]).all()
        _require(same, f"{name}: agents receive different rewards, but team_reward is True")


def _check_mask(spec: EnvSpec, timestep: TimeStep, after: str) -> None:
    name = f"env '{spec.name}'"
    beyond = (timestep.action_mask & ~spec.action_mask).any()
    _require(not beyond, f"{name}: action_mask after {after} allows more than action_sizes")
    if spec.action_kind == "continuous":
        real = (timestep.action_mask == spec.action_mask).all()
        _require(real, f"{name}: action_mask after {after} is not that of action_sizes")
        return
    if spec.action_kind == "multi_discrete":
        return  # a sub-action without a choice is 0
    # no action is chosen after the end of an episode
    has_choice = timestep.action_mask.any(-1) | (timestep.terminated | timestep.truncated)[..., None]
    _require(has_choice.all(), f"{name}: an agent has no available choice after {after}")


def _check_draw(env: Env, trace: Trace) -> None:
    """Draws the first environment after its reset and after the last step."""
    if env.draw is None or trace.drawn is None:
        return
    from matplotlib.figure import Figure

    fresh, *stepped = jax.tree.map(lambda leaf: leaf[0], trace.drawn)
    stepped, action = jax.tree.map(lambda leaf: leaf[-1], stepped)
    for after, env_state, led_to in (("a reset", fresh, None), ("a step", stepped, action)):
        figure = Figure()
        try:
            env.draw(figure.subplots(), env_state, led_to, env.params)
            figure.draw_without_rendering()
        except Exception as error:
            text = f"env '{env.spec.name}': draw fails after {after}: {type(error).__name__}: {first_line(error)}"
            raise ContractError(text) from error
