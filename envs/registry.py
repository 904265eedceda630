"""From a name to an environment."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from typing import Any, Callable

from envs import bodies, games
from envs.types import Env

_FACTORIES: dict[str, Callable[..., Env]] = {
    **games.FACTORIES,
    **bodies.FACTORIES,
}


def names() -> tuple[str, ...]:
    """The names that `make` knows, sorted."""
    return tuple(sorted(_FACTORIES))


def make(name: str, **options) -> Env:
    """Builds the environment called `name`; its spec notes the options, so that it can be built again.

    Args:
        name: one of `names()`; for bodies also as others write it ("Ant-v2-4x2"), any `manyagent_swimmer_<n>x<m>`,
            and a body alone ("humanoid") with `partition=`.
        **options: keyword arguments of that environment's factory, described where it is defined
            (`help(envs.games.matrix_game)`, `help(envs.bodies.body_env)`).

    Raises:
        ValueError: unknown name or option, with near misses and what is accepted.
    """
    factory = _FACTORIES.get(name) or bodies.find(name)
    if factory is None:
        raise ValueError(bodies.explain_unknown(name) or _near_misses(name))
    accepted = inspect.signature(factory).parameters
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"env {name!r}: unknown option {unknown[0]!r}; accepted: {', '.join(accepted)}")
    env = factory(**options)
    return env._replace(spec=dataclasses.replace(env.spec, options=_noted(options)))


def _noted(options: dict[str, Any]) -> tuple[tuple[str, Any], ...] | None:
    """`options` as pairs that a text file can hold; None if a value is of another kind (an array, say)."""
    try:
        return tuple((name, _plain(value)) for name, value in options.items())
    except TypeError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    if value is None or isinstance(value, (int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError


def _near_misses(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), _FACTORIES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
    return f"unknown env {name!r}; {hint}"
