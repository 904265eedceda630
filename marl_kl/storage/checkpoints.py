"""Checkpoints of a shard (of a run, or a part of a sweep) between two updates: each is on disk whole or not at all.

    checkpoints/<update>/arrays/        train state, best learners, metrics and evaluations (Orbax)
    checkpoints/<update>/snapshot.json  the run's fingerprint, and what is no array
    checkpoints/<update>/manifest.json  format, and checksums of all other files
    checkpoints/<update>~/              the older one, while a newer one of the same update replaces it

A checkpoint is written under a temporary name and renamed when its last file is on disk. The learner is part of the train
state: `marl_kl.load` reads it from here. The best learners so far are in every checkpoint, so that each is consistent in
itself.

Orbax writes and reads the arrays. The commit, the pruning and the reading around it are ours, since Orbax's
`CheckpointManager` (tried with 0.12.8) does not do what `tests/storage/test_checkpoints.py` requires:

- it has no checksums of its files: one with a flipped byte or cut in half was restored without an error;
- it refuses to save a step that exists, so that replacing the only checkpoint means to delete it first: a kill in
  between would lose the run;
- it skips steps before its newest one, so that a run which went back behind a damaged checkpoint would not be saved;
- it deletes old steps also while another process reads them.

Saves are synchronous: with four seeds of Ant 4x2 one takes about 0.2 s (1.3 MiB; two busy CPU cores), an update about
1.6 s, and by default there is one in 50 updates, so that asynchronous saves would win about 0.3 % of the time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.validation import first_line
from marl_kl import processes
from marl_kl.results import Evaluation, SweepFailure, Timing
from marl_kl.storage.array_files import read_arrays, write_arrays
from marl_kl.storage.array_trees import named_leaves, subtree
from marl_kl.storage.best import Best
from marl_kl.storage.files import (  # fmt: skip
    TEMPORARY,
    RunFolderError,
    one_line_error,
    remove_leftovers,
    sync_folder,
    write_synced,
)
from marl_kl.storage.interrupts import interrupts_wait
from marl_kl.storage.run_folder import RunWarning
from marl_kl.storage.run_record import first_mismatch, with_current_fields

FORMAT = 2
"""The version of the layout above; a checkpoint with a larger one is refused."""

_NO_ARRAYS = ("update", "env_steps")
"""The fields of an `Evaluation` that are stored as text: int64, which jax would cut to 32 bits."""

_ATTEMPTS = 20
"""How often `load` tries if the checkpoints change each time; already two changes are unlikely."""

_SPARE = "~"
"""The suffix of a checkpoint that a newer one of the same update is about to replace."""


class Snapshot(NamedTuple):
    """Runs between two updates, on the host: all that is needed to resume them.

    The leading axis is the seed's in a run; in a shard of a sweep it is the trial's.

    Attributes:
        update: updates made.
        state: the `TrainState`, flat (see `array_trees.named_leaves`): leaves [seed, ...], to be saved still on the
            devices. Before the first update those of its leaves that do not begin as the algorithm initialises them.
        metrics: name -> [seed, update] or [seed, update, agent].
        evaluation: the evaluations so far; None before the first one.
        failures: the trials (of a run: setting 0) that met a non-finite number so far.
        timing: seconds spent so far.
        best: each seed's best learner so far; None before the first evaluation (and in checkpoints of an older version,
            which did not keep it).
        wall_time_s: [update] float32, see `TrainResult`; NaN for updates of an older version.
    """

    update: int
    state: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]
    evaluation: Evaluation | None
    failures: tuple[SweepFailure, ...]
    timing: Timing
    best: Best | None = None
    wall_time_s: np.ndarray = np.empty(0, np.float32)

    @property
    def extent(self) -> tuple[int, int]:
        """How many updates and evaluations it holds; two snapshots of one run that agree in them are the same."""
        return self.update, 0 if self.evaluation is None else len(self.evaluation.update)


START = Snapshot(0, {}, {}, None, (), Timing(0.0, 0.0, 0.0))
"""Before the first evaluation and the first update."""


class _Damaged(RunFolderError):
    """A damaged checkpoint; an older one may be intact."""


class _Changed(Exception):
    """The checkpoints have changed while they were read; another attempt may succeed."""


def save(out: str | os.PathLike, snapshot: Snapshot, fingerprint: Mapping[str, Any], keep: int) -> None:
    """Stores a snapshot; of all checkpoints, those of the last `keep` updates up to this one stay.

    Several processes store it together, each its parts of the state.

    A kill at any moment leaves every other checkpoint as it was, and this one whole or absent; of two of the same
    update at least one. Ctrl-C waits for the end (`interrupts_wait`).

    Args:
        out: the run folder, held by this process or, of several, by process 0.
        snapshot: what to store.
        fingerprint: of the run it belongs to (`run_record.fingerprint`).
        keep: how many checkpoints stay, at least 1.

    Raises:
        RunFolderError: it cannot be written.
    """
    target = _place(out, snapshot.update)

    def begin() -> str:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        # a unique name: after a second Ctrl-C threads of Orbax may still write under the one before
        temporary = target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")
        temporary.mkdir()
        return temporary.name

    def commit() -> None:
        _write_texts(temporary, snapshot, fingerprint)
        _put(temporary, target)
        _prune(out, target, keep)

    with interrupts_wait(), one_line_error("write", target):
        temporary = target.with_name(processes.from_first(begin))
        try:
            write_arrays(temporary / "arrays", _arrays(snapshot))
            processes.from_first(commit)
        finally:
            if processes.is_first():
                shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, target: Path) -> None:
    """Renames `temporary` to `target`; meanwhile what was there is a spare one, which readers find."""
    spare = target.with_name(f"{target.name}{_SPARE}")
    if target.exists():
        if spare.exists():
            _remove(spare)
        os.replace(target, spare)
    os.replace(temporary, target)
    sync_folder(target.parent)


def _prune(out: str | os.PathLike, target: Path, keep: int) -> None:
    """Removes all but the newest checkpoints of the `keep` updates up to that of `target`."""
    newest = {_update(checkpoint): checkpoint for checkpoint in _stored(out)}
    # later ones are damaged, and the run went back behind them
    kept = sorted(update for update in newest if update <= _update(target))[-keep:]
    for checkpoint in {*_stored(out)} - {newest[update] for update in kept}:
        with _locked(checkpoint, fcntl.LOCK_EX) as is_free:
            if is_free:  # else it is removed after one of the next saves
                _remove(checkpoint)


def load(out: str | os.PathLike, fingerprint: Mapping[str, Any] | None = None) -> Snapshot | None:
    """The newest checkpoint in the run folder `out`; None if there is none.

    If it is damaged, the newest one that is not, with a `RunWarning`. A process that trains meanwhile does not remove
    what is being read.

    Args:
        out: the run folder.
        fingerprint: of the run that it must belong to; None: any.

    Raises:
        RunFolderError: all are damaged, or the newest intact one is of another run or of a newer format.
    """
    for _ in range(_ATTEMPTS):
        with one_line_error("read", Path(out) / "checkpoints"):
            seen = _stored_now(out)
        with contextlib.suppress(_Changed):
            return _newest(out, seen, fingerprint)
        time.sleep(0.01)
    raise RunFolderError(f"cannot read {Path(out) / 'checkpoints'}: it changed {_ATTEMPTS} times meanwhile")


def _newest(out: str | os.PathLike, seen: Mapping[Path, int], fingerprint: Mapping[str, Any] | None) -> Snapshot | None:
    """See `load`; `_Changed` if a checkpoint cannot be read because the run that trains has removed it meanwhile."""
    damage = []
    for checkpoint in reversed(seen):
        try:
            with _locked(checkpoint, fcntl.LOCK_SH) as is_free:
                if not is_free:
                    raise _Changed
                snapshot = _read(checkpoint, fingerprint)
        except RunFolderError as error:
            if _stored_now(out) != seen:
                raise _Changed from error
            if not isinstance(error, _Damaged):
                raise
            damage.append(error)
            continue
        if damage:
            warnings.warn(f"{damage[0]}; using the older one of update {snapshot.update}", RunWarning, stacklevel=3)
        return snapshot
    if damage:
        raise damage[0]
    return None


def _stored_now(out: str | os.PathLike) -> dict[Path, int]:
    """`_stored`, with the inode of each: another folder may get its name."""
    stored = {}
    for checkpoint in _stored(out):
        with contextlib.suppress(FileNotFoundError):
            stored[checkpoint] = checkpoint.stat().st_ino
    return stored


@contextlib.contextmanager
def _locked(checkpoint: Path, kind: int) -> Iterator[bool]:
    """Locks a checkpoint, to read it with `fcntl.LOCK_SH`, to remove it with `LOCK_EX`; yields whether that was possible.

    Always yes on a file system without locks.
    """
    with contextlib.ExitStack() as stack:
        is_free = True
        with contextlib.suppress(OSError):
            file = stack.enter_context((checkpoint / "manifest.json").open("rb"))
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                is_free = False
        yield is_free


def timing(out: str | os.PathLike) -> Timing | None:
    """Seconds spent until the newest checkpoint in the run folder `out`; None if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        return Timing(**json.loads((_stored(out)[-1] / "snapshot.json").read_bytes())["timing"])
    return None


