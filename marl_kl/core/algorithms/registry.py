"""Algorithms by name. A new one is a function `(actor, config) -> Algorithm` and one line in `_ALGORITHMS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from envs.validation import suggest
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
    build: Callable[[Actor, Config], Algorithm]
    config_class: type[Config]
    agent_metrics: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line about it."""
        return self.build.__doc__.strip().splitlines()[0]


def _trust_region(build: Callable[[Actor, Config], Algorithm]) -> Entry:
    return Entry(build.__name__, build, TrustRegionConfig, TRUST_REGION_METRICS)


def _first_order(build: Callable[[Actor, Config], Algorithm]) -> Entry:
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
        raise ValueError(f"unknown algorithm {name!r}; {suggest(name, _ALGORITHMS)}")
    return entry
