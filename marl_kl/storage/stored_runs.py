"""Results of stored runs; for their policies see `marl_kl.storage.loading`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from marl_kl.results import Evaluation, Timing, TrainResult
from marl_kl.storage import checkpoints, run_record, run_tables
from marl_kl.storage.files import RunFolderError

UNTIMED = Timing(np.nan, np.nan, np.nan)
"""Of runs without a checkpoint that records it."""


def read_result(out: str | os.PathLike, record: run_record.RunRecord | None = None) -> TrainResult:
    """The result of the run in `out`, as of its last save.

    Metrics are those of the tables, in double precision; times are those of the newest checkpoint, or `UNTIMED`.

    Args:
        out: the run folder.
        record: its `run_record.read_record`, if that has been read already.

    Raises:
        RunFolderError: no run there, a damaged one, one of a newer format, or one without a table.
    """
    out = Path(out)
    record = run_record.read_record(out) if record is None else record
    if not (out / "evaluation.csv").exists():
        raise RunFolderError(f"{str(out)!r} holds a run of which nothing was saved yet")
    evaluated = run_tables.read_evaluation(out, record.status == "finished")
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
        metrics.wall_time_s,
    )


def below(folder: str | os.PathLike) -> list[Path]:
    """The folders of runs and sweeps below `folder`, at any depth, sorted by path."""
    found = []
    for path, folders, files in os.walk(folder):
        if {run_record.RUN, run_record.SWEEP} & set(files):
            found.append(Path(path))
            folders.clear()  # what is in it belongs to it
    return sorted(found)


def _metrics(out: Path, record: run_record.RunRecord) -> run_tables.StoredMetrics:
    """Empty ones for a run that was evaluated and stopped before its first update was saved."""
    if not (out / "metrics.csv").exists():
        return run_tables.StoredMetrics(record.seeds, np.empty(0, np.int64), {})
    return run_tables.read_metrics(out, record.spec.agents, record.status == "finished")


def training_curve(result: TrainResult) -> tuple[np.ndarray, np.ndarray]:
    """[U] env steps and [S, U] training returns (stochastic policies); NaN before the first episode's end."""
    missing = np.full((len(result.seeds), len(result.env_steps)), np.nan)
    return result.env_steps, np.asarray(result.metrics.get("episode_return", missing), np.float64)


def evaluation_curve(result: TrainResult) -> tuple[np.ndarray, np.ndarray]:
    """[K] env steps and [S, K] evaluation returns (deterministic policies), means over episodes."""
    evaluation: Evaluation = result.evaluation
    return evaluation.env_steps, np.asarray(evaluation.episode_return, np.float64).mean(axis=-1)
