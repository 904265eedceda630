"""Shared by the benchmarks: compile times, medians of interleaved calls, and a description of the machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def compiled(jitted, *arguments):
    """The compiled program of a jitted function for these arguments, and the seconds of tracing and compiling."""
    begin = time.perf_counter()
    return jitted.lower(*arguments).compile(), time.perf_counter() - begin


def seconds(call) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call: one warm-up of each, then `repeats` interleaved rounds."""
    for call in calls.values():
        jax.block_until_ready(call())
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: float(np.median(values)) for name, values in times.items()}


def machine() -> str:
    """The devices visible to jax."""
    return f"{jax.devices()[0].device_kind} x {len(jax.devices())}"


def versions() -> str:
    """Of jax and Python."""
    return f"jax {jax.__version__}, python {platform.python_version()}"
