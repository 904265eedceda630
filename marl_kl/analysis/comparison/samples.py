"""The data of a comparison: one curve per run and seed, grouped by task and method.

A *task* is an environment with its physics, observations and parameters. A *method* is an algorithm with its config,
without the fields that set the length (`free_schedule`) and the precision (`_PRECISION_FIELDS`) of a run.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from marl_kl.analysis.sweep_tables import finished_runs
from marl_kl.analysis.text_tables import duration_text
from marl_kl.config import free_schedule
from marl_kl.results import TrainResult, what_failed
from marl_kl.storage import run_folder, run_record, run_tables, stored_runs, stored_sweeps

Metric = Literal["evaluation", "training"]
METRICS: tuple[Metric, ...] = ("evaluation", "training")

_PRECISION_FIELDS = ("eval_episodes",)


class Sample(NamedTuple):
    """One seed of one run.

    Attributes:
        task, method: labels. seed: its number. path: the run's folder, or that of a sweep's setting.
        env_steps: [K] of the measurements, increasing.
        episodes: [K, E] returns of evaluation episodes, or [K, 1] training return (already a mean) per update.
        absolute: [E] returns of the absolute metric; None if it was not measured or training returns are compared.
    """

    task: str
    method: str
    seed: int
    path: Path
    env_steps: np.ndarray
    episodes: np.ndarray
    absolute: np.ndarray | None = None

    @property
    def returns(self) -> np.ndarray:
        """[K] mean over episodes."""
        return self.episodes.mean(axis=-1)


class Samples(NamedTuple):
    """The samples of a comparison.

    Attributes:
        samples: in the order of the runs.
        tasks, methods: labels, in the order of their first run.
        kl_budgets: method -> its joint KL budgets over all tasks; empty if it has none.
        warnings: what makes the comparison unfair. notes: other information.
    """

    samples: tuple[Sample, ...]
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    kl_budgets: Mapping[str, tuple[float, ...]]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


class _StoredRun(NamedTuple):
    """task: the environment, as JSON text. method_fields: config fields that distinguish methods, and `init_from`."""

    path: Path
    record: run_record.RunRecord
    result: TrainResult
    task: str
    method_fields: dict[str, Any]


def read(paths: Sequence[str | os.PathLike], metric: Metric) -> Samples:
    """Reads the folders of runs and sweeps, and groups their seeds by task and method.

    Failed seeds are left out with a warning.

    Args:
        paths: folders of runs, and of sweeps, each of whose settings counts as a run.
        metric: "evaluation" (deterministic policies) or "training" (stochastic policies).

    Raises:
        ValueError: no runs, an unknown metric, one seed of a method and task twice, or no finite return.
        RunFolderError: a folder without a readable run.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}; it must be one of {', '.join(METRICS)}")
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise ValueError("runs=[]; at least one folder is needed")
    unfinished: list[str] = []
    runs = [run for path in paths for run in _read_runs(Path(path), unfinished)]
    if not runs:
        raise ValueError(f"{'; '.join(unfinished)}: there is nothing to compare")
    tasks = _task_labels(runs)
    shown = _differing_fields(runs)
    methods = [_method_label(run, shown) for run in runs]
    samples, warnings = [], []
    for run, method in zip(runs, methods):
        run_samples, run_warnings = _run_samples(run, tasks[run.task], method, metric)
        samples += run_samples
        warnings += run_warnings
    _refuse_duplicates(samples)
    if not samples:
        raise ValueError(f"metric={metric!r}; no seed of these runs has a finite {metric} return")
    budgets = {method: _budgets(runs, methods, method) for method in dict.fromkeys(methods)}
    return Samples(
        tuple(samples),
        tuple(dict.fromkeys(sample.task for sample in samples)),
        tuple(dict.fromkeys(sample.method for sample in samples)),
        budgets,
        (*_unequal_budgets(runs, tasks), *warnings),
        (
            *unfinished,
            *_states(runs),
            *_differences_over_tasks(runs, methods, shown),
            *_versions(runs),
            *_wall_clock(runs, methods),
        ),
    )


