"""The tables of a run folder: metrics, one row per seed and update, and evaluation episodes, one row each (those of the
absolute metric apart); and the curves of a sweep's folder, one row per setting, seed and update."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marl_kl.results import AGENT_METRICS, TEAM_METRICS, EpisodeStatistics, Evaluation
from marl_kl.storage.files import RunFolderError, append_to_file, one_line_error, write_file


class StoredMetrics(NamedTuple):
    """What `metrics.csv` holds.

    Attributes:
        seeds: S seeds.
        env_steps: [U] int64, env steps per seed after each update.
        values: name -> [S, U] or [S, U, N], float64.
        wall_time_s: [U] float64, or None in tables of older versions; see `TrainResult`.
    """

    seeds: tuple[int, ...]
    env_steps: np.ndarray
    values: dict[str, np.ndarray]
    wall_time_s: np.ndarray | None = None


ABSOLUTE = "absolute.csv"
"""The episodes of the absolute metric, if it has been measured (`marl-kl evaluate RUN --absolute`)."""


class StoredEvaluation(NamedTuple):
    """What `evaluation.csv` holds: S seeds, and episodes [S, K, episode]."""

    seeds: tuple[int, ...]
    evaluation: Evaluation


class TableWriter:
    """Writes `metrics.csv` and `evaluation.csv` while a run trains: whole at first, then only what is new.

    So a resumed run begins with tables that match its checkpoint, whatever a kill left in them.

    Args:
        out: the run folder.
        agents: N names.
        seeds: S seeds.
        batch_size: env steps per seed and update.
    """

    def __init__(self, out: Path, agents: Sequence[str], seeds: Sequence[int], batch_size: int):
        self._out, self._agents, self._seeds, self._batch_size = out, agents, seeds, batch_size
        self._written = (0, 0)

    def write(self, metrics: Mapping[str, np.ndarray], evaluation: Evaluation | None, wall_time_s: np.ndarray) -> None:
        """Brings the tables up to date.

        Args:
            metrics: name -> [S, U] or [S, U, N], all updates so far.
            evaluation: all evaluations so far.
            wall_time_s: [U].

        Raises:
            RunFolderError: a table cannot be written.
        """
        # until both tables are complete again, they count as not written at all
        (updates, evaluations), self._written = self._written, (0, 0)
        made = next(iter(metrics.values())).shape[1] if metrics else 0
        if made:
            env_steps = np.arange(1, made + 1, dtype=np.int64) * self._batch_size
            write_metrics(self._out, self._agents, self._seeds, env_steps, metrics, updates, wall_time_s)
        if evaluation is not None:
            write_evaluation(self._out, self._seeds, evaluation, evaluations)
        self._written = made, 0 if evaluation is None else len(evaluation.update)


def write_metrics(
    out: str | os.PathLike,
    agents: Sequence[str],
    seeds: Sequence[int],
    env_steps: np.ndarray,
    metrics: Mapping[str, np.ndarray],
    written: int = 0,
    wall_time_s: np.ndarray | None = None,
) -> None:
    """Writes `metrics.csv`: columns seed, update, env_steps, wall_time_s, one per team metric, one per agent's metric.

    Rows are sorted by update, so that new updates can be appended (version 0.1 sorted them by seed). An agent's column
    is called `kl[hip_1+ankle_1]`. Numbers are written with the fewest digits that read back as the same number of their
    own precision; NaN as `nan`.

    Args:
        out: the run folder.
        agents: N names.
        seeds: S seeds.
        env_steps: [U] env steps per seed after each update; `update` counts from 1, the updates made.
        metrics: name -> [S, U] or [S, U, N].
        written: how many updates the file already has; 0: it is written whole.
        wall_time_s: [U], see `TrainResult`; None: unknown, and no column.

    Raises:
        ValueError: an array has another shape.
        RunFolderError: the file cannot be written.
    """
    columns = metrics_table(agents, seeds, env_steps, metrics, written, wall_time_s)
    _write(Path(out) / "metrics.csv", columns, bool(written))


def metrics_table(
    agents: Sequence[str],
    seeds: Sequence[int],
    env_steps: np.ndarray,
    metrics: Mapping[str, np.ndarray],
    written: int = 0,
    wall_time_s: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The columns of `metrics.csv`, by name; arguments and errors as of `write_metrics`."""
    new = np.asarray(env_steps)[written:]
    columns = {
        "seed": np.tile(np.asarray(seeds), len(new)),
        "update": np.repeat(np.arange(written, len(env_steps)) + 1, len(seeds)),
        "env_steps": np.repeat(new, len(seeds)),
    }
    if wall_time_s is not None:
        columns["wall_time_s"] = np.repeat(wall_time_s[written:], len(seeds))
    of_metrics = metric_columns(agents, (len(seeds), len(env_steps)), metrics)
    return columns | {name: column[:, written:].T.reshape(-1) for name, column in of_metrics.items()}


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


def write_evaluation(out: str | os.PathLike, seeds: Sequence[int], evaluation: Evaluation, written: int = 0) -> None:
    """Writes `evaluation.csv`: seed, update, env_steps, episode, episode_return, episode_length; sorted by update.

    Args:
        out: the run folder.
        seeds: S seeds.
        evaluation: arrays as in `Evaluation`; `update` 0 is the untrained team.
        written: how many evaluations the file already has; 0: it is written whole.

    Raises:
        RunFolderError: the file cannot be written.
    """
    episodes = [
        np.swapaxes(values, 0, 1)[written:] for values in (evaluation.episode_return, evaluation.episode_length)
    ]
    index, seed, _ = np.indices(episodes[0].shape)
    when = (np.asarray(times)[written:][index] for times in (evaluation.update, evaluation.env_steps))
    columns = _episode_columns(np.asarray(seeds)[seed], *when, *episodes)
    _write(Path(out) / "evaluation.csv", columns, bool(written))


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
    seed, _ = np.indices(np.shape(episodes.episode_return))
    update = np.asarray(updates, np.int64)[seed]
    columns = _episode_columns(np.asarray(seeds)[seed], update, update * batch_size, *episodes)
    _write(Path(out) / ABSOLUTE, columns)


