"""The tables of a run folder: metrics, one row per seed and update, and evaluation episodes, one row each (those of the
absolute metric apart); and the curves of a sweep's folder, one row per setting, seed and update."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marl_kl.results import AGENT_METRICS, TEAM_METRICS, EpisodeStatistics, Evaluation
from marl_kl.storage.files import RunFolderError, one_line_error, write_file


class StoredMetrics(NamedTuple):
    """What `metrics.csv` holds.

    Attributes:
        seeds: S seeds.
        env_steps: [U] int64, env steps per seed after each update.
        values: name -> [S, U] or [S, U, N], float64.
    """

    seeds: tuple[int, ...]
    env_steps: np.ndarray
    values: dict[str, np.ndarray]


ABSOLUTE = "absolute.csv"
"""The episodes of the absolute metric, if it has been measured (`marl-kl evaluate RUN --absolute`)."""


class StoredEvaluation(NamedTuple):
    """What `evaluation.csv` holds: S seeds, and episodes [S, K, episode]."""

    seeds: tuple[int, ...]
    evaluation: Evaluation


def write_metrics(
    out: str | os.PathLike,
    agents: Sequence[str],
    seeds: Sequence[int],
    env_steps: np.ndarray,
    metrics: Mapping[str, np.ndarray],
) -> None:
    """Writes `metrics.csv`: columns seed, update, env_steps, then one per team metric and one per agent's metric.

    An agent's column is called `kl[hip_1+ankle_1]`. TracedFields are written with the fewest digits that read back as
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


def write_absolute(
    out: str | os.PathLike, seeds: Sequence[int], updates: Sequence[int], batch_size: int, episodes: EpisodeStatistics
) -> None:
    """Writes `absolute.csv`, with the columns of `evaluation.csv`: the best teams' episodes of the absolute metric.

    Args:
        out: the run folder.
        seeds, updates: [S] which teams: each seed's best update.
        batch_size: env steps per update.
        episodes: [S, episode].
    """
    returns = np.asarray(episodes.episode_return)
    seed, episode = (index.reshape(-1) for index in np.indices(returns.shape))
    columns = {
        "seed": np.asarray(seeds)[seed],
        "update": np.asarray(updates, np.int64)[seed],
        "env_steps": np.asarray(updates, np.int64)[seed] * batch_size,
        "episode": episode,
        "episode_return": returns.reshape(-1),
        "episode_length": np.asarray(episodes.episode_length).reshape(-1),
    }
    write_file(Path(out) / ABSOLUTE, _as_csv(columns))


def read_absolute(out: str | os.PathLike) -> dict[int, np.ndarray]:
    """Seed -> [episode] returns of the absolute metric; empty where it was not measured.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = Path(out) / ABSOLUTE
    if not path.exists():
        return {}
    columns = _columns(path)
    _refuse_without(path, columns, "seed", "episode_return")
    seeds = columns["seed"].astype(np.int64)
    return {int(seed): columns["episode_return"][seeds == seed] for seed in np.unique(seeds)}


def write_curves(
    out: str | os.PathLike, seeds: Sequence[int], env_steps: np.ndarray, metrics: Mapping[str, np.ndarray]
) -> None:
    """Writes `curves.csv` of a sweep: setting, seed, update, env_steps, then one column per team metric.

    Args:
        out: the sweep's folder.
        seeds: S seeds.
        env_steps: [setting, U] after each update; a setting that is shorter than others repeats its last count, and
            what is repeated is left out.
        metrics: name -> [setting, S, U]; those of agents are left out.
    """
    env_steps = np.asarray(env_steps)
    num_settings, num_updates = env_steps.shape
    made = np.diff(env_steps, axis=1, prepend=0) > 0
    kept = np.broadcast_to(made[:, None], (num_settings, len(seeds), num_updates))
    setting, seed, update = np.nonzero(kept)
    columns = {
        "setting": setting,
        "seed": np.asarray(seeds)[seed],
        "update": update + 1,
        "env_steps": env_steps[setting, update],
    }
    of_team = {name: np.asarray(metrics[name]) for name in TEAM_METRICS if name in metrics}
    write_file(Path(out) / "curves.csv", _as_csv(columns | {name: values[kept] for name, values in of_team.items()}))


def read_curves(out: str | os.PathLike, seeds: Sequence[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What `write_curves` wrote: env steps [setting, U], and name -> [setting, S, U] in double precision, where
    settings with fewer updates than others end in NaN.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    path = Path(out) / "curves.csv"
    columns = _columns(path)
    try:
        setting, seed, update = (columns.pop(name).astype(np.int64) for name in ("setting", "seed", "update"))
        place = setting, np.array([seeds.index(number) for number in seed], np.int64), update - 1
        shape = (setting.max() + 1, len(seeds), update.max())
        curves = {}
        for name, values in columns.items():
            curves[name] = np.full(shape, np.nan)
            curves[name][place] = values
        env_steps = np.maximum.accumulate(np.nan_to_num(curves.pop("env_steps")[:, 0]), axis=1)
        return env_steps.astype(np.int64), curves
    except (ValueError, KeyError, IndexError) as error:
        raise RunFolderError(f"{path} is damaged: it does not hold the curves of the seeds {tuple(seeds)}") from error


def read_metrics(out: str | os.PathLike, agents: Sequence[str]) -> StoredMetrics:
    """What `write_metrics` wrote to the run folder `out`; metrics of each agent are stacked in the order of `agents`.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    path = Path(out) / "metrics.csv"
    columns = _columns(path)
    seeds, shape = _rectangle(path, columns, 1)
    names = [name for name in columns if name not in ("seed", "update", "env_steps")]
    values = {name: columns[name].reshape(shape) for name in names if not name.endswith("]")}
    for name in dict.fromkeys(name.split("[")[0] for name in names if name.endswith("]")):
        of_agents = [f"{name}[{agent}]" for agent in agents]
        if not set(of_agents) <= set(columns):
            raise RunFolderError(f"{path} is damaged: it lacks '{next(c for c in of_agents if c not in columns)}'")
        values[name] = np.stack([columns[column].reshape(shape) for column in of_agents], axis=-1)
    return StoredMetrics(seeds, columns["env_steps"].reshape(shape)[0].astype(np.int64), values)


