"""What the benchmarks share: compile times, medians of calls that are made in turn, and what they were measured on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def compiled(jitted, *arguments):
    """The program of a jitted function for such arguments, and the seconds that tracing and compiling took."""
    begin = time.perf_counter()
    return jitted.lower(*arguments).compile(), time.perf_counter() - begin


def seconds(call) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call: all once, unmeasured, then all in turn, `repeats` times."""
    for call in calls.values():
        jax.block_until_ready(call())
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: float(np.median(values)) for name, values in times.items()}


def machine() -> str:
    """The devices, as many as jax sees."""
    return f"{jax.devices()[0].device_kind} x {len(jax.devices())}"


def versions() -> str:
    """Of jax and Python."""
    return f"jax {jax.__version__}, python {platform.python_version()}"
