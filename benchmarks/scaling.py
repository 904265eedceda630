"""One run on 1, 2, 4, ... devices: its environments spread over them, and for comparison seeds.

    python -m benchmarks.scaling [--env ant_4x2] [--backends mjx spring] [--algorithm hatrpo_w]
                                 [--num-envs 64 512] [--samples 4096] [--repeats 7] [--json FILE]

Strong: the same run, one seed of `--num-envs` environments, on more devices. Weak: one with as many environments per
device. Seeds: as many seeds as devices, one on each, which do not communicate. Efficiency is 1 where twice the devices
are twice as fast (strong) or do twice the work in the same time (weak, seeds). An update has `--samples` samples (weak:
per device). All cases of a size in turn, medians over repeats. Sums: all-reduce operations in the compiled update,
counted once each although most of them are within loops, and their bytes.

On a CPU all devices share its cores, and XLA uses a second core for large operations of one device as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

import envs
import marl_kl
from benchmarks.throughput import default_backends
from benchmarks.timing import in_turn, machine, versions
from envs.base import Env
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
    """On 1, 2, 4, ... devices of this process."""
    counts = [2**k for k in range(1, jax.local_device_count().bit_length())]
    return [
        Case("one", 1, 1, num_envs, 1),
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
    one = seconds[measured[0]]
    rows = []
    for case in measured:
        sums = all_reduces(built[case][1].update_hlo)
        efficiency = one * case.work / (seconds[case] * case.devices)
        rows.append(
            {
                **case._asdict(),
                "seconds": seconds[case],
                "efficiency": efficiency,
                "sums": len(sums),
                "bytes": sum(sums),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="ant_4x2")
    parser.add_argument("--backends", nargs="+", help="default: mjx and spring for Brax's bodies, none for others")
    parser.add_argument("--algorithm", default="hatrpo_w", choices=algorithms.names(marl_kl.OnPolicyConfig))
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args(arguments)
    marl_kl.use_all_cpu_cores()
    print(f"{machine()}, {versions()}; {options.algorithm} on {options.env}")
    print(
        f"{'backend':>7} {'kind':>7} {'devices':>7} {'envs':>6} {'update ms':>10} {'efficiency':>10} {'sums':>5} {'bytes':>9}"
    )
    results = []
    for backend, num_envs in itertools.product(
        options.backends or default_backends(envs.make(options.env)), options.num_envs
    ):
        env = envs.make(options.env, **({} if backend == "none" else {"backend": backend}))
        for row in measure(env, options.algorithm, num_envs, options.samples, options.repeats):
            print(f"{backend:>7} {row['kind']:>7} {row['devices']:7d} {row['num_envs']:6d} {1e3 * row['seconds']:10.1f} "
                  f"{row['efficiency']:10.2f} {row['sums']:5d} {row['bytes']:9,d}", flush=True)  # fmt: skip
            results.append({"backend": backend, **row})
    if options.json:
        where = {"machine": f"{machine()}, {versions()}", "algorithm": options.algorithm, "env": options.env}
        figures = where | {"samples": options.samples, "rows": results}
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
