"""Presets: configs that are known to be good for something, per scenario. Each is a TOML file in this folder.

about = "one line"
source = "where the numbers are from"
[Config]                     # fields that every algorithm has
[OnPolicyConfig]             # those of all on-policy ones
[TrustRegionConfig]          # of the algorithms with this config class; those without a table have no such preset
[maddpg]                     # of one algorithm
[scenarios]                  # the scenarios it is for, with what is different there
ant_4x2 = { TrustRegionConfig = { kl_budget = 0.02 } }
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from envs.validation import suggest
from marl_kl.config import Config
from marl_kl.core import algorithms

_FOLDER = Path(__file__).parent


class Preset(NamedTuple):
    """The content of a preset's file.

    Attributes:
        name: what users type. about: one line. source: where its numbers are from.
        fields: name of a config class, or of an algorithm -> its fields, for all scenarios.
        scenarios: scenario -> the same, where it differs.
    """

    name: str
    about: str
    source: str
    fields: dict[str, dict[str, Any]]
    scenarios: dict[str, dict[str, dict[str, Any]]]

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The algorithms that it is for."""
        return tuple(name for name in algorithms.names() if algorithms.get(name).config_class.__name__ in self.fields)


def names() -> tuple[str, ...]:
    """The presets that `get` knows, sorted."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))


def get(name: str) -> Preset:
    """The preset called `name`; ValueError with those that exist if there is none."""
    if name not in names():
        raise ValueError(f"unknown preset {name!r}; {suggest(name, names())}")
    content = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    about, source, scenarios = (content.pop(key) for key in ("about", "source", "scenarios"))
    return Preset(name, about, source, content, scenarios)


def fields(name: str, scenario: str, algorithm: str) -> dict[str, Any]:
    """The config fields that the preset sets.

    Args:
        name: one of `names()`.
        scenario: as `EnvSpec.name` has it.
        algorithm: one of `marl_kl.core.algorithms.names()`.

    Raises:
        ValueError: there is no such preset, or it has nothing for this scenario or algorithm; the message says what
            there is.
    """
    preset, entry = get(name), algorithms.get(algorithm)
    if algorithm not in preset.algorithms:
        raise ValueError(f"preset '{name}' is not for {algorithm}; it is for {', '.join(preset.algorithms)}")
    if scenario not in preset.scenarios:
        raise ValueError(f"preset '{name}' has nothing for {scenario!r}; it has {', '.join(preset.scenarios)}")
    kinds = [*(kind.__name__ for kind in reversed(entry.config_class.__mro__)), algorithm]
    tables = (table.get(kind, {}) for table in (preset.fields, preset.scenarios[scenario]) for kind in kinds)
    return {field: value for table in tables for field, value in table.items()}


def config(name: str, scenario: str, algorithm: str, **changes) -> Config:
    """The preset as a config, for `marl_kl.train(env, algorithm, config=...)`, with `changes` to it.

    Arguments and errors are those of `fields`; a change that is no field or a bad value is a ValueError too.
    """
    chosen = fields(name, scenario, algorithm)
    return algorithms.get(algorithm).config_class().replace(**{**chosen, **changes})
