"""Loggers: where the metrics of a run go while it runs, in addition to its tables: a stream of lines, dashboards.

A *logger* is a function `open(about) -> Sink`; `train(..., loggers=[...])` takes such functions and the names of those
here. They are called by the host between two chunks, never from the compiled program. Every process logs the whole run,
from its first row on; a sink replaces or skips the rows that it has from an earlier process. So no row is missing or
duplicated after a resume, whatever a kill left.

If a logger raises, a `RunWarning` is issued, and training continues without it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from envs.validation import first_line, suggest
from marl_kl.results import Evaluation
from marl_kl.storage import run_tables
from marl_kl.storage.run_folder import RunWarning

STREAM = "log.jsonl"
"""The stream in the run folder: one JSON object per line, one line per update and seed."""

PROJECT = "marl_kl"
"""W&B's project, MLflow's experiment."""


class About(NamedTuple):
    """What loggers know of a run.

    Attributes:
        group: the run's name, or that of the sweep it belongs to.
        name: the run's; the stream of a seed is called `<name>-seed<seed>`.
        id: unique, and the same when the run is resumed.
        seeds: the seeds, each with its own stream.
        folder: the run folder, or None.
        facts: environment, algorithm and config fields: plain values.
    """

    group: str
    name: str
    id: str
    seeds: tuple[int, ...]
    folder: Path | None
    facts: dict[str, Any]


class Row(NamedTuple):
    """The metrics of one seed and update, or of one evaluation.

    Attributes:
        seed: the seed itself.
        update: updates made. env_steps: env steps that the seed has taken.
        kind: "training", or "evaluation": the means over its episodes.
        values: by name; an agent's metric is called as in `metrics.csv`: `kl[hip_1]`. May be NaN.
    """

    seed: int
    update: int
    env_steps: int
    kind: Literal["training", "evaluation"]
    values: dict[str, float]


class Sink(Protocol):
    """An open logger."""

    def write(self, rows: Sequence[Row]) -> None:
        """Adds rows: those of an update after those of the update before, an evaluation's after its update's."""

    def close(self) -> None:
        """Called at the end, however the run ends, unless it is killed."""


Logger = Callable[[About], Sink]


def rows(
    seeds: Sequence[int],
    agents: Sequence[str],
    batch_size: int,
    metrics: Mapping[str, np.ndarray],
    evaluation: Evaluation | None,
    after: tuple[int, int] = (0, 0),
    start: int = 0,
) -> list[Row]:
    """A run's rows in chronological order.

    Args:
        seeds: S seeds. agents: N names.
        batch_size: env steps per seed and update.
        metrics: name -> [S, U] or [S, U, N].
        evaluation: the evaluations, or None.
        after: how many updates and evaluations to leave out at the beginning.
        start: updates made before the first one in `metrics`.
    """
    made = len(next(iter(metrics.values()))[0]) if metrics else 0
    columns = run_tables.metric_columns(agents, (len(seeds), made), metrics)
    found = [
        Row(
            seed, start + u + 1, (start + u + 1) * batch_size, "training",
            {name: _short(column[s, u]) for name, column in columns.items()},
        )
        for u in range(after[0], made)
        for s, seed in enumerate(seeds)
    ]  # fmt: skip
    evaluated = () if evaluation is None else range(after[1], len(evaluation.update))
    found += [
        Row(
            seed, int(evaluation.update[k]), int(evaluation.env_steps[k]), "evaluation",
            {
                "evaluation_return": _short(evaluation.episode_return[s, k].mean()),
                "evaluation_length": _short(evaluation.episode_length[s, k].mean()),
            },
        )
        for k in evaluated
        for s, seed in enumerate(seeds)
    ]  # fmt: skip
    # stable: seeds stay in their order, and evaluations behind the update that they follow
    return sorted(found, key=lambda row: row.update)


def _short(value: np.generic) -> float:
    """With the fewest digits that read back as the same number in its precision."""
    return float(str(value) if value.dtype.kind == "f" else value)


class Log:
    """The open loggers of one run; a context manager.

    Args:
        loggers: by their names in warnings.
        about: the run.
        failed: names of loggers that have failed; logs that share it drop a logger that failed in one of them, with
            one warning.
    """

    def __init__(self, loggers: Mapping[str, Logger], about: About, failed: set[str] | None = None):
        self._loggers, self._about = loggers, about
        self._failed = set() if failed is None else failed
        self._sinks: dict[str, Sink] = {}

    def __enter__(self) -> Log:
        for name, logger in self._loggers.items():
            if name not in self._failed:
                with self._dropped_on_error(name):
                    self._sinks[name] = logger(self._about)
        return self

    def write(self, new: Sequence[Row]) -> None:
        """Writes rows to every logger that still works."""
        for name, sink in list(self._sinks.items()):
            if name not in self._failed:
                with self._dropped_on_error(name):
                    sink.write(new)

    def __exit__(self, *_) -> None:
        for name in list(self._sinks):
            with self._dropped_on_error(name):
                self._sinks.pop(name).close()

    @contextlib.contextmanager
    def _dropped_on_error(self, name: str):
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):
                self._sinks.pop(name).close()
            if name not in self._failed:
                self._failed.add(name)
                message = f"logging to {name} has stopped: {first_line(error)}; training continues"
                warnings.warn(message, RunWarning, stacklevel=3)


# The stream in the run folder


class JsonLines:
    """RUN/log.jsonl, for all seeds."""

    def __init__(self, about: About):
        self._file = (about.folder / STREAM).open("w", encoding="utf-8")

    def write(self, rows):
        self._write(map(line, rows))

    def _write(self, lines: Iterable[str]):
        self._file.write("".join(lines))
        self._file.flush()

    def close(self):
        self._file.close()


def line(row: Row, **first: int) -> str:
    """One line of a stream; the fields `first` come first."""
    values = {name: value if math.isfinite(value) else None for name, value in row.values.items()}
    return json.dumps({**first, "seed": row.seed, "update": row.update, "env_steps": row.env_steps, **values}) + "\n"


# Dashboards; their packages are imported on use


class _TensorBoard:
    """RUN/tensorboard/seed<seed>; the step is the seed's env steps."""

    def __init__(self, about: About):
        from tensorboardX import SummaryWriter

        folders = {seed: about.folder / "tensorboard" / f"seed{seed}" for seed in about.seeds}
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        self._writers = {seed: SummaryWriter(str(folder)) for seed, folder in folders.items()}

    def write(self, rows):
        for row in rows:
            for name, value in _numbers(row).items():
                self._writers[row.seed].add_scalar(name, value, row.env_steps)
        for writer in self._writers.values():
            writer.flush()

    def close(self):
        for writer in self._writers.values():
            writer.close()


