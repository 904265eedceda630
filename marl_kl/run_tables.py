"""The two tables of a run folder: metrics, one row per seed and update, and evaluation episodes, one row each."""

from __future__ import annotations

import csv
import io
import itertools
import os
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from marl_kl.files import write_file
from marl_kl.results import AGENT_METRICS, TEAM_METRICS, Evaluation


def write_metrics(
    out: str | os.PathLike,
    agents: Sequence[str],
    seeds: Sequence[int],
    env_steps: np.ndarray,
    metrics: Mapping[str, np.ndarray],
) -> None:
    """Writes `metrics.csv`: columns seed, update, env_steps, then one per team metric and one per agent's metric.

    An agent's column is called `kl[hip_1+ankle_1]`. Numbers are written with the fewest digits that read back as
    the same number of their own precision; NaN as `nan`. An existing file is replaced whole.

    Args:
        out: the run folder.
        agents: N names.
        seeds: S seeds.
        env_steps: [U] env steps per seed after each update; `update` counts from 1, the updates made.
        metrics: name -> [S, U] or [S, U, N].

    Raises:
        ValueError: an array has another shape.
        RunFolderError: the file cannot be written.
    """
    env_steps = np.asarray(env_steps)
    shape = (len(seeds), len(env_steps))
    columns = {
        "seed": np.repeat(np.asarray(seeds), shape[1]),
        "update": np.tile(np.arange(1, shape[1] + 1), shape[0]),
        "env_steps": np.tile(env_steps, shape[0]),
    }
    columns |= {name: column.reshape(-1) for name, column in metric_columns(agents, shape, metrics).items()}
    write_file(Path(out) / "metrics.csv", _as_csv(columns))


def metric_columns(
    agents: Sequence[str], shape: tuple[int, int], metrics: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Metrics as columns [S, U], in one order whatever the order of `metrics`: the team's, then each agent's.

    Args:
        agents: N names; an agent's column is called `kl[hip_1+ankle_1]`.
        shape: (S, U).
        metrics: name -> [S, U] or [S, U, N].

    Raises:
        ValueError: an array has another shape.
    """
    known_order = [*TEAM_METRICS, *AGENT_METRICS]
    ranks = {name: rank for rank, name in enumerate(known_order)}
    arrays = {name: np.asarray(value) for name, value in metrics.items()}
    columns = {}
    for name in sorted(arrays, key=lambda name: (arrays[name].ndim, ranks.get(name, len(ranks)), name)):
        if arrays[name].shape == shape:
            columns[name] = arrays[name]
        elif arrays[name].shape == (*shape, len(agents)):
            columns.update({f"{name}[{agent}]": arrays[name][..., i] for i, agent in enumerate(agents)})
        else:
            raise ValueError(
                f"metric '{name}' has shape {arrays[name].shape}; it must be {shape} or {(*shape, len(agents))}"
            )
    return columns


def write_evaluation(out: str | os.PathLike, seeds: Sequence[int], evaluation: Evaluation) -> None:
    """Writes `evaluation.csv`: seed, update, env_steps, episode, episode_return, episode_length.

    Args:
        out: the run folder.
        seeds: S seeds.
        evaluation: arrays as in `Evaluation`; `update` 0 is the untrained team.
    """
    returns = np.asarray(evaluation.episode_return)
    seed, evaluated, episode = (index.reshape(-1) for index in np.indices(returns.shape))
    columns = {
        "seed": np.asarray(seeds)[seed],
        "update": np.asarray(evaluation.update)[evaluated],
        "env_steps": np.asarray(evaluation.env_steps)[evaluated],
        "episode": episode,
        "episode_return": returns.reshape(-1),
        "episode_length": np.asarray(evaluation.episode_length).reshape(-1),
    }
    write_file(Path(out) / "evaluation.csv", _as_csv(columns))


def _as_csv(columns: Mapping[str, np.ndarray]) -> str:
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(columns)
    rows = map(",".join, zip(*(_texts(column) for column in columns.values())))
    return header.getvalue() + "".join(itertools.chain.from_iterable((row, "\n") for row in rows))


def _texts(column: np.ndarray) -> list[str]:
    # numpy's own conversion gives the shortest text that reads back exactly at the array's precision.
    if column.dtype == bool:
        column = column.astype(np.int32)
    elif column.dtype.kind not in "iuf" or column.dtype == np.float16:
        column = column.astype(np.float32)
    return column.astype("U").tolist()
