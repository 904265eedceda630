"""The record of a run (`run.json`) or a sweep (`sweep.json`): what was run, on what, and how it ended."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from envs.base import EnvSpec
from envs.validation import first_line, imported, is_path
from marl_kl.config import SCHEDULE, Config, free_schedule
from marl_kl.results import Failure, SweepFailure
from marl_kl.storage import folder_lock
from marl_kl.storage.files import RunFolderError, one_line_error, write_file

_TRUST_REGION_0_1 = {"line_search": "geometric"}
"""What version 0.1 did where it had no field yet and the default is another now."""

_FORMER_DEFAULTS = {
    "hatrpo": {"utility": "first_order", "utility_smoothing": 0.0},
    "hatrpo_g": {"utility_smoothing": 0.0},
}
"""By algorithm, fields that it does not use and must leave at their default, which was another once."""

FORMAT = 2
"""The version of the layout above; a folder with a larger one is refused."""

RUN, SWEEP = "run.json", "sweep.json"
"""What a folder's record is called: that of a run, and that of a sweep (`marl_kl.training`)."""

WARM_START = ("init_from", "init_which")
"""The entries of a run that began with the learners of a stored run: its absolute path, and "last" or "best"."""

STATUSES = ("running", "finished", "interrupted", "failed")
"""What is recorded."""

STOPPED = "stopped"
"""The status of a run whose process ended without recording how: it was killed, or could not write."""

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "orbax-checkpoint")


class RunRecord(NamedTuple):
    """The content of `run.json`.

    Attributes:
        spec: the environment's static description.
        algorithm: the algorithm's name.
        config: the resolved config.
        seeds: the seeds, in the order of every seed axis.
        status: one of `STATUSES`, or `STOPPED`.
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


def record(
    spec: EnvSpec,
    algorithm: str,
    config: Config,
    seeds: Sequence[int],
    env_params: str | None = None,
    used: Mapping[str, int] | None = None,
    **more,
) -> dict[str, Any]:
    """The content of a new run's `run.json`: what is run, on which versions and devices, since when.

    `env_params` is what `array_trees.digest` makes of the environment's params; `used` are the entries
    about devices that say how many are used (`devices.used`); `more` is what a sweep or a warm start adds.
    """
    from marl_kl import __version__  # this module may be a part of that import

    devices = jax.devices()
    device = {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)}
    packages = {name: _version(name) for name in _PACKAGES}
    return {
        "format": FORMAT,
        "program": "marl_kl",
        "status": "running",
        "started": now(),
        "ended": None,
        "algorithm": algorithm,
        "seeds": [int(seed) for seed in seeds],
        "env": _jsonable(dataclasses.asdict(spec)),
        "env_params": env_params,
        "config_class": type(config).__name__,
        "config": _jsonable({f.name: getattr(config, f.name) for f in dataclasses.fields(config)}),
        "failures": [],
        "versions": {"marl_kl": __version__, "python": platform.python_version(), **packages},
        "device": device | dict(used or {}),
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
        **{name: document.get(name) for name in WARM_START},
    }
    if "settings" not in document:
        return of_run
    searched = ("search", "rounds", "sampler", "samples", "search_seed") if "search" in document else ()
    return of_run | {
        **{name: document.get(name) for name in searched},
        "total_env_steps": config["total_env_steps"],
        "eval_interval": config["eval_interval"],
        "number of settings": len(document["settings"]),
        "settings": {str(index): fields for index, fields in enumerate(document["settings"])},
        "runs_at_once": document.get("runs_at_once"),
    }


def shard_fingerprint(document: Mapping[str, Any], group: int) -> dict[str, Any]:
    """What the shards of one group of trials (from 1) belong to: in a search, the sweep as far as that round."""
    if "search" in document:
        document = {**document, "settings": document["settings"][: group * document["samples"]]}
    return fingerprint(document)


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


def sessions(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries in `run.json` of each process that trained, oldest first: `versions` and `device`."""
    return [document, *document.get("resumed", ())]


