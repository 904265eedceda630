"""From a name to an environment."""

from __future__ import annotations

import difflib
import inspect
from typing import Callable

from envs import games
from envs.types import Env

_FACTORIES: dict[str, Callable[..., Env]] = {
    **games.FACTORIES,
}


def names() -> tuple[str, ...]:
    """The names that `make` knows, sorted."""
    return tuple(sorted(_FACTORIES))


def make(name: str, **options) -> Env:
    """Builds the environment called `name`.

    Args:
        name: one of `names()`.
        **options: keyword arguments of that environment's factory, described where it is defined
            (`help(envs.games.matrix_game)`, say).

    Raises:
        ValueError: unknown name or option, with near misses and what is accepted.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        near = difflib.get_close_matches(name, _FACTORIES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
        raise ValueError(f"unknown env '{name}'; {hint}")
    accepted = inspect.signature(factory).parameters
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"env '{name}': unknown option '{unknown[0]}'; accepted: {', '.join(accepted)}")
    return factory(**options)
