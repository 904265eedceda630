"""What the loggers of a sweep get: the runs of a piece while it is trained, each a stream of its own."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Mapping, Sequence

from envs.types import EnvSpec
from marl_kl.loggers import About, Log, Logger, Row, rows
from marl_kl.results import Evaluation
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.sweeps.pieces import Run, without_nonfinite


class SweepLogs:
    """The loggers of a sweep at work.

    Args:
        loggers: by the names they have in warnings.
        spec: the environment of all runs.
        algorithm: its name.
        name: the sweep's, the group of its runs.
        own: a text that stays the same whenever the sweep goes on.
        folder: the sweep's; None if it has none.
    """

    def __init__(
        self, loggers: Mapping[str, Logger], spec: EnvSpec, algorithm: str, name: str, own: str, folder: Path | None
    ):
        self._loggers, self._spec, self._algorithm = loggers, spec, algorithm
        self._name, self._own, self._folder = name, own, folder

    @contextlib.contextmanager
    def of(self, runs: Sequence[Run]):
        """A function that hands over what a snapshot of these runs has more than the one before; open in this context.

        As in `marl_kl.loggers`, a logger gets a run from its first row on, whatever of it was trained before.
        """
        logged = (0, 0)

        def follow(now: Snapshot) -> None:
            nonlocal logged
            for index, (run, log) in enumerate(zip(runs, logs)):
                log.write(self._rows(run, index, now, logged))
            logged = now.extent

        with contextlib.ExitStack() as stack:
            opened = runs if self._loggers else ()
            logs = [stack.enter_context(Log(self._loggers, self._about(run))) for run in opened]
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
            self._folder and self._folder / own, {**facts, "setting": run.setting},
        )  # fmt: skip