def last_session(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last one of `sessions`."""
    return sessions(document)[-1]


def read_record(out: str | os.PathLike, name: str = RUN) -> RunRecord:
    """What was run in the folder `out`; with `SWEEP`, what was swept: the config is then that of its first setting.

    Raises:
        RunFolderError: no such folder, no run in it, a damaged `run.json`, or one of a newer format.
    """
    path = Path(out) / name
    document = read_document(Path(out), name)
    failure_class = Failure if name == RUN else SweepFailure
    try:
        _refuse_other_kinds(document, name)
        spec = EnvSpec(**{name: _tuples(value) for name, value in document["env"].items()})
        config = _config_class(document)(**document["config"])
        failures = tuple(failure_class(**failure) for failure in document["failures"])
        fingerprint(document)
        status = document["status"]
        if status == "running" and folder_lock.is_released(Path(out)):
            status = STOPPED
        return RunRecord(spec, document["algorithm"], config, tuple(document["seeds"]), status, failures, document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise RunFolderError(f"{path} does not describe a run that this version can read: {reason}") from error


_KINDS = {
    "status": "str", "started": "str", "algorithm": "str", "config_class": "str", "seeds": "[int]",
    "failures": "[dict]", "env": "dict", "config": "dict", "versions": "dict", "device": "dict", "resumed": "[dict]",
    "settings": "[dict]", "sizes": "dict", "timing": "dict", "init_from": "str", "init_which": "str",
    "search": "dict", "rounds": "int",
}  # fmt: skip
"""Of what kind the entries of a record are that are not looked at by the classes that are made of them."""

_ENV_KINDS = {
    "name": "str", "agents": "[str]", "observation_sizes": "[int]", "action_sizes": "[int]", "state_size": "int",
    "episode_length": "int", "team_reward": "bool", "metadata": "[list]",
}  # fmt: skip


_DEVICE_KINDS = {
    "kind": "str", "platform": "str", "count": "int", "used": "int", "per_seed": "int", "processes": "int",
}  # fmt: skip
"""Of `_KINDS['device']`; the last three are missing in sweeps, and in runs of older versions."""


def _refuse_other_kinds(document: Mapping[str, Any], name: str) -> None:
    """ValueError if what readers rely on is something else; KeyError where it is missing."""
    needed = ("status", "started", "seeds", "env", *(("settings",) if name == SWEEP else ()))
    _check_kinds({name: document[name] for name in needed} | dict(document), _KINDS, "")
    _check_kinds(document["env"], _ENV_KINDS, "env.")
    for number, session in enumerate(sessions(document)):
        where = f"resumed[{number - 1}]." if number else ""
        _check_kinds({name: session[name] for name in ("versions", "device")}, _KINDS, where)
        device = session["device"]
        _check_kinds(
            {name: device[name] for name in ("kind", "platform", "count")} | device, _DEVICE_KINDS, f"{where}device."
        )
    if not document["seeds"] or len(set(document["seeds"])) < len(document["seeds"]):
        raise ValueError(f"seeds is {document['seeds']!r}")
    if "search" in document and (type(document["samples"]) is not int or document["samples"] < 1):
        raise ValueError(f"samples is {document['samples']!r}")
    if document["status"] not in STATUSES:
        raise ValueError(f"status is {document['status']!r}, which is none of {', '.join(STATUSES)}")


def _check_kinds(entries: Mapping[str, Any], kinds: Mapping[str, str], where: str) -> None:
    for name, kind in kinds.items():
        items = [] if name not in entries else entries[name] if kind[0] == "[" else [entries[name]]
        if not isinstance(items, list) or not all(type(item).__name__ == kind.strip("[]") for item in items):
            raise ValueError(f"{where}{name} is {str(entries[name])[:80]!r}")


def read_document(out: Path, name: str = RUN) -> dict[str, Any]:
    """The file as it is, if it is one of ours and of no newer format; see `read_record`."""
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
    document = with_current_fields(document)
    if document.get("config_class") == "TrustRegionConfig" and isinstance(document.get("config"), dict):
        document["config"] = {**_TRUST_REGION_0_1, **document["config"]}
    return document


def with_current_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """A record or a `fingerprint` with `current_fields` in its config and its settings."""
    current = dict(document)
    if isinstance(current.get("config"), Mapping):
        former = _FORMER_DEFAULTS.get(str(current.get("algorithm")), {})
        fields = current_fields(current["config"])
        current["config"] = {name: value for name, value in fields.items() if former.get(name, ...) != value}
    settings = current.get("settings")
    if isinstance(settings, list):
        current["settings"] = list(map(_current_setting, settings))
    elif isinstance(settings, Mapping):
        current["settings"] = {index: _current_setting(fields) for index, fields in settings.items()}
    return current


def _current_setting(fields: Any) -> Any:
    return current_fields(fields) if isinstance(fields, Mapping) else fields


def current_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields in which version 0.1's `anneal_lr` is `actor_lr_final_fraction`."""
    if "anneal_lr" not in fields:
        return dict(fields)
    return {
        "actor_lr_final_fraction" if name == "anneal_lr" else name: float(not value) if name == "anneal_lr" else value
        for name, value in fields.items()
    }


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


def write_record(out: Path, document: Mapping[str, Any], name: str = RUN) -> None:
    """Writes `run.json` (or `sweep.json`, as `name`) whole."""
    write_file(out / name, json.dumps(_jsonable(document), indent=2, allow_nan=False) + "\n")


def update_record(out: str | os.PathLike, name: str, **entries) -> None:
    """Replaces `entries` in `run.json` (or in `sweep.json`, as `name`)."""
    write_record(Path(out), {**read_document(Path(out), name), **entries}, name)


def now() -> str:
    """Local time with its offset, in ISO 8601."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
