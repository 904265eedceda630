"""`compare`: several runs beside each other, as reviewers want it (Agarwal et al. 2021; Gorsane et al. 2022).

Per task the curves of all runs are laid on one grid of env steps inside the range that every run covers. Final returns,
areas under the curve and env steps to a threshold are those of that range. Over tasks, final returns are normalised per
task, and interquartile means, performance profiles and probabilities of improvement are taken with every task counting
the same. Intervals are percentile bootstraps that resample runs within each task.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np

from marl_kl.analysis import statistics
from marl_kl.analysis.comparison.samples import Metric, Sample, Samples, read

CONFIDENCE = 0.95
MIN_RUNS = 3
"""Runs per task from which on there are intervals."""

FINAL_SHARE = {"evaluation": 0.0, "training": 0.1}
"""The part of the common range, at its end, over which a run's final return is averaged."""

_MAX_GRID = 100
_PROFILE_POINTS = 101
_WIDE_GAP = 0.05
"""Share of the common range: a final return interpolated between two measurements further apart is warned of."""

_FEW_RUNS = 10


class Estimate(NamedTuple):
    """A statistic and its 95 % bootstrap interval; the ends are NaN where there are too few runs for one."""

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class TaskScale(NamedTuple):
    """What the runs on one task share.

    Attributes:
        name: the task.
        env_steps: [G] the grid, from the first to the last env step that every run covers.
        low, high: the returns that are normalised to 0 and 1.
        threshold: the return whose first reaching is counted in env steps; None for none.
    """

    name: str
    env_steps: np.ndarray
    low: float
    high: float
    threshold: float | None


class Entry(NamedTuple):
    """One method on one task.

    Attributes:
        task, method: which. seeds: S, in the order of every seed axis.
        returns: [S, G] on the task's grid, linear between measurements.
        final: [S] return at the end of the grid (training: mean over its last tenth).
        area: [S] area under the curve over the grid's length: the mean return on the way.
        normalized: [S] `final` on the task's scale.
        steps_to_threshold: [S] env steps at the first measurement at or above the threshold; inf if it never came.
        curve: interquartile mean over seeds, [G]. final_iqm, area_iqm: likewise, [].
    """

    task: str
    method: str
    seeds: tuple[int, ...]
    returns: np.ndarray
    final: np.ndarray
    area: np.ndarray
    normalized: np.ndarray
    steps_to_threshold: np.ndarray
    curve: Estimate
    final_iqm: Estimate
    area_iqm: Estimate


