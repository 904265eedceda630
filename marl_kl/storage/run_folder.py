"""The run folder: what a run leaves on disk, its lock and its status; the record is `marl_kl.storage.run_record`'s.

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
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from marl_kl.results import Failure, Timing
from marl_kl.storage import folder_lock, run_record
from marl_kl.storage.files import TEMPORARY, RunFolderError, one_line_error, remove_leftovers
from marl_kl.storage.run_record import RUN, SWEEP


class RunExistsError(RunFolderError, FileExistsError):
    """The path is taken."""


class RunWarning(UserWarning):
    """Something about a run folder is not as it should be, but the run continues; the message is one line."""


def stable_id(out: Path, fingerprint: Mapping[str, Any], name: str = RUN) -> str:
    """A unique id of the run (or sweep) in `out`, the same when it is resumed."""
    started = run_record.read_document(out, name)["started"]
    content = json.dumps([out.absolute().name, started, fingerprint], default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


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
    with folder_lock.locked(out):
        remove_leftovers(out)
        if new is not None:
            _begin(out, new, is_made, name)
        yield out


def _begin(out: Path, new: Mapping[str, Any], is_made: bool, name: str) -> None:
    _refuse_if_taken(out)
    try:
        run_record.write_record(out, new, name)
    except RunFolderError:
        if is_made:
            shutil.rmtree(out, ignore_errors=True)
        raise


def holds_run(out: str | os.PathLike, name: str = RUN) -> bool:
    """Whether there is a `run.json` (or `name`), readable or not."""
    with one_line_error("read", Path(out)):
        return (Path(out) / name).exists()


def holds_record(out: str | os.PathLike) -> bool:
    """Whether the folder holds a run or a sweep."""
    return holds_run(out) or holds_run(out, SWEEP)


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
    stored = run_record.read_record(out, name).document
    other = run_record.first_mismatch(*map(run_record.fingerprint, (stored, document)))
    if other:
        what = "another sweep" if name == SWEEP else "another run"
        advice = "" if name == SWEEP else _ADVICE.get(other.split()[0], "")
        raise RunFolderError(f"out={str(out)!r} holds {what}: {other}{advice}")
    return stored


_ADVICE = {
    "seeds": "; train other seeds into another folder: marl-kl compare pools the seeds of both",
    "config.total_env_steps": "; a schedule (..._final_fraction) ends with the run: train a new, longer one",
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
    stored = run_record.read_document(Path(out), name)
    _warn_of_other_hardware(stored, document)
    here = {"time": run_record.now(), "update": update, "versions": document["versions"], "device": document["device"]}
    changed = {"format": run_record.FORMAT, "status": "running", "ended": None, "config": document["config"]}
    run_record.update_record(out, name, **changed, resumed=[*stored.get("resumed", ()), here])


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


def _warn_of_other_hardware(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before = run_record.last_session(stored)
    other = run_record.first_mismatch(*({"versions": d["versions"], "device": d["device"]} for d in (before, now)))
    if other:
        message = f"resuming, but perhaps not bit for bit: {other.replace(' there and ', ' before and ')}"
        warnings.warn(message.removesuffix(" here") + " now", RunWarning, stacklevel=4)


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
    if status not in run_record.STATUSES:
        raise ValueError(f"status={status!r}; it must be one of {', '.join(run_record.STATUSES)}")
    entries = {"status": status, "failures": [failure._asdict() for failure in failures]}
    if run_record.read_document(Path(out), name)["status"] != status:
        entries["ended"] = None if status == "running" else run_record.now()
    if timing is not None:
        entries["timing"] = timing._asdict()
    run_record.update_record(out, name, **entries)


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
    ours = (TEMPORARY, folder_lock.NAME)
    content = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(ours))
    if content:
        raise RunExistsError(f"out={str(out)!r} is not empty (it holds '{content[0]}'); choose a new folder")