def _read_runs(path: Path, unfinished: list[str]) -> list[_StoredRun]:
    """The run in a folder, or the finished settings of a sweep; a note on others is added to `unfinished`."""
    if not run_folder.is_sweep(path):
        record = run_record.read_record(path)
        return [_run(path, record, stored_runs.read_result(path, record))]
    result = stored_sweeps.read(path)
    finished = finished_runs(result).all(axis=1)
    if not finished.all():
        unfinished.append(f"{path}: {np.sum(~finished)} of {len(finished)} settings are not finished and are left out")
    return [
        _run(
            stored_sweeps.folder_of(path, k),
            stored_sweeps.record_of(path, k)._replace(status="finished"),
            result.setting(k),
        )
        for k in np.flatnonzero(finished).tolist()
    ]


def _run(path: Path, record: run_record.RunRecord, result: TrainResult) -> _StoredRun:
    env = {"env": run_record.env_identity(record.document["env"]), "params": record.document.get("env_params")}
    config = {field.name: getattr(record.config, field.name) for field in dataclasses.fields(record.config)}
    ignored = (*free_schedule(config), *_PRECISION_FIELDS)
    method_fields = {name: value for name, value in config.items() if name not in ignored}
    source, which = map(record.document.get, run_record.WARM_START)
    method_fields["init_from"] = f"{source} ({which})" if source else None
    return _StoredRun(path, record, result, json.dumps(env, sort_keys=True), method_fields)


# Tasks and methods


def _task_labels(runs: Sequence[_StoredRun]) -> dict[str, str]:
    """Task -> the environment's name, with the metadata in which it differs from others of that name, or a number."""
    specs = {run.task: run.record.spec for run in runs}
    labels = {}
    for task, spec in specs.items():
        own = dict(spec.metadata)
        namesakes = [dict(other.metadata) for other in specs.values() if other.name == spec.name]
        differing = [name for name in own if len({_text(metadata.get(name)) for metadata in namesakes}) > 1]
        differences = ", ".join(f"{name}={own[name]}" for name in differing)
        labels[task] = f"{spec.name} ({differences})" if differences else spec.name
    for label in {label for label in labels.values() if list(labels.values()).count(label) > 1}:
        equal = [task for task in labels if labels[task] == label]
        labels |= {task: f"{label} #{index}" for index, task in enumerate(equal, start=1)}
    return labels


def _differing_fields(runs: Sequence[_StoredRun]) -> list[str]:
    """The config fields in which runs on one task differ, among those that have the field; not those in which each has its
    algorithm's default."""
    differing = {}
    for task in dict.fromkeys(run.task for run in runs):
        of_task = [run for run in runs if run.task == task]
        for name in dict.fromkeys(name for run in of_task for name in run.method_fields):
            having = [run for run in of_task if name in run.method_fields]
            is_default = [run.method_fields[name] == getattr(type(run.record.config), name, None) for run in having]
            if len({_text(run.method_fields[name]) for run in having}) > 1 and not all(is_default):
                differing[name] = None
    return list(differing)


def _method_label(run: _StoredRun, shown: Sequence[str]) -> str:
    fields = [f"{name}={_text(run.method_fields[name])}" for name in shown if name in run.method_fields]
    return ", ".join([run.record.algorithm, *fields])


