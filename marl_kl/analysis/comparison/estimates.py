"""The estimates of a comparison, from its samples (Agarwal et al. 2021; Gorsane et al. 2022).

Per task the curves of all runs are interpolated on one grid of env steps inside the range that every run covers. Final
returns, areas under the curve and env steps to a threshold refer to that range. Over tasks, final returns are normalised
per task; performance profiles and probabilities of improvement weight tasks equally. Intervals are percentile bootstraps
that resample runs within each task.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from marl_kl.analysis import statistics
from marl_kl.analysis.comparison.samples import Metric, Sample, Samples
from marl_kl.analysis.statistics import MIN_RUNS

CONFIDENCE = 0.95
FINAL_SHARE = {"evaluation": 0.0, "training": 0.1}
"""A run's final return is averaged over this share of the common range, at its end."""

_MAX_GRID = 100
_PROFILE_POINTS = 101
_WIDE_GAP = 0.05
"""Share of the common range: a final return further from a measurement gives a warning."""

_FEW_RUNS = 10


class IntervalEstimate(NamedTuple):
    """A statistic and its 95 % bootstrap interval; the ends are NaN if there are too few runs."""

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class TaskScale(NamedTuple):
    """The grid and the normalisation of a task.

    Attributes:
        name: the task.
        env_steps: [G] the grid, from the first to the last env step that every run covers.
        low, high: the returns that are normalised to 0 and 1.
        threshold: the return to reach, for `steps_to_threshold`; None: none.
    """

    name: str
    env_steps: np.ndarray
    low: float
    high: float
    threshold: float | None


class MethodEstimates(NamedTuple):
    """One method on one task.

    Attributes:
        task, method: labels. seeds: S, in the order of every seed axis.
        returns: [S, G] on the task's grid, linear between measurements.
        final: [S] return at the end of the grid (training: mean over its last tenth).
        area: [S] area under the curve divided by the grid's length: the mean return over the grid.
        normalized: [S] `final` on the task's scale.
        steps_to_threshold: [S] env steps at the first measurement at or above the threshold; inf if there is none.
        curve: interquartile mean over seeds, [G]. final_iqm, area_iqm: those of `final` and `area`, [].
    """

    task: str
    method: str
    seeds: tuple[int, ...]
    returns: np.ndarray
    final: np.ndarray
    area: np.ndarray
    normalized: np.ndarray
    steps_to_threshold: np.ndarray
    curve: IntervalEstimate
    final_iqm: IntervalEstimate
    area_iqm: IntervalEstimate