class Overall(NamedTuple):
    """Over the tasks that all methods were run on; methods [M] in the order of `Comparison.methods`.

    Attributes:
        tasks: which.
        iqm: interquartile mean of normalised final returns over all runs, leaves [M].
        levels: [T] normalised returns. profile: share of runs above each level, leaves [M, T].
        improvement: probability that a run of the row's method ends above one of the column's, leaves [M, M]; 1/2 on
            the diagonal.
    """

    tasks: tuple[str, ...]
    iqm: Estimate
    levels: np.ndarray
    profile: Estimate
    improvement: Estimate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Methods beside each other.

    Attributes:
        metric: "evaluation" or "training".
        tasks: what the runs on each task share.
        methods: labels.
        entries: one per task and method that was run on it.
        overall: over tasks; None if no task has all methods, or there is one method alone.
        kl_budgets: method -> its joint KL budgets (one, unless they differ from task to task; none without budget).
        samples: the curves as they were measured.
        warnings: what makes the comparison unfair or lopsided. notes: what a reader should know.
        num_resamples: of the bootstrap.
    """

    metric: Metric
    tasks: tuple[TaskScale, ...]
    methods: tuple[str, ...]
    entries: tuple[Entry, ...]
    overall: Overall | None
    kl_budgets: Mapping[str, tuple[float, ...]]
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    num_resamples: int

    def entry(self, task: str, method: str) -> Entry | None:
        """The one of `method` on `task`; None if it was not run there."""
        return next((entry for entry in self.entries if (entry.task, entry.method) == (task, method)), None)


def compare(
    runs: Sequence[str | PathLike],
    *,
    metric: Metric = "evaluation",
    threshold: float | Mapping[str, float] | None = None,
    references: Mapping[str, tuple[float, float]] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    out: str | PathLike | None = None,
) -> Comparison:
    """Compares the runs in some folders, finished or interrupted, and the finished settings of sweeps.

    Runs of one algorithm and setting are pooled, seed by seed; methods are told apart by algorithm and by the config
    fields in which they differ on some task.

    Args:
        runs: folders of runs, and of sweeps, each of whose settings counts as a run.
        metric: "evaluation" (deterministic policies) or "training" (sampled actions).
        threshold: a return to be reached, for all tasks or by task; None: none.
        references: task -> the returns (low, high) that are normalised to 0 and 1. A task that is not named gets the
            mean return of all its runs at the beginning of the grid (for evaluations: of the untrained teams) and the
            best final return of a single run.
        bootstrap: number of resamples.
        seed: of the bootstrap.
        out: folder for `comparison.md`, the figures as PNG and PDF, and `marl_eval.json`; it is made if need be. None
            writes nothing.

    Raises:
        ValueError: bad input, named in one sentence.
        RunFolderError: a folder without a readable run, or `out` cannot be written.
    """
    _check_options(bootstrap, seed)
    found = read(runs, metric)
    resampling = {"num_resamples": int(bootstrap), "seed": int(seed), "confidence": CONFIDENCE}
    scales, entries, warnings, notes = [], [], list(found.warnings), list(found.notes)
    _check_tasks(found.tasks, threshold, references)
    for task in found.tasks:
        samples = [sample for sample in found.samples if sample.task == task]
        grid, said = _common_grid(task, samples)
        warnings += [*said, *_wide_gaps(samples, grid, metric)]
        returns = np.stack([np.interp(grid, sample.env_steps, sample.returns) for sample in samples])
        final = _final(grid, returns, metric)
        low, high, said = _scale(task, returns, final, (references or {}).get(task))
        notes += said
        level = threshold.get(task) if isinstance(threshold, Mapping) else threshold
        scale = TaskScale(task, grid, low, high, None if level is None else float(level))
        scales.append(scale)
        entries += [
            _entry(scale, method, samples, returns, final, resampling)
            for method in found.methods
            if any(sample.method == method for sample in samples)
        ]
    overall, said = _overall(found, entries, resampling)
    comparison = Comparison(
        metric,
        tuple(scales),
        found.methods,
        tuple(entries),
        overall,
        found.kl_budgets,
        found.samples,
        tuple(warnings),
        (*notes, *said, *_about_few_runs(entries)),
        int(bootstrap),
    )
    if out is not None:
        from marl_kl.analysis.comparison import output  # matplotlib is needed for this alone

        output.write(comparison, out)
    return comparison


def _check_options(bootstrap: int, seed: int) -> None:
    for name, value, least in (("bootstrap", bootstrap, 1), ("seed", seed, 0)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}; it must be an integer >= {least}")


def _check_tasks(tasks: Sequence[str], threshold, references) -> None:
    """Refuses what names no task, or is no pair of numbers."""
    numbers = dict(threshold) if isinstance(threshold, Mapping) else {}
    for name, given in (("threshold", numbers), ("references", references or {})):
        for task in given:
            if task not in tasks:
                raise ValueError(f"{name}: there are no runs on '{task}'; tasks: {', '.join(tasks)}")
    for task, value in numbers.items() if numbers else [("all tasks", threshold)]:
        if value is not None and not (isinstance(value, (int, float, np.number)) and np.isfinite(value)):
            raise ValueError(f"threshold={value!r} for {task}; it must be a finite number")
    for task, pair in (references or {}).items():
        if len(pair) != 2 or not np.isfinite(pair).all() or pair[0] >= pair[1]:
            raise ValueError(f"references: {task}={tuple(pair)}; it must be two finite numbers, low < high")


# One task


def _common_grid(task: str, samples: Sequence[Sample]) -> tuple[np.ndarray, list[str]]:
    """[G] env steps that lie inside every curve, and a warning if that leaves much of a run out.

    The grid is where the runs were measured, or `_MAX_GRID` equal steps if that is more.
    """
    begin, end = max(s.env_steps[0] for s in samples), min(s.env_steps[-1] for s in samples)
    if begin > end:
        late, early = max(samples, key=lambda s: s.env_steps[0]), min(samples, key=lambda s: s.env_steps[-1])
        raise ValueError(
            f"runs on {task} have no env step in common: {early.path} ends at {end:,}, {late.path} begins at {begin:,}"
        )
    grid = np.unique(np.concatenate([s.env_steps for s in samples]))
    grid = grid[(begin <= grid) & (grid <= end)].astype(np.float64)
    if len(grid) > _MAX_GRID:
        grid = np.linspace(begin, end, _MAX_GRID)
    longest = max(s.env_steps[-1] for s in samples)
    said = []
    if longest > 1.01 * end:
        shortest = next(s for s in samples if s.env_steps[-1] == end)
        said = [
            f"budgets on {task} differ: everything is compared up to {end:,} env steps, the end of {shortest.path}; "
            f"the longest run has {longest:,}"
        ]
    return grid, said


def _wide_gaps(samples: Sequence[Sample], grid: np.ndarray, metric: Metric) -> list[str]:
    """Runs that have no measurement near the end of the grid, where all are compared."""
    end, length = grid[-1], grid[-1] - grid[0]
    found = {}
    for sample in samples:
        before, after = sample.env_steps[sample.env_steps <= end].max(), sample.env_steps[sample.env_steps >= end].min()
        if min(end - before, after - end) > _WIDE_GAP * length:
            found[sample.path] = f"between {before:,} and {after:,}"
    advice = ": give it an eval_interval, or compare training returns" if metric == "evaluation" else ""
    return [
        f"the final return of {path} is interpolated {between} env steps, where it has no {metric} return{advice}"
        for path, between in found.items()
    ]


def _final(grid: np.ndarray, returns: np.ndarray, metric: Metric) -> np.ndarray:
    """[S, G] -> [S]."""
    at_end = grid >= grid[-1] - FINAL_SHARE[metric] * (grid[-1] - grid[0])
    return returns[:, at_end].mean(axis=1)


def _scale(task, returns: np.ndarray, final: np.ndarray, reference) -> tuple[float, float, list[str]]:
    if reference is not None:
        return float(reference[0]), float(reference[1]), []
    low, high = float(returns[:, 0].mean()), float(final.max())
    if low < high:
        return low, high, []
    low, high = float(final.min()), float(final.max())
    said = [f"no run on {task} ended above where they began: normalised between the worst and the best final return"]
    return low, high if low < high else low + 1.0, said


def _entry(
    scale: TaskScale,
    method: str,
    of_task: Sequence[Sample],
    returns: np.ndarray,
    final: np.ndarray,
    resampling: Mapping,
) -> Entry:
    own = [index for index, sample in enumerate(of_task) if sample.method == method]
    grid, returns, final = scale.env_steps, returns[own], final[own]
    length = grid[-1] - grid[0]
    area = np.trapezoid(returns, grid, axis=1) / length if length else returns[:, 0]
    estimate = functools.partial(_iqm, strata=None, resampling=resampling)
    return Entry(
        scale.name, method, tuple(of_task[index].seed for index in own), returns, final, area,
        (final - scale.low) / (scale.high - scale.low),
        np.array([_steps_to(of_task[index], scale.threshold, grid[-1]) for index in own]),
        estimate(returns), estimate(final), estimate(area),
    )  # fmt: skip


def _steps_to(sample: Sample, threshold: float | None, end: float) -> float:
    reached = (sample.returns >= (np.inf if threshold is None else threshold)) & (sample.env_steps <= end)
    return float(sample.env_steps[np.argmax(reached)]) if reached.any() else np.inf


def _iqm(scores: np.ndarray, strata: Sequence | None, resampling: Mapping) -> Estimate:
    iqm = statistics.interquartile_mean
    interval = functools.partial(statistics.bootstrap_interval, scores, strata=strata, statistic=iqm, **resampling)
    return _with_interval(iqm(scores), strata, len(scores), interval)


def _with_interval(value: np.ndarray, strata: Sequence | None, num_runs: int, interval) -> Estimate:
    """The interval is computed only where every stratum has runs enough."""
    fewest = num_runs if strata is None else min(list(strata).count(label) for label in set(strata))
    if fewest < MIN_RUNS:
        nothing = np.full(np.shape(value), np.nan)
        return Estimate(value, nothing, nothing)
    lower, upper = interval()
    return Estimate(value, lower, upper)


# Over tasks


def _overall(found: Samples, entries: Sequence[Entry], resampling: Mapping) -> tuple[Overall | None, list[str]]:
    if len(found.methods) < 2:
        return None, []
    common = tuple(task for task in found.tasks if {e.method for e in entries if e.task == task} == set(found.methods))
    if not common:
        return None, ["no task was run with all methods: there are no figures over tasks"]
    others = [task for task in found.tasks if task not in common]
    said = [f"figures over tasks leave out {', '.join(others)}, where not all methods were run"] if others else []
    scores, tasks = zip(*(_pooled([e for e in entries if e.method == m and e.task in common]) for m in found.methods))
    everything = np.concatenate(scores)
    levels = np.linspace(min(0.0, everything.min()), max(1.0, everything.max()), _PROFILE_POINTS)
    iqm = [_iqm(x, strata, resampling) for x, strata in zip(scores, tasks)]
    profile = [_profile(x, strata, levels, resampling) for x, strata in zip(scores, tasks)]
    return Overall(common, _stacked(iqm), levels, _stacked(profile), _improvements(scores, tasks, resampling)), said


def _pooled(entries: Sequence[Entry]) -> tuple[np.ndarray, list[str]]:
    """[R] normalised final returns of one method's runs on all tasks, and their tasks."""
    return (
        np.concatenate([entry.normalized for entry in entries]),
        [entry.task for entry in entries for _ in entry.seeds],
    )


