"""Action spaces of other libraries (gymnax, JaxMARL, Gymnasium), read from their attributes without an import."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import ActionKind, multi_discrete_sizes


class ActionSpaces(NamedTuple):
    """The action spaces of all agents of one environment.

    Attributes:
        kind: as in `EnvSpec.action_kind`.
        sizes: as in `EnvSpec.action_sizes`.
        shapes: per agent, the native shape of an action.
        low, high: per agent, numpy arrays of that shape; () unless continuous.
        sub_actions: as in `EnvSpec.sub_actions`; () unless multi-discrete.
    """

    kind: ActionKind
    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    low: tuple[np.ndarray, ...] = ()
    high: tuple[np.ndarray, ...] = ()
    sub_actions: tuple[tuple[int, ...], ...] = ()

    @property
    def spec_fields(self) -> dict[str, Any]:
        """The corresponding fields of an `EnvSpec`."""
        fields = {"action_kind": self.kind, "action_sizes": self.sizes, "sub_actions": self.sub_actions or None}
        if self.kind == "continuous" and all(np.isfinite(ends).all() for ends in (*self.low, *self.high)):
            ones = tuple((1.0,) * size for size in self.sizes)
            return fields | {"action_low": jax.tree.map(lambda one: -one, ones), "action_high": ones}
        return fields

    @property
    def num_choices(self) -> tuple[int, ...]:
        """Per agent the number of choices, over all its sub-actions."""
        return tuple(map(sum, self.sub_actions)) or self.sizes

    def pad_choices(self, rows: Sequence[jax.Array]) -> jax.Array:
        """[N, D * K]: values per choice of multi-discrete actions, in the layout of `EnvSpec.action_mask`.

        Args:
            rows: per agent [sum of its choices], sub-action after sub-action.
        """
        num_choices = max(max(own) for own in self.sub_actions)
        padded = []
        for row, own in zip(rows, self.sub_actions):
            parts = jnp.split(row, np.cumsum(own)[:-1])
            padded.append(padded_rows(parts, num_choices).reshape(-1))
        return padded_rows(padded, max(self.sizes))

    def native(self, action: jax.Array) -> list[jax.Array]:
        """`action`, [N] or [N, D] int32, or [N, A], as the library's environment expects it, per agent.

        Continuous actions are clipped to [-1, 1] and scaled to a bounded space, so that a policy around 0 starts in its
        middle; actions of unbounded spaces are unchanged.
        """
        if self.kind == "discrete":
            return [action[agent] for agent in range(len(self.sizes))]
        if self.kind == "multi_discrete":
            return [action[agent, : len(own)] for agent, own in enumerate(self.sub_actions)]
        return [self._scaled(action[agent, :size], agent) for agent, size in enumerate(self.sizes)]

    def _scaled(self, action: jax.Array, agent: int) -> jax.Array:
        action = jnp.reshape(action, self.shapes[agent])
        bounded = np.isfinite(self.low[agent]) & np.isfinite(self.high[agent])
        low, high = np.where(bounded, self.low[agent], -1.0), np.where(bounded, self.high[agent], 1.0)
        within = jnp.where(bounded, jnp.clip(action, -1.0, 1.0), action)
        return (within * ((high - low) / 2) + (low + high) / 2).astype(jnp.float32)


def read(name: str, spaces: Sequence[Any]) -> ActionSpaces:
    """The action spaces of all agents of the environment `name`.

    Args:
        name: for error messages.
        spaces: per agent: discrete if it has `n`, multi-discrete if it has `nvec` or `num_categories`, continuous if it
            has `low`, `high` and `shape`.

    Raises:
        ValueError: a space of another kind (for example nested), or agents of different kinds.
    """
    kinds = {_kind(name, space) for space in spaces}
    if len(kinds) > 1:
        raise ValueError(f"env '{name}': agents have {' and '.join(sorted(kinds))} actions; they must be of one kind")
    if kinds == {"discrete"}:
        sizes = tuple(int(space.n) for space in spaces)
        return ActionSpaces("discrete", sizes, ((),) * len(sizes))
    if kinds == {"multi_discrete"}:
        sub_actions = tuple(tuple(map(int, _categories(space))) for space in spaces)
        shapes = tuple((len(own),) for own in sub_actions)
        return ActionSpaces("multi_discrete", multi_discrete_sizes(sub_actions), shapes, sub_actions=sub_actions)
    shapes = tuple(tuple(space.shape) for space in spaces)
    low, high = (
        tuple(np.broadcast_to(np.asarray(getattr(space, side), np.float32), space.shape) for space in spaces)
        for side in ("low", "high")
    )
    return ActionSpaces("continuous", tuple(math.prod(shape) for shape in shapes), shapes, low, high)


def _kind(name: str, space: Any) -> ActionKind:
    count = getattr(space, "n", None)
    if count is not None and np.ndim(count) == 0:
        return "discrete"
    if np.ndim(_categories(space)) == 1:
        return "multi_discrete"
    if all(hasattr(space, attribute) for attribute in ("low", "high", "shape")):
        return "continuous"
    raise ValueError(f"env '{name}': action space {type(space).__name__}; accepted: Discrete, MultiDiscrete, Box")


def _categories(space: Any) -> np.ndarray:
    """Choices per sub-action, under Gymnasium's or JaxMARL's name; an array without axes if there are none."""
    return np.asarray(getattr(space, "nvec", getattr(space, "num_categories", None)))


def time_limit(name: str, field: str, own: int | None, requested: int | None) -> int:
    """The time limit of the environment `name`, in steps: `requested`, or else its own.

    Args:
        name, field: for error messages: the environment's name and that of its own limit.
        own: its own limit, if it has one.
        requested: the user's choice.

    Raises:
        ValueError: neither is known, or its own is shorter than the requested one: reaching it would be mistaken for
            the end of the task.
    """
    if own is None and requested is None:
        raise ValueError(f"env '{name}' has no time limit {field}; episode_length=... is required")
    if own is not None and requested is not None and requested > own:
        raise ValueError(
            f"env '{name}': episode_length={requested}; it must be at most the environment's own limit {field}={own}"
        )
    return int(next(limit for limit in (requested, own) if limit is not None))


def flat_observation(observation: Any) -> jax.Array:
    """[size] float32: all arrays of one agent's (nested) observation, flattened and concatenated."""
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(observation)])


