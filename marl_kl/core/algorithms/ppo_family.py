"""The first-order family: scheme x surrogate x critic, the rest as in HATRPO."""

from __future__ import annotations

from marl_kl.config import FirstOrderConfig
from marl_kl.core import schemes, surrogates
from marl_kl.core.gradient_steps import gradient_steps
from marl_kl.core.policies import Actor
from marl_kl.core.types import Algorithm


def happo(actor: Actor, config: FirstOrderConfig) -> Algorithm:
    """HAPPO: clipped surrogate, agents sequentially in random order (Kuba et al. 2022)."""
    return schemes.in_random_order(actor, gradient_steps(actor, config, surrogates.clipped))


def mappo(actor: Actor, config: FirstOrderConfig) -> Algorithm:
    """MAPPO: clipped surrogate, all agents simultaneously, centralised critic (Yu et al. 2022)."""
    return schemes.simultaneous(actor, gradient_steps(actor, config, surrogates.clipped))


def ippo(actor: Actor, config: FirstOrderConfig) -> Algorithm:
    """IPPO: clipped surrogate, all agents simultaneously, one critic per agent (de Witt et al. 2020)."""
    return mappo(actor, config)._replace(critic_input="observation")


def maspo(actor: Actor, config: FirstOrderConfig) -> Algorithm:
    """MASPO: quadratic ratio penalty, all agents simultaneously, centralised critic (Wijesundara et al. 2026)."""
    return schemes.simultaneous(actor, gradient_steps(actor, config, surrogates.quadratic))


def mars(actor: Actor, config: FirstOrderConfig) -> Algorithm:
    """MARS: multiplicatively symmetric ratio penalty, all agents simultaneously (after Wijesundara et al. 2026).

    The barrier r + 1/r - 2 is the simplest function with the published properties, the only public information about
    it; its constant c = (1 + eps)^2 / (eps (2 + eps)) puts the optimum for A > 0 at r = 1 + eps. Both are derived in
    `marl_kl.core.surrogates.ratio_symmetric`.
    """
    return schemes.simultaneous(actor, gradient_steps(actor, config, surrogates.ratio_symmetric))