def _profile(scores: np.ndarray, strata: Sequence[str], levels: np.ndarray, resampling: Mapping) -> Estimate:
    share = functools.partial(statistics.performance_profile, thresholds=levels, strata=strata)
    interval = functools.partial(statistics.bootstrap_interval, scores, strata=strata, statistic=share, **resampling)
    return _with_interval(share(scores), strata, len(scores), interval)


def _improvements(scores: Sequence[np.ndarray], tasks: Sequence[Sequence[str]], resampling: Mapping) -> Estimate:
    """[M, M]; what is below the diagonal mirrors what is above it."""
    found = np.full((3, len(scores), len(scores)), 0.5)
    for i, j in zip(*np.triu_indices(len(scores), 1)):
        value, lower, upper = _improvement(scores[i], scores[j], tasks[i], tasks[j], resampling)
        found[:, i, j] = value, lower, upper
        found[:, j, i] = 1 - value, 1 - upper, 1 - lower
    return Estimate(*found)


def _improvement(x, y, of_x: Sequence[str], of_y: Sequence[str], resampling: Mapping) -> Estimate:
    value = statistics.probability_of_improvement(x, y, of_x, of_y)
    of_both = [("x", task) for task in of_x] + [("y", task) for task in of_y]
    interval = functools.partial(statistics.improvement_interval, x, y, of_x, of_y, **resampling)
    return _with_interval(value, of_both, len(of_both), interval)


def _stacked(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(*(np.stack(values) for values in zip(*estimates)))


def _about_few_runs(entries: Sequence[Entry]) -> list[str]:
    fewest = min(len(entry.seeds) for entry in entries)
    if fewest < MIN_RUNS:
        return [f"fewer than {MIN_RUNS} seeds of a method on a task have no interval"]
    if fewest < _FEW_RUNS:
        return [
            f"with few seeds (here {fewest}) these intervals are too narrow: of normal returns, nominal 95 % intervals "
            "of the IQM cover 75 % with 3 seeds, 90 % with 5, 93 % with 10"
        ]
    return []
