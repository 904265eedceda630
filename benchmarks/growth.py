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
from typing import Any, NamedTuple

import numpy as np

import envs
import marl_kl
from benchmarks.throughput import training
from benchmarks.timing import in_turn, machine, versions
from marl_kl import devices
from marl_kl.core import algorithms
from marl_kl.training.programs import program_bytes


class Point(NamedTuple):
    """What a run is like; `hidden` is the width of both layers."""

    env_steps: int = 1_000_000
    seeds: int = 1
    num_envs: int = 64
    agents: int = 4
    hidden: int = 32

    @property
    def env(self) -> envs.Env:
        return envs.make("parameter_sharing", num_agents=self.agents)

    def config(self, algorithm: str) -> marl_kl.Config:
        return algorithms.get(algorithm).config_class(
            total_env_steps=self.env_steps, num_envs=self.num_envs, rollout_length=64, hidden_sizes=(self.hidden,) * 2
        )


BASE = Point()
GROWING: dict[str, Sequence[int]] = {
    "env_steps": (100_000, 1_000_000, 10_000_000),  # first: a new process's peak memory begins at its parent's
    "seeds": (1, 2, 4, 8, 16, 32, 64),
    "num_envs": (32, 64, 128, 256, 512, 1024),
    "agents": (2, 4, 8, 16, 32),
    "hidden": (16, 32, 64, 128, 256),
}
"""The values of each field of `Point`, in the order of measuring."""

Row = dict[str, Any]


def grow(axis: str, values: Sequence[int], algorithm: str, repeats: int) -> list[Row]:
    """One row per value: `seconds` of an update, `compile_s`, and `bytes` on one device."""
    calls: dict[int, Callable] = {}
    rows = []
    for value in values:
        point = BASE._replace(**{axis: value})
        config, mesh = point.config(algorithm), devices.seed_mesh(point.seeds)
        calls[value], program, compile_seconds = training(point.env, algorithm, config, mesh, point.seeds)
        rows.append({"value": value, "compile_s": compile_seconds, "bytes": program_bytes(program)})
    medians = in_turn(calls, repeats)
    return [row | {"seconds": medians[row["value"]]} for row in rows]


def grow_longer(values: Sequence[int], algorithm: str) -> list[Row]:
    """`whole_run` for each number of env steps, each in a process of its own."""
    points = [BASE._replace(env_steps=value) for value in values]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        return list(processes.map(whole_run, points, [algorithm] * len(points)))


def whole_run(point: Point, algorithm: str) -> Row:
    """A run: `seconds` of an update, peak `bytes` of this process, `disk` bytes of the run's folder."""
    config = point.config(algorithm)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        result = marl_kl.train(point.env, algorithm, config=config, seeds=point.seeds, out=out, progress="none")
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "value": point.env_steps,
        "seconds": result.timing.train / config.num_updates,
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
    print(f"{machine()}, {versions()}; {options.algorithm}, {BASE}")
    print(f"{'axis':>10} {'value':>10} {'update ms':>10} {'compile s':>10} {'MiB':>8} {'disk MiB':>9}")
    results = []
    for axis, values in GROWING.items():
        if axis not in options.axes:
            continue
        if axis == "env_steps":
            rows = grow_longer(values, options.algorithm)
        else:
            rows = grow(axis, values, options.algorithm, options.repeats)
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
