"""The run folder: what a run leaves on disk, and writing it so that no file is ever half there.

    run.json          what was run: environment, algorithm, config, seeds, versions, device, status
    metrics.csv       one row per seed and update
    evaluation.csv    one row per evaluation episode
    learner/<update>  orbax checkpoints of the learner, the last two
    *.png, summary.md what `marl_kl.reporting` makes of them

Every file is written under a temporary name in its own folder, synced and renamed. Whatever goes wrong with a
folder is a `RunFolderError` whose message is one sentence that names the path.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import hashlib
import importlib.metadata
import io
import itertools
import json
import logging
import math
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

import jax
import numpy as np

from envs.types import EnvSpec
from marl_kl.config import Config
from marl_kl.results import AGENT_METRICS, TEAM_METRICS, Evaluation, Failure

FORMAT = 1
"""The version of the layout above; a folder with a larger one is refused."""

STATUSES = ("running", "finished", "interrupted", "failed")

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "orbax-checkpoint")
_TEMPORARY = ".tmp-"
_CHECKPOINTS_KEPT = 2


class RunFolderError(OSError, ValueError):
    """A run folder cannot be used as asked; the message is one sentence and names the path."""


class RunExistsError(RunFolderError, FileExistsError):
    """The path is taken."""


class RunRecord(NamedTuple):
    """What `run.json` says.

    Attributes:
        spec: the environment's static description.
        algorithm: the algorithm's name.
        config: the resolved config.
        seeds: the seeds, in the order of every seed axis.
        status: one of `STATUSES`.
        failures: one entry per seed that met a non-finite number.
        document: the whole file, versions and device included.
    """

    spec: EnvSpec
    algorithm: str
    config: Config
    seeds: tuple[int, ...]
    status: str
    failures: tuple[Failure, ...]
    document: dict[str, Any]


# run.json


def record(spec: EnvSpec, algorithm: str, config: Config, seeds: Sequence[int]) -> dict[str, Any]:
    """The content of a new run's `run.json`: what is run, on which versions and devices, since when."""
    from marl_kl import __version__  # the package is complete only after this module

    devices = jax.devices()
    packages = {name: _version(name) for name in _PACKAGES}
    return {
        "format": FORMAT,
        "program": "marl_kl",
        "status": "running",
        "started": _now(),
        "ended": None,
        "algorithm": algorithm,
        "seeds": [int(seed) for seed in seeds],
        "env": _jsonable(dataclasses.asdict(spec)),
        "config_class": type(config).__name__,
        "config": _jsonable({f.name: getattr(config, f.name) for f in dataclasses.fields(config)}),
        "failures": [],
        "versions": {"marl_kl": __version__, "python": platform.python_version(), **packages},
        "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
    }


def create(out: str | os.PathLike, record: Mapping[str, Any]) -> Path:
    """Makes the folder `out` (parents too) and writes `record` as its `run.json`.

    Nothing is compiled for it, so it can be the first thing that a run does. An empty folder is taken as it is.

    Raises:
        RunExistsError: `out` already holds a run, is a file, or is a folder with other content.
        RunFolderError: it cannot be written.
    """
    out = Path(out)
    with _one_sentence("create", out):
        _refuse_if_taken(out)
        is_new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
    try:
        write_file(out / "run.json", _as_json(record))
    except RunFolderError:
        if is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise
    return out


def set_status(out: str | os.PathLike, status: str, failures: Iterable[Failure] = ()) -> None:
    """Notes in `run.json` how the run stands, and the time if it has ended.

    Args:
        out: the run folder.
        status: one of `STATUSES`.
        failures: the seeds that met a non-finite number.
    """
    if status not in STATUSES:
        raise ValueError(f"status={status!r}; it must be one of {', '.join(STATUSES)}")
    document = _read_document(Path(out))
    document["status"] = status
    document["failures"] = [failure._asdict() for failure in failures]
    document["ended"] = None if status == "running" else _now()
    write_file(Path(out) / "run.json", _as_json(_jsonable(document)))


