"""What a comparison is made of: one curve per run and seed, told apart by task and by method.

A *task* is an environment with all that makes it this one (physics, observations, parameters). A *method* is an
algorithm with its setting: the config without what says only how long and when (`free_schedule`), and how precisely
(`_NO_SETTING`).
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
from marl_kl.config import free_schedule
from marl_kl.results import TrainResult, what_failed
from marl_kl.storage import run_folder, run_tables, stored_runs
from marl_kl.storage import stored_sweeps as sweep_folders

Metric = Literal["evaluation", "training"]
METRICS: tuple[Metric, ...] = ("evaluation", "training")

_NO_SETTING = ("eval_episodes",)


class Sample(NamedTuple):
    """One seed of one run.

    Attributes:
        task, method: their labels. seed: its number. path: the run's folder, or that of a sweep's setting.
        env_steps: [K] where it was measured, rising.
        episodes: [K, E] returns: evaluation episodes, or one training return (already a mean) per update.
        absolute: [E] returns of the absolute metric; None where it was not measured, or training returns are compared.
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
    """All that is compared.

    Attributes:
        samples: in the order of the runs.
        tasks, methods: labels, in the order of their first run.
        kl_budgets: method -> its joint KL budgets, over tasks; empty where there is none.
        warnings: what makes the comparison unfair or lopsided. notes: what a reader should know.
    """

    samples: tuple[Sample, ...]
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    kl_budgets: Mapping[str, tuple[float, ...]]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


class _Run(NamedTuple):
    """task: what its environment is, as JSON text. setting: the config fields that make the method."""

    path: Path
    record: run_folder.RunRecord
    result: TrainResult
    task: str
    setting: dict[str, Any]


def read(paths: Sequence[str | os.PathLike], metric: Metric) -> Samples:
    """Reads run folders, and those of sweeps, and sorts their seeds by task and method.

    Seeds that met a non-finite number are left out, and a warning says so.

    Args:
        paths: folders of runs, and of sweeps, each of whose settings counts as a run.
        metric: "evaluation" (deterministic policies) or "training" (sampled actions).

    Raises:
        ValueError: no runs, an unknown metric, one seed of one method and task twice, or no number in any seed.
        RunFolderError: a folder without a readable run.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}; it must be one of {', '.join(METRICS)}")
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise ValueError("runs=[]; give the folder of one run at least")
    left_out: list[str] = []
    runs = [run for path in paths for run in _read_runs(Path(path), left_out)]
    if not runs:
        raise ValueError(f"{'; '.join(left_out)}: there is nothing to compare")
    tasks = _task_labels(runs)
    shown = _shown_fields(runs)
    methods = [_method_label(run, shown) for run in runs]
    samples, warnings = [], []
    for run, method in zip(runs, methods):
        of_run, said = _samples_of(run, tasks[run.task], method, metric)
        samples += of_run
        warnings += said
    _refuse_twice(samples)
    if not samples:
        raise ValueError(f"metric={metric!r}; no seed of these runs has a finite {metric} return")
    budgets = {method: _budgets(runs, methods, method) for method in dict.fromkeys(methods)}
    return Samples(
        tuple(samples),
        tuple(dict.fromkeys(sample.task for sample in samples)),
        tuple(dict.fromkeys(sample.method for sample in samples)),
        budgets,
        (*_unequal_budgets(runs, tasks), *warnings),
        (*left_out, *_states(runs), *_differences_over_tasks(runs, methods, shown), *_versions(runs)),
    )


def _read_runs(path: Path, left_out: list[str]) -> list[_Run]:
    """The run in a folder, or the settings of a sweep, each as a run; what is no use yet goes to `left_out`."""
    if not run_folder.is_sweep(path):
        record = run_folder.read_record(path)
        return [_run(path, record, stored_runs.read_result(path, record))]
    result = sweep_folders.read(path)
    finished = finished_runs(result).all(axis=1)
    if not finished.all():
        left_out.append(f"{path}: {np.sum(~finished)} of {len(finished)} settings are not finished and are left out")
    return [
        _run(
            sweep_folders.folder_of(path, k),
            sweep_folders.record_of(path, k)._replace(status="finished"),
            result.setting(k),
        )
        for k in np.flatnonzero(finished).tolist()
    ]


def _run(path: Path, record: run_folder.RunRecord, result: TrainResult) -> _Run:
    what = {"env": run_folder.env_identity(record.document["env"]), "params": record.document.get("env_params")}
    config = {field.name: getattr(record.config, field.name) for field in dataclasses.fields(record.config)}
    left_out = (*free_schedule(config), *_NO_SETTING)
    setting = {name: value for name, value in config.items() if name not in left_out}
    return _Run(path, record, result, json.dumps(what, sort_keys=True), setting)


# Tasks and methods


def _task_labels(runs: Sequence[_Run]) -> dict[str, str]:
    """Task -> the environment's name, with what tells it from others of that name."""
    specs = {run.task: run.record.spec for run in runs}
    labels = {}
    for task, spec in specs.items():
        namesakes = [other for other in specs.values() if other.name == spec.name]
        facts = [dict(other.metadata) for other in namesakes]
        differing = [name for name in dict(spec.metadata) if len({_text(fact.get(name)) for fact in facts}) > 1]
        told = ", ".join(f"{name}={dict(spec.metadata)[name]}" for name in differing)
        labels[task] = f"{spec.name} ({told})" if told else spec.name
    for label in {label for label in labels.values() if list(labels.values()).count(label) > 1}:
        alike = [task for task in labels if labels[task] == label]
        labels |= {task: f"{label} #{index}" for index, task in enumerate(alike, start=1)}
    return labels


