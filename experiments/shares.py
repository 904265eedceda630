"""How the KL budget is shared: whether shares follow utilities, and whether the agent with the largest one keeps it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from experiments.curves import binned
from experiments.intervals import estimate
from experiments.study import Values


class Leading(NamedTuple):
    """counts: [..., agent] updates that each led. stays: [...] how often the leader of an update leads the next one.
    by_chance: [...] how often it would if the same updates came in random order; NaN of fewer than two updates."""

    counts: np.ndarray
    stays: np.ndarray
    by_chance: np.ndarray


def of_run(utility: np.ndarray, threshold: np.ndarray, kl: np.ndarray, edges: np.ndarray) -> Values:
    """Of several seeds. An agent's share is its threshold over the sum of all agents' thresholds in that update.

    Args:
        utility, threshold, kl: [seed, update, agent]. edges: of the bins of updates.

    Returns:
        share: [bin, agent] mean over seeds. largest: [seed] the largest share, mean over updates. correlation: [seed]
        Pearson's, over updates and agents, between an agent's part of the team's utility and its share;
        correlation_spent: with its part of the KL spent; NaN where one of both never changes. led: [agent] how often it
        had the largest share, mean over seeds. stays: [seed] how often the agent with the largest share has it again in
        the next update; by_chance: [seed] how often it would if the same updates came in random order.
    """
    part, share, spent = map(normalised, (utility, threshold, kl))
    leaders = leading(share)
    return {
        "share": binned(share, edges).mean(0),
        "largest": share.max(-1).mean(1),
        "correlation": np.array([_correlation(p.ravel(), s.ravel()) for p, s in zip(part, share)]),
        "correlation_spent": np.array([_correlation(p.ravel(), s.ravel()) for p, s in zip(part, spent)]),
        "led": leaders.counts.mean(0) / share.shape[1],
        "stays": leaders.stays,
        "by_chance": leaders.by_chance,
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    is_constant = np.ptp(x) < 1e-6 or np.ptp(y) < 1e-6
    return math.nan if is_constant else float(np.corrcoef(x, y)[0, 1])


def normalised(values: np.ndarray) -> np.ndarray:
    """[..., agent] -> the same, with sum 1 over agents; 0 where all are 0.

    HATRPO-G's thresholds sum to more than the budget, because what one agent leaves is allocated again.
    """
    return values / np.maximum(values.sum(-1, keepdims=True), 1e-30)


def leading(share: np.ndarray, counted: np.ndarray | None = None) -> Leading:
    """Of shares [..., update, agent]; only `counted` [..., update] updates matter, and pairs of
    neighbours that are both counted. Of equal shares the first one leads."""
    leader = share.argmax(-1)
    counted = np.ones(leader.shape, bool) if counted is None else counted
    counts = ((leader[..., None] == np.arange(share.shape[-1])) & counted[..., None]).sum(-2)
    pairs = counted[..., 1:] & counted[..., :-1]
    again = (leader[..., 1:] == leader[..., :-1]) & pairs
    return Leading(counts, _over(again.sum(-1), pairs.sum(-1)), in_random_order(counts))


def in_random_order(counts: np.ndarray) -> np.ndarray:
    """[..., agent] how many of U updates each agent led -> [...] how often, if they came in random order, the leader of
    one would lead the next as well: sum_i c_i (c_i - 1) / (U (U - 1)).

    If agents lead with chances p_i this is sum_i p_i^2 on average, 1 / N where all are equal; the sum of the squared
    frequencies c_i / U is more. NaN where U < 2.
    """
    updates = counts.sum(-1)
    return _over((counts * (counts - 1)).sum(-1), updates * (updates - 1))


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.maximum(below, 1), np.nan)


def stays_text(stays: np.ndarray, by_chance: np.ndarray) -> str:
    """Of runs [R]: how often the leader leads the next update; in random order; the difference in points."""
    known = np.isfinite(stays) & np.isfinite(by_chance)
    if known.sum() < 2:
        return "too few updates"
    more = estimate(100 * (stays - by_chance)[known], np.mean)
    return f"{100 * stays[known].mean():.0f} % ({100 * by_chance[known].mean():.0f} %), {more.text(0, sign='+')}"
