"""Trial steps: what each agent could gain at an equal share of the budget, before any of them moves."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from marl_kl.config import TrustRegionConfig
from marl_kl.core import cross_fitting, trust_region, weighted
from marl_kl.core.agent_updates import agent_batch, compound_factor, fisher_subset, get_agent
from marl_kl.core.allocators import Allocator
from marl_kl.core.policies import Actor
from marl_kl.core.trust_region import AgentBatch, Outcome
from marl_kl.core.types import Batch, Params


class TrialSteps(NamedTuple):
    """Every agent's trial step at an equal share of the budget.

    Attributes:
        utility: [N] expected gains.
        signal_fraction: [N] the part of the predicted gain that is signal; None if it is not measured.
        outcome: leaves [N, ...]; None if first-order gains are enough.
    """

    utility: jax.Array
    signal_fraction: jax.Array | None
    outcome: Outcome | None


def with_its_utility(config: TrustRegionConfig, allocator: Allocator) -> TrustRegionConfig:
    """With the utility that this allocator takes for "auto"; only cross-fitted ones that plan an allocation are smoothed.

    Raises:
        ValueError: an odd number of environments has to be divided into halves.
    """
    chosen = config.utility
    if allocator.uses == "nothing":
        chosen = "first_order"
    elif chosen == "auto":
        chosen = "cross_fitted" if allocator.uses == "utility" else "first_order"
    is_cross_fitted = chosen == "cross_fitted"
    if config.num_envs % 2 and (is_cross_fitted or config.measure_signal):
        whose = (
            "cross-fitted utilities; utility='first_order' takes any number" if is_cross_fitted else "measure_signal"
        )
        raise ValueError(
            f"num_envs={config.num_envs}; it must be even to compare halves of the environments for {whose}"
        )
    is_smoothed = is_cross_fitted and allocator.uses == "utility"
    return config.replace(utility=chosen, utility_smoothing=config.utility_smoothing if is_smoothed else 0.0)


def trial_steps(
    actor: Actor,
    config: TrustRegionConfig,
    allocator: Allocator,
    actors: Params,
    equal_share: jax.Array,
    batch: Batch,
    key: jax.Array,
) -> TrialSteps:
    """The trial steps of all agents for the plain advantage; zeros if the allocator does not use them.

    Args:
        config: `with_its_utility`. Cross-fitted trial steps are fitted to halves of the environments, each assessed on the
            other half; others to the whole batch.
        equal_share: [] threshold. key: of the rows for Fisher products.
    """
    num_agents, num_rows, *_ = batch.advantage.shape
    is_cross_fitted, wants_outcome = config.utility == "cross_fitted", allocator.uses == "scores"
    is_split = is_cross_fitted or config.measure_signal
    subset = fisher_subset(key, num_rows, config.cg_subsample)
    half_subset = fisher_subset(key, num_rows // 2, config.cg_subsample) if is_split else None
    no_factor = jnp.zeros(batch.advantage.shape[1:], batch.advantage.dtype)

    def in_sample(params, own_batch: AgentBatch) -> TrialSteps:
        is_measured = config.utility == "measured"
        if allocator.uses == "nothing":
            return TrialSteps(jnp.zeros((), batch.advantage.dtype), None, None)
        proposal = trust_region.propose(actor, config, params, own_batch)
        if not wants_outcome and not is_measured:
            return TrialSteps(proposal.gain(equal_share), None, None)
        outcome = trust_region.trial(actor, params, own_batch, proposal, equal_share)
        return TrialSteps(outcome.gain if is_measured else proposal.gain(equal_share), None, outcome)

    def trial_step(agent) -> TrialSteps:
        params, own_batch = get_agent(actors, agent), agent_batch(batch, agent, no_factor, subset)
        if not is_split:
            return in_sample(params, own_batch)
        split = cross_fitting.halves(own_batch._replace(subset=None))._replace(subset=half_subset)
        fit = cross_fitting.cross_fit(actor, config, params, split)
        if not is_cross_fitted:
            return in_sample(params, own_batch)._replace(signal_fraction=fit.signal_fraction)
        outcome = cross_fitting.held_out_trial(actor, params, split, fit, equal_share) if wants_outcome else None
        return TrialSteps(trust_region.step_size(equal_share, fit.curvature) * fit.signal, fit.signal_fraction, outcome)

    return jax.lax.map(trial_step, jnp.arange(num_agents))


def scores(config: TrustRegionConfig, trials: TrialSteps, batch: Batch, log_factor: jax.Array) -> jax.Array:
    """[N] gain / (KL + epsilon) of the trial steps under the current compound factor (HATRPO-G); 0 without outcomes."""
    if trials.outcome is None:
        return jnp.zeros_like(trials.utility)
    weight = batch.advantage * compound_factor(log_factor)
    samples = tuple(range(1, weight.ndim))
    gain = weighted.mean(jnp.expm1(trials.outcome.log_ratio) * weight, batch.alive, axis=samples)
    return gain / (trials.outcome.kl + config.allocation_epsilon)
