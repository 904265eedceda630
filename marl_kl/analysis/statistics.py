"""Statistics over a handful of seeds: interquartile mean, performance profile, probability of improvement, and their
bootstrap intervals (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

MIN_RUNS = 3
"""Intervals need as many runs (per task)."""

_BLOCK = 4_000_000
"""Numbers resampled at once."""


def interquartile_mean(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean of `scores` along `axis` without the floor(n / 4) lowest and as many highest, as rliable computes it.

    Args:
        scores: any shape, n along `axis`; NaN makes the result NaN.
        axis: the axis that is reduced.

    Raises:
        ValueError: there are no scores along `axis`.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape[axis] == 0:
        raise ValueError("the interquartile mean of no scores")
    return np.where(np.isnan(scores).any(axis=axis), np.nan, stats.trim_mean(scores, 0.25, axis=axis))[()]


def bootstrap_interval(
    scores: np.ndarray,
    *,
    strata: Sequence | None = None,
    statistic: Callable[..., np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Stratified percentile bootstrap of `statistic` over runs.

    Runs are drawn with replacement within each stratum (a task, an algorithm), so that every resample has as many runs
    of a stratum as the data. `scipy.stats.bootstrap` gives the same interval for one stratum; it has no strata, and
    refuses a sample of one run.

    Args:
        scores: [R, ...] one score, or one curve, per run. Curves are resampled whole.
        strata: [R] labels; None: all runs are of one stratum.
        statistic: called as `statistic(resampled, axis=1)` with `resampled` [num_resamples, R, ...].
        confidence: probability mass of the interval, in (0, 1).
        num_resamples: number of resamples.
        seed: of NumPy's generator.

    Returns:
        [2, ...]: lower and upper end.

    Raises:
        ValueError: no runs, labels of another length, or a confidence outside (0, 1).
    """
    scores = np.asarray(scores, dtype=np.float64)
    num_runs = len(scores)
    strata_members = _members(strata, num_runs)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}; it must be in (0, 1)")
    generator = np.random.default_rng(seed)
    drawn = np.empty((num_resamples, num_runs), dtype=np.int64)
    for members in strata_members:
        drawn[:, members] = generator.choice(members, size=(num_resamples, len(members)))
    # In blocks: all resamples of a long curve at once would take gigabytes.
    blocks = np.array_split(drawn, max(1, num_resamples * scores.size // _BLOCK))
    resampled = np.concatenate([statistic(scores[block], axis=1) for block in blocks])
    tail = (1 - confidence) / 2
    return np.quantile(resampled, [tail, 1 - tail], axis=0)


def performance_profile(
    scores: np.ndarray, thresholds: np.ndarray, strata: Sequence | None = None, axis: int = 0
) -> np.ndarray:
    """Share of runs above each threshold, weighted equally over strata (tasks) (Agarwal et al. 2021, section 4.2):

        F(tau) = 1/M sum_m 1/N_m sum_n 1[x_mn > tau]

    Args:
        scores: [..., R, ...] with R runs along `axis`, of M strata with N_m runs each; NaN is above no threshold.
        thresholds: [T].
        strata: [R] labels; None: one stratum.
        axis: the axis of the runs.

    Returns:
        [..., T], without the axis of the runs.

    Raises:
        ValueError: no runs, or labels of another length.
    """
    scores = np.moveaxis(np.asarray(scores, dtype=np.float64), axis, -1)
    members = _members(strata, scores.shape[-1])
    weights = np.zeros(scores.shape[-1])
    for runs in members:
        weights[runs] = 1.0 / (len(members) * len(runs))
    return np.stack([(scores > threshold) @ weights for threshold in thresholds], axis=-1)


def probability_of_improvement(
    better: np.ndarray,
    worse: np.ndarray,
    strata: Sequence | None = None,
    worse_strata: Sequence | None = None,
    axis: int = 0,
) -> np.ndarray:
    """P(X > Y), that a run of X scores above a run of Y, averaged over strata (tasks):

        1/M sum_m 1/(N_m K_m) sum_i sum_j S(x_mi, y_mj),  S = 1 if x > y, 1/2 if x = y, else 0

    the Mann-Whitney U statistic over its maximum (Agarwal et al. 2021, section 4.3).

    Args:
        better: [..., N, ...] X, runs along `axis`.
        worse: [..., K, ...] Y, likewise.
        strata: [N] labels of X; None: one stratum.
        worse_strata: [K] labels of Y.
        axis: the axis of the runs.

    Returns:
        [...] in [0, 1]; P(X > Y) + P(Y > X) = 1.

    Raises:
        ValueError: no runs, labels of another length, or strata that differ between X and Y.
    """
    x, y = (np.moveaxis(np.asarray(scores, dtype=np.float64), axis, -1) for scores in (better, worse))
    labels = [_labels(own, scores.shape[-1]) for own, scores in ((strata, x), (worse_strata, y))]
    if set(labels[0]) != set(labels[1]):
        both = " and ".join(str(sorted(set(own))) for own in labels)
        raise ValueError(f"strata {both}; X and Y need runs of the same strata")
    per_stratum = []
    for label in np.unique(labels[0]):
        left, right = x[..., labels[0] == label, None], y[..., None, labels[1] == label]
        per_stratum.append(np.mean((left > right) + 0.5 * (left == right), axis=(-2, -1)))
    return np.mean(per_stratum, axis=0)[()]


def improvement_interval(
    better: np.ndarray,
    worse: np.ndarray,
    strata: Sequence | None = None,
    worse_strata: Sequence | None = None,
    **options,
) -> np.ndarray:
    """[2] bootstrap interval of `probability_of_improvement` of X [N] over Y [K], each resampled within each stratum.

    `options` are those of `bootstrap_interval`.
    """
    count = len(better)
    own, other = _labels(strata, count), _labels(worse_strata, len(worse))
    names = {label: index for index, label in enumerate(np.unique(np.concatenate([own, other])))}
    codes = [names[label] for label in own] + [len(names) + names[label] for label in other]

    def statistic(resampled, axis):
        x, y = np.split(resampled, [count], axis=axis)
        return probability_of_improvement(x, y, own, other, axis)

    return bootstrap_interval(np.concatenate([better, worse]), strata=codes, statistic=statistic, **options)


def _labels(strata: Sequence | None, num_runs: int) -> np.ndarray:
    """[R], or ValueError."""
    labels = np.zeros(num_runs, dtype=np.int64) if strata is None else np.asarray(strata)
    if num_runs == 0:
        raise ValueError("a statistic of no runs")
    if labels.shape != (num_runs,):
        raise ValueError(f"strata has shape {labels.shape}; it must be one label per run: ({num_runs},)")
    return labels


def _members(strata: Sequence | None, num_runs: int) -> list[np.ndarray]:
    """Per stratum the indices of its runs."""
    labels = _labels(strata, num_runs)
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]
