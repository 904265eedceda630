"""Faults of the operating system, on demand."""

from __future__ import annotations

import os


def fail_with(monkeypatch, code: int) -> None:
    """From now on nothing can be synced to the disk: OSError with the errno `code`."""

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)


def stopped(original, error, calls: int, when: str):
    """`original`, but its `calls`-th call raises `error`, "before" or "after" its work; "from" then on: all calls."""
    left = [calls]

    def stop(*arguments, **options):
        left[0] -= 1
        if (not left[0] and when == "before") or (left[0] <= 0 and when == "from"):
            raise error
        result = original(*arguments, **options)
        if not left[0] and when == "after":
            raise error
        return result

    return stop
