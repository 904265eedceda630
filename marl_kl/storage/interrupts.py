"""Ctrl-C within a save or a chunk of updates waits for the end; of several processes it stops all at the same place."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from marl_kl import processes


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Inside this context the first SIGINT is delayed until its end; a second one takes effect at once.

    Orbax cannot be stopped half-way: its threads would continue to write in a folder that is being removed, and print
    tracebacks; and a chunk owns the memory of the train state until it returns. Without effect inside another such
    context, outside the main thread, and where SIGINT has no handler in Python (then it is ignored, or ends the process).
    """
    with _delayed():
        yield


@contextlib.contextmanager
def interrupts_agreed() -> Iterator[Callable[[], None]]:
    """Yields a function that raises KeyboardInterrupt in all processes of a run at once, if any has got a SIGINT.

    All must call it at the same places. Inside this context nothing else lets the first SIGINT take effect. Without effect
    in a run of one process, where it takes effect at once.
    """
    if not processes.are_many():
        yield lambda: None
        return
    with _delayed() as waiting:

        def stop_if_interrupted() -> None:
            if processes.any_process(waiting is not None and waiting.is_due):
                if waiting is not None:
                    waiting.is_due = False
                raise KeyboardInterrupt

        yield stop_if_interrupted


@contextlib.contextmanager
def _delayed() -> Iterator[_Waiting | None]:
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if is_main else None
    if not callable(handler) or isinstance(handler, _Waiting):
        yield None
        return
    waiting = _Waiting(handler)
    signal.signal(signal.SIGINT, waiting)
    try:
        yield waiting
    finally:
        signal.signal(signal.SIGINT, handler)
        # not raised as a signal again: the command line counts those, and would take it for a second Ctrl-C
        if waiting.is_due:
            handler(signal.SIGINT, None)


class _Waiting:
    """A handler that remembers the first signal and passes further ones to `handler`."""

    def __init__(self, handler: Callable):
        self._handler = handler
        self.is_due = False

    def __call__(self, number, frame) -> None:
        if self.is_due:
            self.is_due = False
            self._handler(number, frame)
        else:
            self.is_due = True
