"""Environments by name."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

from envs import games, paxmen
from envs.adapters import jaxmarl, jumanji
from envs.base import Env
from envs.bodies import scenarios
from envs.validation import imported, is_path, suggest

_FACTORIES: dict[str, Callable[..., Env]] = {
    **games.FACTORIES,
    **paxmen.FACTORIES,
    **scenarios.FACTORIES,
}


def names() -> tuple[str, ...]:
    """All names for `make`, sorted, including JaxMARL's and Jumanji's (installed or not)."""
    return tuple(sorted((*_FACTORIES, *jaxmarl.NAMES, *jumanji.NAMES)))


def make(name: str, **options) -> Env:
    """Builds the environment called `name`; its spec records the options, so that it can be built again.

    Args:
        name: one of `names()`; also in other spellings ("Ant-v2-4x2", "10x2 Swimmer", "PaxMen 5"), any
            `manyagent_swimmer_<n>x<m>`, and a body alone ("humanoid") with `partition=`. Or the path of a function of your
            own that returns an `Env`, "my_package.orchard:make_orchard", which is then the environment's name.
        **options: keyword arguments of that environment's factory, described where it is defined
            (`help(envs.games.matrix_game)`, `help(envs.bodies.scenarios.body_env)`); for `jaxmarl/...` and `jumanji/...` those of the
            package's own.

    Raises:
        ValueError: unknown name or option, with near misses and what is accepted.
    """
    factory = _factory(name)
    accepted = inspect.signature(factory).parameters
    checks_options = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = sorted(set(options) - set(accepted))
    if unknown and not checks_options:
        raise ValueError(f"env {name!r}: unknown option {unknown[0]!r}; accepted: {', '.join(accepted)}")
    env = factory(**options)
    if not isinstance(env, Env):
        raise ValueError(f"env {name!r} returns a {type(env).__name__}; it must return an envs.Env")
    made_by = {"name": name} if is_path(name) else {}
    return env._replace(spec=dataclasses.replace(env.spec, options=_recorded(options), **made_by))


def options(name: str) -> tuple[str, ...]:
    """The names of the options of `make(name, ...)`; those of other packages' own are not listed."""
    parameters = inspect.signature(_factory(name)).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD)


def _factory(name: str) -> Callable[..., Any]:
    if not isinstance(name, str):
        raise ValueError(f"env={name!r}; it must be a name such as 'ant_4x2', one of envs.names()")
    if is_path(name):
        return _own_factory(name)
    finders = (jaxmarl.find, jumanji.find, paxmen.find, scenarios.find)
    factory = _FACTORIES.get(name) or next(filter(None, (find(name) for find in finders)), None)
    if factory is None:
        raise ValueError(jaxmarl.explain_unknown(name) or scenarios.explain_unknown(name) or _near_misses(name))
    return factory


def _own_factory(path: str) -> Callable[..., Any]:
    factory = imported(path, "env")
    if isinstance(factory, Env) or not callable(factory):
        raise ValueError(f"env {path!r} is a {type(factory).__name__}; it must be a function that returns an envs.Env")
    return factory


def _recorded(options: dict[str, Any]) -> tuple[tuple[str, Any], ...] | None:
    """`options` as pairs that can be stored as text; None if a value cannot (for example an array)."""
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
    hint = suggest(name, sorted(_FACTORIES))
    return f"unknown env {name!r}; {hint}" + f", {jaxmarl.PREFIX}..., {jumanji.PREFIX}..." * hint.startswith("known")
