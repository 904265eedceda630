"""One run on 1, 2, 4, ... devices: its environments spread over them, and for comparison seeds.

    python -m benchmarks.scaling [--env ant_4x2] [--backends mjx spring] [--algorithm hatrpo_w]
                                 [--num-envs 64 512] [--samples 4096] [--repeats 7] [--processes 2] [--json FILE]

Strong: the same run, one seed of `--num-envs` environments, on more devices. Weak: one with as many environments per
device. Seeds: as many seeds as devices, one on each, which do not communicate. Efficiency is 1 where twice the devices
are twice as fast (strong) or do twice the work in the same time (weak, seeds). An update has `--samples` samples (weak:
per device). All cases of a size in turn, medians over repeats. Sums: all-reduce operations in the compiled update,
counted once each although most of them are within loops, and their bytes; sum: the time of one of 25 KB.

With `--processes` also with as many processes of one device each, joined over loopback: not in turn with the others, but
afterwards.

On a CPU all devices share its cores, and XLA uses a second core for large operations of one device as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import envs
import marl_kl
from benchmarks.throughput import default_backends
from benchmarks.timing import in_turn, machine, versions
from envs.base import Env
from marl_kl import devices, processes
from marl_kl.core import algorithms
from marl_kl.training.programs import Programs


class Case(NamedTuple):
    """A run to measure; `work`: env steps relative to those of the case on one device."""

    kind: str
    devices: int
    seeds: int
    num_envs: int
    work: int


def cases(num_envs: int) -> list[Case]:
    """On 1, 2, 4, ... devices of this process; of several processes, on all devices."""
    counts = [2**k for k in range(1, jax.local_device_count().bit_length())]
    if processes.are_many():
        counts = [jax.device_count()]
    return [
        *([] if processes.are_many() else [Case("one", 1, 1, num_envs, 1)]),
        *(Case("strong", count, 1, num_envs, 1) for count in counts),
        *(Case("weak", count, 1, num_envs * count, count) for count in counts),
        *(Case("seeds", count, count, num_envs, count) for count in counts),
    ]


def updating(env: Env, algorithm: str, case: Case, rollout_length: int) -> tuple[Callable, Programs]:
    """A function that makes the next update, and its compiled programs."""
    config = algorithms.get(algorithm).config_class(
        num_envs=case.num_envs, rollout_length=rollout_length, chunk_updates=1
    )
    programs = Programs(env, algorithm, config, case.seeds, case.devices)
    programs.compile()
    fields = programs.traced_fields([config] * case.seeds)
    state = programs.init(fields, programs.keys(range(case.seeds)))

    def update():
        nonlocal state
        state, _ = programs.chunk(fields, state, 1)
        return state.updates

    return update, programs


_ALL_REDUCE = re.compile(r"= (.*) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"[a-z]+(\d*)\[([\d,]*)\]")


def all_reduces(hlo: str) -> list[int]:
    """Bytes of every all-reduce operation of a compiled program."""
    return [
        sum(math.prod(map(int, sizes.split(","))) * int(bits) // 8 for bits, sizes in _arrays(shapes))
        for shapes in _ALL_REDUCE.findall(hlo)
    ]


def _arrays(shapes: str) -> list[tuple[str, str]]:
    """Bits per number and sizes of the arrays in `f32[2,3]{1,0}` or in a tuple of such."""
    return [(bits or "8", sizes or "1") for bits, sizes in _ARRAY.findall(shapes)]


def measure(env: Env, algorithm: str, num_envs: int, samples: int, repeats: int) -> list[dict]:
    """One row per case."""
    measured = cases(num_envs)
    built = {case: updating(env, algorithm, case, max(1, samples // num_envs)) for case in measured}
    seconds = in_turn({case: update for case, (update, _) in built.items()}, repeats)
    rows = []
    for case in measured:
        sums = all_reduces(built[case][1].update_hlo)
        counts = {"processes": jax.process_count(), "sums": len(sums), "bytes": sum(sums)}
        rows.append({**case._asdict(), **counts, "seconds": seconds[case]})
    return rows


def seconds_of_sum(num_bytes: int = 25_000, repeats: int = 200) -> float | None:
    """Of an all-reduce over all devices, median; None if there is only one."""
    if jax.device_count() == 1:
        return None
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    local = np.ones((jax.device_count(), num_bytes // 4), np.float32)
    terms = devices.shard(local, mesh, PartitionSpec("all"))
    total = jax.jit(lambda terms: terms.sum(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
    return in_turn({"sum": lambda: total(terms)}, repeats)["sum"]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def joined(arguments: Sequence[str], count: int) -> dict:
    """The figures of `count` processes: this script, started with the same arguments as each of them."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.scaling", *arguments, "--json", str(file), "--join"]
        started = [subprocess.Popen([*command, f"{port}:{index}"], stdout=subprocess.DEVNULL) for index in range(count)]
        if max(process.wait() for process in started):
            raise SystemExit("a process has failed")
        return json.loads(file.read_text())