def _episode_columns(
    seed: np.ndarray, update: np.ndarray, env_steps: np.ndarray, episode_return: np.ndarray, episode_length: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of `evaluation.csv`, of arrays [..., episode]."""
    columns = {
        "seed": seed,
        "update": update,
        "env_steps": env_steps,
        "episode": np.indices(np.shape(seed))[-1],
        "episode_return": episode_return,
        "episode_length": episode_length,
    }
    return {name: np.reshape(values, -1) for name, values in columns.items()}


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
    _write(Path(out) / "curves.csv", columns | {name: values[kept] for name, values in of_team.items()})


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


def read_metrics(out: str | os.PathLike, agents: Sequence[str], is_finished: bool = True) -> StoredMetrics:
    """What `write_metrics` wrote.

    Args:
        out: the run folder.
        agents: N names, in the order in which their metrics are stacked.
        is_finished: whether the run is; if not, the last rows may be half written (by a process that runs, or was
            killed), and are left out.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    path = Path(out) / "metrics.csv"
    seeds, shape, columns = _by_seed(path, _columns(path, is_finished), 1, is_finished)
    names = [name for name in columns if name not in ("seed", "update", "env_steps", "wall_time_s")]
    values = {name: columns[name].reshape(shape) for name in names if not name.endswith("]")}
    for name in dict.fromkeys(name.split("[")[0] for name in names if name.endswith("]")):
        of_agents = [f"{name}[{agent}]" for agent in agents]
        if not set(of_agents) <= set(columns):
            raise RunFolderError(f"{path} is damaged: it lacks '{next(c for c in of_agents if c not in columns)}'")
        values[name] = np.stack([columns[column].reshape(shape) for column in of_agents], axis=-1)
    wall_time_s = columns["wall_time_s"].reshape(shape)[0] if "wall_time_s" in columns else None
    return StoredMetrics(seeds, columns["env_steps"].reshape(shape)[0].astype(np.int64), values, wall_time_s)


def read_evaluation(out: str | os.PathLike, is_finished: bool = True) -> StoredEvaluation:
    """What `write_evaluation` wrote; arguments and errors as in `read_metrics`."""
    path = Path(out) / "evaluation.csv"
    columns = _columns(path, is_finished)
    names = ("update", "env_steps", "episode_return", "episode_length")
    _refuse_without(path, columns, "episode", *names)
    if not len(columns["episode"]):
        raise RunFolderError(f"{path} is damaged: it has no rows")
    num_episodes = max(int(columns["episode"].max()) + 1, 1)
    seeds, shape, columns = _by_seed(path, columns, num_episodes, is_finished)
    update, env_steps, episode_return, episode_length = (columns[name].reshape(*shape, num_episodes) for name in names)
    times = (values[0, :, 0].astype(np.int64) for values in (update, env_steps))
    return StoredEvaluation(seeds, Evaluation(*times, episode_return, episode_length))


def _columns(path: Path, is_finished: bool = True) -> dict[str, np.ndarray]:
    """Name -> [rows] float64; without the last line if it lacks its end and the file is still being written."""
    with one_line_error("read", path):
        header, _, body = path.read_text(encoding="utf-8").partition("\n")
    body = body if is_finished else body[: body.rfind("\n") + 1]
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


def _by_seed(
    path: Path, columns: Mapping[str, np.ndarray], inner: int, is_finished: bool
) -> tuple[tuple[int, ...], tuple[int, int], dict[str, np.ndarray]]:
    """The seeds, the shape [seeds, rows per seed / inner], and the columns sorted by seed, whatever their order was."""
    _refuse_without(path, columns, "seed", "update", "env_steps")
    ranks = {seed: rank for rank, seed in enumerate(dict.fromkeys(map(int, columns["seed"])))}
    rows, surplus = divmod(len(columns["seed"]), max(1, len(ranks)) * inner)
    kept = slice(None) if is_finished else slice(rows * len(ranks) * inner)
    order = np.argsort([ranks[int(seed)] for seed in columns["seed"][kept]], kind="stable")
    columns = {name: column[kept][order] for name, column in columns.items()}
    seeds = tuple(ranks)
    if (surplus and is_finished) or not np.array_equal(columns["seed"], np.repeat(seeds, rows * inner)):
        raise RunFolderError(f"{path} is damaged: its seeds have different numbers of rows")
    return seeds, (len(seeds), rows), columns


def _write(path: Path, columns: Mapping[str, np.ndarray], is_appended: bool = False) -> None:
    """Writes a table, or appends its rows to the one that is there."""
    is_appended = is_appended and path.exists()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not is_appended:
        writer.writerow(columns)
    writer.writerows(zip(*(_texts(column) for column in columns.values())))
    (append_to_file if is_appended else write_file)(path, text.getvalue())


def _texts(column: np.ndarray) -> list[str]:
    # numpy's own conversion gives the shortest text that reads back exactly at the array's precision.
    if column.dtype == bool:
        column = column.astype(np.int32)
    elif column.dtype.kind not in "iuf" or column.dtype == np.float16:
        column = column.astype(np.float32)
    return column.astype("U").tolist()
