"""A piece of a sweep: runs that one compiled program trains side by side, stored as they go.

    pieces/<name>/checkpoints/<update>/    as a run's (`marl_kl.storage.checkpoints`), with runs in the place of seeds

The last checkpoint of a piece has of the train state only what was learned, by the runs that count: their teams.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from marl_kl.config import Config, is_due
from marl_kl.results import Timing, appended, evaluated
from marl_kl.storage import checkpoints
from marl_kl.storage.best import update_best
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.storage.files import RunFolderError
from marl_kl.training.programs import Programs
from marl_kl.training.progress import Progress

FOLDER = "pieces"
"""Where in a sweep's folder its pieces are."""


class Run(NamedTuple):
    """setting: index of the setting. seed: the seed's own number. config: the setting's."""

    setting: int
    seed: int
    config: Config


class Piece(NamedTuple):
    """What is trained together, and where it is stored.

    A `Snapshot` of a piece has the train state of all its runs (once it is complete, `learner` alone, of those that
    count); its metrics [run, update, ...], `nonfinite` among them, evaluations [run, K, episode] and best teams are
    those of the runs that count.

    Attributes:
        runs: as many as the program takes; they differ in seed and numbers only.
        num_wanted: how many of them count, the first ones; the others fill the program up.
        folder: where its checkpoints go; None keeps nothing.
        fingerprint: of the sweep (`run_folder.fingerprint`).
    """

    runs: tuple[Run, ...]
    num_wanted: int
    folder: Path | None
    fingerprint: Mapping[str, Any]

    @property
    def wanted(self) -> tuple[Run, ...]:
        """The runs that count."""
        return self.runs[: self.num_wanted]

    @property
    def config(self) -> Config:
        """Whose static settings are those of all runs."""
        return self.runs[0].config

    def stored(self) -> Snapshot:
        """Where it stands on disk.

        Raises:
            RunFolderError: its checkpoints are damaged, or another sweep's.
        """
        try:
            found = None if self.folder is None else checkpoints.load(self.folder, self._identity)
        except RunFolderError as error:
            advice = f"without the folder {self.folder} its {self.num_wanted} runs are trained again"
            raise RunFolderError(f"{error}; {advice}") from error
        return Snapshot(0, {}, {}, None, (), Timing(0.0, 0.0, 0.0)) if found is None else found

    def is_complete(self, now: Snapshot) -> bool:
        """Whether nothing is left to do: the last update is made, and evaluated."""
        return now.update == self.config.num_updates and now.evaluation is not None and not self._evaluation_is_due(now)

    def trained(
        self, programs: Programs, now: Snapshot, follow: Callable[[Snapshot], None], display: Progress
    ) -> Snapshot:
        """The piece at its end; on the way there it is stored every `save_interval` updates, and at the end.

        Args:
            programs: compiled for as many runs.
            now: where it stands.
            follow: is called with every snapshot that has more in it than the one before; its state may be missing.
            display: shows how far it is.
        """
        display.phase("compiling")
        begin = time.perf_counter()
        numbers = programs.traced_fields([run.config for run in self.runs])
        state = self._state(programs, numbers, now)
        now = now._replace(timing=now.timing.since(begin, "compile"))
        while not self.is_complete(now):
            if self._evaluation_is_due(now):
                display.phase("evaluating")
                now = self._evaluated(programs, state, now)
            else:
                display.phase("training")
                state, now = self._advanced(programs, numbers, state, now, display)
            follow(now)
            self._save(now, state, display)
        return now

    def _state(self, programs: Programs, numbers, now: Snapshot):
        if now.update:
            source = checkpoints.source(self.folder, now.update)
            return programs.shard(checkpoints.restore_tree(programs.shapes, now.state, source))
        return jax.block_until_ready(programs.init(numbers, programs.keys(self._seeds)))

    def _evaluation_is_due(self, now: Snapshot) -> bool:
        is_scheduled = now.update in (0, self.config.num_updates) or is_due(now.update, self.config.eval_interval)
        return is_scheduled and (now.evaluation is None or now.evaluation.update[-1] != now.update)

    def _evaluated(self, programs: Programs, state, now: Snapshot) -> Snapshot:
        begin = time.perf_counter()
        statistics = programs.evaluate(programs.evaluation_keys(self._seeds, now.update), state.learner)
        wanted = jax.tree.map(lambda leaf: leaf[: self.num_wanted], statistics)
        evaluation = evaluated(now.evaluation, now.update, self.config.batch_size, wanted)
        best = update_best(now.best, now.update, wanted.episode_return, self._teams(state))
        return now._replace(evaluation=evaluation, timing=now.timing.since(begin, "evaluate"), best=best)

    def _teams(self, state) -> dict[str, np.ndarray]:
        """What the runs that count have learned, flat."""
        return {name: leaf[: self.num_wanted] for name, leaf in checkpoints.flatten_tree(state.learner).items()}

    def _advanced(self, programs: Programs, numbers, state, now: Snapshot, display: Progress):
        begin = time.perf_counter()
        n = self.config.next_stop(now.update) - now.update
        state, chunk = programs.chunk(numbers, state, n)
        chunk = {name: values[: self.num_wanted] for name, values in chunk.items()}
        timing = now.timing.since(begin, "train")
        now = now._replace(update=now.update + n, state={}, metrics=appended(now.metrics, chunk), timing=timing)
        display.advance(n, without_nonfinite(chunk))
        return state, now

    def _save(self, now: Snapshot, state, display: Progress) -> None:
        if self.folder is None:
            return
        if self.is_complete(now):
            display.phase("saving")
            teams = {f"learner.{name}": leaf for name, leaf in self._teams(state).items()}
            checkpoints.save(self.folder, now._replace(state=teams), self._identity, keep=1)
        elif now.update and is_due(now.update, self.config.save_interval) and not self._evaluation_is_due(now):
            display.phase("saving")
            stored = now._replace(state=checkpoints.flatten_tree(state))
            checkpoints.save(self.folder, stored, self._identity, self.config.checkpoints_kept)

    @property
    def _seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def _identity(self) -> dict[str, Any]:
        return {**self.fingerprint, "runs": [[run.setting, run.seed] for run in self.runs]}


def programs(configs: Sequence[Config], seeds: Sequence[int]) -> list[list[Run]]:
    """All runs of a sweep, setting by setting, by the program that they need: settings that differ in numbers alone
    share one.

    Args:
        configs: of the settings.
        seeds: of every setting.
    """
    found: dict[Config, list[Run]] = {}
    for setting, config in enumerate(configs):
        statics = config.replace(**type(config)().traced_fields)
        found.setdefault(statics, []).extend(Run(setting, seed, config) for seed in seeds)
    return list(found.values())


def cut(out: Path | None, program: int, runs: Sequence[Run], size: int, fingerprint: Mapping[str, Any]) -> list[Piece]:
    """The runs of a program in pieces of `size`, the last one filled up: all of one size are one program.

    Args:
        out: the sweep's folder, if it has one.
        program: its number, from 1.
        runs: of this program.
        size: how many are trained side by side.
        fingerprint: of the sweep.
    """
    found = []
    for number, start in enumerate(range(0, len(runs), size), 1):
        piece = runs[start : start + size]
        folder = out and out / FOLDER / f"{program}-{number}"
        found.append(Piece(tuple([*piece, *runs][:size]), len(piece), folder, fingerprint))
    return found


def without_nonfinite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that users see; what was not finite, `failures` say."""
    return {name: values for name, values in metrics.items() if name != "nonfinite"}
