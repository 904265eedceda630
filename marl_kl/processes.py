"""Several processes in one run, on one machine or many, by jax's own runtime (`jax.distributed`).

All of them run the same program on the same files, and what needs arrays of the whole run they do together. Process 0
alone writes tables, pictures, logs and messages; checkpoints are written by all. None survives the loss of another: each
ends, and the run is resumed from its newest checkpoint, by as many processes as there are then.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from envs.validation import first_line

T = TypeVar("T")


def are_many() -> bool:
    """Whether there are others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which alone writes and shows what there is once."""
    return not are_many() or jax.process_index() == 0


def on_host(array: Any) -> np.ndarray:
    """The whole array; of one whose parts are in several processes all of them must ask for it."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def from_first(function: Callable[[], T]) -> T:
    """What `function` returns, which process 0 alone calls; the others wait for it.

    Args:
        function: returns what JSON can hold.

    Raises:
        Whatever it raises; in the other processes an OSError with the same message.
    """
    if not are_many():
        return function()
    result, error = None, None
    if is_first():
        try:
            result = function()
        except Exception as caught:
            error = caught
    outcome = json.loads(_text_of_first(json.dumps([result, None if error is None else first_line(error)])))
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise OSError(f"process 0: {outcome[1]}")
    return outcome[0]


@contextlib.contextmanager
def loss_as_one_line() -> Iterator[None]:
    """Turns the error of a collective operation that misses a process into an OSError with a one-line message."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # of XLA's collectives on CPUs: ValueError
        if not are_many() or not any(name in str(error) for name in _ABSENT):
            raise
        raise OSError(LOST) from error


LOST = "another process of the run has ended or was not found; start all again (marl-kl resume, once it has begun)"

_ABSENT = ("Gloo", "NCCL", "oordination service", "Barrier")
"""What such errors name."""


@contextlib.contextmanager
def entered_by_first(context: Callable[[], contextlib.AbstractContextManager]) -> Iterator[None]:
    """Process 0 enters the context that `context` returns, the others wait until it has."""
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(context())

        from_first(enter)
        yield


def refuse_difference(call: Mapping[str, Any], difference: Callable[[Any, Any], str | None]) -> None:
    """ValueError in all processes unless `call`, which JSON must hold, is the same in all.

    Args:
        call: what was asked for. difference: tells about two of them what differs ("seeds: 1 there and 2 here").
    """
    if not are_many():
        return
    here = json.loads(json.dumps(call, default=str))
    found = difference(json.loads(_text_of_first(json.dumps(here))), here)
    if any_process(found is not None):
        what = f": {found.replace(' there', ' in process 0')}" if found else ""
        raise ValueError(f"all processes of a run must be started with the same arguments{what}")


def any_process(flag: bool) -> bool:
    """Whether it is true in any process; all must ask."""
    return bool(np.any(multihost_utils.process_allgather(np.array([flag])))) if are_many() else flag


_BLOCK = 4096
"""Texts are sent in a multiple of so many bytes, so that few sizes are compiled."""


def _text_of_first(text: str) -> str:
    encoded = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(encoded.size)))
    padded = np.zeros(-(-size // _BLOCK) * _BLOCK, np.uint8)
    if is_first():
        padded[:size] = encoded
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes().decode()
