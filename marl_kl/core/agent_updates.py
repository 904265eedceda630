"""Updates of a team's agents: one after another by the compound factor, and what all schemes take of a batch for an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from marl_kl.core.shuffling import random_order
from marl_kl.core.trust_region import AgentBatch
from marl_kl.core.types import Batch, Metrics, Params


class AgentUpdate(NamedTuple):
    """One agent's update.

    Attributes:
        agent: [] index. params: its new parameters.
        log_ratio: [*samples] log pi_new(a|o) - log pi_old(a|o).
        metrics: [] each.
    """

    agent: jax.Array
    params: Params
    log_ratio: jax.Array
    metrics: Metrics


def update_sequentially(
    actors: Params,
    batch: Batch,
    carry: Any,
    update_agent: Callable[[Any, jax.Array, Params, jax.Array], tuple[Any, AgentUpdate]],
) -> tuple[Params, Any, Metrics]:
    """Updates agents one after another, each given the product of the earlier agents' ratios (HATRPO, eq. 9-11).

    Agent i_m maximises E[(r - 1) M] with M = advantage * that product, the compound factor, so that the gains add up
    to the joint surrogate's. The factor is carried as a logarithm and exponentiated once per agent.

    Args:
        actors: leaves [N, ...].
        carry: any pytree, passed from one agent's update to the next.
        update_agent: `update_agent(carry, position, actors, log_factor [*samples]) -> (carry, AgentUpdate)`; it must
            choose every agent exactly once.

    Returns:
        The new actors, the last carry, and metrics [N] per agent with those of the team.
    """
    num_agents, *samples = batch.advantage.shape

    def body(state, position):
        actors, log_factor, carry = state
        carry, update = update_agent(carry, position, actors, log_factor)
        actors = set_agent(actors, update.agent, update.params)
        metrics = update.metrics | {"position": position}
        return (actors, log_factor + update.log_ratio, carry), (update.agent, metrics)

    start = (actors, jnp.zeros(samples, batch.advantage.dtype), carry)
    (actors, log_factor, carry), (order, in_order) = jax.lax.scan(body, start, jnp.arange(num_agents))
    metrics = {name: jnp.zeros_like(values).at[order].set(values) for name, values in in_order.items()}
    return actors, carry, metrics | team_metrics(metrics["kl"], log_factor)


def team_metrics(kl: jax.Array, log_factor: jax.Array) -> Metrics:
    """The team's metrics from each agent's KL [N] and the log of the final compound factor [*samples]."""
    factor = compound_factor(log_factor)
    return {"kl_total": jnp.sum(kl), "factor_mean": jnp.mean(factor), "factor_max": jnp.max(factor)}


_LARGEST_LOG_FACTOR = 20.0


def compound_factor(log_factor: jax.Array) -> jax.Array:
    """exp, at most e^20 = 5e8: first-order steps do not bound the factor, and as a weight it must not overflow."""
    return jnp.exp(jnp.minimum(log_factor, _LARGEST_LOG_FACTOR))


def agent_batch(
    batch: Batch, agent: jax.Array | int, log_factor: jax.Array, subset: jax.Array | None = None
) -> AgentBatch:
    """One agent's part of the batch, its advantage multiplied by the compound factor exp(log_factor) [*samples]."""
    own = get_agent(batch, agent)
    return AgentBatch(
        own.obs, own.action, own.action_mask, compound_factor(log_factor) * own.advantage, own.alive, subset
    )


def get_agent(stacked: Any, agent: jax.Array | int) -> Any:
    return jax.tree.map(lambda leaf: leaf[agent], stacked)


def set_agent(stacked: Any, agent: jax.Array | int, new: Any) -> Any:
    return jax.tree.map(lambda leaf, new: leaf.at[agent].set(new), stacked, new)


def fisher_subset(key: jax.Array, num_rows: int, share: float) -> jax.Array | None:
    """[M] distinct rows for Fisher products, at least one; None if `share` is 1."""
    if share == 1.0:
        return None
    return random_order(key, num_rows)[: max(1, round(share * num_rows))]
