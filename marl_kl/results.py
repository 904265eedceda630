"""What a training run returns: numpy arrays with named axes, and what it took to get them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from envs.base import EnvSpec
from marl_kl.config import Config
from marl_kl.core.metrics import AGENT_METRICS as AGENT_METRICS
from marl_kl.core.metrics import TEAM_METRICS as TEAM_METRICS
from marl_kl.core.metrics import WATCHED, EpisodeStatistics

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Evaluation(NamedTuple):
    """Episodes of the deterministic policies, one per parallel environment, none left out.

    Attributes:
        update: [K] number of updates made before each evaluation (0: the untrained team).
        env_steps: [K] env steps per seed taken before it.
        episode_return: [seed, K, episode] team return.
        episode_length: [seed, K, episode] env steps.
    """

    update: np.ndarray
    env_steps: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray


def appended(before: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`new`, name -> [seed, ...], behind `before`, along the second axis."""
    return {
        name: np.concatenate([before[name], values], axis=1) if name in before else values
        for name, values in new.items()
    }


def evaluated(before: Evaluation | None, update: int, batch_size: int, statistics: EpisodeStatistics) -> Evaluation:
    """The evaluations `before` and, behind them, episodes [seed, episode] after `update` updates."""
    updates = np.append(np.empty(0, np.int64) if before is None else before.update, np.int64(update))
    stacked = {name: values[:, None] for name, values in statistics._asdict().items()}
    stacked = appended({} if before is None else before._asdict(), stacked)
    return Evaluation(updates, updates * batch_size, **stacked)


def first_nonfinite(nonfinite: np.ndarray) -> tuple[int, str] | None:
    """Update and quantity of the first True in `nonfinite` [update, len(WATCHED)]; None if there is none."""
    updates, quantities = np.nonzero(nonfinite)
    return (int(updates[0]), WATCHED[quantities[0]]) if len(updates) else None


class Failure(NamedTuple):
    """The first non-finite number of a seed: the seed keeps its last finite parameters from there on.

    Attributes:
        seed: the seed's own number. update: index of the update, from 0. quantity: one of `WATCHED`.
    """

    seed: int
    update: int
    quantity: str


class SweepFailure(NamedTuple):
    """A `Failure` of a sweep: setting is the index of the setting that the seed ran at."""

    setting: int
    seed: int
    update: int
    quantity: str


def what_failed(failure: Failure | SweepFailure) -> str:
    """What was not finite, and in which update, from 1."""
    return f"{failure.quantity} was not finite in update {failure.update + 1}"


class Timing(NamedTuple):
    """Wall-clock seconds of one run; those before an interruption count as far as a resumed run could use them.

    Attributes:
        compile: tracing and compiling, evaluation included.
        train: running updates.
        evaluate: running evaluation episodes.
    """

    compile: float
    train: float
    evaluate: float

    def since(self, begin: float, field: str) -> Timing:
        """With the seconds since `begin`, a `time.perf_counter`, added to `field`."""
        return self._replace(**{field: getattr(self, field) + time.perf_counter() - begin})


@dataclasses.dataclass(frozen=True, repr=False)
class TrainResult:
    """A finished run.

    Attributes:
        spec: the environment's static description.
        algorithm: the algorithm's name.
        config: the resolved config.
        seeds: the seeds, in the order of every seed axis.
        env_steps: [update] env steps per seed after each update (Python-int exact).
        metrics: name -> [seed, update] or [seed, update, agent]; names in `TEAM_METRICS` and `AGENT_METRICS`.
        evaluation: the evaluation episodes.
        failures: one entry per seed that met a non-finite number; empty in a healthy run.
        timing: where the time went.
        out: the run folder, or None.
        wall_time_s: [update] seconds of compiling, training and evaluating from the start of the run to the end of each
            update, a resumed run's earlier ones included; NaN or None where an older version or a sweep made it. The only
            number here that the seed does not determine.
    """

    spec: EnvSpec
    algorithm: str
    config: Config
    seeds: tuple[int, ...]
    env_steps: np.ndarray
    metrics: dict[str, np.ndarray]
    evaluation: Evaluation
    failures: tuple[Failure, ...]
    timing: Timing
    out: Path | None
    wall_time_s: np.ndarray | None = None

    def __repr__(self) -> str:
        """One line, for notebooks: the arrays themselves are attributes."""
        steps = int(self.env_steps[-1]) if len(self.env_steps) else 0
        final = self.evaluation.episode_return[:, -1].mean()
        return (
            f"TrainResult({self.algorithm} on {self.spec.name}, {len(self.seeds)} seeds, {steps:,} env steps each, mean "
            f"evaluation return {final:.4g}, out={None if self.out is None else str(self.out)!r})"
        )

    def _repr_html_(self) -> str:
        """The table of the run, for notebooks."""
        from marl_kl.analysis import summary

        return summary.html(self)

    def to_dataframe(self) -> pd.DataFrame:
        """A row per seed and update, the columns of `metrics.csv`; needs pandas."""
        import pandas as pd

        from marl_kl.storage.run_tables import metrics_table

        columns = metrics_table(
            self.spec.agents, self.seeds, self.env_steps, self.metrics, wall_time_s=self.wall_time_s
        )
        return pd.DataFrame(columns)

    def plot(self) -> Figure:
        """The learning curve: evaluation returns and training returns over env steps."""
        from marl_kl.analysis.run_figures import learning_curve

        return learning_curve(self)

    @property
    def steps_per_second(self) -> float:
        """Env steps of all seeds per second of training, compilation and evaluation left out."""
        return len(self.seeds) * int(self.env_steps[-1]) / self.timing.train


