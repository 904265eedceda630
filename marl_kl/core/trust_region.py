"""One agent's trust-region step: Fisher product, conjugate gradient, line search (TRPO; Schulman et al. 2015).

The Fisher product is the Gauss-Newton form J' H J v: the network is linearised once (J), the Fisher matrix H of
the *distribution* in its own parameters is known in closed form, and the linearised network is transposed. No
second differentiation of the KL, and identical to its Hessian at the old parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from marl_kl.config import TrustRegionConfig
from marl_kl.core import partition, weighted
from marl_kl.core.policies import Actor
from marl_kl.core.types import Params, Sequences


class AgentBatch(NamedTuple):
    """One agent's part of a batch; [B] are the sample axes, [E, T] if the actors are recurrent.

    Attributes:
        obs: [B, I] standardised, or `Sequences` [E]. action: [B, A] or [B] int32. action_mask: [B, A].
        weight: [B] factor of the probability ratio: advantage times compound factor.
        alive: [B] bool, or weights >= 0 of the samples in all means; None: all count alike.
        subset: [M] int32 indices of the rows for Fisher products, or None for all of them.
    """

    obs: jax.Array | Sequences
    action: jax.Array
    action_mask: jax.Array
    weight: jax.Array
    alive: jax.Array | None = None
    subset: jax.Array | None = None


class Proposal(NamedTuple):
    """A search direction, not yet scaled to a radius.

    Attributes:
        direction: [P] x = (F + damping)^-1 g, zero if the gradient is zero or not finite.
        slope: [] g'x.
        curvature: [] q = x'Fx on the full batch, so that KL(t x) ~ t^2 q / 2.
        outputs: the network's outputs at the old parameters, leaves [B, ...].
    """

    direction: jax.Array
    slope: jax.Array
    curvature: jax.Array
    outputs: Any

    def scale(self, radius: jax.Array) -> jax.Array:
        """[] t with KL(t x) = radius to second order; 0 for a zero direction."""
        return step_size(radius, self.curvature)

    def gain(self, radius: jax.Array) -> jax.Array:
        """[] predicted surrogate gain g's of the full step at `radius`."""
        return self.scale(radius) * self.slope


def step_size(radius: jax.Array, curvature: jax.Array) -> jax.Array:
    """t with t^2 curvature / 2 = radius; 0 where there is no curvature."""
    usable = curvature > 0
    return jnp.where(usable, jnp.sqrt(2 * radius / jnp.where(usable, curvature, 1.0)), 0.0)


class Outcome(NamedTuple):
    """The effect of a (trial or accepted) step on the batch; with a leading axis [N] if agents share a network.

    Attributes:
        log_ratio: [B] log pi_new(a|o) - log pi_old(a|o); 0 where the agent is dead.
        kl: [] mean KL(old || new).
        gain: [] surrogate gain E[(r - 1) weight].
    """

    log_ratio: jax.Array
    kl: jax.Array
    gain: jax.Array


class AcceptedStep(NamedTuple):
    """The result of a line search.

    Attributes:
        params: the new parameters; the old ones if no step was accepted.
        outcome: the effect on the batch; zeros if no step was accepted.
        step_fraction: [] accepted fraction of the full step; 0 if none, above 1 only in a matched line search.
        entropy: [] mean entropy of the new policy.
    """

    params: Params
    outcome: Outcome
    step_fraction: jax.Array
    entropy: jax.Array


def conjugate_gradient(
    matvec: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    iters: int = 10,
    tol: float | jax.Array = 1e-10,
    damping: float | jax.Array = 0.0,
) -> jax.Array:
    """Solves (A + damping I) x = b for a symmetric positive semi-definite A.

    Not `jax.scipy.sparse.linalg.cg`, which does not return the residual: `propose` gets the curvature from it without
    another Fisher product.

    Args:
        matvec: v [P] -> A v [P].
        b: [P]; a zero b gives x = 0.
        iters: iterations at most.
        tol: stop when |residual|^2 <= tol |b|^2.
        damping: added to A's diagonal.

    Returns:
        [P] the solution.
    """
    return _solve(matvec, b, iters, tol, damping)[0]