def source(out: str | os.PathLike, update: int) -> str:
    """The name of the checkpoint of `update` in messages."""
    return f"the checkpoint {_place(out, update)}"


def _place(out: str | os.PathLike, update: int) -> Path:
    return Path(out).absolute() / "checkpoints" / str(int(update))


def _stored(out: str | os.PathLike) -> list[Path]:
    """Oldest first; a spare one before that which replaces it."""
    folder = Path(out).absolute() / "checkpoints"
    entries = folder.iterdir() if folder.is_dir() else ()
    found = [entry for entry in entries if entry.name.removesuffix(_SPARE).isdigit()]
    return sorted(found, key=lambda entry: (_update(entry), not entry.name.endswith(_SPARE)))


def _update(checkpoint: Path) -> int:
    """By its name."""
    return int(checkpoint.name.removesuffix(_SPARE))


def _remove(checkpoint: Path) -> None:
    # Renamed first: half a checkpoint must not pass for one.
    doomed = checkpoint.with_name(f"{TEMPORARY}old-{checkpoint.name}-{uuid.uuid4().hex[:8]}")
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)


def _arrays(snapshot: Snapshot) -> dict[str, Any]:
    evaluation = {} if snapshot.evaluation is None else snapshot.evaluation._asdict()
    arrays = {
        "state": snapshot.state,
        "metrics": snapshot.metrics,
        "evaluation": {name: value for name, value in evaluation.items() if name not in _NO_ARRAYS},
        "best": {} if snapshot.best is None else snapshot.best.learner,
        "wall_time_s": snapshot.wall_time_s,
    }
    return named_leaves(arrays)


