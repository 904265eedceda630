"""Ctrl-C on the command line: the first one stops tidily, the second one ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

STOPPING = "marl-kl: stopping, which may wait for a compilation or a save; Ctrl-C again ends it at once"


def _end() -> None:
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # the live display hides the cursor
    os._exit(130)


@contextlib.contextmanager
def second_one_ends_at_once(end: Callable[[], None] = _end):
    """Inside this context the second SIGINT calls `end`, whatever the main thread is doing; the first one says so.

    Python itself handles a signal only between two of its own instructions, so that XLA, compiling for minutes, would
    hold back any number of them. A thread hears of signals as they come. Ending like this is what a kill does: the run
    folder loses nothing for it but the last interval. Without effect outside the main thread, which gets no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reading, end), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # which the watcher takes as the end
        watcher.join()
        os.close(reading)


def _watch(reading: int, end: Callable[[], None]) -> None:
    is_first = True
    while number := os.read(reading, 1):
        if number[0] != signal.SIGINT:
            continue
        if is_first:
            os.write(2, f"\n{STOPPING}\n".encode())
        else:
            end()
        is_first = False
