"""Ctrl-C on the command line: the first one stops and saves, the second one ends the process immediately."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

STOPPING = "marl-kl: stopping after the current compilation or save; press Ctrl-C again to end immediately"


def _end() -> None:
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # the live display hides the cursor
    os._exit(130)


@contextlib.contextmanager
def end_on_second_interrupt(end: Callable[[], None] = _end):
    """Inside this context the second SIGINT calls `end`, whatever the main thread is doing; the first prints `STOPPING`.

    Python handles a signal between two of its own instructions, so a compilation by XLA delays it for minutes; a thread
    that reads the wakeup file descriptor gets it at once. Ending here is the same as a kill: the run folder loses the
    last save interval. Outside the main thread, which gets the signals, this has no effect.
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
        os.close(writing)  # ends the watcher
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
