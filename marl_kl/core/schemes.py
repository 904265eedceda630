"""Update schemes: the order of the agents' updates, and what each takes from the earlier ones."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from marl_kl.config import TrustRegionConfig
from marl_kl.core import trust_region, weighted
from marl_kl.core.agent_updates import (
    AgentUpdate,
    agent_batch,
    fisher_subset,
    get_agent,
    set_agent,
    team_metrics,
    update_sequentially,
)
from marl_kl.core.allocators import AllocationState, Allocator
from marl_kl.core.cross_fitting import UtilityAverage
from marl_kl.core.gradient_steps import AgentState, AgentStep
from marl_kl.core.policies import Actor
from marl_kl.core.trial_steps import scores, trial_steps, with_its_utility
from marl_kl.core.trust_region import AgentBatch
from marl_kl.core.types import Algorithm, Batch, Params

# Trust-region steps


def sequential(actor: Actor, config: TrustRegionConfig, allocator: Allocator) -> Algorithm:
    """Trust-region steps of one agent after another inside one joint KL budget (HATRPO, eq. 9-11).

    KL is measured at the observation moments that the batch was collected with.

    With an allocator that uses utilities, every agent's trial step is first solved for the plain advantage, and its
    direction again for its update, so that all allocators take directions of the same quality. With one that uses
    scores, the waiting agents' scores are recomputed after every update for the new factor, with unchanged trial steps.
    (The paper does not specify whether the trial step is solved again; that costs N^2 / 2 solves instead of N.) With a
    team reward the joint surrogate never decreases; otherwise each agent maximises its own.

    Cross-fitted utilities that plan an allocation are averaged over updates and shrunk by their noise, in the algorithm's
    state (`marl_kl.core.cross_fitting`).

    Raises:
        ValueError: the agents share a network, or cross-fitting has an odd number of environments to divide.
    """
    _require_separate_networks(
        actor,
        "one network takes one step for all agents, so there is no KL budget to allocate, and hatrpo with "
        "share_parameters=True is that step",
    )

    config = with_its_utility(config, allocator)

    def init(actors):
        leaf = jax.tree.leaves(actors)[0]
        return UtilityAverage.empty(leaf.shape[0], leaf.dtype)

    def update(key, actors, average: UtilityAverage, batch):
        num_agents, *samples = batch.advantage.shape
        key_order, key_subset = jax.random.split(key)
        subset = fisher_subset(key_subset, samples[0], config.cg_subsample)
        budget = _budget(config, batch)
        equal_share = budget / num_agents
        trials = trial_steps(actor, config, allocator, actors, equal_share, batch, key_subset)
        average = average.updated(trials.utility, config.utility_smoothing)
        utilities = average.shrunk(config.utility_smoothing)
        plan = allocator.start(key_order, utilities, budget)

        def update_agent(rest: _Remaining, position, actors, log_factor):
            score = scores(config, trials, batch, log_factor)
            agent, threshold = allocator.next(plan, AllocationState(position, score, *rest))
            own_batch = agent_batch(batch, agent, log_factor, subset)
            params = get_agent(actors, agent)
            proposal = trust_region.propose(actor, config, params, own_batch)
            step = trust_region.line_search(actor, config, params, own_batch, proposal, threshold)
            utility = proposal.gain(equal_share) if allocator.uses == "nothing" else utilities[agent]
            metrics = {
                "utility": utility,
                "kl_threshold": threshold,
                "kl": step.outcome.kl,
                "gain": step.outcome.gain,
                "step_fraction": step.step_fraction,
                "entropy": step.entropy,
            }
            if trials.signal_fraction is not None:
                metrics["signal_fraction"] = trials.signal_fraction[agent]
            rest = _Remaining(
                rest.waiting.at[agent].set(False),
                jnp.maximum(rest.budget - step.outcome.kl, 0.0),
                jnp.maximum(rest.unassigned - threshold, 0.0),
            )
            return rest, AgentUpdate(agent, step.params, step.outcome.log_ratio, metrics)

        rest = _Remaining(jnp.ones(num_agents, bool), budget, budget)
        actors, _, metrics = update_sequentially(actors, batch, rest, update_agent)
        return actors, average, metrics

    return Algorithm(init=init, update=update)


class _Remaining(NamedTuple):
    """waiting: [N] bool, agents not yet updated. budget: [] KL not yet spent. unassigned: [] KL not yet allocated."""

    waiting: jax.Array
    budget: jax.Array
    unassigned: jax.Array


def shared_trust_region(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """One trust-region step of the network that all agents share, inside the whole joint KL budget (ours).

    A shared network cannot be new for one agent and old for the next, so all agents change simultaneously. The step
    maximises the sum of their surrogates E[(r_i - 1) A_i] under sum_i E[KL(old_i || new_i)] <= kl_budget, which is TRPO
    on the samples of all agents: divided by N, both sums are means over the pooled batch, whose Fisher matrix is that of
    the KL. The line search checks these sums. Damping is added to the Fisher matrix of the pooled mean, as to that of an
    agent. Advantages are not multiplied by the ratios of other agents. The team's return may decrease because agents
    change simultaneously; only the budget bounds this effect. Every agent has the same weight, also one that is alive in
    fewer samples.
    """

    def update(key, actors, state, batch):
        num_agents, num_rows, *_ = batch.advantage.shape
        _, key_subset = jax.random.split(key)  # as in `sequential`, which is the same for one agent
        rows = fisher_subset(key_subset, num_rows, config.cg_subsample)
        first_row = num_rows * jnp.arange(num_agents)[:, None]
        subset = None if rows is None else (first_row + rows).ravel()
        all_agents = AgentBatch(*batch)
        if batch.alive is not None:
            num_alive = jax.vmap(weighted.count, (0, None))(batch.alive, 0)
            all_agents = all_agents._replace(alive=jax.vmap(jnp.divide)(batch.alive, num_alive))
        pooled = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), all_agents)._replace(subset=subset)

        def per_agent(tree):
            return jax.tree.map(lambda leaf: leaf.reshape(num_agents, -1, *leaf.shape[1:]), tree)

        def assess(actor, _, old_outputs, new_outputs):
            outcome = functools.partial(trust_region.outcome, actor)
            return jax.vmap(outcome)(all_agents, per_agent(old_outputs), per_agent(new_outputs))

        equal_share = _budget(config, batch) / num_agents
        params = get_agent(actors, 0)
        proposal = trust_region.propose(actor, config, params, pooled)
        step = trust_region.line_search(actor, config, params, pooled, proposal, equal_share, assess)
        actors = set_agent(actors, 0, step.params)
        policies = actor.distribution(actor.team_outputs(actors, batch.obs), batch.action_mask)
        network_metrics = {
            "kl_threshold": equal_share,
            "step_fraction": step.step_fraction,
            "position": jnp.zeros((), jnp.int32),
        }
        slopes = per_agent(_slopes(actor, params, pooled, proposal.direction))
        metrics = {
            "utility": proposal.scale(equal_share) * _mean_per_agent(slopes, batch.alive),
            "kl": step.outcome.kl,
            "gain": step.outcome.gain,
            "entropy": _mean_per_agent(policies.entropy(), batch.alive),
            **{name: jnp.broadcast_to(value, num_agents) for name, value in network_metrics.items()},
        }
        return actors, state, metrics | team_metrics(step.outcome.kl, jnp.sum(step.outcome.log_ratio, axis=0))

    return Algorithm(init=lambda actors: (), update=update)


def _mean_per_agent(values: jax.Array, counted: jax.Array | None) -> jax.Array:
    """[N, *samples] -> [N]."""
    values, counted = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1), (values, counted))
    return weighted.mean(values, counted, axis=1)


def _slopes(actor: Actor, params: Params, batch: AgentBatch, direction: jax.Array) -> jax.Array:
    """[B] contribution of each sample to the surrogate's derivative along `direction` [P] at the old parameters."""
    theta, unravel = ravel_pytree(params)

    def log_prob(theta):
        outputs = actor.outputs(unravel(theta), batch.obs)
        return actor.distribution(outputs, batch.action_mask).log_prob(batch.action)

    return batch.weight * jax.jvp(log_prob, (theta,), (direction,))[1]


