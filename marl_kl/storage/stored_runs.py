"""Runs and sweeps, back from their folders as numbers; no policies are loaded (see `marl_kl.loading`)."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from marl_kl.files import RunFolderError, one_sentence
from marl_kl.results import EpisodeStatistics, Evaluation, SweepResult, Timing, TrainResult
from marl_kl.storage import checkpoints, run_folder, run_tables

UNTIMED = Timing(np.nan, np.nan, np.nan)
"""Where no checkpoint tells how long a run took."""


def read_result(out: str | os.PathLike, record: run_folder.RunRecord | None = None) -> TrainResult:
    """What `train` returned, or would have returned when the run in the folder `out` was last saved.

    Numbers are those of the tables, in double precision; times are those of the newest checkpoint, or `UNTIMED`.

    Args:
        out: the run folder.
        record: its `run_folder.read_record`, if that has been read already.

    Raises:
        RunFolderError: no run there, a damaged one, one of a newer format, or one without a table.
    """
    out = Path(out)
    record = run_folder.read_record(out) if record is None else record
    if not (out / "evaluation.csv").exists():
        raise RunFolderError(f"{str(out)!r} holds a run of which nothing was saved yet")
    evaluated = run_tables.read_evaluation(out)
    metrics = _metrics(out, record)
    for name, seeds in (("evaluation.csv", evaluated.seeds), ("metrics.csv", metrics.seeds)):
        if seeds != record.seeds:
            raise RunFolderError(f"{out / name} is damaged: its seeds are {seeds}, those of run.json {record.seeds}")
    return TrainResult(
        record.spec,
        record.algorithm,
        record.config,
        record.seeds,
        metrics.env_steps,
        metrics.values,
        evaluated.evaluation,
        record.failures,
        checkpoints.timing(out) or UNTIMED,
        out,
    )


def _metrics(out: Path, record: run_folder.RunRecord) -> run_tables.StoredMetrics:
    """Empty ones for a run that was evaluated and stopped before its first update was saved."""
    if not (out / "metrics.csv").exists():
        return run_tables.StoredMetrics(record.seeds, np.empty(0, np.int64), {})
    return run_tables.read_metrics(out, record.spec.agents)


def training_curve(result: TrainResult) -> tuple[np.ndarray, np.ndarray]:
    """[U] env steps and [S, U] returns of training episodes (sampled actions); NaN before the first episode's end."""
    missing = np.full((len(result.seeds), len(result.env_steps)), np.nan)
    return result.env_steps, np.asarray(result.metrics.get("episode_return", missing), np.float64)


def evaluation_curve(result: TrainResult) -> tuple[np.ndarray, np.ndarray]:
    """[K] env steps and [S, K] mean returns over evaluation episodes (deterministic policies)."""
    evaluation: Evaluation = result.evaluation
    return evaluation.env_steps, np.asarray(evaluation.episode_return, np.float64).mean(axis=-1)


def read_sweep(out: str | os.PathLike) -> SweepResult:
    """What `sweep` returned, as far as its folder `out` holds it.

    In place of single evaluation episodes there is one of their mean. `metrics` are those of the team; none where there
    is no `curves.csv`.

    Raises:
        RunFolderError: no finished sweep there, a damaged one, or one of a newer format.
    """
    out = Path(out)
    record = run_folder.read_record(out, run_folder.SWEEP)
    if record.status != "finished":
        raise RunFolderError(f"{str(out)!r} holds a sweep that is {record.status}; only finished ones have tables")
    settings = _settings(out, record)
    shape = (len(settings), len(record.seeds), 1)
    means = _means(out / "table.csv", shape)
    env_steps, metrics = np.zeros((len(settings), 0), np.int64), {}
    if (out / "curves.csv").exists():
        env_steps, metrics = run_tables.read_curves(out, record.seeds)
    return SweepResult(
        record.spec,
        record.algorithm,
        record.config,
        settings,
        record.seeds,
        env_steps,
        metrics,
        EpisodeStatistics(means["untrained_return"], np.full(shape, np.nan)),
        EpisodeStatistics(means["final_return"], means["final_length"]),
        record.failures,
        _timing(out, record.document),
        out,
    )


def _settings(out: Path, record: run_folder.RunRecord) -> tuple[dict[str, Any], ...]:
    settings = tuple(
        {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        for fields in record.document["settings"]
    )
    try:
        for fields in settings:
            record.config.replace(**fields)
    except ValueError as error:
        raise RunFolderError(f"{out / run_folder.SWEEP} is damaged: {error}") from error
    return settings


def _timing(out: Path, document: Mapping[str, Any]) -> Timing:
    if "timing" not in document:
        return UNTIMED
    try:
        return Timing(*(float(document["timing"][name]) for name in Timing._fields))
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{out / run_folder.SWEEP} is damaged: its timing is {document['timing']!r}") from error


def _means(path: Path, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The returns and lengths of a sweep's table, [setting, seed, 1]; its rows stand in that order."""
    with one_sentence("read", path):
        rows = list(csv.DictReader(path.read_text().splitlines()))
    try:
        return {
            name: np.array([float(row[name]) for row in rows]).reshape(shape)
            for name in ("untrained_return", "final_return", "final_length")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{path} is damaged: it is not the table of the sweep that sweep.json describes"
        ) from error