def _text(value: Any) -> str:
    """As on the command line; floats with the fewest digits that are exact."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value) or "none"


def _run_samples(run: _StoredRun, task: str, method: str, metric: Metric) -> tuple[list[Sample], list[str]]:
    """The samples of a run, and a warning for each seed that is left out."""
    failed = {failure.seed: failure for failure in run.result.failures}
    absolute = run_tables.read_absolute(run.path) if metric == "evaluation" else {}
    if metric == "training":
        env_steps, returns = stored_runs.training_curve(run.result)
        episodes = returns[..., None]
    else:
        env_steps = np.asarray(run.result.evaluation.env_steps)
        episodes = np.asarray(run.result.evaluation.episode_return, np.float64)
    samples, warnings = [], []
    for index, seed in enumerate(run.result.seeds):
        if seed in failed:
            warnings.append(
                f"seed {seed} of {run.path} failed ({what_failed(failed[seed])}) and is left out, which biases {method} "
                "upwards"
            )
            continue
        finite = np.isfinite(episodes[index]).all(axis=-1)
        if not finite.any():
            warnings.append(f"seed {seed} of {run.path} has no {metric} return and is left out")
            continue
        measured = env_steps[finite], episodes[index][finite], absolute.get(seed)
        samples.append(Sample(task, method, seed, run.path, *measured))
    return samples, warnings


def _refuse_duplicates(samples: Iterable[Sample]) -> None:
    seen: dict[tuple, Path] = {}
    for sample in samples:
        key = (sample.task, sample.method, sample.seed)
        if key in seen:
            where = f"both in {seen[key]} and in {sample.path}" if seen[key] != sample.path else f"twice: {sample.path}"
            raise ValueError(
                f"seed {sample.seed} of {sample.method} on {sample.task} is {where}; the seeds of runs with equal configs "
                "are pooled and must be distinct"
            )
        seen[key] = sample.path


# Warnings and notes


def _budgets(runs: Sequence[_StoredRun], methods: Sequence[str], method: str) -> tuple[float, ...]:
    budgets = (run.method_fields.get("kl_budget") for run, own in zip(runs, methods) if own == method)
    return tuple(sorted({budget for budget in budgets if budget is not None}))


def _unequal_budgets(runs: Sequence[_StoredRun], tasks: Mapping[str, str]) -> list[str]:
    """A warning for tasks on which trust-region methods have different joint KL budgets."""
    by_budgets: dict[tuple[float, ...], list[str]] = {}
    for task, label in tasks.items():
        of_task = (
            run.method_fields["kl_budget"] for run in runs if run.task == task and "kl_budget" in run.method_fields
        )
        by_budgets.setdefault(tuple(sorted(set(of_task))), []).append(label)
    return [
        f"the joint KL budgets on {', '.join(labels)} differ ({', '.join(map(_text, budgets))}): allocations of the "
        "budget are comparable at equal budgets only"
        for budgets, labels in by_budgets.items()
        if len(budgets) > 1
    ]


def _states(runs: Sequence[_StoredRun]) -> list[str]:
    return [
        f"{run.path} is {run.record.status}, not finished: it is compared up to its last save"
        for run in runs
        if run.record.status != "finished"
    ]


def _differences_over_tasks(runs: Sequence[_StoredRun], methods: Sequence[str], shown: Sequence[str]) -> list[str]:
    """A note for each method with config fields that differ between tasks and are in no label."""
    notes = []
    for method in dict.fromkeys(methods):
        own_fields = [run.method_fields for run, own in zip(runs, methods) if own == method]
        for name in own_fields[0]:
            values = list(dict.fromkeys(_text(fields.get(name)) for fields in own_fields))
            if len(values) > 1 and name not in shown:
                notes.append(f"{method}: {name} differs between tasks ({', '.join(values)})")
    return notes


def _wall_clock(runs: Sequence[_StoredRun], methods: Sequence[str]) -> list[str]:
    """How long the runs of each method took, as far as that is known."""
    seconds: dict[str, list[float]] = {}
    for run, method in zip(runs, methods):
        if np.isfinite(run.result.timing).all():
            seconds.setdefault(method, []).append(sum(run.result.timing))
    spans = (f"{m} {' to '.join(dict.fromkeys(map(duration_text, (min(s), max(s)))))}" for m, s in seconds.items())
    text = "wall-clock of a whole run (all its seeds, compiling and evaluating included; h:min:s)"
    return [f"{text}: {'; '.join(spans)}"] if seconds else []


def _versions(runs: Sequence[_StoredRun]) -> list[str]:
    versions: dict[str, set] = {}
    for run in runs:
        for package, version in run_record.last_session(run.record.document)["versions"].items():
            versions.setdefault(package, set()).add(version)
    several = [f"{package} {', '.join(sorted(map(str, v)))}" for package, v in versions.items() if len(v) > 1]
    return [f"the runs were made with different versions: {'; '.join(several)}"] if several else []
