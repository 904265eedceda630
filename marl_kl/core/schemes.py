"""In which order agents update, and what each knows about those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from marl_kl.config import TrustRegionConfig
from marl_kl.core import trust_region
from marl_kl.core.allocators import Allocator, Round
from marl_kl.core.gradient_steps import AgentState, AgentStep
from marl_kl.core.policies import Actor
from marl_kl.core.trust_region import AgentBatch, Outcome
from marl_kl.core.types import Algorithm, Batch, Metrics, Params


class _Turn(NamedTuple):
    """One agent's move.

    Attributes:
        agent: [] index. params: its new parameters.
        log_ratio: [*samples] log pi_new(a|o) - log pi_old(a|o).
        report: what is reported about it, [] each.
    """

    agent: jax.Array
    params: Params
    log_ratio: jax.Array
    report: Metrics


def _take_turns(
    actors: Params, batch: Batch, memory: Any, turn: Callable[[Any, jax.Array, Params, jax.Array], tuple[Any, _Turn]]
) -> tuple[Params, Any, Metrics]:
    """Agents move one after another; each knows the product of the ratios of those before it (HATRPO, eq. 9-11).

    Agent i_m maximises E[(r - 1) M] with M = advantage * that product, the compound factor, so that the gains add up
    to the joint surrogate's. The factor is carried as a logarithm and exponentiated once per agent.

    Args:
        actors: leaves [N, ...].
        memory: any pytree, carried from turn to turn.
        turn: `turn(memory, position, actors, log_factor [*samples]) -> (memory, _Turn)`; each agent must have one turn.

    Returns:
        The new actors, the last memory, and the reports as metrics [N] with those of the team.
    """
    num_agents, *samples = batch.advantage.shape

    def next_turn(carry, position):
        actors, log_factor, memory = carry
        memory, done = turn(memory, position, actors, log_factor)
        actors = _put(actors, done.agent, done.params)
        return (actors, log_factor + done.log_ratio, memory), (done.agent, done.report | {"position": position})

    start = (actors, jnp.zeros(samples, batch.advantage.dtype), memory)
    (actors, log_factor, memory), (order, reports) = jax.lax.scan(next_turn, start, jnp.arange(num_agents))
    metrics = {name: jnp.zeros_like(values).at[order].set(values) for name, values in reports.items()}
    return actors, memory, metrics | _of_team(metrics["kl"], log_factor)


def _of_team(kl: jax.Array, log_factor: jax.Array) -> Metrics:
    """The team's metrics from each agent's KL [N] and the log of the final compound factor [*samples]."""
    factor = _factor(log_factor)
    return {"kl_total": jnp.sum(kl), "factor_mean": jnp.mean(factor), "factor_max": jnp.max(factor)}


_LARGEST_LOG_FACTOR = 20.0


def _factor(log_factor: jax.Array) -> jax.Array:
    """exp, at most e^20 = 5e8: nothing bounds what first-order steps do to it, and it must not overflow as a weight."""
    return jnp.exp(jnp.minimum(log_factor, _LARGEST_LOG_FACTOR))


def _of_agent(batch: Batch, agent: jax.Array, log_factor: jax.Array, subset: jax.Array | None = None) -> AgentBatch:
    """An agent's part of the batch, its advantage times the compound factor."""
    obs, action, mask, advantage = _take(batch, agent)
    return AgentBatch(obs, action, mask, _factor(log_factor) * advantage, subset)


def _take(stacked: Any, agent: jax.Array | int) -> Any:
    return jax.tree.map(lambda leaf: leaf[agent], stacked)


def _put(stacked: Any, agent: jax.Array | int, one: Any) -> Any:
    return jax.tree.map(lambda leaf, new: leaf.at[agent].set(new), stacked, one)


# Trust-region steps


def sequential(actor: Actor, config: TrustRegionConfig, allocator: Allocator) -> Algorithm:
    """Trust-region steps one agent after another inside one joint KL budget (HATRPO, eq. 9-11).

    KL is measured at the observation moments that the batch was collected with.

    With an allocator that uses utilities, every agent's trial step is first solved against the plain advantage, and
    its direction anew when its turn comes, so that all allocators take directions of the same quality. With one
    that uses scores, waiting agents are re-scored after every move against the new factor, with their trial steps
    kept as they are. (The paper leaves open whether the trial step is solved anew; that costs N^2 / 2 solves
    instead of N.) With a team reward the joint surrogate never falls; without one each agent climbs its own.

    Raises:
        ValueError: the agents share a network.
    """
    _refuse_sharing(
        actor,
        "one network takes one step for all agents, so there is no KL budget to share out, and hatrpo with "
        "share_parameters=True is that step",
    )

    def update(key, actors, state, batch):
        num_agents, *samples = batch.advantage.shape
        key_order, key_subset = jax.random.split(key)
        subset = _subset(key_subset, samples[0], config.cg_subsample)
        budget = _budget(config, batch)
        share = budget / num_agents
        nobody_moved = jnp.zeros(samples, batch.advantage.dtype)
        alone = lambda agent: _of_agent(batch, agent, nobody_moved, subset)  # noqa: E731
        scores = _score_all(actor, config, allocator, actors, share, alone)
        plan = allocator.start(key_order, scores.utility, budget)

        def turn(left: _Left, position, actors, log_factor):
            score = _current_scores(config, scores, batch.advantage * _factor(log_factor), allocator)
            agent, threshold = allocator.next(plan, Round(position, score, *left))
            agent_batch = _of_agent(batch, agent, log_factor, subset)
            params = _take(actors, agent)
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
            }
            left = _Left(
                left.waiting.at[agent].set(False),
                jnp.maximum(left.budget - moved.outcome.kl, 0.0),
                jnp.maximum(left.unassigned - threshold, 0.0),
            )
            return left, _Turn(agent, moved.params, moved.outcome.log_ratio, report)

        actors, _, metrics = _take_turns(actors, batch, _Left(jnp.ones(num_agents, bool), budget, budget), turn)
        return actors, state, metrics

    return Algorithm(init=lambda actors: (), update=update)