def _solve(matvec, b, iters, tol, damping):
    """`conjugate_gradient`, and the final residual b - (A + damping I) x."""

    def product(v):
        return matvec(v) + damping * v

    target = tol * jnp.vdot(b, b)

    def unfinished(carry):
        i, _, _, _, rr = carry
        return (i < iters) & (rr > target)

    def iterate(carry):
        i, x, r, p, rr = carry
        ap = product(p)
        pap = jnp.vdot(p, ap)
        step = jnp.where(pap > 0, rr / jnp.where(pap > 0, pap, 1.0), 0.0)
        x = x + step * p
        r = r - step * ap
        rr_next = jnp.vdot(r, r)
        p = r + rr_next / rr * p
        return i + 1, x, r, p, rr_next

    start = (jnp.zeros((), jnp.int32), jnp.zeros_like(b), b, b, jnp.vdot(b, b))
    _, x, residual, _, _ = jax.lax.while_loop(unfinished, iterate, start)
    return x, residual


def fisher_product(
    outputs_of: Callable[[jax.Array], Any],
    theta: jax.Array,
    fisher_of_outputs: Callable[[Any, Any], Any],
    num_samples: int | jax.Array,
) -> Callable[[jax.Array], jax.Array]:
    """v -> F v, F the mean over the batch of J' H J at `theta` [P].

    Args:
        outputs_of: theta [P] -> the network's outputs on a batch.
        fisher_of_outputs: (outputs, tangent) -> H tangent, sample by sample.
        num_samples: of the batch.
    """
    outputs, jvp = jax.linearize(outputs_of, theta)
    vjp = jax.linear_transpose(jvp, theta)

    def product(v):
        (cotangent,) = vjp(fisher_of_outputs(outputs, jvp(v)))
        return cotangent / num_samples

    return product


def score(actor: Actor, batch: AgentBatch, outputs: Any) -> Any:
    """The derivative of the surrogate E[r weight] by the network's outputs at the old parameters."""

    def log_prob(outputs):
        return actor.distribution(outputs, batch.action_mask).log_prob(batch.action)

    _, vjp = jax.vjp(log_prob, outputs)
    return vjp(weighted.samples(batch.weight, batch.alive) / weighted.count(batch.alive, batch.weight.size))[0]


class FisherRows(NamedTuple):
    """What a Fisher matrix depends on: `obs`, `action_mask` and `alive` of an `AgentBatch`, or of a part of its rows."""

    obs: jax.Array | Sequences
    action_mask: jax.Array
    alive: jax.Array | None

    @classmethod
    def of(cls, batch: AgentBatch) -> FisherRows:
        """Those of `batch.subset`."""
        rows = cls(batch.obs, batch.action_mask, batch.alive)
        return rows if batch.subset is None else jax.tree.map(lambda leaf: leaf[batch.subset], rows)


