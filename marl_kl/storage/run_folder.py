"""The run folder: what a run leaves on disk, its record and its lock.

    run.json          what was run: environment, algorithm, config, seeds, versions, device, status
    config.toml       the same run again: `marl_kl.training.run_file`
    metrics.csv       one row per seed and update
    evaluation.csv    one row per evaluation episode
    absolute.csv      those of the absolute metric, once `marl-kl evaluate RUN --absolute` has measured it
    log.jsonl         the same while the run runs, a line per update and seed: `marl_kl.training.loggers`
    checkpoints/      what is needed to resume, learner included: `marl_kl.storage.checkpoints`
    *.png, summary.md what `marl_kl.analysis.reporting` makes of them
    .lock             locked by the process that trains; left behind unlocked

The two tables (`marl_kl.storage.run_tables`) are copies of what the checkpoints hold, written after them; new rows are
appended. Every other file is written whole (`marl_kl.storage.files`). Whatever is wrong with a folder raises a
`RunFolderError`, whose message is one line and names the path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from envs.base import EnvSpec
from envs.validation import first_line, imported, is_path
from marl_kl.config import SCHEDULE, Config, free_schedule
from marl_kl.results import Failure, SweepFailure, Timing
from marl_kl.storage.files import TEMPORARY, RunFolderError, one_line_error, remove_leftovers, write_file

_TRUST_REGION_0_1 = {"line_search": "geometric"}
"""What version 0.1 did where it had no field yet and the default is another now."""

FORMAT = 2
"""The version of the layout above; a folder with a larger one is refused."""

RUN, SWEEP = "run.json", "sweep.json"
"""What a folder's record is called: that of a run, and that of a sweep (`marl_kl.training`)."""

STATUSES = ("running", "finished", "interrupted", "failed")

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "orbax-checkpoint")
_LOCK = ".lock"


class RunExistsError(RunFolderError, FileExistsError):
    """The path is taken."""


class RunWarning(UserWarning):
    """Something about a run folder is not as it should be, but the run continues; the message is one line."""


class RunRecord(NamedTuple):
    """The content of `run.json`.

    Attributes:
        spec: the environment's static description.
        algorithm: the algorithm's name.
        config: the resolved config.
        seeds: the seeds, in the order of every seed axis.
        status: one of `STATUSES`.
        failures: one entry per seed (in a sweep: setting and seed) that met a non-finite number.
        document: the whole file, versions and device included.
    """

    spec: EnvSpec
    algorithm: str
    config: Config
    seeds: tuple[int, ...]
    status: str
    failures: tuple[Failure | SweepFailure, ...]
    document: dict[str, Any]


# run.json


def record(
    spec: EnvSpec, algorithm: str, config: Config, seeds: Sequence[int], env_params: str | None = None, **more
) -> dict[str, Any]:
    """The content of a new run's `run.json`: what is run, on which versions and devices, since when.

    `env_params` is what `checkpoints.digest` makes of the environment's params; `more` is what a sweep adds.
    """
    from marl_kl import __version__  # this module may be a part of that import

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
        "env_params": env_params,
        "config_class": type(config).__name__,
        "config": _jsonable({f.name: getattr(config, f.name) for f in dataclasses.fields(config)}),
        "failures": [],
        "versions": {"marl_kl": __version__, "python": platform.python_version(), **packages},
        "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        **_jsonable(more),
    }