def image_shape(observations: Sequence[Any]) -> tuple[int, ...] | None:
    """`EnvSpec.observation_shape` of agents with these observations, arrays or their shapes."""
    shapes = {tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(observation)) for observation in observations}
    array = shapes.pop() if len(shapes) == 1 else ()
    return array[0] if len(array) == 1 and len(array[0]) > 1 else None


def padded_rows(rows: Sequence[jax.Array], size: int) -> jax.Array:
    """[N, size]: vectors of different lengths, padded with zeros."""
    return jnp.stack([jnp.pad(row, (0, size - row.shape[0])) for row in rows])


def common_dtypes(first: Any, second: Any) -> Any:
    """`jax.ShapeDtypeStruct`s with the promoted dtypes of the leaves of two such trees."""

    def common(a, b):
        dtype = a.dtype if a.dtype == b.dtype else jnp.promote_types(a.dtype, b.dtype)  # which refuses dtypes of keys
        return jax.ShapeDtypeStruct(a.shape, dtype)

    return jax.tree.map(common, first, second)


def own_method(name: str, env: Any, *candidates: str) -> Callable[..., Any]:
    """The first of the methods `candidates` that `env` has, which must be its own.

    Wrappers pass on the methods they lack to what they wrap, so that what they change would be lost silently.

    Raises:
        ValueError: `env` gets it from an environment that it wraps.
    """
    found = next((candidate for candidate in candidates if hasattr(env, candidate)), candidates[-1])
    if not hasattr(type(env), found) and found not in getattr(env, "__dict__", {}):
        kind = type(env).__name__
        raise ValueError(
            f"env '{name}': {kind} has no {found} of its own, and that of the environment it wraps leaves out what {kind} "
            f"changes; define {found} in {kind}"
        )
    return getattr(env, found)


def installed_version(package: str) -> str:
    """As a spec's metadata has it; an environment of the user's own needs no package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