class _Left(NamedTuple):
    """waiting: [N] bool, who has not moved. budget: [] KL not yet spent. unassigned: [] KL not yet given to anyone."""

    waiting: jax.Array
    budget: jax.Array
    unassigned: jax.Array


class _Scores(NamedTuple):
    """Every agent's trial step at an equal share of the budget.

    Attributes:
        utility: [N] expected gains.
        trial: outcomes, leaves [N, ...]; None where the allocator needs no more than first-order gains.
    """

    utility: jax.Array
    trial: Outcome | None


def together(actor: Actor, config: TrustRegionConfig) -> Algorithm:
    """One trust-region step of the network that all agents share, inside the whole joint KL budget (ours).

    One network cannot be new for one agent and old for the next, so all agents move at once. The step climbs the sum
    of their surrogates E[(r_i - 1) A_i] under sum_i E[KL(old_i || new_i)] <= kl_budget, which is TRPO on the samples of
    all agents: divided by N, both sums are means over the pooled batch, whose Fisher matrix is that of the KL. The line
    search sees these very sums. Damping is added to the pooled mean's Fisher matrix, as it is to an agent's. Advantages
    are not multiplied by the ratios of others: nobody has moved before. So nothing promises that the team's return
    does not fall by agents' stepping at the same time; what it holds back is the budget alone.
    """

    def update(key, actors, state, batch):
        num_agents, num_rows, *_ = batch.advantage.shape
        _, key_subset = jax.random.split(key)  # as in sequential, to which this is equal for one agent
        chosen = _subset(key_subset, num_rows, config.cg_subsample)
        first_row = num_rows * jnp.arange(num_agents)[:, None]
        subset = None if chosen is None else (first_row + chosen).ravel()
        everyone = AgentBatch(*batch, subset=None)
        pooled = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), everyone)._replace(subset=subset)
        each = lambda flat: jax.tree.map(lambda leaf: leaf.reshape(num_agents, -1, *leaf.shape[1:]), flat)  # noqa: E731

        def assess(actor, _, old_outputs, new_outputs):
            of_agent = lambda *data: trust_region.outcome(actor, *data)  # noqa: E731
            return jax.vmap(of_agent)(everyone, each(old_outputs), each(new_outputs))

        share = _budget(config, batch) / num_agents
        params = _take(actors, 0)
        proposal = trust_region.propose(actor, config, params, pooled)
        moved = trust_region.move(actor, config, params, pooled, proposal, share, assess)
        policies = actor.distribution(actor.team_outputs(_put(actors, 0, moved.params), batch.obs), batch.action_mask)
        of_network = {
            "kl_threshold": share,
            "step_fraction": moved.step_fraction,
            "position": jnp.zeros((), jnp.int32),
        }
        slopes = each(_slopes(actor, params, pooled, proposal.direction))
        metrics = {
            "utility": proposal.scale(share) * _mean_per_agent(slopes),
            "kl": moved.outcome.kl,
            "gain": moved.outcome.gain,
            "entropy": _mean_per_agent(policies.entropy()),
            **{name: jnp.broadcast_to(value, num_agents) for name, value in of_network.items()},
        }
        team = _of_team(moved.outcome.kl, jnp.sum(moved.outcome.log_ratio, axis=0))
        return _put(actors, 0, moved.params), state, metrics | team

    return Algorithm(init=lambda actors: (), update=update)


def _mean_per_agent(values: jax.Array) -> jax.Array:
    """[N, ...] -> [N]."""
    return jnp.mean(values.reshape(values.shape[0], -1), axis=1)


def _slopes(actor: Actor, params: Params, batch: AgentBatch, direction: jax.Array) -> jax.Array:
    """[B] what each sample adds to the surrogate's derivative along `direction` [P] at the old parameters."""
    theta, unravel = ravel_pytree(params)

    def log_prob(theta):
        outputs = actor.outputs(unravel(theta), batch.obs)
        return actor.distribution(outputs, batch.action_mask).log_prob(batch.action)

    return batch.weight * jax.jvp(log_prob, (theta,), (direction,))[1]


