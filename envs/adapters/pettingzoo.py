"""PettingZoo's parallel environments behind the protocol of `envs.base`.

They are Python objects on the host, so that every step is a callback out of the compiled program: training works as with
any other environment, but at the speed of Python, and not on several hosts.

A pure `step` needs a state that says everything. Here it is the seed of the reset and the actions since; the Python
objects are a cache of such states. `step` takes the object that is in the state out of the cache, or resets one and
replays the actions: after a resume, or where the same state is stepped twice.
"""

from __future__ import annotations

import collections
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.adapters import spaces
from envs.base import Env, EnvSpec, TimeStep, timestep_shapes
from envs.validation import check_integer

_Rows = tuple[np.ndarray, ...]
"""The fields of one `TimeStep`, on the host."""


class History(NamedTuple):
    """seed: [] int32 of the reset. actions: [T, ...] joint actions so far, padded. t: [] int32, how many."""

    seed: jax.Array
    actions: jax.Array
    t: jax.Array


def from_pettingzoo(
    make: Callable[[], Any], episode_length: int, *, name: str | None = None, cached: int = 1024
) -> Env:
    """An environment with the interface of PettingZoo's `ParallelEnv` as an `Env`. PettingZoo need not be installed.

    Observations are flattened and padded; of a dict with an "action_mask", that is the mask of discrete
    actions. The state is `state()`, or
    all observations where an environment has none. Agents that have left are not `alive`. Continuous actions are [-1, 1],
    scaled to a bounded space.

    Args:
        make: returns a new environment, which must be deterministic given `reset(seed=...)` and the actions; `envs.check`
            finds most that are not.
        episode_length: the time limit T in steps; an episode also ends where the environment itself ends it.
        name: the name in the spec; by default that in `metadata`, or the name of the class.
        cached: how many environments in the middle of an episode are kept: more than run in parallel, else steps are slow.

    Raises:
        ValueError: an unsupported action space, or agents of different kinds of actions.
    """
    example = make()
    name = str(name or getattr(example, "metadata", {}).get("name") or type(example).__name__)
    check_integer(f"env '{name}': episode_length", episode_length, 1)
    agents = tuple(example.possible_agents)
    action_spaces = [example.action_space(agent) for agent in agents]
    actions = spaces.read(name, action_spaces)
    observed, _ = example.reset(seed=0)
    sizes = tuple(len(_flat(observed[agent])) for agent in agents)
    state = _state(example)
    spec = EnvSpec(
        name=name,
        agents=tuple(map(str, agents)),
        observation_sizes=sizes,
        **actions.spec_fields,
        state_size=sum(sizes) if state is None else len(state),
        episode_length=episode_length,
        team_reward=False,
        metadata=(("environment", f"{type(example).__module__}.{type(example).__name__}"), ("runs", "on the host")),
    )
    pool = _Pool(make, cached)
    shapes = tuple(timestep_shapes(spec).values())

    def native(action: np.ndarray) -> dict[Any, Any]:
        if actions.kind == "discrete":
            return {agent: int(own) for agent, own in zip(agents, action)}
        sizes = [math.prod(shape) for shape in actions.shapes]
        return {
            agent: own[:size].reshape(shape).astype(space.dtype)
            for agent, own, size, shape, space in zip(agents, action, sizes, actions.shapes, action_spaces)
        }

    def time_step(live: Any, observed: Mapping[Any, Any], reward: Mapping[Any, Any], ends: tuple[bool, bool]) -> _Rows:
        obs = np.zeros((len(agents), spec.observation_size), np.float32)
        mask, alive = spec.action_mask.copy(), np.array([agent in live.agents for agent in agents])
        for i, agent in enumerate(agents):
            if agent in observed:
                obs[i, : sizes[i]] = _flat(observed[agent])
                if alive[i] and actions.kind == "discrete":
                    mask[i, : spec.action_sizes[i]] &= _mask(observed[agent])
        state = _state(live)
        state = np.concatenate([row[:size] for row, size in zip(obs, sizes)]) if state is None else state
        rewards = np.array([reward.get(agent, 0.0) for agent in agents], np.float32)
        return obs, state, rewards, np.asarray(ends[0]), np.asarray(ends[1]), mask, alive

    def host_step(live: Any, t: int, action: np.ndarray):
        """The time step after `action`, the `t`-th, and whether the episode continues."""
        chosen = native(action)
        observed, reward, terminated, truncated, _ = live.step({agent: chosen[agent] for agent in live.agents})
        is_over = not live.agents
        is_cut = is_over and any(truncated.values()) and not all(terminated.values())
        ends = is_over and not is_cut, is_cut or (t >= episode_length and not is_over)
        return time_step(live, observed, reward, ends), not any(ends)

    def reset_one(seed: np.ndarray):
        with pool.lock:
            live, observed = pool.reset(int(seed))
            pool.put(_key(seed, (), 0), live)
            return time_step(live, observed, {}, (False, False))

    def step_one(seed: np.ndarray, history: np.ndarray, t: np.ndarray, action: np.ndarray):
        with pool.lock:
            live = pool.take(_key(seed, history, t))
            if live is None:
                live, _ = pool.reset(int(seed))
                for i, past in enumerate(history[:t]):
                    host_step(live, i + 1, past)
            after, continues = host_step(live, int(t) + 1, action)
            if continues:
                pool.put(_key(seed, [*history[:t], action], int(t) + 1), live)
            else:
                pool.free.append(live)
            return after

    def call(one: Callable[..., _Rows], *arguments: jax.Array) -> TimeStep:
        return TimeStep(*jax.pure_callback(_batched(one), shapes, *arguments, vmap_method="broadcast_all"))

    padded_action = _padded(actions, spec.example_action)

    def reset(key, params):
        seed = jax.random.randint(key, (), 0, np.iinfo(np.int32).max, jnp.int32)
        past = jnp.zeros((episode_length, *padded_action.shape), padded_action.dtype)
        return History(seed, past, jnp.zeros((), jnp.int32)), call(reset_one, seed)

    def step(key, env_state, action, params):
        action = _padded(actions, action)
        after = call(step_one, *env_state, action)
        past = env_state.actions.at[env_state.t].set(action)
        return History(env_state.seed, past, env_state.t + 1), after

    return Env(spec, reset, step)


