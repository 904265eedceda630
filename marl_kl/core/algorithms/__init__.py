"""The algorithms by name (`registry`) and what they are composed of (`hatrpo`, `ppo_family`)."""

from marl_kl.core.algorithms.registry import Entry, get, names

__all__ = ["Entry", "get", "names"]