def _shown_fields(runs: Sequence[_Run]) -> list[str]:
    """The config fields in which two methods differ on one task: among those that have the field."""
    found = {}
    for task in dict.fromkeys(run.task for run in runs):
        settings = [run.setting for run in runs if run.task == task]
        for name in dict.fromkeys(name for setting in settings for name in setting):
            if len({_text(setting[name]) for setting in settings if name in setting}) > 1:
                found[name] = None
    return list(found)


def _method_label(run: _Run, shown: Sequence[str]) -> str:
    fields = [f"{name}={_text(run.setting[name])}" for name in shown if name in run.setting]
    return ", ".join([run.record.algorithm, *fields])


def _text(value: Any) -> str:
    """As the command line has it, with as many digits as tell one number from another."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _samples_of(run: _Run, task: str, method: str, metric: Metric) -> tuple[list[Sample], list[str]]:
    """The seeds that count, and a sentence for each that does not."""
    failed = {failure.seed: failure for failure in run.result.failures}
    absolute = run_tables.read_absolute(run.path) if metric == "evaluation" else {}
    if metric == "training":
        env_steps, returns = stored_runs.training_curve(run.result)
        episodes = returns[..., None]
    else:
        env_steps = np.asarray(run.result.evaluation.env_steps)
        episodes = np.asarray(run.result.evaluation.episode_return, np.float64)
    samples, left_out = [], []
    for index, seed in enumerate(run.result.seeds):
        if seed in failed:
            what = what_failed(failed[seed])
            left_out.append(f"seed {seed} of {run.path} failed ({what}) and is left out, which flatters {method}")
            continue
        finite = np.isfinite(episodes[index]).all(axis=-1)
        if not finite.any():
            left_out.append(f"seed {seed} of {run.path} has no {metric} return and is left out")
            continue
        measured = env_steps[finite], episodes[index][finite], absolute.get(seed)
        samples.append(Sample(task, method, seed, run.path, *measured))
    return samples, left_out


def _refuse_twice(samples: Iterable[Sample]) -> None:
    seen: dict[tuple, Path] = {}
    for sample in samples:
        key = (sample.task, sample.method, sample.seed)
        if key in seen:
            where = f"both in {seen[key]} and in {sample.path}" if seen[key] != sample.path else f"twice: {sample.path}"
            raise ValueError(
                f"seed {sample.seed} of {sample.method} on {sample.task} is {where}; runs of one setting are pooled "
                "and each seed may count once"
            )
        seen[key] = sample.path


# What a reader must know


def _budgets(runs: Sequence[_Run], methods: Sequence[str], method: str) -> tuple[float, ...]:
    found = (run.setting.get("kl_budget") for run, own in zip(runs, methods) if own == method)
    return tuple(sorted({budget for budget in found if budget is not None}))


def _unequal_budgets(runs: Sequence[_Run], tasks: Mapping[str, str]) -> list[str]:
    """A warning for the tasks on which trust-region methods of different joint KL budgets meet."""
    meeting: dict[tuple[float, ...], list[str]] = {}
    for task, label in tasks.items():
        of_task = (run.setting["kl_budget"] for run in runs if run.task == task and "kl_budget" in run.setting)
        meeting.setdefault(tuple(sorted(set(of_task))), []).append(label)
    return [
        f"the joint KL budgets on {', '.join(labels)} differ ({', '.join(map(_text, budgets))}): how a budget is "
        "shared out compares at equal budgets only"
        for budgets, labels in meeting.items()
        if len(budgets) > 1
    ]


def _states(runs: Sequence[_Run]) -> list[str]:
    return [
        f"{run.path} is {run.record.status}, not finished: it counts as far as it was saved"
        for run in runs
        if run.record.status != "finished"
    ]


def _differences_over_tasks(runs: Sequence[_Run], methods: Sequence[str], shown: Sequence[str]) -> list[str]:
    """Methods whose settings differ from task to task, which no label says."""
    notes = []
    for method in dict.fromkeys(methods):
        settings = [run.setting for run, own in zip(runs, methods) if own == method]
        for name in settings[0]:
            values = list(dict.fromkeys(_text(setting.get(name)) for setting in settings))
            if len(values) > 1 and name not in shown:
                notes.append(f"{method}: {name} differs from task to task ({', '.join(values)})")
    return notes


def _versions(runs: Sequence[_Run]) -> list[str]:
    found: dict[str, set] = {}
    for run in runs:
        for package, version in run_folder.last_session(run.record.document)["versions"].items():
            found.setdefault(package, set()).add(version)
    several = [f"{package} {', '.join(sorted(map(str, v)))}" for package, v in found.items() if len(v) > 1]
    return [f"the runs were made with different versions: {'; '.join(several)}"] if several else []
