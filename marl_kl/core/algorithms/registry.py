"""Algorithms by name. A new one is a function `(actor, config) -> Algorithm` and one line in `_ALGORITHMS`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from marl_kl.config import Config, FirstOrderConfig, TrustRegionConfig
from marl_kl.core.algorithms import hatrpo, ppo_family
from marl_kl.core.policies import Actor
from marl_kl.core.types import Algorithm
from marl_kl.results import FIRST_ORDER_METRICS, TRUST_REGION_METRICS


class Entry(NamedTuple):
    """What is known about an algorithm before it is built.

    Attributes:
        name: what users type.
        build: `(actor, config) -> Algorithm`.
        config_class: what it can be told.
        agent_metrics: names of what it reports per agent.
    """

    name: str
    build: Callable[[Actor, Any], Algorithm]
    config_class: type[Config]
    agent_metrics: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line about it."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0]


def _trust_region(build: Callable[[Actor, TrustRegionConfig], Algorithm]) -> Entry:
    return Entry(build.__name__, build, TrustRegionConfig, TRUST_REGION_METRICS)


def _first_order(build: Callable[[Actor, FirstOrderConfig], Algorithm]) -> Entry:
    return Entry(build.__name__, build, FirstOrderConfig, FIRST_ORDER_METRICS)


_ALGORITHMS = {
    entry.name: entry
    for entry in (
        _trust_region(hatrpo.hatrpo),
        _trust_region(hatrpo.hatrpo_w),
        _trust_region(hatrpo.hatrpo_g),
        _trust_region(hatrpo.hatrpo_n),
        _first_order(ppo_family.happo),
        _first_order(ppo_family.mappo),
        _first_order(ppo_family.ippo),
        _first_order(ppo_family.maspo),
        _first_order(ppo_family.mars),
    )
}


def names(config_class: type[Config] = Config) -> tuple[str, ...]:
    """The names that `get` knows, of the algorithms that take a `config_class`."""
    return tuple(name for name, entry in _ALGORITHMS.items() if issubclass(entry.config_class, config_class))


def get(name: str | Entry) -> Entry:
    """The algorithm called `name`, ValueError with near misses if there is none; an `Entry` of your own is returned."""
    if isinstance(name, Entry):
        return name
    entry = _ALGORITHMS.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, _ALGORITHMS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(_ALGORITHMS)}"
        raise ValueError(f"unknown algorithm {name!r}; {hint}")
    return entry
