"""Final returns of runs on different bodies, put on one scale and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.intervals import Estimate
from experiments.study import Values
from marl_kl.analysis.statistics import (
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    probability_of_improvement,
)


class Scores(NamedTuple):
    """Final returns of one method, all scenarios together.

    Attributes:
        normalized: [R] on each scenario's scale: 0 is the mean return of untrained stochastic policies, 1 that of
            the best run of all methods.
        scenario: [R] indices.
    """

    normalized: np.ndarray
    scenario: np.ndarray


def scored(by_scenario: Mapping[str, Mapping[str, Values]], began: Mapping[str, float], method: str) -> Scores:
    """Of one method.

    Args:
        by_scenario: scenario -> method -> what `brax_suite.play` returns.
        began: scenario -> return of untrained policies.
    """
    normalized, scenario = [], []
    for index, (name, values) in enumerate(by_scenario.items()):
        best = max(v["final"].max() for v in values.values())
        normalized.append((values[method]["final"] - began[name]) / max(best - began[name], 1e-9))
        scenario.append(np.full(len(values[method]["final"]), index))
    return Scores(np.concatenate(normalized), np.concatenate(scenario))


def overall(scores: Scores) -> Estimate:
    """IQM over all runs of all scenarios, runs resampled within each scenario."""
    interval = bootstrap_interval(scores.normalized, strata=scores.scenario)
    return Estimate(float(interquartile_mean(scores.normalized)), *map(float, interval))


def only(scores: Scores, scenario: int) -> Scores:
    """Those of one scenario."""
    chosen = scores.scenario == scenario
    return Scores(scores.normalized[chosen], scores.scenario[chosen])


def beats(x: Scores, y: Scores) -> Estimate:
    """Probability that a run of X ends above one of Y, mean over scenarios."""
    pair = x.normalized, y.normalized, x.scenario, y.scenario
    return Estimate(float(probability_of_improvement(*pair)), *map(float, improvement_interval(*pair)))


def pooled(first: Scores, second: Scores, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Estimate:
    """`statistic`(first [..., R], second [..., Q]) and its interval, runs resampled within method and scenario."""
    count = len(first.normalized)
    both = np.concatenate([first.normalized, second.normalized])
    strata = np.concatenate([first.scenario, 1 + first.scenario.max() + second.scenario])

    def of_both(scores, axis):
        return statistic(*np.split(np.moveaxis(scores, axis, -1), [count], axis=-1))

    return Estimate(float(of_both(both, 0)), *map(float, bootstrap_interval(both, strata=strata, statistic=of_both)))


def variance_ratio(above: Scores, below: Scores) -> Estimate:
    """Variance over seeds of `above` / that of `below`: the geometric mean over scenarios, so that all have equal
    weight, whatever the scale of their returns."""

    def ratio(x, y):
        logs = [np.log(np.maximum(_within(v, s.scenario), 1e-12)).mean(0) for v, s in ((x, above), (y, below))]
        return np.exp(logs[0] - logs[1])

    return pooled(above, below, ratio)


def _within(values: np.ndarray, scenario: np.ndarray) -> np.ndarray:
    """[..., R] -> [scenario, ...] variances over the runs of each scenario."""
    return np.stack([np.var(values[..., scenario == i], axis=-1, ddof=1) for i in np.unique(scenario)])
