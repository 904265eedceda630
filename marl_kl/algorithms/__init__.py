"""Algorithms by name. A new one is a function `(actor, config) -> Algorithm` and one line in `_ALGORITHMS`."""

from __future__ import annotations

import difflib
from typing import Callable, NamedTuple

from marl_kl.algorithms import hatrpo
from marl_kl.config import Config, TrustRegionConfig
from marl_kl.policies import Actor
from marl_kl.types import Algorithm


class Entry(NamedTuple):
    """name: what users type. build: `(actor, config) -> Algorithm`. config_class: what it can be told."""

    name: str
    build: Callable[[Actor, Config], Algorithm]
    config_class: type[Config]

    @property
    def summary(self) -> str:
        """One line about it."""
        return self.build.__doc__.strip().splitlines()[0]


_ALGORITHMS = {
    entry.name: entry
    for entry in (
        Entry("hatrpo", hatrpo.hatrpo, TrustRegionConfig),
        Entry("hatrpo_w", hatrpo.hatrpo_w, TrustRegionConfig),
        Entry("hatrpo_g", hatrpo.hatrpo_g, TrustRegionConfig),
        Entry("hatrpo_n", hatrpo.hatrpo_n, TrustRegionConfig),
    )
}


def names() -> tuple[str, ...]:
    """The names that `get` knows."""
    return tuple(_ALGORITHMS)


def get(name: str) -> Entry:
    """The algorithm called `name`; ValueError with near misses if there is none."""
    entry = _ALGORITHMS.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, _ALGORITHMS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(_ALGORITHMS)}"
        raise ValueError(f"unknown algorithm '{name}'; {hint}")
    return entry