def _budget(config: TrustRegionConfig, batch: Batch) -> jax.Array:
    """[] the joint KL budget, a few units of rounding less: shares that add up to it cannot add up to more."""
    return jnp.asarray(config.kl_budget, batch.advantage.dtype) * (1 - 1e-6)


def _subset(key: jax.Array, num_rows: int, share: float) -> jax.Array | None:
    """[M] distinct rows, at least one; None where all are wanted."""
    if share == 1.0:
        return None
    return jax.random.permutation(key, num_rows)[: max(1, round(share * num_rows))]


def _score_all(actor, config, allocator, actors, share, of_agent) -> _Scores:
    """Trial steps of all agents with nobody moved; without use for them, zeros."""
    num_agents = jax.tree.leaves(actors)[0].shape[0]
    if allocator.uses == "nothing":
        return _Scores(jnp.zeros(num_agents), None)
    measured = allocator.uses == "scores" or config.utility == "measured"

    def score(agent):
        params = _take(actors, agent)
        agent_batch = of_agent(agent)
        proposal = trust_region.propose(actor, config, params, agent_batch)
        if not measured:
            return _Scores(proposal.gain(share), None)
        trial = trust_region.trial(actor, params, agent_batch, proposal, share)
        return _Scores(trial.gain if config.utility == "measured" else proposal.gain(share), trial)

    return jax.lax.map(score, jnp.arange(num_agents))


def _current_scores(config, scores: _Scores, weight: jax.Array, allocator: Allocator) -> jax.Array:
    """[N] gain / (KL + epsilon) of the trial steps under the weights [N, *samples] of the moment (HATRPO-G)."""
    if allocator.uses != "scores" or scores.trial is None:
        return jnp.zeros_like(scores.utility)
    gain = jnp.mean(jnp.expm1(scores.trial.log_ratio) * weight, axis=tuple(range(1, weight.ndim)))
    return gain / (scores.trial.kl + config.allocation_epsilon)


def _refuse_sharing(actor: Actor, reason: str) -> None:
    if actor.shared:
        raise ValueError(
            f"share_parameters=True; {reason}: it must be False here (hatrpo, mappo, ippo, maspo and mars can share)"
        )


# First-order steps


def in_random_order(actor: Actor, step: AgentStep) -> Algorithm:
    """First-order steps one agent after another, in a fresh random order at every update (HAPPO).

    Raises:
        ValueError: the agents share a network, which cannot be new for one of them and old for the next.
    """
    _refuse_sharing(actor, "agents that update one after another need a network each")

    def update(key, actors, states, batch):
        num_agents = batch.advantage.shape[0]
        key_order, key_steps = jax.random.split(key)
        order = jax.random.permutation(key_order, num_agents)
        keys = jax.random.split(key_steps, num_agents)

        def turn(states, position, actors, log_factor):
            agent = order[position]
            agent_batch = _of_agent(batch, agent, log_factor)
            params = _take(actors, agent)
            improved = step.improve(keys[agent], params, _take(states, agent), agent_batch)
            before, after = (actor.outputs(p, agent_batch.obs) for p in (params, improved.params))
            log_ratio, report = step.assess(before, after, agent_batch)
            moved = _Turn(agent, improved.params, log_ratio, report | improved.report)
            return _put(states, agent, improved.state), moved

        return _take_turns(actors, batch, states, turn)

    return Algorithm(init=jax.vmap(step.init), update=update)


def simultaneous(actor: Actor, step: AgentStep) -> Algorithm:
    """First-order steps of all agents at once, each as if it were alone (MAPPO and its relatives).

    Where agents share a network, it is improved on the samples of all of them.
    """

    def update(key, actors, states: AgentState, batch):
        num_agents = batch.advantage.shape[0]
        num_networks = states.updates.shape[0]
        _, key_steps = jax.random.split(key)  # as in_random_order, to which this is equal for one agent
        everyone = AgentBatch(*batch, subset=None)
        pooled = jax.tree.map(lambda leaf: leaf.reshape(num_networks, -1, *leaf.shape[2:]), everyone)
        improved = jax.vmap(step.improve)(jax.random.split(key_steps, num_networks), actors, states, pooled)
        before, after = (actor.team_outputs(a, batch.obs) for a in (actors, improved.params))
        log_ratio, report = jax.vmap(step.assess)(before, after, everyone)
        of_networks = {name: jnp.broadcast_to(values, num_agents) for name, values in improved.report.items()}
        metrics = report | of_networks | {"position": jnp.zeros(num_agents, jnp.int32)}
        return improved.params, improved.state, metrics | _of_team(report["kl"], jnp.sum(log_ratio, axis=0))

    return Algorithm(init=jax.vmap(step.init), update=update)
