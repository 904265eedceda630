"""What learning curves are summed up as: bins of updates, their ends, and how soon a return is reached."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.intervals import Estimate, ratio
from marl_kl.analysis.statistics import interquartile_mean


def bin_edges(num_updates: int, bins: int = 40) -> np.ndarray:
    """Edges of that many bins of about the same size, or of one per update if there are fewer updates."""
    return np.unique(np.linspace(0, num_updates, bins + 1).astype(int))


def binned(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[seed, update, ...] -> [seed, bin, ...] means of what is not NaN; NaN where all is."""
    slices = [values[:, begin:end] for begin, end in zip(edges[:-1], edges[1:])]
    present = [np.isfinite(part).sum(axis=1) for part in slices]
    sums = [np.nansum(part, axis=1) for part in slices]
    return np.stack([np.where(n, s / np.maximum(n, 1), np.nan) for n, s in zip(present, sums)], axis=1)


def last_tenth(returns: np.ndarray) -> np.ndarray:
    """[..., update] -> [...]: mean over the last tenth of the updates, of what is not NaN."""
    return np.nanmean(returns[..., -max(1, returns.shape[-1] // 10) :], axis=-1)


def last_fifth(evaluated: np.ndarray) -> np.ndarray:
    """[seed, V] -> [seed]: mean over the last fifth of the evaluations."""
    return evaluated[:, -max(1, evaluated.shape[1] // 5) :].mean(1)


def pace(values: Mapping[str, np.ndarray], of_hatrpo: Mapping[str, np.ndarray], part: float = 0.9) -> Estimate:
    """How much sooner a method gets there: the env steps after which HATRPO's training return, interquartile mean over
    seeds, is `part` of its final one, over the env steps that the method takes to the same return.

    Args:
        values, of_hatrpo: env_steps [P]; returns [seed, P]; final [seed]. Who never gets there counts as the whole run.
    """
    level = part * interquartile_mean(of_hatrpo["final"])
    env_steps = of_hatrpo["env_steps"]

    def env_steps_to_level(returns: np.ndarray, axis: int) -> np.ndarray:
        return first_reached(env_steps, interquartile_mean(returns, axis=axis), level)

    return ratio(of_hatrpo["returns"], values["returns"], env_steps_to_level)


def pace_text(values: Mapping[str, np.ndarray], of_hatrpo: Mapping[str, np.ndarray], part: float = 0.9) -> str:
    """`pace`, or that the method, interquartile mean over seeds, never gets there."""
    is_reached = interquartile_mean(values["returns"], axis=0) >= part * interquartile_mean(of_hatrpo["final"])
    return pace(values, of_hatrpo, part).text() if is_reached.any() else "not reached"


def first_reached(x: np.ndarray, curves: np.ndarray, level: float) -> np.ndarray:
    """[...] where curves [..., P] over x [P] first reach `level`, linear between points; x[0] if they begin there, x[-1] if
    they never do. NaN is below every level."""
    above = np.nan_to_num(curves, nan=-np.inf) >= level
    place = np.where(above.any(-1), above.argmax(-1), len(x) - 1)
    before = np.maximum(place - 1, 0)
    low, high = (np.take_along_axis(curves, at[..., None], -1)[..., 0] for at in (before, place))
    is_between = above.any(-1) & (place > 0) & np.isfinite(low)
    part = np.where(is_between, (level - low) / np.where(is_between, high - low, 1.0), 1.0)
    return x[before] + part * (x[place] - x[before])
