"""What the pieces of a sweep leave, laid side by side: one result of settings x seeds, finished or on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.base import EnvSpec
from marl_kl.config import Config
from marl_kl.results import Evaluation, SweepFailure, SweepResult, Timing, first_nonfinite
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.training.search import Setting
from marl_kl.training.shards import Piece, without_nonfinite


class _Outcome(NamedTuple):
    """Of one run: metrics name -> [update, ...], `nonfinite` among them; evaluations [K, episode], None: not yet."""

    metrics: Mapping[str, np.ndarray]
    evaluation: Evaluation | None

    @property
    def num_updates(self) -> int:
        """Updates made."""
        return len(next(iter(self.metrics.values()), ()))


_NOTHING = _Outcome({}, None)


def result(
    spec: EnvSpec,
    algorithm: str,
    settings: Sequence[Setting],
    seeds: tuple[int, ...],
    found: Iterable[tuple[Piece, Snapshot]],
    timing: Timing,
    out: Path | None,
) -> SweepResult:
    """The sweep, as far as its pieces have come.

    Args:
        spec, algorithm, settings, seeds: what is swept.
        found: pieces, and where they stand; their runs may lack any.
        timing, out: of the result.
    """
    outcomes = {
        (run.setting, run.seed): outcome
        for piece, now in found
        for run, outcome in zip(piece.wanted, _one_by_one(now, piece.num_wanted))
    }
    table = [[outcomes.get((k, seed), _NOTHING) for seed in seeds] for k in range(len(settings))]
    configs = [setting.config for setting in settings]
    return SweepResult(
        spec=spec,
        algorithm=algorithm,
        config=configs[0],
        settings=tuple(setting.fields for setting in settings),
        seeds=seeds,
        env_steps=_env_steps(configs, table),
        metrics=_metrics(table),
        evaluations=tuple(map(_evaluation, configs, table)),
        failures=tuple(
            SweepFailure(k, seed, *first)
            for k, row in enumerate(table)
            for seed, outcome in zip(seeds, row)
            if outcome.metrics and (first := first_nonfinite(outcome.metrics["nonfinite"])) is not None
        ),
        timing=timing,
        out=out,
    )


def _one_by_one(now: Snapshot, num_runs: int) -> list[_Outcome]:
    """What each run of a piece has so far."""
    return [
        _Outcome({name: values[i] for name, values in now.metrics.items()}, _evaluation_of(now.evaluation, i))
        for i in range(num_runs)
    ]


def _evaluation_of(evaluation: Evaluation | None, run: int) -> Evaluation | None:
    if evaluation is None:
        return None
    return evaluation._replace(
        episode_return=evaluation.episode_return[run], episode_length=evaluation.episode_length[run]
    )


def _metrics(table: Sequence[Sequence[_Outcome]]) -> dict[str, np.ndarray]:
    """name -> [setting, seed, update, ...]; shorter runs end in NaN. `nonfinite` is left out: `failures` say it."""
    runs = [outcome for row in table for outcome in row]
    longest = max(runs, key=lambda outcome: outcome.num_updates)
    together = {}
    for name, values in without_nonfinite(longest.metrics).items():
        stacked = np.stack([_lengthened(run.metrics.get(name, values[:0]), len(values)) for run in runs])
        together[name] = stacked.reshape(len(table), -1, *stacked.shape[1:])
    return together


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
