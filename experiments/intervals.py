"""Estimates over runs and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from marl_kl.analysis.statistics import bootstrap_interval, interquartile_mean


class Estimate(NamedTuple):
    """A statistic and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2, percent: bool = False, sign: str = "") -> str:
        """ "1.20 [1.05, 1.31]", "45 % [30, 60]"; `sign="+"` shows the value's sign."""
        scale = 100 if percent else 1
        value, low, high = (round(scale * number, digits) + 0.0 for number in self)  # + 0.0: no "-0.00"
        unit = " %" if percent else ""
        return f"{value:{sign}.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def estimate(scores: np.ndarray, statistic: Callable = interquartile_mean) -> Estimate:
    """`statistic` of one score per run [R], and its bootstrap interval."""
    scores = np.asarray(scores, np.float64)
    return Estimate(float(statistic(scores, axis=0)), *map(float, bootstrap_interval(scores, statistic=statistic)))


def ratio(above: np.ndarray, below: np.ndarray, statistic: Callable = interquartile_mean) -> Estimate:
    """statistic(above) / statistic(below) of independent runs [R] and [Q], each resampled."""
    return mean_ratio([(above, below)], statistic)


def mean_ratio(pairs: Sequence[tuple[np.ndarray, np.ndarray]], statistic: Callable = interquartile_mean) -> Estimate:
    """Geometric mean over tasks of statistic(above) / statistic(below); the runs of every task are resampled within it.

    Args:
        pairs: of each task the independent runs [R] above and [Q] below. The ratios of several tasks must be positive.
    """
    samples = [sample for pair in pairs for sample in pair]
    strata = np.repeat(np.arange(len(samples)), [len(sample) for sample in samples])
    ends = np.cumsum([len(sample) for sample in samples])[:-1]

    def combined(scores, axis):
        found = [statistic(part, axis=axis) for part in np.split(scores, ends, axis=axis)]
        ratios = [above / below for above, below in zip(found[::2], found[1::2])]
        return np.prod(ratios, axis=0) ** (1 / len(ratios))

    runs = np.concatenate(samples)
    low, high = bootstrap_interval(runs, strata=strata, statistic=combined)
    return Estimate(float(combined(runs, axis=0)), float(low), float(high))


def ratio_of_means(pairs: np.ndarray, axis: int) -> np.ndarray:
    """mean(first) / mean(second) of pairs [..., 2] along `axis`; a statistic for `estimate`."""
    means = pairs.mean(axis)
    return means[..., 0] / means[..., 1]


def proportion(flags: np.ndarray) -> Estimate:
    """Share of independent cases in which a flag is set, with its exact interval (Clopper and Pearson 1934).

    The bootstrap interval of ten cases out of ten is [1, 1]; this one is [0.69, 1].
    """
    flags = np.asarray(flags, bool).ravel()
    exact = binomtest(int(flags.sum()), flags.size).proportion_ci(0.95, method="exact")
    return Estimate(float(flags.mean()), float(exact.low), float(exact.high))
