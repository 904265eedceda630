"""From a name to an environment."""

from __future__ import annotations

import difflib
import inspect
from typing import Callable

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
    """Builds the environment called `name`.

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
        raise ValueError(f"env '{name}': unknown option '{unknown[0]}'; accepted: {', '.join(accepted)}")
    return factory(**options)


def _near_misses(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), _FACTORIES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
    return f"unknown env '{name}'; {hint}"