def fingerprint(document: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a `run.json` that identifies the run: all that its results depend on.

    Of a `sweep.json` also the length of its runs, its settings, and `runs_at_once`.
    """
    config = document["config"]
    free = free_schedule(config)
    # those of SCHEDULE last: they matter less if another field differs as well
    names = sorted((name for name in config if name not in free), key=SCHEDULE.__contains__)
    of_run = {
        **{name: document[name] for name in ("algorithm", "config_class", "seeds", "env_params") if name in document},
        "config": {name: config[name] for name in names},
        "env": env_identity(document["env"]),
    }
    if "settings" not in document:
        return of_run
    return of_run | {
        "total_env_steps": config["total_env_steps"],
        "eval_interval": config["eval_interval"],
        "number of settings": len(document["settings"]),
        "settings": {str(index): fields for index, fields in enumerate(document["settings"])},
        "runs_at_once": document.get("runs_at_once"),
    }


def stable_id(out: Path, fingerprint: Mapping[str, Any], name: str = RUN) -> str:
    """A unique id of the run (or sweep) in `out`, the same when it is resumed."""
    started = _read_document(out, name)["started"]
    content = json.dumps([out.absolute().name, started, fingerprint], default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def env_identity(env: Mapping[str, Any]) -> dict[str, Any]:
    """Of an `EnvSpec` as a dict, what the environment is, without how it is made and compiled."""
    how_made = ("options", "cpu_compiler_options")
    what_it_is = {name: value for name, value in _jsonable(env).items() if name not in how_made}
    return {**what_it_is, "metadata": dict(what_it_is["metadata"])}


def first_mismatch(stored: Any, wanted: Any, name: str = "") -> str | None:
    """The first entry that `stored` and `wanted` have otherwise, as text; None if they agree.

    Entries that `stored` lacks do not count: the version that wrote it did not know them.
    """
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        prefix = f"{name}." if name else ""
        found = (first_mismatch(value, wanted.get(key), f"{prefix}{key}") for key, value in stored.items())
        return next((text for text in found if text), None)
    return None if stored == wanted else f"{name} is {stored!r} there and {wanted!r} here"


@contextlib.contextmanager
def lock_folder(out: str | os.PathLike, new: Mapping[str, Any] | None, name: str = RUN) -> Iterator[Path]:
    """Locks the run folder `out`: no other process trains in it until the context ends.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        out: the folder; for a new run it may be missing (parents too) or empty.
        new: the `run.json` of a new run (see `record`), which is written; None: the folder holds a run already.
        name: `RUN`, or `SWEEP`.

    Raises:
        RunExistsError: a new run's `out` already holds a run, is a file, or is a folder with other content.
        RunFolderError: another process holds it, or it cannot be written.
    """
    out = Path(out)
    if new is not None:
        _refuse_if_taken(out)
    is_made = not out.exists()
    with one_line_error("create", out):
        out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        remove_leftovers(out)
        if new is not None:
            _begin(out, new, is_made, name)
        yield out


def _begin(out: Path, new: Mapping[str, Any], is_made: bool, name: str) -> None:
    _refuse_if_taken(out)
    try:
        write_file(out / name, _as_json(_jsonable(new)))
    except RunFolderError:
        if is_made:
            shutil.rmtree(out, ignore_errors=True)
        raise


def holds_run(out: str | os.PathLike, name: str = RUN) -> bool:
    """Whether there is a `run.json` (or `name`), readable or not."""
    with one_line_error("read", Path(out)):
        return (Path(out) / name).exists()


def is_sweep(out: str | os.PathLike) -> bool:
    """Whether the folder holds a sweep, and no run."""
    return not holds_run(out) and holds_run(out, SWEEP)


def same_record(out: Path, document: Mapping[str, Any], name: str = RUN) -> dict[str, Any]:
    """The record in `out`, which must be that of the same run or sweep.

    Args:
        out: the folder.
        document: the `record` of this call.
        name: `RUN`, or `SWEEP`.

    Raises:
        RunFolderError: it cannot be read, or is another one's; the message names the first difference.
    """
    stored = read_record(out, name).document
    other = first_mismatch(*map(fingerprint, (stored, document)))
    if other:
        what = "another sweep" if name == SWEEP else "another run"
        advice = "" if name == SWEEP else _ADVICE.get(other.split()[0], "")
        raise RunFolderError(f"out={str(out)!r} holds {what}: {other}{advice}")
    return stored


_ADVICE = {
    "seeds": "; train other seeds into another folder: marl-kl compare pools the seeds of both",
    "config.total_env_steps": "; with anneal_lr the learning rate is 0 at the end of the run: train a new, longer one",
}
"""What to do instead of resuming a run with another value of these."""


def record_resume(out: str | os.PathLike, document: Mapping[str, Any], update: int | None, name: str = RUN) -> None:
    """Records that the run or sweep resumes; a `RunWarning` if other hardware or versions may round differently.

    Args:
        out: the folder.
        document: the `record` of this call: this process's versions and device, and a schedule (see
            `marl_kl.config.free_schedule`) that may be a new one.
        update: updates already made; None in a sweep, whose runs have made different ones.
        name: `RUN`, or `SWEEP`.
    """
    stored = _read_document(Path(out), name)
    _warn_of_other_hardware(stored, document)
    here = {"time": _now(), "update": update, "versions": document["versions"], "device": document["device"]}
    changed = {"format": FORMAT, "status": "running", "ended": None, "config": document["config"]}
    update_record(out, name, **changed, resumed=[*stored.get("resumed", ()), here])


@contextlib.contextmanager
def status_recorded(out: Path | None, name: str = RUN) -> Iterator[dict[str, Any]]:
    """Records how the context ended: finished, interrupted (Ctrl-C) or failed.

    Args:
        out: the folder; None: nothing is recorded.
        name: `RUN`, or `SWEEP`.

    Yields:
        A dict for further arguments of `set_status`, known at the end only.
    """
    entries: dict[str, Any] = {}
    status = "failed"
    try:
        yield entries
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if out is not None:
            set_status(out, status, name=name, **entries)


def update_record(out: str | os.PathLike, name: str, **entries) -> None:
    """Replaces `entries` in `run.json` (or in `sweep.json`, as `name`)."""
    write_file(Path(out) / name, _as_json(_jsonable({**_read_document(Path(out), name), **entries})))


def _warn_of_other_hardware(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before = last_session(stored)
    other = first_mismatch(*({"versions": d["versions"], "device": d["device"]} for d in (before, now)))
    if other:
        message = f"resuming, but perhaps not bit for bit: {other.replace(' there and ', ' before and ')}"
        warnings.warn(message.removesuffix(" here") + " now", RunWarning, stacklevel=4)


def sessions(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries in `run.json` of each process that trained, oldest first: `versions` and `device`."""
    return [document, *document.get("resumed", ())]


