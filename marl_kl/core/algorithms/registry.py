"""Algorithms by name, or by path: a new one is a function `(actor, config) -> Algorithm`, or `OffPolicyAlgorithm`, and its
`AlgorithmSpec`."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from envs.validation import imported, is_path, suggest
from marl_kl.config import Config, FirstOrderConfig, OffPolicyConfig, TrustRegionConfig
from marl_kl.core.algorithms import hatrpo, maddpg_family, ppo_family
from marl_kl.core.metrics import (
    FIRST_ORDER_METRICS,
    OFF_POLICY_METRICS,
    OFF_POLICY_TEAM_METRICS,
    ON_POLICY_TEAM_METRICS,
    TRUST_REGION_METRICS,
)
from marl_kl.core.off_policy import OffPolicyAlgorithm
from marl_kl.core.policies import Actor
from marl_kl.core.types import Algorithm


class AlgorithmSpec(NamedTuple):
    """The static description of an algorithm.

    Attributes:
        name: the name users type; of their own algorithms the path, "my_package.algorithms:mine", where it has one.
        build: `(actor, config) -> Algorithm`, or `OffPolicyAlgorithm`; `config` a `config_class`.
        config_class: the class of its config; one derived from `OffPolicyConfig` makes the algorithm off-policy.
        agent_metrics: names of the metrics per agent that it always reports.
        unused: fields of its config that it does not use.
        team_metrics: names of the metrics of the team that it always reports.
    """

    name: str
    build: Callable[[Actor, Any], Algorithm | OffPolicyAlgorithm]
    config_class: type[Config]
    agent_metrics: tuple[str, ...]
    unused: tuple[str, ...] = ()
    team_metrics: tuple[str, ...] = ON_POLICY_TEAM_METRICS

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0]

    def refuse_unused(self, config: Config) -> None:
        """Raises ValueError if a field that the algorithm does not use is not at its default."""
        for name in self.unused:
            value = getattr(config, name)
            if value != getattr(type(config), name):
                users = [spec.name for spec in _ALGORITHMS.values() if spec.uses(name)]
                raise ValueError(f"{name}={value!r}; {self.name} does not use it, it belongs to {', '.join(users)}")

    def uses(self, name: str) -> bool:
        """Whether `name` is a field of its config that it uses."""
        return name not in self.unused and any(field.name == name for field in dataclasses.fields(self.config_class))


def _trust_region(build: Callable[[Actor, TrustRegionConfig], Algorithm], *used: str) -> AlgorithmSpec:
    """`used`: of the fields about allocation, those that it uses."""
    unused = tuple(name for name in _ALLOCATION if name not in used)
    return AlgorithmSpec(build.__name__, build, TrustRegionConfig, TRUST_REGION_METRICS, unused)


def _first_order(build: Callable[[Actor, FirstOrderConfig], Algorithm]) -> AlgorithmSpec:
    return AlgorithmSpec(build.__name__, build, FirstOrderConfig, FIRST_ORDER_METRICS)


def _off_policy(build: Callable[[Actor, OffPolicyConfig], OffPolicyAlgorithm], *unused: str) -> AlgorithmSpec:
    return AlgorithmSpec(
        build.__name__, build, OffPolicyConfig, OFF_POLICY_METRICS, unused, team_metrics=OFF_POLICY_TEAM_METRICS
    )


_ALLOCATION = ("allocation_epsilon", "utility", "utility_smoothing", "greedy_share")

_TD3 = ("policy_freq", "target_noise", "target_noise_clip")

_ALGORITHMS = {
    spec.name: spec
    for spec in (
        _trust_region(hatrpo.hatrpo),
        _trust_region(hatrpo.hatrpo_w, "allocation_epsilon", "utility", "utility_smoothing"),
        _trust_region(hatrpo.hatrpo_g, "allocation_epsilon", "utility", "greedy_share"),
        _trust_region(hatrpo.hatrpo_n, "utility", "utility_smoothing"),
        _first_order(ppo_family.happo),
        _first_order(ppo_family.mappo),
        _first_order(ppo_family.ippo),
        _first_order(ppo_family.maspo),
        _first_order(ppo_family.mars),
        _off_policy(maddpg_family.maddpg, *_TD3),
        _off_policy(maddpg_family.haddpg, *_TD3),
        _off_policy(maddpg_family.matd3),
        _off_policy(maddpg_family.hatd3),
    )
}


def names(config_class: type[Config] = Config) -> tuple[str, ...]:
    """The names of all algorithms whose config is a `config_class`."""
    return tuple(name for name, spec in _ALGORITHMS.items() if issubclass(spec.config_class, config_class))


def get(name: str | AlgorithmSpec) -> AlgorithmSpec:
    """An algorithm.

    Args:
        name: as in `names()` or as it is written in papers ("HATRPO-W"); or an `AlgorithmSpec` of your own, or its path,
            "my_package.algorithms:mine", which is then its name.

    Raises:
        ValueError: unknown name, with the nearest ones; or a path that leads nowhere, or to something else.
    """
    if isinstance(name, AlgorithmSpec):
        return name._replace(name=_path_of(name) or name.name)
    if is_path(name):
        spec = imported(name, "algorithm")
        if not isinstance(spec, AlgorithmSpec):
            raise ValueError(f"algorithm {name!r} is a {type(spec).__name__}; it must be an AlgorithmSpec")
        return spec._replace(name=name)
    spec = _ALGORITHMS.get(name.lower().replace("-", "_"))
    if spec is None:
        raise ValueError(f"unknown algorithm {name!r}; {suggest(name, _ALGORITHMS)}")
    return spec


def refuse_not_importable(spec: AlgorithmSpec, config: Config) -> None:
    """Raises ValueError if another process, which has names and paths only, could not find the algorithm or a network."""
    if spec != _ALGORITHMS.get(spec.name) and not is_path(spec.name):
        raise ValueError(
            f"algorithm '{spec.name}' cannot be stored in out: it must be a global of the module that defines its build "
            "function, or be given as its path, 'module:attribute'"
        )
    for field in dataclasses.fields(config):
        if str(getattr(config, field.name)).startswith("__main__:"):
            raise ValueError(
                f"{field.name}={getattr(config, field.name)!r} cannot be stored in out: it must be in an importable module, not "
                "in a script or a notebook"
            )


def _path_of(spec: AlgorithmSpec) -> str | None:
    """The path of a spec that is a global of the module of its `build`, as in one file per algorithm."""
    if is_path(spec.name):
        return None
    module = sys.modules.get(getattr(spec.build, "__module__", ""))
    if module is None or module.__name__ == "__main__":
        return None
    return next((f"{module.__name__}:{name}" for name, value in vars(module).items() if value is spec), None)