def _budget(config: TrustRegionConfig, batch: Batch) -> jax.Array:
    """[] the joint KL budget, reduced by a few units of rounding, so that its rounded shares cannot exceed it."""
    return jnp.asarray(config.kl_budget, batch.advantage.dtype) * (1 - 1e-6)


def _require_separate_networks(actor: Actor, reason: str) -> None:
    if actor.shared:
        raise ValueError(
            f"share_parameters=True; {reason}: it must be False here (hatrpo, mappo, ippo, maspo and mars can share)"
        )


# First-order steps


def in_random_order(actor: Actor, step: AgentStep) -> Algorithm:
    """First-order updates of one agent after another, in a new random order in every update (HAPPO).

    Raises:
        ValueError: the agents share a network, which cannot be new for one of them and old for the next.
    """
    _require_separate_networks(actor, "agents that update one after another need a network each")

    def update(key, actors, states, batch):
        num_agents = batch.advantage.shape[0]
        key_order, key_steps = jax.random.split(key)
        order = jax.random.permutation(key_order, num_agents)
        keys = jax.random.split(key_steps, num_agents)

        def update_agent(states, position, actors, log_factor):
            agent = order[position]
            own_batch = agent_batch(batch, agent, log_factor)
            params = get_agent(actors, agent)
            improved = step.improve(keys[agent], params, get_agent(states, agent), own_batch)
            new_outputs = actor.outputs(improved.params, own_batch.obs)
            log_ratio, metrics = step.assess(improved.old_outputs, new_outputs, own_batch)
            states = set_agent(states, agent, improved.state)
            return states, AgentUpdate(agent, improved.params, log_ratio, metrics | improved.metrics)

        return update_sequentially(actors, batch, states, update_agent)

    return Algorithm(init=jax.vmap(step.init), update=update)


