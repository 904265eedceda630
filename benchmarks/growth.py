"""How time, memory and disk grow with a run: seeds, environments, agents, hidden units, env steps.

    python -m benchmarks.growth [--algorithm hatrpo_w] [--axes seeds num_envs ...] [--repeats 7] [--json FILE]

One axis at a time, from the smallest to the largest value; everything else is that of `BASE` on the game
`parameter_sharing`, whose steps cost next to nothing, so that the learner is measured. Per value: median seconds of an
update (all values of an axis in turn), seconds of compiling it, and the bytes that XLA reserves for it. `exponent` is the
slope of log(seconds) over log(value), `last` that of the two largest values alone: 1 is linear, below it a fixed cost is
shared.

The axis `env_steps` is whole runs that write their folder, each in a new process: seconds per update, the process's peak
memory, and bytes on disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import envs
import marl_kl
from benchmarks.throughput import training
from benchmarks.timing import in_turn, machine, versions
from marl_kl import devices
from marl_kl.core import algorithms
from marl_kl.training.programs import program_bytes

BASE: dict[str, Any] = {"num_envs": 64, "rollout_length": 64, "hidden_sizes": (32, 32)}
AGENTS = 4
GROWING: dict[str, Sequence[int]] = {
    "env_steps": (100_000, 1_000_000, 10_000_000),  # first: a new process's peak memory begins at its parent's
    "seeds": (1, 2, 4, 8, 16, 32, 64),
    "num_envs": (32, 64, 128, 256, 512, 1024),
    "agents": (2, 4, 8, 16, 32),
    "hidden": (16, 32, 64, 128, 256),
}
"""The values of each axis; `hidden` is the width of both layers."""

Row = dict[str, Any]


def grow(axis: str, values: Sequence[int], algorithm: str, repeats: int) -> list[Row]:
    """One row per value: `seconds` of an update, `compile_s`, and `bytes` on one device."""
    calls: dict[int, Callable] = {}
    rows = []
    for value in values:
        fields = {"num_envs": {"num_envs": value}, "hidden": {"hidden_sizes": (value, value)}}.get(axis, {})
        seeds, agents = (value if axis == name else usual for name, usual in (("seeds", 1), ("agents", AGENTS)))
        config = algorithms.get(algorithm).config_class(**BASE | fields)
        env = envs.make("parameter_sharing", num_agents=agents)
        calls[value], program, compile_seconds = training(env, algorithm, config, devices.seed_mesh(seeds), seeds)
        rows.append({"value": value, "compile_s": compile_seconds, "bytes": program_bytes(program)})
    medians = in_turn(calls, repeats)
    return [row | {"seconds": medians[row["value"]]} for row in rows]


def grow_longer(values: Sequence[int], algorithm: str) -> list[Row]:
    """`whole_run` for each number of env steps, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        return list(processes.map(whole_run, values, [algorithm] * len(values)))


def whole_run(env_steps: int, algorithm: str) -> Row:
    """A run of one seed: `seconds` of an update, peak `bytes` of this process, `disk` bytes of the run's folder."""
    env = envs.make("parameter_sharing", num_agents=AGENTS)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {**BASE, "total_env_steps": env_steps}
        result = marl_kl.train(env, algorithm, seeds=1, out=Path(folder, "run"), progress="none", **sizes)
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "value": env_steps,
        "seconds": result.timing.train / result.config.num_updates,
        "compile_s": result.timing.compile,
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "disk": disk,
    }


def exponents(rows: Sequence[Row], measured: str) -> tuple[float, float]:
    """Slope of log(measured) over log(value): of all rows, and of the last two."""
    x, y = np.log([row["value"] for row in rows]), np.log([row[measured] for row in rows])
    whole, last = (np.polyfit(x[-count:], y[-count:], 1)[0] for count in (len(rows), 2))
    return float(whole), float(last)


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", default="hatrpo_w", choices=algorithms.names())
    parser.add_argument("--axes", nargs="+", default=list(GROWING), choices=list(GROWING))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args(arguments)
    marl_kl.use_all_cpu_cores()
    print(f"{machine()}, {versions()}; {options.algorithm}, {AGENTS} agents, {BASE}")
    print(f"{'axis':>10} {'value':>10} {'update ms':>10} {'compile s':>10} {'MiB':>8} {'disk MiB':>9}")
    results = []
    for axis in options.axes:
        values = GROWING[axis]
        longer = axis == "env_steps"
        rows = (
            grow_longer(values, options.algorithm) if longer else grow(axis, values, options.algorithm, options.repeats)
        )
        for row in rows:
            print(f"{axis:>10} {row['value']:10,d} {1e3 * row['seconds']:10.2f} {row['compile_s']:10.1f} "
                  f"{row['bytes'] / 2**20:8.1f} {row.get('disk', np.nan) / 2**20:9.2f}", flush=True)  # fmt: skip
        slopes = {name: exponents(rows, name) for name in ("seconds", "bytes", "disk") if name in rows[0]}
        print(f"{axis:>10} exponents (last): " + ", ".join(f"{n} {a:.2f} ({b:.2f})" for n, (a, b) in slopes.items()))
        results.append({"axis": axis, "rows": rows, "exponents": slopes})
    if options.json:
        figures = {"machine": f"{machine()}, {versions()}", "algorithm": options.algorithm, "axes": results}
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