def _write_texts(folder: Path, snapshot: Snapshot, fingerprint: Mapping[str, Any]) -> None:
    evaluation = {} if snapshot.evaluation is None else snapshot.evaluation._asdict()
    best = snapshot.best
    about = {
        "run": fingerprint,
        "update": snapshot.update,
        "evaluation": {name: np.asarray(evaluation[name]).tolist() for name in _NO_ARRAYS if evaluation},
        "failures": [failure._asdict() for failure in snapshot.failures],
        "timing": snapshot.timing._asdict(),
        "best": best and {"update": best.update.tolist(), "episode_return": best.episode_return.tolist()},
    }
    write_synced(folder / "snapshot.json", _as_json(about))
    manifest = {"program": "marl_kl", "format": FORMAT, "files": _checksums(folder)}
    write_synced(folder / "manifest.json", _as_json(manifest))


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _read(checkpoint: Path, fingerprint: Mapping[str, Any] | None) -> Snapshot:
    with one_line_error("read", checkpoint):
        # Checked before orbax reads: a damaged array would otherwise also print its threads' tracebacks.
        _verify(checkpoint, _manifest(checkpoint))
        about = json.loads((checkpoint / "snapshot.json").read_bytes())
        other = None if fingerprint is None else first_mismatch(with_current_fields(about["run"]), fingerprint)
        if other:
            raise RunFolderError(f"the checkpoint {checkpoint} belongs to another run: {other}")
        if about["update"] != _update(checkpoint):
            raise RunFolderError(f"the checkpoint {checkpoint} has another name than its update, {about['update']}")
        try:
            arrays = read_arrays(checkpoint / "arrays")
        except (ValueError, KeyError) as error:
            raise _Damaged(f"the checkpoint {checkpoint} is damaged: {first_line(error)}") from error
    leaves = {_current_name(name): leaf for name, leaf in arrays.items()}
    texts = {name: np.asarray(value, np.int64) for name, value in about["evaluation"].items()}
    best = about.get("best")
    return Snapshot(
        about["update"],
        subtree(leaves, "state"),
        subtree(leaves, "metrics"),
        Evaluation(**texts, **subtree(leaves, "evaluation")) if texts else None,
        tuple(SweepFailure(**{"setting": 0, **failure}) for failure in about["failures"]),
        Timing(**about["timing"]),
        best and Best(np.array(best["update"], np.int64), np.array(best["episode_return"]), subtree(leaves, "best")),
        leaves.get("wall_time_s", np.full(about["update"], np.nan, np.float32)),
    )


def _current_name(leaf: str) -> str:
    """Format 1 called the environments `worlds` and the hidden states `memory`."""
    renamed = {
        "state.worlds.memory": "state.env_batch.hidden",
        "state.worlds": "state.env_batch",
        "state.critic_memory": "state.critic_hidden",
    }
    for before, now in renamed.items():
        if leaf == before or leaf.startswith(f"{before}."):
            return now + leaf.removeprefix(before)
    return leaf


def _manifest(checkpoint: Path) -> dict[str, str]:
    """The checksums that the files had when they were written."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_bytes())
        version, files = manifest["format"], dict(manifest["files"])
    except FileNotFoundError:
        raise _Damaged(f"the checkpoint {checkpoint} is damaged: its manifest.json is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"the checkpoint {checkpoint} is damaged: its manifest.json is unreadable") from error
    if not isinstance(version, int) or version > FORMAT:
        raise RunFolderError(
            f"the checkpoint {checkpoint} was written by a newer marl_kl (format {version}; "
            f"this one reads up to {FORMAT})"
        )
    return files


def _verify(checkpoint: Path, files: Mapping[str, str]) -> None:
    found = _checksums(checkpoint)
    for name, checksum in files.items():
        if found.get(name) != checksum:
            state = "has changed since it was written" if name in found else "is missing"
            raise _Damaged(f"the checkpoint {checkpoint} is damaged: its file {name} {state}")


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(entry for entry in folder.rglob("*") if entry.is_file() and entry != folder / "manifest.json")
    return {str(file.relative_to(folder).as_posix()): _sha256(file) for file in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
