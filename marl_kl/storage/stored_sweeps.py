"""Stored sweeps: their results, and the learners of one setting as those of a run."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marl_kl.results import Evaluation, Failure, SweepResult, Timing
from marl_kl.storage import array_trees, run_folder, run_record, run_tables, shards, stored_runs, sweep_results
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.storage.files import RunFolderError, one_line_error
from marl_kl.storage.shards import Setting, Shard


class Learners(NamedTuple):
    """The learners of one setting's seeds.

    Attributes:
        record: the sweep's, with the config and the failures of the setting.
        learner: flat (`array_trees.flatten_tree`): leaves [seed, ...], in the order of `record.seeds`.
        updates: [seed] updates made by each of these learners.
        source: the origin, for messages.
    """

    record: run_record.RunRecord
    learner: dict[str, np.ndarray]
    updates: tuple[int, ...]
    source: str


def folder_of(path: str | os.PathLike, setting: int) -> Path:
    """The folder of one setting's files in a sweep's folder, if it has any."""
    return Path(path) / f"setting{setting}"


def record_of(path: str | os.PathLike, setting: int | None) -> run_record.RunRecord:
    """The record of a run, or of one setting of a sweep, as if it were a run's.

    Args:
        path: the folder of a run or of a sweep.
        setting: index of the setting; None for a run.

    Raises:
        ValueError: a sweep without a setting, a run with one, or no such setting.
        RunFolderError: neither a run nor a sweep, or one that cannot be read.
    """
    if not run_folder.is_sweep(path):
        record = run_record.read_record(path)
        if setting is not None:
            raise ValueError(f"setting={setting!r}, but {str(path)!r} holds a run, which has no settings")
        return record
    record = run_record.read_record(path, run_record.SWEEP)
    settings = _settings(Path(path), record)
    last = len(settings) - 1
    if setting is None:
        raise ValueError(f"{str(path)!r} holds a sweep; name one of its settings, 0 to {last}")
    if isinstance(setting, bool) or setting not in range(len(settings)):
        raise ValueError(f"setting={setting!r}; the sweep in {str(path)!r} has settings 0 to {last}")
    failures = tuple(Failure(*failure[1:]) for failure in record.failures if failure.setting == setting)
    return record._replace(config=settings[setting].config, failures=failures)


def learners(path: str | os.PathLike, setting: int, which: str) -> Learners:
    """The learners of one setting of a sweep.

    Args:
        path: the sweep's folder.
        setting: index of the setting.
        which: "last", or "best": each seed's learner at its best evaluation.

    Raises:
        ValueError: as `record_of`.
        RunFolderError: the setting is not finished, or the sweep was stored without learners.
    """
    record = record_of(path, setting)
    of_sweep = run_record.read_record(path, run_record.SWEEP)
    if of_sweep.status == "finished" and not (Path(path) / shards.FOLDER).exists():
        raise RunFolderError(
            f"there is no folder {shards.FOLDER!r} in {str(path)!r}: of this sweep only tables are left"
        )
    rows = {}
    for shard in shards_of(Path(path), of_sweep):
        of_setting = [(row, trial.seed) for row, trial in enumerate(shard.trials) if trial.setting == setting]
        if of_setting:
            now = shard.load()
            _refuse_without_learners(path, setting, shard, now)
            rows |= {seed: _learner(now, row, which) for row, seed in of_setting}
    if set(rows) != set(record.seeds):
        raise _unfinished(path, setting)
    of_seeds = [rows[seed] for seed in record.seeds]
    learner = {name: np.stack([leaves[name] for leaves, _ in of_seeds]) for name in of_seeds[0][0]}
    return Learners(record, learner, tuple(update for _, update in of_seeds), f"the sweep in {str(path)!r}")


def _learner(now: Snapshot, row: int, which: str) -> tuple[dict[str, np.ndarray], int]:
    if which == "last":
        return {name: leaf[row] for name, leaf in array_trees.subtree(now.state, "learner").items()}, now.update
    return {name: leaf[row] for name, leaf in now.best.learner.items()}, int(now.best.update[row])


def _refuse_without_learners(path: str | os.PathLike, setting: int, shard: Shard, now: Snapshot) -> None:
    if not shard.is_complete(now):
        raise _unfinished(path, setting)
    if not array_trees.subtree(now.state, "learner") or now.best is None:
        raise RunFolderError(
            f"the sweep in {str(path)!r} was stored without learners, by an older version; to have them, sweep again "
            "into another folder"
        )


def _unfinished(path: str | os.PathLike, setting: int) -> RunFolderError:
    return RunFolderError(
        f"setting {setting} of the sweep in {str(path)!r} is not finished: resume the sweep to have its learners"
    )


def read(out: str | os.PathLike) -> SweepResult:
    """The result of a sweep, finished or not, from its shards.

    Without the shards, from the tables of a finished sweep: one episode with the mean in the place of each
    evaluation's episodes, and only the team's metrics (none without `curves.csv`).

    Raises:
        RunFolderError: no sweep there, a damaged one, or one of a newer format.
    """
    out = Path(out)
    record = run_record.read_record(out, run_record.SWEEP)
    settings = _settings(out, record)
    if not (out / shards.FOLDER).exists() and (out / "table.csv").exists():
        return _from_tables(out, record, settings)
    results = [(shard, shard.load()) for shard in shards_of(out, record)]
    spent = Timing(*np.sum([now.timing for _, now in results] or [[0.0] * 3], axis=0).tolist())
    timing = _timing(out, record.document) or spent
    return sweep_results.combine(record.spec, record.algorithm, settings, record.seeds, results, timing, out)


def _settings(out: Path, record: run_record.RunRecord) -> tuple[Setting, ...]:
    settings = []
    for fields in record.document["settings"]:
        try:
            config = record.config.replace(**fields)
        except ValueError as error:
            raise RunFolderError(f"{out / run_record.SWEEP} is damaged: {error}") from error
        settings.append(Setting({name: getattr(config, name) for name in fields}, config))
    if not settings:
        raise RunFolderError(f"{out / run_record.SWEEP} is damaged: it names no settings")
    return tuple(settings)


def _timing(out: Path, document: Mapping[str, Any]) -> Timing | None:
    """Of a finished sweep."""
    if "timing" not in document:
        return None
    try:
        return Timing(*(float(document["timing"][name]) for name in Timing._fields))
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{out / run_record.SWEEP} is damaged: its timing is {document['timing']!r}") from error


def shards_of(out: Path, record: run_record.RunRecord) -> list[Shard]:
    """The shards of the programs that have begun: before that, their size is open."""
    sizes = record.document.get("sizes", {})
    per_round = record.document["samples"] if "search" in record.document else None
    groups = shards.grouped([setting.config for setting in _settings(out, record)], record.seeds, per_round)
    return [
        shard
        for number, trials in enumerate(groups, 1)
        if str(number) in sizes
        for shard in shards.cut(
            out, number, trials, sizes[str(number)], run_record.shard_fingerprint(record.document, number)
        )
    ]


def _from_tables(out: Path, record: run_record.RunRecord, settings: tuple[Setting, ...]) -> SweepResult:
    shape = (len(settings), len(record.seeds), 1)
    means = _means(out / "table.csv", shape)
    env_steps, metrics = np.zeros((len(settings), 0), np.int64), {}
    if (out / "curves.csv").exists():
        env_steps, metrics = run_tables.read_curves(out, record.seeds)
    missing = np.full(shape[1:], np.nan)
    evaluations = []
    for k, setting in enumerate(settings):
        updates = np.array([0, setting.config.num_updates])
        returns = np.stack([means["untrained_return"][k], means["final_return"][k]], axis=1)
        lengths = np.stack([missing, means["final_length"][k]], axis=1)
        evaluations.append(Evaluation(updates, updates * setting.config.batch_size, returns, lengths))
    return SweepResult(
        spec=record.spec,
        algorithm=record.algorithm,
        config=settings[0].config,
        settings=tuple(setting.fields for setting in settings),
        seeds=record.seeds,
        env_steps=env_steps,
        metrics=metrics,
        evaluations=tuple(evaluations),
        failures=record.failures,
        timing=_timing(out, record.document) or stored_runs.UNTIMED,
        out=out,
    )


def _means(path: Path, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The returns and lengths of a sweep's table, [setting, seed, 1]; in the order of its rows."""
    with one_line_error("read", path):
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    try:
        return {
            name: np.array([float(row[name]) for row in rows]).reshape(shape)
            for name in ("untrained_return", "final_return", "final_length")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{path} is damaged: it is not the table of the sweep that sweep.json describes"
        ) from error
