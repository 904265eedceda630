"""Statistics over a handful of seeds: the interquartile mean and its bootstrap interval.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np

_BLOCK = 4_000_000
"""Numbers resampled at once."""


def interquartile_mean(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean of the middle half of `scores` along `axis`.

    A quarter of the total weight is cut at each end, from single scores in part when n is no multiple of 4 (our
    choice: cutting floor(n / 4) whole scores, as rliable does, is the plain mean for n < 4 and agrees for n = 4, 8,
    ...).

    Args:
        scores: any shape; NaN makes the result NaN.
        axis: the axis that is averaged away.

    Raises:
        ValueError: there are no scores along `axis`.
    """
    scores = np.sort(np.moveaxis(np.asarray(scores, dtype=np.float64), axis, 0), axis=0)
    count = scores.shape[0]
    if count == 0:
        raise ValueError("the interquartile mean of no scores")
    ranks = np.arange(count)
    # Score k fills [k, k + 1] of the n units of weight; what lies within [n/4, 3n/4] is kept.
    weights = np.clip(np.minimum(ranks + 1, 0.75 * count) - np.maximum(ranks, 0.25 * count), 0.0, None)
    mean = np.tensordot(weights / weights.sum(), np.where(np.isnan(scores), 0.0, scores), axes=1)
    return np.where(np.isnan(scores).any(axis=0), np.nan, mean)[()]


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

    Runs are drawn with replacement within each stratum, so that every resample has as many runs of a stratum (a
    task, an algorithm) as there really are.

    Args:
        scores: [R, ...] one score, or one curve, per run. Curves are resampled whole.
        strata: [R] labels; None: all runs are of one stratum.
        statistic: called as `statistic(resampled, axis=1)` with `resampled` [num_resamples, R, ...].
        confidence: probability mass of the interval, in (0, 1).
        num_resamples: number of resamples.
        seed: of numpy's generator; the same seed gives the same interval.

    Returns:
        [2, ...]: lower and upper end.

    Raises:
        ValueError: no runs, labels of another length, or a confidence outside (0, 1).
    """
    scores = np.asarray(scores, dtype=np.float64)
    num_runs = len(scores)
    strata = np.zeros(num_runs) if strata is None else np.asarray(strata)
    if num_runs == 0:
        raise ValueError("the bootstrap interval of no runs")
    if strata.shape != (num_runs,):
        raise ValueError(f"strata has shape {strata.shape}; it must be one label per run: ({num_runs},)")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}; it must be in (0, 1)")
    generator = np.random.default_rng(seed)
    drawn = np.empty((num_resamples, num_runs), dtype=np.int64)
    for label in np.unique(strata):
        members = np.flatnonzero(strata == label)
        drawn[:, members] = generator.choice(members, size=(num_resamples, len(members)))
    # In blocks: all resamples of a long curve at once would take gigabytes.
    blocks = np.array_split(drawn, max(1, num_resamples * scores.size // _BLOCK))
    resampled = np.concatenate([statistic(scores[block], axis=1) for block in blocks])
    tail = (1 - confidence) / 2
    return np.quantile(resampled, [tail, 1 - tail], axis=0)
