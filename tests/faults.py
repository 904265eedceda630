"""Faults of the operating system, on demand."""

from __future__ import annotations

import os


def fail_with(monkeypatch, code: int) -> None:
    """From now on nothing can be synced to the disk: OSError with the errno `code`."""

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
