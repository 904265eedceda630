"""`marl-kl envs`, `marl-kl algorithms` and `marl-kl presets`: lists of names."""

from __future__ import annotations

import argparse

import envs
from marl_kl.cli.options import add_command
from marl_kl.core import algorithms
from marl_kl.training import presets


def add_envs(commands) -> None:
    """Adds `marl-kl envs`."""
    add_command(commands, _envs, "envs", "list the environments", ".")


def add_algorithms(commands) -> None:
    """Adds `marl-kl algorithms`."""
    add_command(commands, _algorithms, "algorithms", "list the algorithms", ".")


def add_presets(commands) -> None:
    """Adds `marl-kl presets`."""
    add_command(commands, _presets, "presets", "list the presets with their scenarios and algorithms", ".")


def _envs(arguments: argparse.Namespace) -> int:
    print("\n".join(envs.names()))
    return 0


def _algorithms(arguments: argparse.Namespace) -> int:
    width = max(map(len, algorithms.names()))
    for name in algorithms.names():
        print(f"{name:<{width}}  {algorithms.get(name).summary}")
    return 0


def _presets(arguments: argparse.Namespace) -> int:
    for preset in map(presets.get, presets.names()):
        print(f"{preset.name}: {preset.about}")
        print(f"  source      {preset.source}")
        print(f"  scenarios   {', '.join(preset.scenarios)}")
        print(f"  algorithms  {', '.join(preset.algorithms)}")
    return 0