def read_evaluation(out: str | os.PathLike) -> StoredEvaluation:
    """What `write_evaluation` wrote to the run folder `out`.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    path = Path(out) / "evaluation.csv"
    columns = _columns(path)
    names = ("update", "env_steps", "episode_return", "episode_length")
    _refuse_without(path, columns, "episode", *names)
    if not len(columns["episode"]):
        raise RunFolderError(f"{path} is damaged: it has no rows")
    num_episodes = max(int(columns["episode"].max()) + 1, 1)
    seeds, shape = _rectangle(path, columns, num_episodes)
    update, env_steps, episode_return, episode_length = (columns[name].reshape(*shape, num_episodes) for name in names)
    times = (values[0, :, 0].astype(np.int64) for values in (update, env_steps))
    return StoredEvaluation(seeds, Evaluation(*times, episode_return, episode_length))


def _columns(path: Path) -> dict[str, np.ndarray]:
    """Name -> [rows] float64."""
    with one_line_error("read", path):
        header, _, body = path.read_text().partition("\n")
    try:
        names = next(csv.reader([header]))
        rows = np.loadtxt(io.StringIO(body), delimiter=",", ndmin=2) if body.strip() else np.empty((0, len(names)))
        return dict(zip(names, rows.T, strict=True))
    except (ValueError, StopIteration) as error:
        raise RunFolderError(f"{path} is damaged: it is not a table of numbers under one line of names") from error


_WHOLE = ("seed", "update", "env_steps", "episode")


def _refuse_without(path: Path, columns: Mapping[str, np.ndarray], *names: str) -> None:
    """RunFolderError if a column is missing, or one that counts has other than numbers."""
    for name in names:
        if name not in columns:
            raise RunFolderError(f"{path} is damaged: it lacks '{name}'")
        if name in _WHOLE and not np.all(np.isfinite(columns[name])):
            raise RunFolderError(f"{path} is damaged: its '{name}' is not everywhere a number")


def _rectangle(path: Path, columns: Mapping[str, np.ndarray], inner: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The seeds, and the shape [seeds, rows per seed / inner] of a table whose seeds stand one below the other."""
    _refuse_without(path, columns, "seed", "update", "env_steps")
    seeds = tuple(dict.fromkeys(int(seed) for seed in columns["seed"]))
    rows, surplus = divmod(len(columns["seed"]), max(1, len(seeds)) * inner)
    if surplus or not np.array_equal(columns["seed"], np.repeat(seeds, rows * inner)):
        raise RunFolderError(f"{path} is damaged: its seeds have different numbers of rows")
    return seeds, (len(seeds), rows)


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
