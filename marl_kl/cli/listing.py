"""`marl-kl envs`, `marl-kl algorithms` and `marl-kl presets`: lists of names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import envs
from envs import registry
from marl_kl.cli.options import add_command
from marl_kl.core import algorithms
from marl_kl.training import presets


def add_envs(commands) -> None:
    """Adds `marl-kl envs`."""
    parser = add_command(
        commands, _envs, "envs [NAME]", "list the environments", "; with NAME its agents, sizes and options."
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="environment")


def add_algorithms(commands) -> None:
    """Adds `marl-kl algorithms`."""
    add_command(commands, _algorithms, "algorithms", "list the algorithms", ".")


def add_presets(commands) -> None:
    """Adds `marl-kl presets`."""
    add_command(commands, _presets, "presets", "list the presets with their scenarios and algorithms", ".")


def _envs(arguments: argparse.Namespace) -> int:
    print("\n".join(envs.names() if arguments.name is None else _facts(arguments.name)))
    return 0


def _facts(name: str) -> list[str]:
    """What users ask first about an environment, as aligned lines."""
    spec = envs.make(name).spec
    facts = {
        "agents": f"{spec.num_agents}: {', '.join(spec.agents)}",
        "actions": f"{spec.action_kind}, {_sizes(spec.action_sizes)} per agent",
        "observations": f"{_sizes(spec.observation_sizes)} per agent",
        "state": str(spec.state_size),
        "episode": f"at most {spec.episode_length} env steps",
        "reward": "of the team" if spec.team_reward else "per agent",
        **dict(spec.metadata),
        "options": ", ".join(registry.options(name)) or "none",
    }
    facts.pop("partition", None)  # the names of the agents say it
    width = max(map(len, facts))
    return [spec.name, *(f"  {key:<{width}}  {value}" for key, value in facts.items())]


def _sizes(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "/".join(map(str, sizes))


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