def last_session(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last one of `sessions`."""
    return sessions(document)[-1]


def set_status(
    out: str | os.PathLike, status: str, failures: Iterable[Failure] = (), name: str = RUN, timing: Timing | None = None
) -> None:
    """Records the status in `run.json`, and the time if the run has ended.

    Args:
        out: the run folder.
        status: one of `STATUSES`.
        failures: the seeds that met a non-finite number (in a sweep: `SweepFailure`s).
        name: `RUN`, or `SWEEP`.
        timing: of a sweep; that of a run is in its checkpoints.
    """
    if status not in STATUSES:
        raise ValueError(f"status={status!r}; it must be one of {', '.join(STATUSES)}")
    entries = {"status": status, "failures": [failure._asdict() for failure in failures]}
    if _read_document(Path(out), name)["status"] != status:
        entries["ended"] = None if status == "running" else _now()
    if timing is not None:
        entries["timing"] = timing._asdict()
    update_record(out, name, **entries)


def read_record(out: str | os.PathLike, name: str = RUN) -> RunRecord:
    """What was run in the folder `out`; with `SWEEP`, what was swept: the config is then that of its first setting.

    Raises:
        RunFolderError: no such folder, no run in it, a damaged `run.json`, or one of a newer format.
    """
    path = Path(out) / name
    document = _read_document(Path(out), name)
    failure_class = Failure if name == RUN else SweepFailure
    try:
        _refuse_other_kinds(document, name)
        spec = EnvSpec(**{name: _tuples(value) for name, value in document["env"].items()})
        config = _config_class(document)(**document["config"])
        failures = tuple(failure_class(**failure) for failure in document["failures"])
        fingerprint(document)
        return RunRecord(
            spec, document["algorithm"], config, tuple(document["seeds"]), document["status"], failures, document
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise RunFolderError(f"{path} does not describe a run that this version can read: {reason}") from error


_KINDS = {
    "status": "str", "started": "str", "algorithm": "str", "config_class": "str", "seeds": "[int]",
    "failures": "[dict]", "env": "dict", "config": "dict", "versions": "dict", "device": "dict", "resumed": "[dict]",
    "settings": "[dict]", "sizes": "dict", "timing": "dict",
}  # fmt: skip
"""Of what kind the entries of a record are that are not looked at by the classes that are made of them."""

_ENV_KINDS = {
    "name": "str", "agents": "[str]", "observation_sizes": "[int]", "action_sizes": "[int]", "state_size": "int",
    "episode_length": "int", "team_reward": "bool", "metadata": "[list]",
}  # fmt: skip


_DEVICE_KINDS = {"kind": "str", "platform": "str", "count": "int"}


def _refuse_other_kinds(document: Mapping[str, Any], name: str) -> None:
    """ValueError if what readers rely on is something else; KeyError where it is missing."""
    needed = ("status", "started", "seeds", "env", *(("settings",) if name == SWEEP else ()))
    _check_kinds({name: document[name] for name in needed} | dict(document), _KINDS, "")
    _check_kinds(document["env"], _ENV_KINDS, "env.")
    for number, session in enumerate(sessions(document)):
        where = f"resumed[{number - 1}]." if number else ""
        _check_kinds({name: session[name] for name in ("versions", "device")}, _KINDS, where)
        device = {name: session["device"][name] for name in _DEVICE_KINDS}
        _check_kinds(device, _DEVICE_KINDS, f"{where}device.")
    if not document["seeds"] or len(set(document["seeds"])) < len(document["seeds"]):
        raise ValueError(f"seeds is {document['seeds']!r}")
    if document["status"] not in STATUSES:
        raise ValueError(f"status is {document['status']!r}, which is none of {', '.join(STATUSES)}")


def _check_kinds(entries: Mapping[str, Any], kinds: Mapping[str, str], where: str) -> None:
    for name, kind in kinds.items():
        items = [] if name not in entries else entries[name] if kind[0] == "[" else [entries[name]]
        if not isinstance(items, list) or not all(type(item).__name__ == kind.strip("[]") for item in items):
            raise ValueError(f"{where}{name} is {str(entries[name])[:80]!r}")


def _refuse_if_taken(out: Path) -> None:
    with one_line_error("read", out):
        _check_not_taken(out)


def _check_not_taken(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise RunExistsError(f"out={str(out)!r} is a file; it must be a new or empty folder")
    for name, what in ((RUN, "another run"), (SWEEP, "another sweep")):
        if holds_run(out, name):
            raise RunExistsError(
                f"out={str(out)!r} already holds {what}; choose a new folder, delete that one, or resume it"
            )
    ours = (TEMPORARY, _LOCK)
    content = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(ours))
    if content:
        raise RunExistsError(f"out={str(out)!r} is not empty (it holds '{content[0]}'); choose a new folder")


@contextlib.contextmanager
def _locked(out: Path):
    path = out / _LOCK
    with one_line_error("write", path):
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.readline().strip()
            raise RunFolderError(f"out={str(out)!r} is in use by another process{owner and f' ({owner})'}") from None
        except OSError:
            pass  # a file system without locks
        with contextlib.suppress(OSError):  # only a help for the reader
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield


def _read_document(out: Path, name: str = RUN) -> dict[str, Any]:
    path = out / name
    with one_line_error("read", path):
        if not out.exists():
            raise RunFolderError(f"there is no run folder {str(out)!r}")
        if not path.exists():
            raise RunFolderError(f"{str(out)!r} is not a run folder: it has no {name}")
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
        raise RunFolderError(f"{path} was written by a newer marl_kl (format {version}; this one reads up to {FORMAT})")
    if document.get("config_class") == "TrustRegionConfig" and isinstance(document.get("config"), dict):
        document["config"] = {**_TRUST_REGION_0_1, **document["config"]}
    return document


def _config_class(document: Mapping[str, Any]) -> type[Config]:
    name, algorithm = document["config_class"], document["algorithm"]
    known = _config_classes()
    if name not in known and is_path(algorithm):
        imported(algorithm, "algorithm")  # makes the config class of a user's own algorithm a known subclass
        known = _config_classes()
    if name not in known:
        raise ValueError(f"config class '{name}' is unknown; known: {', '.join(sorted(known))}")
    return known[name]


def _config_classes() -> dict[str, type[Config]]:
    known = {Config.__name__: Config}
    waiting = [Config]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        known.update({kind.__name__: kind for kind in subclasses})
        waiting.extend(subclasses)
    return known


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
