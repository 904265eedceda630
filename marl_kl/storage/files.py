"""Atomic files: written under a temporary name in their folder, synced and renamed.

Whatever goes wrong raises a `RunFolderError`, whose message is one line and names the path.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from envs.validation import first_line

TEMPORARY = ".tmp-"
"""The prefix of unfinished files and folders; those that a kill leaves are removed later."""


class RunFolderError(OSError, ValueError):
    """A run folder cannot be used as asked; the message is one line and names the path."""


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left unfinished in `folder`; only for the process that holds the run folder.

    What cannot be removed, for example because an abandoned thread still writes in it, does no harm and stays.
    """
    with one_line_error("clear", folder):
        leftovers = list(folder.glob(f"{TEMPORARY}*"))
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes `content` to `path`: the whole file appears there, or what was there stays.

    Raises:
        RunFolderError: the disk is full, the folder is missing or read-only, ...
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    with one_line_error("write", path):
        try:
            write_synced(temporary, data)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def append_to_file(path: Path, content: str) -> None:
    """Adds `content` to the end of a file that exists. A kill meanwhile can leave a part of it.

    Raises:
        RunFolderError: the file is missing, the disk is full, ...; the file is then as long as before, if possible.
    """
    with one_line_error("write", path), open(path, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        left = memoryview(content.encode())
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def write_synced(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, and syncs it to the disk; for temporary names."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut, where the file system lets a folder be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def one_line_error(action: str, path: Path):
    """Turns an OSError into a `RunFolderError`: "cannot `action` `path`: reason"."""
    try:
        yield
    except RunFolderError:
        raise
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise RunFolderError(f"cannot {action} {path}: {reason[:1].lower()}{reason[1:]}") from error
