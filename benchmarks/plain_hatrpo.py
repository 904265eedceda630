"""One sequential HATRPO update in its simplest form: the reference for benchmarks and tests.

A Python loop over agents, the KL's Hessian-vector product by differentiating twice, every step size of the line
search tried. No batching tricks; jit it or not.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree


def hessian_vector_product(function, theta, v):
    """Second derivative by reverse mode over reverse mode."""
    return jax.grad(lambda t: jnp.vdot(jax.grad(function)(t), v))(theta)


def plain_update(actor, config, actors, batch, order, thresholds):
    """HATRPO, eq. 9-11, full batch, with given order and thresholds.

    Args:
        actor: `marl_kl.core.policies.Actor`. config: `TrustRegionConfig`; cg_tol and cg_subsample are not looked at.
        actors: parameters, leaves [N, ...]. batch: `marl_kl.core.types.Batch`.
        order: Python list of agents. thresholds: [N].

    Returns:
        New parameters, [N] KL spent, [N] gains.
    """
    num_agents = len(order)
    factor = jnp.ones(batch.advantage.shape[1:])
    new_actors = [jax.tree.map(lambda leaf: leaf[i], actors) for i in range(num_agents)]
    spent, gains = [None] * num_agents, [None] * num_agents
    for agent in order:
        weight = batch.advantage[agent] * factor
        theta, unravel = ravel_pytree(new_actors[agent])
        obs = jax.tree.map(lambda leaf: leaf[agent], batch.obs)

        def distribution(t, agent=agent, unravel=unravel, obs=obs):
            return actor.distribution(actor.outputs(unravel(t), obs), batch.action_mask[agent])

        old = distribution(theta)
        old_log_prob = old.log_prob(batch.action[agent])

        def ratio(t):
            return jnp.exp(distribution(t).log_prob(batch.action[agent]) - old_log_prob)

        def gain(t):
            return jnp.mean((ratio(t) - 1) * weight)

        def kl(t):
            return jnp.mean(old.kl(distribution(t)))

        gradient = jax.grad(gain)(theta)

        def cg_step(_, carry):
            x, r, p = carry
            ap = hessian_vector_product(kl, theta, p) + config.cg_damping * p
            step = r @ r / (p @ ap)
            r_next = r - step * ap
            return x + step * p, r_next, r_next + (r_next @ r_next) / (r @ r) * p

        start = (jnp.zeros_like(theta), gradient, gradient)
        x, _, _ = jax.lax.fori_loop(0, config.cg_iters, cg_step, start)
        curvature = x @ hessian_vector_product(kl, theta, x)
        full_step = jnp.sqrt(2 * thresholds[agent] / curvature) * x

        def backtrack(j, carry):
            accepted, chosen = carry
            fraction = config.backtrack_coef**j
            tried = theta + fraction * full_step
            keeps = (kl(tried) <= thresholds[agent]) & (gain(tried) > 0)
            keeps &= gain(tried) >= config.accept_ratio * fraction * (gradient @ full_step)
            return accepted | keeps, jnp.where(keeps & ~accepted, tried, chosen)

        start = (jnp.zeros((), bool), theta)
        _, chosen = jax.lax.fori_loop(0, config.line_search_steps, backtrack, start)
        factor = factor * ratio(chosen)
        spent[agent], gains[agent] = kl(chosen), gain(chosen)
        new_actors[agent] = unravel(chosen)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *new_actors), jnp.stack(spent), jnp.stack(gains)