@dataclasses.dataclass(frozen=True, repr=False)
class SweepResult:
    """A finished sweep of K settings and S seeds.

    Attributes:
        spec: the environment's static description.
        algorithm: the algorithm's name.
        config: the resolved config of the first setting; that of setting k is `config.replace(**settings[k])`.
        settings: the swept fields with their values.
        seeds: the seeds, in the order of every seed axis.
        env_steps: [setting, update] env steps per seed after each update.
        metrics: name -> [setting, seed, update] or [setting, seed, update, agent]; settings with fewer updates than
            others end in NaN.
        evaluations: one per setting; NaN where a run has not come so far.
        failures: one entry per run that met a non-finite number; empty in a healthy sweep.
        timing: where the time went, over all programs.
        out: the folder with the tables, or None.
    """

    spec: EnvSpec
    algorithm: str
    config: Config
    settings: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    env_steps: np.ndarray
    metrics: dict[str, np.ndarray]
    evaluations: tuple[Evaluation, ...]
    failures: tuple[SweepFailure, ...]
    timing: Timing
    out: Path | None

    def __repr__(self) -> str:
        """One line, for notebooks: the arrays themselves are attributes."""
        fields = ", ".join(self.settings[0])
        return (
            f"SweepResult({self.algorithm} on {self.spec.name}, {len(self.settings)} settings of {fields}, "
            f"{len(self.seeds)} seeds, out={None if self.out is None else str(self.out)!r})"
        )

    def _repr_html_(self) -> str:
        """The table of settings, best first, for notebooks."""
        from marl_kl.analysis import sweep_tables

        return sweep_tables.html(self)

    @property
    def untrained(self) -> EpisodeStatistics:
        """Evaluation episodes before the first update, [setting, seed, episode]; NaN where there are none yet."""
        return self._episodes(0, [0] * len(self.settings))

    @property
    def final(self) -> EpisodeStatistics:
        """Evaluation episodes after the last update, [setting, seed, episode]; NaN in runs that are not finished."""
        return self._episodes(-1, [self.config_of(k).num_updates for k in range(len(self.settings))])

    def config_of(self, setting: int) -> Config:
        """The resolved config of a setting, by its index."""
        return self.config.replace(**self.settings[setting])

    def setting(self, index: int) -> TrainResult:
        """The result of setting `index`, up to the last update that one of its seeds has made.

        Its timing is unknown, since it ran in parallel with others.
        """
        made = int(np.count_nonzero(np.diff(self.env_steps[index], prepend=0)))
        failures = tuple(Failure(*failure[1:]) for failure in self.failures if failure.setting == index)
        return TrainResult(
            self.spec,
            self.algorithm,
            self.config_of(index),
            self.seeds,
            self.env_steps[index][:made],
            {name: values[index][:, :made] for name, values in self.metrics.items()},
            self.evaluations[index],
            failures,
            Timing(np.nan, np.nan, np.nan),
            self.out,
        )

    def _episodes(self, k: int, updates: Sequence[int]) -> EpisodeStatistics:
        """Of every setting evaluation k, if it is the one after the setting's `updates`."""
        missing = np.full((len(self.seeds), self.config.eval_episodes), np.nan, np.float32)
        found = [
            EpisodeStatistics(e.episode_return[:, k], e.episode_length[:, k])
            if len(e.update) and e.update[k] == update
            else EpisodeStatistics(missing, missing)
            for e, update in zip(self.evaluations, updates)
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)