class _Wandb:
    """A run per seed, in the group of the run or sweep; the step is the seed's env steps.

    W&B's own variables hold: WANDB_PROJECT (`PROJECT` if it is not set), WANDB_ENTITY, WANDB_TAGS.
    """

    def __init__(self, about: About):
        import wandb

        self._runs = {
            seed: wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT, group=about.group,
                name=f"{about.name}-seed{seed}", id=f"{about.id}-{seed}",
                config={**about.facts, "seed": seed}, dir=about.folder, resume="allow", reinit="create_new",
            )
            for seed in about.seeds
        }  # fmt: skip

    def write(self, rows):
        for row in rows:
            run = self._runs[row.seed]
            if row.env_steps >= run.step:  # else it is there, from before an interruption
                run.log({**_numbers(row), "update": row.update}, step=row.env_steps)

    def close(self):
        for run in self._runs.values():
            run.finish()


class _Mlflow:
    """A run per seed in experiment `PROJECT`, tagged with the group; the step is the seed's env steps."""

    def __init__(self, about: About):
        from mlflow import MlflowClient

        self._client = MlflowClient()
        known = self._client.get_experiment_by_name(PROJECT)
        self._experiment = self._client.create_experiment(PROJECT) if known is None else known.experiment_id
        self._runs = {seed: self._run(about, seed) for seed in about.seeds}
        # the last steps that are there from before an interruption: every row has its kind's update as a metric
        self._done = {
            (seed, kind): max((m.step for m in self._client.get_metric_history(run, f"{kind}_update")), default=-1)
            for seed, run in self._runs.items()
            for kind in ("training", "evaluation")
        }

    def _run(self, about: About, seed: int) -> str:
        """The id of the run, which is found again when it is resumed."""
        key = f"{about.id}-{seed}"
        found = self._client.search_runs([self._experiment], f"tags.`marl_kl.id` = '{key}'")
        if found:
            return found[0].info.run_id
        tags = {"marl_kl.id": key, "group": about.group}
        run = self._client.create_run(self._experiment, run_name=f"{about.name}-seed{seed}", tags=tags).info.run_id
        for name, value in {**about.facts, "seed": seed}.items():
            self._client.log_param(run, name, str(value)[:500])
        return run

    def write(self, rows):
        from mlflow.entities import Metric

        for row in rows:
            if row.env_steps > self._done[row.seed, row.kind]:
                values = {**_numbers(row), f"{row.kind}_update": row.update}
                batch = [Metric(name, value, 0, row.env_steps) for name, value in values.items()]
                for begin in range(0, len(batch), 1000):  # the most that a server takes at once
                    self._client.log_batch(self._runs[row.seed], metrics=batch[begin : begin + 1000])

    def close(self):
        for run in self._runs.values():
            self._client.set_terminated(run)


