"""The sequential trust-region family: one scheme, four ways to share out the KL budget."""

from __future__ import annotations

from marl_kl.config import TrustRegionConfig
from marl_kl.core import allocators
from marl_kl.core.policies import Actor
from marl_kl.core.schemes import sequential, together
from marl_kl.core.types import Algorithm


def hatrpo(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """HATRPO: equal thresholds, random order (Kuba et al. 2022); sharing a network, one step of it (ours)."""
    if actor.shared:
        return together(actor, config)
    return sequential(actor, config, allocators.equal_shares())


def hatrpo_w(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """HATRPO-W: thresholds by water-filling (Shek, Shi & Tokekar 2025)."""
    share = lambda utility, budget: allocators.water_filling(utility, budget, config.allocation_epsilon)  # noqa: E731
    return sequential(actor, config, allocators.planned(share))


def hatrpo_g(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """HATRPO-G: the best improvement per KL moves next (Shek, Shi & Tokekar 2025)."""
    return sequential(actor, config, allocators.greedy(config.greedy_share))


def hatrpo_n(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """HATRPO-N: the natural allocation, exact optimum of TRPO's local model (ours)."""
    return sequential(actor, config, allocators.planned(allocators.natural))