def natural_direction(
    actor: Actor, config: TrustRegionConfig, params: Params, rows: FisherRows, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """x [P] ~ (F + damping)^-1 gradient, F of `rows`, and the residual; x is zero if it is not finite."""
    theta, unravel = ravel_pytree(params)
    obs, mask, counted = rows

    def fisher_of_outputs(outputs, tangent):
        product = actor.distribution(outputs, mask).fisher_product(tangent)
        return jax.tree.map(lambda leaf: weighted.samples(leaf, counted), product)

    num_samples = weighted.count(counted, math.prod(mask.shape[:-1]))
    matvec = fisher_product(lambda t: actor.outputs(unravel(t), obs), theta, fisher_of_outputs, num_samples)
    direction, residual = _solve(matvec, gradient, config.cg_iters, config.cg_tol, config.cg_damping)
    return jnp.where(jnp.all(jnp.isfinite(direction)), direction, 0.0), residual


def curvature_along(actor: Actor, batch: AgentBatch, outputs: Any, tangent: Any) -> jax.Array:
    """[] x'Fx on the batch, of the direction x whose forward derivative of the outputs is `tangent`."""
    product = actor.distribution(outputs, batch.action_mask).fisher_product(tangent)
    samples = jax.tree.map(lambda a, b: weighted.samples(a * b, batch.alive), tangent, product)
    return jnp.asarray(optax.tree.sum(samples)) / weighted.count(batch.alive, batch.weight.size)


def propose(actor: Actor, config: TrustRegionConfig, params: Params, batch: AgentBatch) -> Proposal:
    """The natural-gradient direction of the surrogate E[r weight] at the old parameters.

    A direction solved on `batch.subset` has less curvature there than on the full batch, so its curvature is measured
    on the full batch. If solved on the full batch, it follows from the residual.
    """
    theta, unravel = ravel_pytree(params)
    outputs, jvp = jax.linearize(lambda t: actor.outputs(unravel(t), batch.obs), theta)
    (gradient,) = jax.linear_transpose(jvp, theta)(score(actor, batch, outputs))
    gradient = jnp.where(jnp.all(jnp.isfinite(gradient)), gradient, 0.0)
    if batch.subset is None:
        rows = FisherRows.of(batch)
    else:
        rows = partition.spread(FisherRows.of(partition.gathered(batch)))
    direction, residual = natural_direction(actor, config, params, rows, gradient)
    if batch.subset is None:
        curvature = jnp.vdot(direction, gradient - residual - config.cg_damping * direction)
    else:
        curvature = curvature_along(actor, batch, outputs, jvp(direction))
    return Proposal(direction, jnp.vdot(gradient, direction), curvature, outputs)


def outcome(actor: Actor, batch: AgentBatch, old_outputs: Any, new_outputs: Any) -> Outcome:
    """KL, ratio and surrogate gain of a change of the network's outputs, over the full batch."""
    old = actor.distribution(old_outputs, batch.action_mask)
    new = actor.distribution(new_outputs, batch.action_mask)
    log_ratio = new.log_prob(batch.action) - old.log_prob(batch.action)
    if batch.alive is not None:
        log_ratio = jnp.where(batch.alive > 0, log_ratio, 0.0)
    # rounding can make a tiny divergence negative, which would increase the remaining budget
    kl = jnp.maximum(weighted.mean(old.kl(new), batch.alive), 0.0)
    return Outcome(log_ratio, kl, weighted.mean(jnp.expm1(log_ratio) * batch.weight, batch.alive))


def trial(actor: Actor, params: Params, batch: AgentBatch, proposal: Proposal, radius: jax.Array) -> Outcome:
    """The outcome of the full step at `radius`."""
    theta, unravel = ravel_pytree(params)
    stepped = unravel(theta + proposal.scale(radius) * proposal.direction)
    return outcome(actor, batch, proposal.outputs, actor.outputs(stepped, batch.obs))


MATCHED = 0.95
"""The share of a threshold with which a matched line search is content."""

_INSIDE = 0.99
"""A matched line search aims at this share of the threshold's radius, so that rounding and curvature keep it inside."""

_LONGEST = 2.0
"""The largest fraction of the full step that a matched line search tries."""


class _Search(NamedTuple):
    """The state of a line search.

    Attributes:
        tries: [] int32. fraction: [] to be tried next.
        done: [] bool.
        was_refused: [] bool, whether a step inside the constraint lacked the predicted gain.
        accepted: [] the largest accepted fraction so far; 0 if none.
        outcome, outputs: of that step; zeros and the old outputs if there is none.
    """

    tries: jax.Array
    fraction: jax.Array
    done: jax.Array
    was_refused: jax.Array
    accepted: jax.Array
    outcome: Outcome
    outputs: Any


def line_search(
    actor: Actor,
    config: TrustRegionConfig,
    params: Params,
    batch: AgentBatch,
    proposal: Proposal,
    threshold: jax.Array,
    assess: Callable[..., Outcome] = outcome,
) -> AcceptedStep:
    """The longest step along the proposal that meets the constraint and the predicted gain, or no step.

    A fraction of the full step at radius `threshold` is accepted if KL <= threshold, gain > 0 and gain >= accept_ratio *
    fraction * predicted gain, on the full batch (HATRPO's appendix; a non-finite KL or gain fails every comparison).
    At most `line_search_steps` are tried, the full step first:

    - "geometric": fractions backtrack_coef^j; the first accepted one is taken (as published). It leaves about 30 % of
      a threshold unspent on bodies.
    - "kl_matched" (ours): KL grows nearly with the square of the fraction, so the next fraction is the one at which the
      KL just seen would be a little below the threshold; content with `MATCHED` of it. A step inside the constraint
      that lacks the gain is followed by backtrack_coef times its fraction, and the next accepted one is taken.

    `assess` takes the arguments of `outcome`. It may return one outcome per agent; their means are then compared.
    """
    theta, unravel = ravel_pytree(params)
    full_step = proposal.scale(threshold) * proposal.direction
    predicted = proposal.gain(threshold)
    is_matched = config.line_search == "kl_matched"

    def attempt(search: _Search) -> _Search:
        fraction = search.fraction
        outputs = actor.outputs(unravel(theta + fraction * full_step), batch.obs)
        result = assess(actor, batch, proposal.outputs, outputs)
        kl, gain = jnp.mean(result.kl), jnp.mean(result.gain)
        is_inside = kl <= threshold
        is_accepted = is_inside & (gain > 0) & (gain >= config.accept_ratio * fraction * predicted)
        was_refused = search.was_refused | (is_inside & ~is_accepted)
        if is_matched:
            can_match = (is_accepted | ~is_inside) & jnp.isfinite(kl) & (kl > 0)
            ratio = jnp.where(can_match, _INSIDE * jnp.sqrt(threshold / jnp.where(can_match, kl, 1.0)), 0.0)
            shorter = jnp.where(can_match, jnp.minimum(ratio, _INSIDE), config.backtrack_coef) * fraction
            following = jnp.where(is_accepted, jnp.minimum(ratio * fraction, _LONGEST), shorter)
            is_content = (kl >= MATCHED * threshold) | was_refused | (fraction >= _LONGEST)
        else:
            following = jnp.asarray(config.backtrack_coef, theta.dtype) ** (search.tries + 1)
            is_content = jnp.ones((), bool)
        is_longer = is_accepted & (fraction > search.accepted)
        accepted = jnp.where(is_longer, fraction, search.accepted)
        keep = functools.partial(jnp.where, is_longer)
        return _Search(
            search.tries + 1,
            following.astype(theta.dtype),
            (is_accepted & is_content) | (following <= accepted),
            was_refused,
            accepted,
            jax.tree.map(keep, result, search.outcome),
            jax.tree.map(keep, outputs, search.outputs),
        )

    def unfinished(search: _Search):
        return (search.tries < config.line_search_steps) & ~search.done

    shapes = jax.eval_shape(lambda: assess(actor, batch, proposal.outputs, proposal.outputs))
    no, zero = jnp.zeros((), bool), jnp.zeros((), theta.dtype)
    no_change = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, theta.dtype), shapes)
    start = _Search(jnp.zeros((), jnp.int32), zero + 1, ~(predicted > 0), no, zero, no_change, proposal.outputs)
    found = jax.lax.while_loop(unfinished, attempt, start)
    # where, not fraction * step: a rejected step may contain non-finite numbers
    new_theta = jnp.where(found.accepted > 0, theta + found.accepted * full_step, theta)
    entropy = weighted.mean(actor.distribution(found.outputs, batch.action_mask).entropy(), batch.alive)
    return AcceptedStep(unravel(new_theta), found.outcome, found.accepted, entropy)