def _numbers(row: Row) -> dict[str, float]:
    """The values that are numbers, under names that every dashboard takes: `kl/hip_1_ankle_1`."""
    names = (re.sub(r"[^\w./-]", "_", name.replace("[", "/").removesuffix("]")) for name in row.values)
    return {name: value for name, value in zip(names, row.values.values()) if not math.isnan(value)}


class _Known(NamedTuple):
    """A logger with a name: the package that it needs, whether it writes into the run folder."""

    open: Logger
    package: str
    needs_folder: bool = False


_KNOWN = {
    "tensorboard": _Known(_TensorBoard, "tensorboardX", needs_folder=True),
    "wandb": _Known(_Wandb, "wandb"),
    "mlflow": _Known(_Mlflow, "mlflow"),
}

NAMES = tuple(_KNOWN)
"""The loggers with a name; each is an extra of the same name."""


def chosen_loggers(given: Sequence[str | Logger], has_folder: bool) -> dict[str, Logger]:
    """The loggers by name.

    Raises:
        ValueError: an unknown name, one that needs a run folder where there is none, or no logger.
        ModuleNotFoundError: its package is not installed; the message names the extra.
    """
    if isinstance(given, str):
        raise ValueError(f"loggers={given!r}; it must be a list, such as [{given!r}]")
    found = {}
    for logger in given:
        if isinstance(logger, str):
            found[logger] = _by_name(logger, has_folder)
        elif callable(logger):
            found[getattr(logger, "__name__", type(logger).__name__)] = logger
        else:
            raise ValueError(f"loggers: {logger!r} must be one of {', '.join(NAMES)}, or a function (about) -> Sink")
    return found


def _by_name(name: str, has_folder: bool) -> Logger:
    known = _KNOWN.get(name)
    if known is None:
        raise ValueError(f"unknown logger '{name}'; {suggest(name, NAMES)}")
    if known.needs_folder and not has_folder:
        raise ValueError(f"logging to {name} needs out, the run folder that its files go to")
    if importlib.util.find_spec(known.package) is None:
        raise ModuleNotFoundError(
            f"logging to {name} needs {known.package}, which is not installed; pip install 'marl_kl[{name}]'"
        )
    return known.open
