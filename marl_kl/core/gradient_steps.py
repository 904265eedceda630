"""One agent's first-order update: Adam on a surrogate, in epochs and minibatches (as in PPO; Schulman et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from marl_kl.config import FirstOrderConfig
from marl_kl.core import partition, weighted
from marl_kl.core.policies import Actor
from marl_kl.core.shuffling import random_order
from marl_kl.core.surrogates import Surrogate, of_log_ratio
from marl_kl.core.trust_region import AgentBatch, outcome
from marl_kl.core.types import Metrics, Params

_ADAM_EPSILON = 1e-5


class AgentState(NamedTuple):
    """The optimiser state of one network between updates.

    Attributes:
        opt_state: optax state.
        updates: [] int32 updates made (not gradient steps, which may stop early).
    """

    opt_state: optax.OptState
    updates: jax.Array


class Improvement(NamedTuple):
    """A network after one update.

    Attributes:
        params, state: the new ones.
        old_outputs: distribution parameters of the old network, leaves [*samples, ...].
        metrics: `epochs` and `grad_norm`, [] each.
    """

    params: Params
    state: AgentState
    old_outputs: Any
    metrics: Metrics


class AgentStep(NamedTuple):
    """The update of one network on its agents' samples, for any scheme.

    Attributes:
        init: `init(params) -> state`.
        improve: `improve(key, params, state, agent_batch) -> Improvement`.
        assess: `assess(old_outputs, new_outputs, agent_batch) -> (log_ratio [*samples], metrics)`: the effect of the
            update on the batch of one agent.
    """

    init: Callable[[Params], AgentState]
    improve: Callable[[jax.Array, Params, AgentState, AgentBatch], Improvement]
    assess: Callable[[Any, Any, AgentBatch], tuple[jax.Array, Metrics]]


def gradient_steps(actor: Actor, config: FirstOrderConfig, surrogate: Surrogate) -> AgentStep:
    """Maximises E[surrogate(r, M, clip_eps)] + ent_coef E[entropy] by Adam, M the batch's weight.

    Every epoch passes over the batch once, in `actor_minibatches` parts of a new permutation of its rows. The gradient is
    clipped by its global norm, over all parameters of the network, before Adam. Once KL(old || new), estimated by a
    minibatch's mean of r - 1 - log r (Schulman 2020, "Approximating KL Divergence"), exceeds `target_kl`, neither this nor
    any later step on the batch is made (the KL is that of the parameters before the step, at no extra cost, so that the
    last step made may exceed the target).
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.actor_max_grad_norm), optax.scale_by_adam(eps=_ADAM_EPSILON)
    )

    def init(params):
        return AgentState(optimizer.init(params), jnp.zeros((), jnp.int32))

    def loss(params, minibatch):
        batch, old_log_prob = minibatch
        policy = actor.distribution(actor.outputs(params, batch.obs), batch.action_mask)
        log_ratio = policy.log_prob(batch.action) - old_log_prob
        objective = weighted.mean(of_log_ratio(surrogate, log_ratio, batch.weight, config.clip_eps), batch.alive)
        bonus = config.ent_coef * weighted.mean(policy.entropy(), batch.alive)
        kl = weighted.mean(jnp.expm1(log_ratio) - log_ratio, batch.alive)
        return -objective - bonus, kl

    def improve(key, params, state, batch):
        num_rows = batch.weight.shape[0]
        old_outputs = actor.outputs(params, batch.obs)
        data = (batch, actor.distribution(old_outputs, batch.action_mask).log_prob(batch.action))
        by_row = data if config.actor_minibatches == 1 else partition.gathered(data)

        def gradient_step(carry, minibatch):
            params, opt_state, active = carry
            minibatch = partition.spread(minibatch)
            (_, kl), gradient = jax.value_and_grad(loss, has_aux=True)(params, minibatch)
            # not (kl <= target): a NaN must reach the parameters, where it is detected
            active = active & ~(kl > config.target_kl)
            updates, new_opt_state = optimizer.update(gradient, opt_state)
            new_params = optax.apply_updates(params, jax.tree.map(lambda leaf: -config.actor_lr * leaf, updates))
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(active, new, old), (new_params, new_opt_state), (params, opt_state)
            )
            return (params, opt_state, active), (active, jnp.where(active, optax.tree.norm(gradient), 0.0))

        def epoch(carry, key):
            if config.actor_minibatches == 1:
                return gradient_step(carry, data)
            order = random_order(key, num_rows).reshape(config.actor_minibatches, -1)
            return jax.lax.scan(gradient_step, carry, jax.tree.map(lambda leaf: leaf[order], by_row))

        start = (params, state.opt_state, jnp.ones((), bool))
        keys = jax.random.split(key, config.actor_epochs)
        (params, opt_state, _), (active, norms) = jax.lax.scan(epoch, start, keys)
        steps = jnp.sum(active)
        metrics = {
            "epochs": jnp.asarray(steps / config.actor_minibatches, jnp.float32),
            "grad_norm": jnp.sum(norms) / jnp.maximum(steps, 1),
        }
        return Improvement(params, AgentState(opt_state, state.updates + 1), old_outputs, metrics)

    def assess(old_outputs, new_outputs, batch):
        result = outcome(actor, batch, old_outputs, new_outputs)
        is_outside = jnp.abs(jnp.expm1(result.log_ratio)) > config.clip_eps
        metrics = {
            "kl": result.kl,
            "gain": result.gain,
            "entropy": weighted.mean(actor.distribution(new_outputs, batch.action_mask).entropy(), batch.alive),
            "clip_fraction": weighted.mean(is_outside.astype(result.kl.dtype), batch.alive),
        }
        return result.log_ratio, metrics

    return AgentStep(init, improve, assess)
