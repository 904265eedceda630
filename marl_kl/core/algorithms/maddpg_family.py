"""The off-policy family: simultaneous or sequential actors, with the critic of DDPG or of TD3."""

from __future__ import annotations

from marl_kl.config import OffPolicyConfig
from marl_kl.core.off_policy import OffPolicyAlgorithm, in_random_order, simultaneous
from marl_kl.core.policies import Actor


def maddpg(actor: Actor, config: OffPolicyConfig) -> OffPolicyAlgorithm:
    """MADDPG: deterministic policy gradients, all agents simultaneously, centralised critic (Lowe et al. 2017)."""
    return OffPolicyAlgorithm(simultaneous(actor, config))


def haddpg(actor: Actor, config: OffPolicyConfig) -> OffPolicyAlgorithm:
    """HADDPG: deterministic policy gradients, agents sequentially in random order (Zhong et al. 2024)."""
    return OffPolicyAlgorithm(in_random_order(actor, config))


def matd3(actor: Actor, config: OffPolicyConfig) -> OffPolicyAlgorithm:
    """MATD3: MADDPG with twin critics, smoothed targets and delayed actors (Ackermann et al. 2019)."""
    return _td3(maddpg(actor, config), config)


def hatd3(actor: Actor, config: OffPolicyConfig) -> OffPolicyAlgorithm:
    """HATD3: HADDPG with twin critics, smoothed targets and delayed actors (Zhong et al. 2024)."""
    return _td3(haddpg(actor, config), config)


def _td3(algorithm: OffPolicyAlgorithm, config: OffPolicyConfig) -> OffPolicyAlgorithm:
    """The three changes of Fujimoto et al. (2018)."""
    return algorithm._replace(
        num_critics=2,
        policy_freq=config.policy_freq,
        target_action=lambda key, policy: policy.smoothed(key, config.target_noise, config.target_noise_clip),
    )
