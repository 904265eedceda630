"""The results of a sweep's shards combined into one, settings x seeds, whether they are finished or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.base import EnvSpec
from marl_kl.config import Config
from marl_kl.results import Evaluation, SweepResult, Timing
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.storage.shards import Setting, Shard


class _Outcome(NamedTuple):
    """Of one trial: metrics name -> [update, ...]; evaluations [K, episode], None before the first one."""

    metrics: Mapping[str, np.ndarray]
    evaluation: Evaluation | None

    @property
    def num_updates(self) -> int:
        """Updates made."""
        return len(next(iter(self.metrics.values()), ()))


_NOTHING = _Outcome({}, None)


def combine(
    spec: EnvSpec,
    algorithm: str,
    settings: Sequence[Setting],
    seeds: tuple[int, ...],
    results: Iterable[tuple[Shard, Snapshot]],
    timing: Timing,
    out: Path | None,
) -> SweepResult:
    """The sweep, as far as its shards have come.

    Args:
        spec, algorithm, settings, seeds: what is swept.
        results: shards and their snapshots; shards that have not begun may be missing.
        timing, out: of the result.
    """
    results = list(results)
    outcomes = {
        (trial.setting, trial.seed): _outcome(now, index)
        for shard, now in results
        for index, trial in enumerate(shard.trials)
    }
    table = [[outcomes.get((k, seed), _NOTHING) for seed in seeds] for k in range(len(settings))]
    configs = [setting.config for setting in settings]
    failures = (failure for _, now in results for failure in now.failures)
    return SweepResult(
        spec=spec,
        algorithm=algorithm,
        config=configs[0],
        settings=tuple(setting.fields for setting in settings),
        seeds=seeds,
        env_steps=_env_steps(configs, table),
        metrics=_metrics(table),
        evaluations=tuple(map(_evaluation, configs, table)),
        failures=tuple(sorted(failures, key=lambda failure: (failure.setting, seeds.index(failure.seed)))),
        timing=timing,
        out=out,
    )


def _outcome(now: Snapshot, index: int) -> _Outcome:
    """Of one trial of a shard."""
    evaluation = now.evaluation
    return _Outcome(
        {name: values[index] for name, values in now.metrics.items()},
        evaluation
        and evaluation._replace(
            episode_return=evaluation.episode_return[index], episode_length=evaluation.episode_length[index]
        ),
    )


def _metrics(table: Sequence[Sequence[_Outcome]]) -> dict[str, np.ndarray]:
    """name -> [setting, seed, update, ...]; shorter runs end in NaN."""
    runs = [outcome for row in table for outcome in row]
    longest = max(runs, key=lambda outcome: outcome.num_updates)
    stacked = {}
    for name, values in longest.metrics.items():
        values = np.stack([_lengthened(run.metrics.get(name, values[:0]), len(values)) for run in runs])
        stacked[name] = values.reshape(len(table), -1, *values.shape[1:])
    return stacked


def _evaluation(config: Config, row: Sequence[_Outcome]) -> Evaluation:
    """Of one setting: seeds that have not come as far as others end in NaN."""
    nothing = np.zeros((0, config.eval_episodes), np.float32)
    none = Evaluation(np.zeros(0, np.int64), np.zeros(0, np.int64), nothing, nothing)
    of_seeds = [outcome.evaluation or none for outcome in row]
    longest = max(of_seeds, key=lambda evaluation: len(evaluation.update))
    count = len(longest.update)
    episodes: dict[str, Any] = {
        name: np.stack([_lengthened(getattr(evaluation, name), count) for evaluation in of_seeds])
        for name in ("episode_return", "episode_length")
    }
    return longest._replace(**episodes)


def _lengthened(values: np.ndarray, length: int) -> np.ndarray:
    """Along the first axis, with NaN."""
    missing = length - len(values)
    if not missing:
        return values
    return np.concatenate([values, np.full((missing, *values.shape[1:]), np.nan, np.float32)])


def _env_steps(configs: Sequence[Config], table: Sequence[Sequence[_Outcome]]) -> np.ndarray:
    """[setting, update] int64; where a setting has no more updates, its last count."""
    made = [max(outcome.num_updates for outcome in row) for row in table]
    counts = np.arange(max(made), dtype=np.int64) + 1
    return np.stack([np.minimum(counts, updates) * config.batch_size for updates, config in zip(made, configs)])
