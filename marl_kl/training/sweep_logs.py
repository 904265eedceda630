"""What the loggers of a sweep get: the runs of a piece while it is trained, each a stream of its own."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from envs.base import EnvSpec
from marl_kl.results import Evaluation
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.training.loggers import STREAM, About, JsonLines, Log, Logger, Row, Sink, line, rows
from marl_kl.training.shards import Run, without_nonfinite


class SweepLogs:
    """The loggers of a sweep at work, and the stream in its folder; a context manager.

    A logger that fails in one run is left out in all from then on: what broke it (a network, a disk) is said once.

    Args:
        loggers: by the names they have in warnings; each run has a folder of its own, made when it is opened.
        spec: the environment of all runs.
        algorithm: its name.
        name: the sweep's, the group of its runs.
        own: a text that stays the same whenever the sweep goes on.
        folder: the sweep's; None if it has none.
    """

    def __init__(
        self, loggers: Mapping[str, Logger], spec: EnvSpec, algorithm: str, name: str, own: str, folder: Path | None
    ):
        self._loggers = {name: _with_folder(logger) for name, logger in loggers.items()}
        self._spec, self._algorithm = spec, algorithm
        self._name, self._own, self._folder = name, own, folder
        self._failed: set[str] = set()
        self._stream = Log({} if folder is None else {STREAM: _Stream}, About(name, name, own, (), folder, {}))

    def __enter__(self) -> SweepLogs:
        self._stream.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._stream.__exit__(*exception)

    @contextlib.contextmanager
    def of(self, runs: Sequence[Run]):
        """A function that hands over what a snapshot of these runs has more than the one before; open in this context.

        As in `marl_kl.training.loggers`, a logger gets a run from its first row on, whatever of it was trained before.
        """
        logged = (0, 0)

        def follow(now: Snapshot) -> None:
            nonlocal logged
            new = []
            for index, run in enumerate(followed):
                of_run = self._rows(run, index, now, logged)
                new += [_SettingRow(run.setting, row) for row in of_run]
                if logs:
                    logs[index].write(of_run)
            self._stream.write(sorted(new, key=_SettingRow.when))
            logged = now.extent

        followed = runs if self._loggers or self._folder is not None else ()
        with contextlib.ExitStack() as stack:
            opened = runs if self._loggers else ()
            logs = [stack.enter_context(Log(self._loggers, self._about(run), self._failed)) for run in opened]
            yield follow

    def _rows(self, run: Run, index: int, now: Snapshot, after: tuple[int, int]) -> list[Row]:
        metrics = {name: values[index : index + 1] for name, values in without_nonfinite(now.metrics).items()}
        update, env_steps, *episodes = now.evaluation
        evaluation = Evaluation(update, env_steps, *(values[index : index + 1] for values in episodes))
        return rows((run.seed,), self._spec.agents, run.config.batch_size, metrics, evaluation, after)

    def _about(self, run: Run) -> About:
        own = f"setting{run.setting}"
        facts = {"env": self._spec.name, "algorithm": self._algorithm, **dataclasses.asdict(run.config)}
        return About(
            self._name, f"{self._name}-{own}", f"{self._own}-{run.setting}", (run.seed,),
            self._folder and self._folder / own / f"seed{run.seed}", {**facts, "setting": run.setting},
        )  # fmt: skip


class _SettingRow(NamedTuple):
    """A row, and the setting whose it is."""

    setting: int
    row: Row

    def when(self) -> tuple[int, bool]:
        """What the stream is sorted by: the same order however many updates come at once, as after a resume."""
        return self.row.update, self.row.kind == "evaluation"


class _Stream(JsonLines):
    """SWEEP/log.jsonl, for all settings and seeds: as that of a run, each line with its setting.

    One file, however many runs there are side by side, piece after piece.
    """

    def write(self, rows: Sequence[_SettingRow]) -> None:
        self._write(line(row, setting=setting) for setting, row in rows)


def _with_folder(logger: Logger) -> Logger:
    """`logger`, in a folder that is there."""

    def open_in_folder(about: About) -> Sink:
        if about.folder is not None:
            about.folder.mkdir(parents=True, exist_ok=True)
        return logger(about)

    return open_in_folder