class _Pool:
    """Live environments: by the state that they are in, the oldest of which is given up when there are too many."""

    def __init__(self, make: Callable[[], Any], size: int):
        self._make, self._size = make, size
        self._by_state: collections.OrderedDict[bytes, Any] = collections.OrderedDict()
        self.free: list[Any] = []
        self.lock = threading.Lock()

    def reset(self, seed: int) -> tuple[Any, Mapping[Any, Any]]:
        live = self.free.pop() if self.free else self._make()
        return live, live.reset(seed=seed)[0]

    def put(self, state: bytes, live: Any) -> None:
        if state in self._by_state:
            self.free.append(self._by_state.pop(state))
        self._by_state[state] = live
        if len(self._by_state) > self._size:
            self.free.append(self._by_state.popitem(last=False)[1])

    def take(self, state: bytes) -> Any | None:
        return self._by_state.pop(state, None)


def _key(seed: Any, history: Any, t: Any) -> bytes:
    return np.int32(seed).tobytes() + b"".join(np.asarray(action).tobytes() for action in history[: int(t)])


def _batched(one: Callable[..., _Rows]) -> Callable[..., _Rows]:
    """`one`, whose first argument has no axes, over the leading axes of all arguments."""

    def over_all(*arguments):
        arguments = [np.asarray(argument) for argument in arguments]
        axes = arguments[0].shape
        rows = [argument.reshape(-1, *argument.shape[len(axes) :]) for argument in arguments]
        found = [one(*row) for row in zip(*rows)]
        return tuple(np.stack(values).reshape((*axes, *np.shape(values[0]))) for values in zip(*found))

    return over_all


def _padded(actions: spaces.ActionSpaces, action: jax.Array) -> jax.Array:
    """[N] int32, [N, D] int32, or [N, A] float32 in the units of the environment."""
    if actions.kind != "continuous":
        return action
    return spaces.padded_rows([jnp.ravel(own) for own in actions.native(action)], max(actions.sizes))


def _flat(observation: Any) -> np.ndarray:
    """[size] float32, the action mask left out."""
    if isinstance(observation, Mapping):
        observation = {field: value for field, value in observation.items() if field != "action_mask"}
    return np.concatenate([np.ravel(leaf).astype(np.float32) for leaf in jax.tree.leaves(observation)])


def _mask(observation: Any) -> np.ndarray | bool:
    mask = observation.get("action_mask") if isinstance(observation, Mapping) else None
    return True if mask is None else np.ravel(mask).astype(bool)


def _state(live: Any) -> np.ndarray | None:
    """[S] float32; None if the environment has none."""
    try:
        return np.ravel(live.state()).astype(np.float32)
    except (AttributeError, NotImplementedError):
        return None
