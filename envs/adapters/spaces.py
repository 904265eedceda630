"""What the action spaces of other libraries (gymnax, JaxMARL, Gymnasium) say, read by their attributes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        shapes: per agent, the shape of an action there.
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
        """The fields of an `EnvSpec` that say this."""
        fields = {"action_kind": self.kind, "action_sizes": self.sizes, "sub_actions": self.sub_actions or None}
        if self.kind == "continuous" and all(np.isfinite(ends).all() for ends in (*self.low, *self.high)):
            ones = tuple((1.0,) * size for size in self.sizes)
            return fields | {"action_low": jax.tree.map(lambda one: -one, ones), "action_high": ones}
        return fields

    @property
    def num_choices(self) -> tuple[int, ...]:
        """Per agent, how many choices there are, those of all its sub-actions together."""
        return tuple(map(sum, self.sub_actions)) or self.sizes

    def placed(self, rows: Sequence[jax.Array]) -> jax.Array:
        """[N, D * K]: what is said of each choice of several at once, where `EnvSpec.action_mask` has that choice.

        Args:
            rows: per agent [sum of its choices], those of its sub-actions one after another.
        """
        num_choices = max(max(own) for own in self.sub_actions)
        padded = []
        for row, own in zip(rows, self.sub_actions):
            parts = jnp.split(row, np.cumsum(own)[:-1])
            padded.append(padded_rows(parts, num_choices).reshape(-1))
        return padded_rows(padded, max(self.sizes))

    def native(self, action: jax.Array) -> list[jax.Array]:
        """Per agent, what its own library's environment expects of `action`, [N] or [N, D] int32, or [N, A].

        Continuous actions are clipped to [-1, 1] and stretched to a bounded space, so that a policy that begins around
        0 begins in the middle; where a space has no bounds they go through as they are.
        """
        if self.kind == "discrete":
            return [action[agent] for agent in range(len(self.sizes))]
        if self.kind == "multi_discrete":
            return [action[agent, : len(own)] for agent, own in enumerate(self.sub_actions)]
        return [self._stretched(action[agent, :size], agent) for agent, size in enumerate(self.sizes)]

    def _stretched(self, action: jax.Array, agent: int) -> jax.Array:
        action = jnp.reshape(action, self.shapes[agent])
        bounded = np.isfinite(self.low[agent]) & np.isfinite(self.high[agent])
        low, high = np.where(bounded, self.low[agent], -1.0), np.where(bounded, self.high[agent], 1.0)
        within = jnp.where(bounded, jnp.clip(action, -1.0, 1.0), action)
        return (within * ((high - low) / 2) + (low + high) / 2).astype(jnp.float32)


def read(name: str, spaces: Sequence[Any]) -> ActionSpaces:
    """The action spaces of all agents of the environment `name`.

    Args:
        name: for error messages.
        spaces: per agent: one with `n` is a number of choices, one with `nvec` or `num_categories` several of them, one
            with `low`, `high` and `shape` a box.

    Raises:
        ValueError: a space of another kind (nested, say), or agents of different kinds.
    """
    kinds = {_kind(name, space) for space in spaces}
    if len(kinds) > 1:
        found = " and ".join(sorted(kinds))
        raise ValueError(f"env '{name}': agents have {found} actions; one kind for all is accepted")
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
    raise ValueError(f"env '{name}': an action space {type(space).__name__}; accepted: Discrete, MultiDiscrete, Box")


def _categories(space: Any) -> np.ndarray:
    """Choices per sub-action, as Gymnasium or JaxMARL call them; an array without axes where there are none."""
    return np.asarray(getattr(space, "nvec", getattr(space, "num_categories", None)))


def time_limit(name: str, field: str, own: int | None, requested: int | None) -> int:
    """The time limit of the environment `name`, in steps: `requested`, or else its own.

    Args:
        name, field: for error messages: what the environment's own limit is called there.
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
    """[size] float32: the arrays of one agent's observation, whatever their nesting and types, one after another."""
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(observation)])


def padded_rows(rows: Sequence[jax.Array], size: int) -> jax.Array:
    """[N, size]: vectors of different lengths, with zeros behind them."""
    return jnp.stack([jnp.pad(row, (0, size - row.shape[0])) for row in rows])


def steady(tree: Any, like: Any) -> Any:
    """`tree` as arrays of exactly the dtypes of `like`, so that it can be carried through `jax.lax.scan`."""
    return jax.tree.map(lambda leaf, model: jax.lax.convert_element_type(jnp.asarray(leaf), model.dtype), tree, like)


def common_dtypes(first: Any, second: Any) -> Any:
    """Shapes with dtypes that hold the leaves of both trees of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda a, b: jax.ShapeDtypeStruct(a.shape, jnp.promote_types(a.dtype, b.dtype)), first, second)
