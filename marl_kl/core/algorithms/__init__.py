"""The algorithms by name (`registry`) and what they are composed of (`hatrpo`, `ppo_family`)."""

from marl_kl.core.algorithms.registry import AlgorithmSpec, get, names, refuse_not_importable

__all__ = ["AlgorithmSpec", "get", "names", "refuse_not_importable"]
