"""Shards: runs that one compiled program trains side by side, and their checkpoints.

    RUN/checkpoints/<update>/                 a run is one shard: all its seeds
    SWEEP/pieces/<name>/checkpoints/<update>/ a sweep has as many shards as its programs and the memory require

The last checkpoint of a sweep's shard holds only the learners, since a finished sweep cannot be extended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marl_kl.config import Config, is_due
from marl_kl.results import SweepFailure, first_nonfinite
from marl_kl.storage import array_trees, checkpoints
from marl_kl.storage.checkpoints import START, Snapshot
from marl_kl.storage.files import RunFolderError

FOLDER = "pieces"
"""The folder of a sweep's shards."""


class Setting(NamedTuple):
    """One point of a sweep: the swept fields with their values, and the whole config."""

    fields: dict[str, Any]
    config: Config


class Trial(NamedTuple):
    """One seed at one setting.

    Attributes:
        setting: index of the setting; 0 in a run. seed: the seed itself. config: the setting's.
    """

    setting: int
    seed: int
    config: Config


class Shard(NamedTuple):
    """Trials that are trained together, and where they are stored.

    The leading axis of a `Snapshot` of a shard is the trial's; the train state also has the padding, until the last
    checkpoint of a sweep's shard, which holds the learners of the trials alone.

    Attributes:
        trials: they differ in seed and traced fields only.
        padding: further trials that fill up the program; their results are dropped.
        folder: where its checkpoints go; None: nothing is stored.
        fingerprint: what its checkpoints must belong to (`run_record.fingerprint`).
        is_extendable: whether the last checkpoint has the whole train state.
    """

    trials: tuple[Trial, ...]
    padding: tuple[Trial, ...]
    folder: Path | None
    fingerprint: Mapping[str, Any]
    is_extendable: bool = False

    @property
    def padded(self) -> tuple[Trial, ...]:
        """All trials of the program."""
        return self.trials + self.padding

    @property
    def config(self) -> Config:
        """The config of the first trial: its static fields and schedule are those of all trials."""
        return self.trials[0].config

    def load(self) -> Snapshot:
        """The newest usable checkpoint, or `START` if there is none.

        Raises:
            RunFolderError: all checkpoints are damaged, or belong to another run or sweep.
        """
        try:
            stored = None if self.folder is None else checkpoints.load(self.folder, self.fingerprint)
        except RunFolderError as error:
            if self.is_extendable:
                raise
            advice = f"delete the folder {self.folder} to train its {len(self.trials)} runs again"
            raise RunFolderError(f"{error}; {advice}") from error
        return START if stored is None else _with_failures(stored, self.trials)

    def save(self, snapshot: Snapshot, state: Any) -> None:
        """Stores a checkpoint, unless no update has been made.

        Args:
            snapshot: without its train state.
            state: the `TrainState` of all trials, padding included, on the devices.

        Raises:
            RunFolderError: it cannot be written.
        """
        if not snapshot.update:
            return
        keep = self.config.checkpoints_kept
        if self.is_complete(snapshot) and not self.is_extendable:
            leaves, keep = {f"learner.{name}": leaf for name, leaf in self.learners(state.learner).items()}, 1
        else:
            has_replay = getattr(self.config, "save_replay", True)
            leaves = array_trees.named_leaves(state if has_replay else state._replace(replay=()))
        checkpoints.save(self.folder, snapshot._replace(state=leaves), self.fingerprint, keep)

    def learners(self, learner: Any) -> dict[str, np.ndarray]:
        """The learners of the trials, without the padding: flat, on the host."""
        return {name: leaf[: len(self.trials)] for name, leaf in array_trees.flatten_tree(learner).items()}

    def is_complete(self, snapshot: Snapshot) -> bool:
        """Whether the last update has been made and evaluated."""
        return snapshot.update == self.config.num_updates and not self.evaluation_is_due(snapshot)

    def evaluation_is_due(self, snapshot: Snapshot) -> bool:
        """Whether the next step is an evaluation."""
        update, evaluation = snapshot.update, snapshot.evaluation
        is_scheduled = update in (0, self.config.num_updates) or is_due(update, self.config.updates_per_evaluation)
        return is_scheduled and (evaluation is None or evaluation.update[-1] != update)


def failures(
    trials: Sequence[Trial], nonfinite: np.ndarray, start: int, known: Sequence[SweepFailure]
) -> tuple[SweepFailure, ...]:
    """`known`, and the first failure of each trial that had none.

    Args:
        trials: T trials.
        nonfinite: [T, update, len(WATCHED)] bool, of consecutive updates.
        start: index of the first of these updates.
        known: failures so far.
    """
    failed = {(failure.setting, failure.seed) for failure in known}
    new = [
        SweepFailure(trial.setting, trial.seed, start + first[0], first[1])
        for trial, of_trial in zip(trials, nonfinite)
        if (trial.setting, trial.seed) not in failed and (first := first_nonfinite(of_trial)) is not None
    ]
    return (*known, *new)


def _with_failures(snapshot: Snapshot, trials: Sequence[Trial]) -> Snapshot:
    """Version 0.1 stored no failures of a sweep's shards, but the metric that they follow from."""
    if "nonfinite" not in snapshot.metrics:
        return snapshot
    metrics = dict(snapshot.metrics)
    return snapshot._replace(metrics=metrics, failures=failures(trials, metrics.pop("nonfinite"), 0, ()))


def grouped(
    configs: Sequence[Config], seeds: Sequence[int], settings_per_round: int | None = None
) -> list[list[Trial]]:
    """All trials of a sweep, in the groups in which they are trained, one after another.

    Grouped by program: settings that differ in traced fields only share one. Those of a search, which all share one, by
    round.

    Args:
        configs: of the settings.
        seeds: of every setting.
        settings_per_round: of a search, else None.
    """
    if settings_per_round is not None:
        rounds = (range(start, start + settings_per_round) for start in range(0, len(configs), settings_per_round))
        return [
            [Trial(setting, seed, configs[setting]) for setting in of_round for seed in seeds] for of_round in rounds
        ]
    groups: dict[Config, list[Trial]] = {}
    for setting, config in enumerate(configs):
        statics = config.replace(**type(config)().traced_fields)
        groups.setdefault(statics, []).extend(Trial(setting, seed, config) for seed in seeds)
    return list(groups.values())


def cut(
    out: Path | None, group: int, trials: Sequence[Trial], size: int, fingerprint: Mapping[str, Any]
) -> list[Shard]:
    """The trials of one group in shards of equal size, the last one padded.

    Args:
        out: the sweep's folder, if any.
        group: its number, from 1.
        trials: of this group.
        size: trials per shard.
        fingerprint: of the sweep (`run_record.shard_fingerprint`).
    """
    found = []
    for number, start in enumerate(range(0, len(trials), size), 1):
        own = tuple(trials[start : start + size])
        padding = tuple(trials[: size - len(own)])
        identity = {**fingerprint, "runs": [[trial.setting, trial.seed] for trial in own + padding]}
        found.append(Shard(own, padding, out and out / FOLDER / f"{group}-{number}", identity))
    return found
