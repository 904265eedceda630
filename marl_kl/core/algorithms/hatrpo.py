"""The sequential trust-region family: one scheme, four allocations of the KL budget."""

from __future__ import annotations

import functools

from marl_kl.config import TrustRegionConfig
from marl_kl.core import allocators
from marl_kl.core.policies import Actor
from marl_kl.core.schemes import sequential, shared_trust_region
from marl_kl.core.types import Algorithm


def hatrpo(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """HATRPO: equal thresholds, random order (Kuba et al. 2022); one step of the network if it is shared (ours)."""
    if actor.shared:
        return shared_trust_region(actor, config)
    return sequential(actor, config, allocators.equal())


def hatrpo_w(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """HATRPO-W: thresholds by water-filling (Shek, Shi & Tokekar 2025)."""
    allocate = functools.partial(allocators.water_filling, epsilon=config.allocation_epsilon)
    return sequential(actor, config, allocators.planned(allocate))


def hatrpo_g(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """HATRPO-G: the agent with the best improvement per KL moves next (Shek, Shi & Tokekar 2025)."""
    return sequential(actor, config, allocators.greedy(config.greedy_share))


def hatrpo_n(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """HATRPO-N: the natural allocation, the exact optimum of TRPO's local model (ours)."""
    return sequential(actor, config, allocators.planned(allocators.natural))