def figures(options: argparse.Namespace) -> dict:
    """Of all backends and sizes, on the devices of this process, or of all joined ones."""
    rows = []
    for backend, num_envs in itertools.product(
        options.backends or default_backends(envs.make(options.env)), options.num_envs
    ):
        env = envs.make(options.env, **({} if backend == "none" else {"backend": backend}))
        found = measure(env, options.algorithm, num_envs, options.samples, options.repeats)
        rows += [{"backend": backend, "size": num_envs, **row} for row in found]
    return {"rows": rows, "seconds_of_sum": seconds_of_sum()}


def with_efficiency(rows: Sequence[dict]) -> list[dict]:
    """Relative to the run on one device of the same backend and size."""
    one = {(row["backend"], row["size"]): row["seconds"] for row in rows if row["kind"] == "one"}
    return [
        row | {"efficiency": one[row["backend"], row["size"]] * row["work"] / (row["seconds"] * row["devices"])}
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="ant_4x2")
    parser.add_argument("--backends", nargs="+", help="default: mjx and spring for Brax's bodies, none for others")
    parser.add_argument("--algorithm", default="hatrpo_w", choices=algorithms.names(marl_kl.OnPolicyConfig))
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--processes", type=int, default=1, help="measure with as many joined processes, too")
    parser.add_argument("--join", help=argparse.SUPPRESS)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args(arguments)
    if options.join is not None:
        port, index = options.join.split(":")
        jax.config.update("jax_num_cpu_devices", 1)
        jax.distributed.initialize(f"127.0.0.1:{port}", options.processes, int(index))
        processes.any_process(False)  # connects them at once: gloo gives up when one is 30 s late
        found = figures(options)
        if processes.is_first():
            Path(options.json).write_text(json.dumps(found))
        return
    marl_kl.use_all_cpu_cores()
    print(f"{machine()}, {versions()}; {options.algorithm} on {options.env}")
    by_devices = figures(options)
    sums = {"devices": by_devices["seconds_of_sum"]}
    rows = by_devices["rows"]
    if options.processes > 1:
        by_processes = joined(sys.argv[1:] if arguments is None else arguments, options.processes)
        sums["processes"] = by_processes["seconds_of_sum"]
        rows = rows + by_processes["rows"]
    names = ("backend", "kind", "devices", "processes", "num_envs")
    print(" ".join(f"{name:>9}" for name in (*names, "update ms", "efficient", "sums", "bytes")))
    rows = with_efficiency(rows)
    for row in rows:
        print(" ".join(f"{row[name]:>9}" for name in names), f"{1e3 * row['seconds']:9.1f} {row['efficiency']:9.2f}",
              f"{row['sums']:9d} {row['bytes']:9,d}")  # fmt: skip
    for between, seconds in sums.items():
        if seconds is not None:
            print(f"a sum of 25 KB between {between}: {1e3 * seconds:.2f} ms")
    if options.json:
        where = {"machine": f"{machine()}, {versions()}", "algorithm": options.algorithm, "env": options.env}
        found = where | {"samples": options.samples, "seconds_of_sum": sums, "rows": rows}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
