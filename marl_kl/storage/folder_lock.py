"""The lock of a run folder, held by the process that trains in it; the operating system releases it, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from marl_kl.storage.files import RunFolderError, one_line_error

NAME = ".lock"
"""A file in the folder; it is left behind unlocked."""


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the lock of the folder `out`; does nothing on a file system without locks.

    Raises:
        RunFolderError: another process holds it, or it cannot be written.
    """
    path = out / NAME
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


def is_released(out: Path) -> bool:
    """Whether it is known that no process holds the lock of `out`."""
    try:
        with (out / NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except OSError:  # held; or no such file, or no locks there
        return False