def read_record(out: str | os.PathLike) -> RunRecord:
    """What was run in the folder `out`.

    Raises:
        RunFolderError: no such folder, no run in it, a damaged `run.json`, or one of a newer format.
    """
    path = Path(out) / "run.json"
    document = _read_document(Path(out))
    try:
        spec = EnvSpec(**{name: _tuples(value) for name, value in document["env"].items()})
        config = _config_class(document["config_class"])(**document["config"])
        failures = tuple(Failure(**failure) for failure in document["failures"])
        return RunRecord(
            spec, document["algorithm"], config, tuple(document["seeds"]), document["status"], failures, document
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise RunFolderError(f"{path} does not describe a run that this version can read: {reason}") from error


def _refuse_if_taken(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise RunExistsError(f"out={str(out)!r} is a file; it must be a new or empty folder")
    if (out / "run.json").exists():
        raise RunExistsError(f"out={str(out)!r} already holds another run; choose a new folder or delete that one")
    content = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(_TEMPORARY))
    if content:
        raise RunExistsError(f"out={str(out)!r} is not empty (it holds '{content[0]}'); choose a new folder")


def _read_document(out: Path) -> dict[str, Any]:
    path = out / "run.json"
    with _one_sentence("read", path):
        if not out.exists():
            raise RunFolderError(f"there is no run folder {str(out)!r}")
        if not path.exists():
            raise RunFolderError(f"{str(out)!r} is not a run folder: it has no run.json")
        content = path.read_bytes()
    try:
        document = json.loads(content)
    except ValueError as error:
        raise RunFolderError(f"{path} is truncated or damaged: {error}") from error
    if not isinstance(document, dict) or document.get("program") != "marl_kl":
        raise RunFolderError(f"{path} was not written by marl_kl")
    version = document.get("format")
    if not isinstance(version, int):
        raise RunFolderError(f"{path} is damaged: its format is {version!r}, not a whole number")
    if version > FORMAT:
        raise RunFolderError(
            f"{path} was written by a newer marl_kl (format {version}; this one reads up to {FORMAT})"
        )
    return document


def _config_class(name: str) -> type[Config]:
    # Algorithms may bring their own config class; importing them makes it a known subclass.
    from marl_kl import algorithms  # noqa: F401

    known = {Config.__name__: Config}
    waiting = [Config]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        known.update({kind.__name__: kind for kind in subclasses})
        waiting.extend(subclasses)
    if name not in known:
        raise ValueError(f"config class '{name}' is unknown; known: {', '.join(sorted(known))}")
    return known[name]


def _jsonable(value):
    """`value` in JSON's types; non-finite numbers, which JSON lacks, become strings that `float` reads."""
    if isinstance(value, Mapping):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_jsonable(item) for item in value]
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return _jsonable(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# Metrics


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
    known_order = [*TEAM_METRICS, *AGENT_METRICS]
    ranks = {name: rank for rank, name in enumerate(known_order)}
    arrays = {name: np.asarray(value) for name, value in metrics.items()}
    ordered = sorted(arrays, key=lambda name: (arrays[name].ndim, ranks.get(name, len(ranks)), name))
    for name in ordered:
        if arrays[name].shape == shape:
            columns[name] = arrays[name].reshape(-1)
        elif arrays[name].shape == (*shape, len(agents)):
            columns.update({f"{name}[{agent}]": arrays[name][..., i].reshape(-1) for i, agent in enumerate(agents)})
        else:
            raise ValueError(
                f"metric '{name}' has shape {arrays[name].shape}; it must be {shape} or {(*shape, len(agents))}"
            )
    write_file(Path(out) / "metrics.csv", _as_csv(columns))


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


# The learner


def save_learner(out: str | os.PathLike, learner: Any, update: int) -> None:
    """Stores the learner as it is after `update` updates; the last two checkpoints are kept.

    The tree is stored flat, by the path of each leaf, so that it does not matter which containers
    (NamedTuples, dataclasses, dicts) it is made of. A checkpoint counts once its checksums are on disk, which
    is the last thing written.

    Args:
        out: the run folder.
        learner: a pytree of arrays on any device; typed PRNG keys are allowed.
        update: number of updates made.

    Raises:
        RunFolderError: it cannot be written.
    """
    import orbax.checkpoint as ocp

    folder = Path(out).absolute() / "learner"
    target = folder / str(int(update))
    # Orbax does not store arrays without elements; their shape is all there is to them, and the template has it.
    leaves = {name: leaf for name, leaf in _host_leaves(learner).items() if leaf.size}
    with _one_sentence("write", target):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_checkpoint(target)
        try:
            with _quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(target, leaves)
        except ValueError as error:
            for leftover in folder.glob(f"{target.name}.orbax*"):
                shutil.rmtree(leftover, ignore_errors=True)
            raise _as_os_error(error) from error
        write_file(_checksum_file(target), json.dumps(_checksums(target), indent=1) + "\n")
        for old in _checkpoints(folder)[:-_CHECKPOINTS_KEPT]:
            _remove_checkpoint(old)


def load_learner(out: str | os.PathLike, template: Any = None) -> tuple[Any, int]:
    """The newest stored learner and the number of updates that had been made.

    Args:
        out: the run folder.
        template: a pytree of arrays or `jax.ShapeDtypeStruct`s (from `jax.eval_shape`, say) like the one that was
            saved; None returns a flat dict from leaf path (`actors.params.Dense_0.kernel`) to array.

    Returns:
        `(learner, update)`: numpy arrays in the structure of `template` (typed PRNG keys are jax arrays); no device
        of the run that saved it is needed.

    Raises:
        RunFolderError: there is no checkpoint, it is damaged, or it does not fit the template.
    """
    import orbax.checkpoint as ocp

    folder = Path(out).absolute() / "learner"
    with _one_sentence("read", folder):
        stored = _checkpoints(folder)
    if not stored:
        raise RunFolderError(f"there is no stored learner in {str(out)!r}")
    newest = stored[-1]
    with _one_sentence("read", newest):
        # Checked before orbax reads: a damaged array would otherwise also print its threads' tracebacks.
        _verify(newest)
        try:
            with _quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
                leaves = checkpointer.restore(newest)
        except (ValueError, KeyError) as error:
            raise RunFolderError(f"the checkpoint {newest} is damaged: {_first_line(error)}") from error
    leaves = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    return (leaves if template is None else _fill(template, leaves, newest)), int(newest.name)


def _host_leaves(tree: Any) -> dict[str, np.ndarray]:
    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = _leaf_name(path)
        if name in leaves:
            raise ValueError(f"two leaves of the learner have the path '{name}'")
        leaves[name] = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return leaves


def _leaf_name(path) -> str:
    # A bare array is a tree whose only leaf has an empty path.
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _fill(template: Any, leaves: dict[str, np.ndarray], source: Path) -> Any:
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {_leaf_name(path): leaf for path, leaf in paths}
    surplus = sorted(set(leaves) - set(wanted))
    if surplus:
        raise RunFolderError(f"the checkpoint {source} holds '{surplus[0]}', which the learner does not have")
    return jax.tree_util.tree_unflatten(
        structure, [_fill_leaf(name, leaf, leaves, source) for name, leaf in wanted.items()]
    )


def _fill_leaf(name: str, wanted, leaves: dict[str, np.ndarray], source: Path):
    shape = jax.eval_shape(jax.random.key_data, wanted) if _is_key(wanted) else jax.eval_shape(lambda x: x, wanted)
    if 0 in shape.shape:
        return np.zeros(shape.shape, shape.dtype)
    if name not in leaves:
        raise RunFolderError(f"the checkpoint {source} lacks '{name}' of the learner")
    found = leaves[name]
    if found.shape != shape.shape:
        raise RunFolderError(
            f"the checkpoint {source} holds '{name}' with shape {found.shape}; the learner needs {shape.shape}"
        )
    if found.dtype != shape.dtype:
        raise RunFolderError(
            f"the checkpoint {source} holds '{name}' as {found.dtype}; the learner needs {shape.dtype}"
        )
    return jax.random.wrap_key_data(found, impl=_key_impl(wanted)) if _is_key(wanted) else found


def _key_impl(key) -> Any:
    # `key_impl` refuses a ShapeDtypeStruct, but not the tracer of one.
    found = []
    jax.eval_shape(lambda traced: found.append(jax.random.key_impl(traced)), key)
    return found[0]


def _checkpoints(folder: Path) -> list[Path]:
    """The complete ones, oldest first."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.name.isdigit() and _checksum_file(entry).exists()]
    return sorted(found, key=lambda entry: int(entry.name))


def _checksum_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".sha256.json")


def _checksums(checkpoint: Path) -> dict[str, str]:
    files = sorted(entry for entry in checkpoint.rglob("*") if entry.is_file())
    return {str(file.relative_to(checkpoint).as_posix()): _sha256(file) for file in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(checkpoint: Path) -> None:
    try:
        expected = json.loads(_checksum_file(checkpoint).read_bytes())
    except ValueError as error:
        raise RunFolderError(f"the checkpoint {checkpoint} is damaged: its checksums are unreadable") from error
    found = _checksums(checkpoint)
    for name, checksum in expected.items():
        if found.get(name) != checksum:
            state = "has changed since it was written" if name in found else "is missing"
            raise RunFolderError(f"the checkpoint {checkpoint} is damaged: its file {name} {state}")


@contextlib.contextmanager
def _quiet_orbax():
    # It logs the traceback of each of its threads before it raises the same error.
    logger = logging.getLogger("absl")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def _as_os_error(error: ValueError) -> OSError:
    # The storage library reports a full disk, say, as a ValueError that quotes the system's error code.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(_first_line(error))


def _remove_checkpoint(checkpoint: Path) -> None:
    # The checksums go first: without them the rest no longer counts as a checkpoint.
    _checksum_file(checkpoint).unlink(missing_ok=True)
    if checkpoint.exists():
        shutil.rmtree(checkpoint)


# Writing


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes `content` to `path`: the whole file appears there, or what was there stays.

    Raises:
        RunFolderError: the disk is full, the folder is missing or read-only, ...
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}")
    with _one_sentence("write", path):
        try:
            _write_synced(temporary, data)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # Makes the rename itself survive a power cut; not every file system lets a folder be synced.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _one_sentence(action: str, path: Path):
    try:
        yield
    except RunFolderError:
        raise
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise RunFolderError(f"cannot {action} {path}: {reason[:1].lower()}{reason[1:]}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
