"""Exact cooperative Markov games: enumeration and linear solves in numpy, float64, nothing sampled.

Algorithm 1 of Kuba et al. 2022 (multi-agent policy iteration with monotonic improvement), and the same with the
allocation of a KL budget in place of its penalty. Checked against enumeration in `tests/experiments/test_theory.py`.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from experiments.exact_gaussians import ALLOCATORS, EPSILON
from marl_kl.core.allocators import AllocationState, Allocator

SMALLEST_PROBABILITY = 1e-30


class Game(NamedTuple):
    """A cooperative Markov game: reward [S, k_1, ..., k_n], transition [S, k_1, ..., k_n, S], start [S]."""

    reward: np.ndarray
    transition: np.ndarray
    start: np.ndarray
    gamma: float

    @property
    def action_sizes(self):
        return self.reward.shape[1:]


def random_policy(rng, num_states, num_actions):
    """[S, k], every action possible."""
    return 0.9 * rng.dirichlet(np.ones(num_actions), size=num_states) + 0.1 / num_actions


def random_game(rng, num_states, action_sizes, gamma):
    """A random game and two random joint policies for it (one [S, k_i] array per agent)."""
    shape = (num_states, *action_sizes)
    game = Game(
        reward=rng.normal(size=shape),
        transition=rng.dirichlet(np.ones(num_states), size=shape),
        start=np.full(num_states, 1 / num_states),
        gamma=gamma,
    )
    old, new = ([random_policy(rng, num_states, k) for k in action_sizes] for _ in range(2))
    return game, old, new


def joint_policy(policies):
    """[S, k_1, ..., k_n] probability of every joint action."""
    joint = policies[0]
    for policy in policies[1:]:
        joint = joint[..., None] * policy.reshape(len(policy), *[1] * (joint.ndim - 1), -1)
    return joint


def over_actions(weights, values):
    """[S, ...] sum of weights * values over all joint actions; `values` may have further axes."""
    num_states = len(weights)
    flat = values.reshape(num_states, weights[0].size, -1)
    return np.einsum("sa,sax->sx", weights.reshape(num_states, -1), flat)


def evaluate(game, policies):
    """V [S], Q [S, k_1, ..., k_n], visitation [S] (sum of gamma^t P(s_t = s)) and the return, by linear solves."""
    joint = joint_policy(policies)
    reward, transition = over_actions(joint, game.reward)[:, 0], over_actions(joint, game.transition)
    system = np.eye(len(reward)) - game.gamma * transition
    value = np.linalg.solve(system, reward)
    visits = np.linalg.solve(system.T, game.start)
    return value, game.reward + game.gamma * game.transition @ value, visits, game.start @ value


# Algorithm 1: multi-agent policy iteration with monotonic improvement.


def kl_at(policy, gap, slack):
    """KL(p || q) per state [S] for q proportional to p / (slack + gap), slack [S]; stable for large and small slack."""
    tilt = gap / slack[:, None]
    lost = (policy * tilt / (1 + tilt)).sum(-1)
    # 1 - lost has no digits left where almost all of p is lost, and its logarithm is most of the KL
    kept = (policy / (1 + tilt)).sum(-1)
    return (policy * np.log1p(tilt)).sum(-1) + np.where(lost < 0.5, np.log1p(-np.minimum(lost, 0.5)), np.log(kept))


def best_policy_within(policy, gap, radius):
    """argmax_q <q, A> s.t. KL(p || q) <= radius in every state, and d max / d radius; `gap` = max A - A, [S, k].

    Stationarity gives q_a = mu p_a / (slack + gap_a); the KL falls in slack, so bisect on its logarithm.
    """
    scale = gap.max(axis=-1)
    low, high = np.log(1e-40 * scale), np.log(1e14 * scale)
    for _ in range(58):
        middle = (low + high) / 2
        inside = kl_at(policy, gap, np.exp(middle)) <= radius
        low, high = np.where(inside, low, middle), np.where(inside, middle, high)
    unnormalised = policy / (np.exp(high)[:, None] + gap)
    multiplier = 1 / unnormalised.sum(axis=-1)
    # Exact policies stay positive, so that an action can come back; floats underflow to 0 and would be stuck there.
    return np.maximum(multiplier[:, None] * unnormalised, SMALLEST_PROBABILITY), multiplier


def penalised_argmax(policy, advantage, visits, penalty):
    """argmax_q sum_s visits_s <q_s, A_s> - penalty max_s KL(p_s || q_s), one step of Algorithm 1, [S, k].

    All states may use the largest KL d, so the problem is concave in d alone: sum_s visits_s mu_s(d) = penalty.
    """
    gap = advantage.max(axis=-1, keepdims=True) - advantage
    matters = gap.max(axis=-1) > 1e-12
    if not matters.any():
        return policy

    def slope(log_radius):
        _, multiplier = best_policy_within(policy[matters], gap[matters], np.exp(log_radius))
        return np.log(visits[matters] @ multiplier) - np.log(penalty)

    smallest, largest = np.log(1e-12), np.log(20.0)
    if slope(smallest) <= 0:
        return policy
    log_radius = largest if slope(largest) >= 0 else brentq(slope, smallest, largest, xtol=1e-6)
    new = policy.copy()
    new[matters], _ = best_policy_within(policy[matters], gap[matters], np.exp(log_radius))
    return new


def expected_advantage(advantage, old, new, moved, agent):
    """[S, k_agent]: A^{i_m}, its predecessors `moved` playing `new`, for each action of `agent`; mean 0 under `old`.

    It averages axis by axis, because it is called thousands of times.
    """
    n = len(old)
    total = advantage
    for i in reversed(range(n)):
        if i != agent:
            weights = (new if i in moved else old)[i]
            shape = [len(weights)] + [1] * (total.ndim - 1)
            shape[i + 1] = -1
            total = (total * weights.reshape(shape)).sum(axis=i + 1, keepdims=True)
    total = total.reshape(len(old[agent]), -1)
    return total - (old[agent] * total).sum(axis=-1, keepdims=True)


def algorithm_1_iteration(game, policies, order):
    """One iteration: C = 4 gamma max|A| / (1 - gamma)^2, then the agents sequentially maximise L - C max_s KL."""
    value, q, visits, _ = evaluate(game, policies)
    advantage = q - value.reshape(-1, *[1] * len(policies))
    penalty = 4 * game.gamma * np.abs(advantage).max() / (1 - game.gamma) ** 2
    new = list(policies)
    for m, agent in enumerate(order):
        own = expected_advantage(advantage, policies, new, set(order[:m]), agent)
        new[agent] = penalised_argmax(policies[agent], own, visits, penalty)
    return new


def exploitability(game, policies):
    """The most that any one agent could add to the return by deviating alone: 0 in a Nash equilibrium."""
    num_states = len(game.start)
    value = evaluate(game, policies)[-1]
    gains = []
    for agent, k in enumerate(game.action_sizes):
        for choice in itertools.product(range(k), repeat=num_states):
            deviation = [*policies[:agent], np.eye(k)[list(choice)], *policies[agent + 1 :]]
            gains.append(evaluate(game, deviation)[-1] - value)
    return max(gains)


# A KL budget in place of the penalty.


class Iteration(NamedTuple):
    """One update of all agents.

    Attributes:
        policies: the new ones.
        thresholds: [N] largest KL over states that each agent was allowed.
        gain: sum of the agents' surrogate gains. guaranteed: that less C times the KL spent, the lower bound of Theorem
            2 on the gain in return.
        predicted: the same gain to first order: each agent's slope at its old policy, times the square root of its
            threshold.
    """

    policies: list[np.ndarray]
    thresholds: np.ndarray
    gain: float
    guaranteed: float
    predicted: float


@functools.cache
def allocator_of(method: str) -> Allocator:
    """The allocator of an algorithm, compiled."""
    plain = ALLOCATORS[method]()
    return plain._replace(start=jax.jit(plain.start), next=jax.jit(plain.next))


def budgeted_iteration(game: Game, policies: list, allocator: Allocator, budget: float, key: jax.Array) -> Iteration:
    """Agents sequentially maximise the surrogate L within max_s KL <= their thresholds, which allocate `budget`."""
    n = len(policies)
    value, q, visits, _ = evaluate(game, policies)
    advantage = q - value.reshape(-1, *[1] * n)
    penalty = 4 * game.gamma * np.abs(advantage).max() / (1 - game.gamma) ** 2
    alone = [expected_advantage(advantage, policies, policies, set(), agent) for agent in range(n)]
    trials = [best_within(policies[agent], alone[agent], budget / n) for agent in range(n)]
    utility = np.array([_gain(visits, trial, own) for trial, own in zip(trials, alone)])
    plan = allocator.start(key, jnp.asarray(utility, jnp.float32), jnp.float32(budget))

    new, moved, remaining, unassigned = list(policies), set(), budget, budget
    thresholds, spent, gain, predicted = np.zeros(n), 0.0, 0.0, 0.0
    for position in range(n):
        waited = range(n) if allocator.uses == "scores" else ()
        now = [expected_advantage(advantage, policies, new, moved, agent) for agent in waited]
        gains = [_gain(visits, trial, own) for trial, own in zip(trials, now)] or [0.0] * n
        score = np.array(gains) / (budget / n + EPSILON)
        waiting = [agent not in moved for agent in range(n)]
        state = AllocationState(
            jnp.int32(position), jnp.asarray(score, jnp.float32), jnp.asarray(waiting), jnp.float32(remaining),
            jnp.float32(unassigned),
        )  # fmt: skip
        agent, threshold = (part.item() for part in allocator.next(plan, state))
        own = expected_advantage(advantage, policies, new, moved, agent)
        new[agent] = best_within(policies[agent], own, threshold)
        kl = _largest_kl(policies[agent], new[agent])
        spread = np.sqrt((policies[agent] * own**2).sum(-1))
        predicted += visits @ spread * np.sqrt(2 * threshold)
        gain += _gain(visits, new[agent], own)
        thresholds[agent], spent = threshold, spent + kl
        remaining, unassigned = max(remaining - kl, 0.0), max(unassigned - threshold, 0.0)
        moved.add(agent)
    return Iteration(new, thresholds, gain, gain - penalty * spent, predicted)


def best_within(policy: np.ndarray, advantage: np.ndarray, radius: float) -> np.ndarray:
    """argmax_q <q, A> s.t. KL(policy || q) <= radius in every state; states without a preference stay, [S, k]."""
    gap = advantage.max(axis=-1, keepdims=True) - advantage
    matters = gap.max(axis=-1) > 1e-12
    if radius <= 0 or not matters.any():
        return policy
    new = policy.copy()
    new[matters], _ = best_policy_within(policy[matters], gap[matters], radius)
    return new


def _gain(visits: np.ndarray, policy: np.ndarray, advantage: np.ndarray) -> float:
    return float(visits @ (policy * advantage).sum(axis=-1))


def _largest_kl(old: np.ndarray, new: np.ndarray) -> float:
    return float(max((old * np.log(old / new)).sum(axis=-1).max(), 0.0))


def planned_in(order: str, share) -> Allocator:
    """Thresholds `share(utility, kl_budget)`; "largest" or "smallest" utility first, or "random" order."""

    def start(key, utility, kl_budget):
        ranks = {"largest": -utility, "smallest": utility, "random": jax.random.uniform(key, utility.shape)}
        return jnp.argsort(ranks[order]), share(utility, kl_budget)

    return Allocator("utility", jax.jit(start), _follow)


@jax.jit
def _follow(plan, now: AllocationState):
    order, thresholds = plan
    agent = order[now.position]
    return agent, thresholds[agent]
