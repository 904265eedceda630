"""In which order agents update, and what each knows about those before it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from marl_kl import trust_region
from marl_kl.allocators import Allocator, Round
from marl_kl.config import TrustRegionConfig
from marl_kl.policies import Actor
from marl_kl.trust_region import AgentBatch, Outcome
from marl_kl.types import Algorithm, Batch, Params


class _Scores(NamedTuple):
    """Every agent's trial step at an equal share of the budget.

    Attributes:
        utility: [N] expected gains.
        trial: outcomes, leaves [N, ...]; None where the allocator needs no more than first-order gains.
    """

    utility: jax.Array
    trial: Outcome | None


class _Progress(NamedTuple):
    """The state between two moves.

    Attributes:
        actors: all parameters, those of agents that have moved already new.
        log_factor: [B] log of the compound factor, the product of the ratios of those who have moved.
        waiting: [N] bool. remaining: [] budget not yet spent.
    """

    actors: Params
    log_factor: jax.Array
    waiting: jax.Array
    remaining: jax.Array


def sequential(actor: Actor, config: TrustRegionConfig, allocator: Allocator) -> Algorithm:
    """Trust-region steps one agent after another inside one joint KL budget (HATRPO, eq. 9-11).

    Agent i_m maximises E[(r - 1) M] with M = advantage * product of the ratios of those who moved before it, so
    that the gains add up to the joint surrogate's. The factor is carried as a logarithm and exponentiated once per
    agent. KL is measured at the observation moments that the batch was collected with.

    With an allocator that uses utilities, every agent's trial step is first solved against the plain advantage, and
    its direction anew when its turn comes, so that all allocators take directions of the same quality. With one
    that uses scores, waiting agents are re-scored after every move against the new factor, with their trial steps
    kept as they are. (The paper leaves open whether the trial step is solved anew; that costs N^2 / 2 solves
    instead of N.) With a team reward the joint surrogate never falls; without one each agent climbs its own.
    """

    def update(key, actors, state, batch):
        num_agents, batch_size = batch.advantage.shape
        key_order, key_subset = jax.random.split(key)
        subset = _subset(key_subset, batch_size, config.cg_subsample)
        # a few units of rounding less, so that shares that add up to it cannot add up to more
        budget = jnp.asarray(config.kl_budget, batch.advantage.dtype) * (1 - 1e-6)
        share = budget / num_agents

        def of_agent(agent, log_factor):
            obs, action, mask, advantage = jax.tree.map(lambda leaf: leaf[agent], batch)
            return AgentBatch(obs, action, mask, jnp.exp(log_factor) * advantage, subset)

        log_factor = jnp.zeros(batch_size, batch.advantage.dtype)
        scores = _score_all(actor, config, allocator, actors, share, lambda agent: of_agent(agent, log_factor))
        plan = allocator.start(key_order, scores.utility, budget)

        def turn(progress: _Progress, position):
            factor = jnp.exp(progress.log_factor)
            score = _current_scores(config, scores, batch.advantage * factor, allocator)
            agent, threshold = allocator.next(plan, Round(position, score, progress.waiting, progress.remaining))
            agent_batch = of_agent(agent, progress.log_factor)
            params = jax.tree.map(lambda leaf: leaf[agent], progress.actors)
            proposal = trust_region.propose(actor, config, params, agent_batch)
            moved = trust_region.move(actor, config, params, agent_batch, proposal, threshold)
            utility = proposal.gain(share) if allocator.uses == "nothing" else scores.utility[agent]
            report = {
                "utility": utility,
                "kl_threshold": threshold,
                "kl": moved.outcome.kl,
                "gain": moved.outcome.gain,
                "step_fraction": moved.step_fraction,
                "entropy": moved.entropy,
                "position": position,
            }
            after = _Progress(
                jax.tree.map(lambda leaf, new: leaf.at[agent].set(new), progress.actors, moved.params),
                progress.log_factor + moved.outcome.log_ratio,
                progress.waiting.at[agent].set(False),
                jnp.maximum(progress.remaining - moved.outcome.kl, 0.0),
            )
            return after, (agent, report)

        start = _Progress(actors, log_factor, jnp.ones(num_agents, bool), budget)
        end, (order, reports) = jax.lax.scan(turn, start, jnp.arange(num_agents))
        factor = jnp.exp(end.log_factor)
        metrics = {name: jnp.zeros_like(values).at[order].set(values) for name, values in reports.items()}
        metrics |= {
            "kl_total": jnp.sum(metrics["kl"]),
            "factor_mean": jnp.mean(factor),
            "factor_max": jnp.max(factor),
        }
        return end.actors, state, metrics

    return Algorithm(init=lambda actors: (), update=update)


def _subset(key: jax.Array, batch_size: int, share: float) -> jax.Array | None:
    """[M] distinct sample indices, at least one; None where all are wanted."""
    if share == 1.0:
        return None
    return jax.random.permutation(key, batch_size)[: max(1, round(share * batch_size))]


def _score_all(actor, config, allocator, actors, share, of_agent) -> _Scores:
    """Trial steps of all agents with nobody moved; without use for them, zeros."""
    num_agents = jax.tree.leaves(actors)[0].shape[0]
    if allocator.uses == "nothing":
        return _Scores(jnp.zeros(num_agents), None)
    measured = allocator.uses == "scores" or config.utility == "measured"

    def score(agent):
        params = jax.tree.map(lambda leaf: leaf[agent], actors)
        agent_batch = of_agent(agent)
        proposal = trust_region.propose(actor, config, params, agent_batch)
        tried = trust_region.trial(actor, params, agent_batch, proposal, share) if measured else None
        utility = tried.gain if config.utility == "measured" else proposal.gain(share)
        return _Scores(utility, tried)

    return jax.lax.map(score, jnp.arange(num_agents))


def _current_scores(config, scores: _Scores, weight: jax.Array, allocator: Allocator) -> jax.Array:
    """[N] gain / (KL + epsilon) of the trial steps under the weights [N, B] of the moment (HATRPO-G)."""
    if allocator.uses != "scores":
        return jnp.zeros_like(scores.utility)
    gain = jnp.mean(jnp.expm1(scores.trial.log_ratio) * weight, axis=1)
    return gain / (scores.trial.kl + config.allocation_epsilon)
