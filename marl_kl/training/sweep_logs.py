"""The loggers of a sweep: one stream for every trial of the shard that is trained."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from envs.base import EnvSpec
from marl_kl.results import Evaluation
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.storage.shards import Shard, Trial
from marl_kl.training.loggers import STREAM, About, JsonLines, Log, Logger, Row, Sink, line, rows


class SweepLogs:
    """The open loggers of a sweep, and the stream in its folder; a context manager.

    A logger that fails in one trial is left out in all from then on, with one warning.

    Args:
        loggers: by their names in warnings; each trial has its own folder, made when it is opened.
        spec: the environment's description.
        algorithm: its name.
        name: the sweep's, the group of its trials.
        sweep_id: stays the same when the sweep is resumed.
        folder: the sweep's; None if it has none.
    """

    def __init__(
        self,
        loggers: Mapping[str, Logger],
        spec: EnvSpec,
        algorithm: str,
        name: str,
        sweep_id: str,
        folder: Path | None,
    ):
        self._loggers = {name: _with_folder(logger) for name, logger in loggers.items()}
        self._spec, self._algorithm = spec, algorithm
        self._name, self._id, self._folder = name, sweep_id, folder
        self._failed: set[str] = set()
        self._stream = Log({} if folder is None else {STREAM: _Stream}, About(name, name, sweep_id, (), folder, {}))

    def __enter__(self) -> SweepLogs:
        self._stream.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._stream.__exit__(*exception)

    @contextlib.contextmanager
    def follow(self, shard: Shard) -> Iterator[Callable[[Snapshot], None]]:
        """A function that logs what a snapshot of the shard has more than the one before.

        As in `marl_kl.training.loggers`, a logger gets all rows of a trial, also those trained by another process.
        """
        logged = (0, 0)

        def follow(now: Snapshot) -> None:
            nonlocal logged
            new = []
            for index, trial in enumerate(followed):
                of_trial = self._rows(trial, index, now, logged)
                new += [_SettingRow(trial.setting, row) for row in of_trial]
                if logs:
                    logs[index].write(of_trial)
            self._stream.write(sorted(new, key=_SettingRow.order))
            logged = now.extent

        followed = shard.trials if self._loggers or self._folder is not None else ()
        with contextlib.ExitStack() as stack:
            opened = shard.trials if self._loggers else ()
            logs = [stack.enter_context(Log(self._loggers, self._about(trial), self._failed)) for trial in opened]
            yield follow

    def _rows(self, trial: Trial, index: int, now: Snapshot, after: tuple[int, int]) -> list[Row]:
        metrics = {name: values[index : index + 1] for name, values in now.metrics.items()}
        evaluation = now.evaluation and Evaluation(
            *now.evaluation[:2], *(values[index : index + 1] for values in now.evaluation[2:])
        )
        return rows((trial.seed,), self._spec.agents, trial.config.batch_size, metrics, evaluation, after)

    def _about(self, trial: Trial) -> About:
        setting = f"setting{trial.setting}"
        facts = {"env": self._spec.name, "algorithm": self._algorithm, **dataclasses.asdict(trial.config)}
        return About(
            self._name, f"{self._name}-{setting}", f"{self._id}-{trial.setting}", (trial.seed,),
            self._folder and self._folder / setting / f"seed{trial.seed}", {**facts, "setting": trial.setting},
        )  # fmt: skip


class _SettingRow(NamedTuple):
    """A row, and its setting."""

    setting: int
    row: Row

    def order(self) -> tuple[int, bool]:
        """The key that the stream is sorted by: the same order however many updates come at once."""
        return self.row.update, self.row.kind == "evaluation"


class _Stream(JsonLines):
    """SWEEP/log.jsonl, for all settings and seeds: as that of a run, each line with its setting; shard after shard."""

    def write(self, rows: Sequence[_SettingRow]) -> None:
        self._write(line(row, setting=setting) for setting, row in rows)


def _with_folder(logger: Logger) -> Logger:
    """`logger`, which finds its folder made."""

    def open_in_folder(about: About) -> Sink:
        if about.folder is not None:
            about.folder.mkdir(parents=True, exist_ok=True)
        return logger(about)

    return open_in_folder