class Overall(NamedTuple):
    """Estimates over the tasks that all methods were run on; methods [M] in the order of `Comparison.methods`.

    Attributes:
        tasks: their labels.
        iqm: interquartile mean of normalised final returns over all runs, leaves [M].
        levels: [T] normalised returns. profile: share of runs above each level, leaves [M, T].
        improvement: probability that the final return of a run of the row's method is above that of the column's,
            leaves [M, M]; 1/2 on the diagonal.
    """

    tasks: tuple[str, ...]
    iqm: IntervalEstimate
    levels: np.ndarray
    profile: IntervalEstimate
    improvement: IntervalEstimate


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` returns.

    Attributes:
        metric: "evaluation" or "training".
        tasks: the grid and the normalisation of each task.
        methods: labels.
        entries: one per task and method that was run on it, see `entry`.
        overall: over tasks; None if no task has all methods, or there is only one method.
        kl_budgets: method -> its joint KL budgets (one, unless they differ between tasks; none without a budget).
        samples: the measured curves.
        warnings: what makes the comparison unfair. notes: other information.
        num_resamples: of the bootstrap.
    """

    metric: Metric
    tasks: tuple[TaskScale, ...]
    methods: tuple[str, ...]
    entries: tuple[MethodEstimates, ...]
    overall: Overall | None
    kl_budgets: Mapping[str, tuple[float, ...]]
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    num_resamples: int

    def __repr__(self) -> str:
        """One line, for notebooks."""
        runs = len({sample.path for sample in self.samples})
        tasks = ", ".join(scale.name for scale in self.tasks)
        return f"Comparison({self.metric} returns of {', '.join(self.methods)} on {tasks}, {runs} runs)"

    def _repr_html_(self) -> str:
        """The tables, for notebooks."""
        from marl_kl.analysis.comparison import comparison_tables

        return comparison_tables.html(self)

    def entry(self, task: str, method: str) -> MethodEstimates | None:
        """The estimates of `method` on `task`; None if it was not run there."""
        return next((entry for entry in self.entries if (entry.task, entry.method) == (task, method)), None)


def estimate(
    samples: Samples,
    metric: Metric,
    *,
    threshold: float | Mapping[str, float] | None = None,
    references: Mapping[str, tuple[float, float]] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """All estimates of a comparison; arguments as in `compare`.

    Raises:
        ValueError: a threshold or reference of an unknown task or without finite numbers, or runs of a task that have
            no env step in common.
    """
    _check_tasks(samples.tasks, threshold, references)
    resampling = {"num_resamples": num_resamples, "seed": seed, "confidence": CONFIDENCE}
    scales, entries, warnings, notes = [], [], list(samples.warnings), list(samples.notes)
    for task in samples.tasks:
        of_task = [sample for sample in samples.samples if sample.task == task]
        grid, grid_warnings = _common_grid(task, of_task)
        warnings += [*grid_warnings, *_wide_gaps(of_task, grid, metric)]
        returns = np.stack([np.interp(grid, sample.env_steps, sample.returns) for sample in of_task])
        final = _final(grid, returns, metric)
        low, high, scale_notes = _scale(task, returns, final, (references or {}).get(task))
        notes += scale_notes
        level = threshold.get(task) if isinstance(threshold, Mapping) else threshold
        scale = TaskScale(task, grid, low, high, None if level is None else float(level))
        scales.append(scale)
        entries += [
            _method_estimates(scale, method, of_task, returns, final, resampling)
            for method in samples.methods
            if any(sample.method == method for sample in of_task)
        ]
    overall, overall_notes = _overall(samples, entries, resampling)
    return Comparison(
        metric=metric,
        tasks=tuple(scales),
        methods=samples.methods,
        entries=tuple(entries),
        overall=overall,
        kl_budgets=samples.kl_budgets,
        samples=samples.samples,
        warnings=tuple(warnings),
        notes=(*notes, *overall_notes, *_about_few_runs(entries)),
        num_resamples=num_resamples,
    )


def _check_tasks(tasks: Sequence[str], threshold, references) -> None:
    """Raises ValueError for unknown tasks and for values that are not finite numbers."""
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
    """[G] env steps inside every curve: those of the measurements, at most `_MAX_GRID`; and a warning if a run is longer."""
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
    if longest <= 1.01 * end:
        return grid, []
    shortest = next(s for s in samples if s.env_steps[-1] == end)
    return grid, [
        f"env steps on {task} differ: all runs are compared up to {end:,} env steps, the end of {shortest.path}; the "
        f"longest run has {longest:,}"
    ]


def _wide_gaps(samples: Sequence[Sample], grid: np.ndarray, metric: Metric) -> list[str]:
    """A warning for each run without a measurement near the end of the grid, where final returns are compared."""
    end, length = grid[-1], grid[-1] - grid[0]
    gaps = {}
    for sample in samples:
        before, after = sample.env_steps[sample.env_steps <= end].max(), sample.env_steps[sample.env_steps >= end].min()
        if min(end - before, after - end) > _WIDE_GAP * length:
            gaps[sample.path] = f"between {before:,} and {after:,}"
    advice = ": give it an eval_interval, or compare training returns" if metric == "evaluation" else ""
    return [
        f"the final return of {path} is interpolated {between} env steps, where it has no {metric} return{advice}"
        for path, between in gaps.items()
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
    note = f"no final return on {task} is above the mean initial one: normalised by the worst and the best final return"
    return low, high if low < high else low + 1.0, [note]


def _method_estimates(
    scale: TaskScale,
    method: str,
    of_task: Sequence[Sample],
    returns: np.ndarray,
    final: np.ndarray,
    resampling: Mapping,
) -> MethodEstimates:
    own = [index for index, sample in enumerate(of_task) if sample.method == method]
    grid, returns, final = scale.env_steps, returns[own], final[own]
    length = grid[-1] - grid[0]
    area = np.trapezoid(returns, grid, axis=1) / length if length else returns[:, 0]
    estimate = functools.partial(_iqm, strata=None, resampling=resampling)
    return MethodEstimates(
        scale.name, method, tuple(of_task[index].seed for index in own), returns, final, area,
        (final - scale.low) / (scale.high - scale.low),
        np.array([_steps_to(of_task[index], scale.threshold, grid[-1]) for index in own]),
        estimate(returns), estimate(final), estimate(area),
    )  # fmt: skip


def _steps_to(sample: Sample, threshold: float | None, end: float) -> float:
    reached = (sample.returns >= (np.inf if threshold is None else threshold)) & (sample.env_steps <= end)
    return float(sample.env_steps[np.argmax(reached)]) if reached.any() else np.inf


def _iqm(scores: np.ndarray, strata: Sequence | None, resampling: Mapping) -> IntervalEstimate:
    iqm = statistics.interquartile_mean
    interval = functools.partial(statistics.bootstrap_interval, scores, strata=strata, statistic=iqm, **resampling)
    return _with_interval(iqm(scores), strata, len(scores), interval)


def _with_interval(value: np.ndarray, strata: Sequence | None, num_runs: int, interval) -> IntervalEstimate:
    """`interval()` is called only if every stratum has `MIN_RUNS` runs."""
    fewest = num_runs if strata is None else min(list(strata).count(label) for label in set(strata))
    if fewest < MIN_RUNS:
        unknown = np.full(np.shape(value), np.nan)
        return IntervalEstimate(value, unknown, unknown)
    lower, upper = interval()
    return IntervalEstimate(value, lower, upper)


# Over tasks


def _overall(
    samples: Samples, entries: Sequence[MethodEstimates], resampling: Mapping
) -> tuple[Overall | None, list[str]]:
    if len(samples.methods) < 2:
        return None, []
    common = tuple(
        task for task in samples.tasks if {e.method for e in entries if e.task == task} == set(samples.methods)
    )
    if not common:
        return None, ["no task was run with all methods: there are no estimates over tasks"]
    others = [task for task in samples.tasks if task not in common]
    notes = [f"estimates over tasks leave out {', '.join(others)}, where not all methods were run"] if others else []
    scores, tasks = zip(*(_pooled([e for e in entries if e.method == m and e.task in common]) for m in samples.methods))
    pooled = np.concatenate(scores)
    levels = np.linspace(min(0.0, pooled.min()), max(1.0, pooled.max()), _PROFILE_POINTS)
    iqm = [_iqm(x, strata, resampling) for x, strata in zip(scores, tasks)]
    profile = [_profile(x, strata, levels, resampling) for x, strata in zip(scores, tasks)]
    return Overall(common, _stacked(iqm), levels, _stacked(profile), _improvements(scores, tasks, resampling)), notes


def _pooled(entries: Sequence[MethodEstimates]) -> tuple[np.ndarray, list[str]]:
    """[R] normalised final returns of one method's runs on all tasks, and their tasks."""
    return (
        np.concatenate([entry.normalized for entry in entries]),
        [entry.task for entry in entries for _ in entry.seeds],
    )


def _profile(scores: np.ndarray, strata: Sequence[str], levels: np.ndarray, resampling: Mapping) -> IntervalEstimate:
    share = functools.partial(statistics.performance_profile, thresholds=levels, strata=strata)
    interval = functools.partial(statistics.bootstrap_interval, scores, strata=strata, statistic=share, **resampling)
    return _with_interval(share(scores), strata, len(scores), interval)


def _improvements(
    scores: Sequence[np.ndarray], tasks: Sequence[Sequence[str]], resampling: Mapping
) -> IntervalEstimate:
    """[M, M]; P(Y > X) = 1 - P(X > Y)."""
    estimates = np.full((3, len(scores), len(scores)), 0.5)
    for i, j in zip(*np.triu_indices(len(scores), 1)):
        value, lower, upper = _improvement(scores[i], scores[j], tasks[i], tasks[j], resampling)
        estimates[:, i, j] = value, lower, upper
        estimates[:, j, i] = 1 - value, 1 - upper, 1 - lower
    return IntervalEstimate(*estimates)


def _improvement(x, y, of_x: Sequence[str], of_y: Sequence[str], resampling: Mapping) -> IntervalEstimate:
    value = statistics.probability_of_improvement(x, y, of_x, of_y)
    of_both = [("x", task) for task in of_x] + [("y", task) for task in of_y]
    interval = functools.partial(statistics.improvement_interval, x, y, of_x, of_y, **resampling)
    return _with_interval(value, of_both, len(of_both), interval)


def _stacked(estimates: Sequence[IntervalEstimate]) -> IntervalEstimate:
    return IntervalEstimate(*(np.stack(values) for values in zip(*estimates)))


def _about_few_runs(entries: Sequence[MethodEstimates]) -> list[str]:
    fewest = min(len(entry.seeds) for entry in entries)
    if fewest < MIN_RUNS:
        return [f"methods with fewer than {MIN_RUNS} seeds on a task have no interval"]
    if fewest < _FEW_RUNS:
        return [
            f"intervals of few seeds (here {fewest}) are too narrow: for normally distributed returns, the coverage of nominal "
            "95 % intervals of the IQM is 75 % with 3 seeds, 90 % with 5, 93 % with 10"
        ]
    return []