def simultaneous(actor: Actor, step: AgentStep) -> Algorithm:
    """First-order updates of all agents simultaneously, each independent of the others' (MAPPO and its relatives).

    A shared network is updated on the samples of all agents.
    """

    def update(key, actors, states: AgentState, batch):
        num_agents = batch.advantage.shape[0]
        num_networks = states.updates.shape[0]
        _, key_steps = jax.random.split(key)  # as in `in_random_order`, which is the same for one agent
        all_agents = AgentBatch(*batch)
        pooled = _regrouped(all_agents, num_networks)
        improved = jax.vmap(step.improve)(jax.random.split(key_steps, num_networks), actors, states, pooled)
        old_outputs = _regrouped(improved.old_outputs, num_agents)
        new_outputs = actor.team_outputs(improved.params, batch.obs)
        log_ratio, metrics = jax.vmap(step.assess)(old_outputs, new_outputs, all_agents)
        network_metrics = {name: jnp.broadcast_to(values, num_agents) for name, values in improved.metrics.items()}
        metrics |= network_metrics | {"position": jnp.zeros(num_agents, jnp.int32)}
        return improved.params, improved.state, metrics | team_metrics(metrics["kl"], jnp.sum(log_ratio, axis=0))

    return Algorithm(init=jax.vmap(step.init), update=update)


def _regrouped(tree: Any, num_groups: int) -> Any:
    """The rows of the agents or networks, leaves [G, rows, ...], divided among `num_groups` in order."""
    return jax.tree.map(lambda leaf: leaf.reshape(num_groups, -1, *leaf.shape[2:]), tree)
