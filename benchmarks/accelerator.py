"""Everything that is worth knowing of one accelerator, most important first, in a given time.

    python -m benchmarks.accelerator [--minutes 9] [--json FILE] [--small]

Every row is printed and written to FILE as soon as it is measured, so that a job that is killed keeps what it has; when
the time is over, no further row is begun. The rows:

  repeat      whether the same seed gives the same bits twice (else the largest difference); on a GPU only with
              XLA_FLAGS=--xla_gpu_deterministic_ops=true
  precision   how far the parameters after one update of HATRPO-W are from those in float64, as a share of the step:
              with the precision of matrix products that we set, and with the device's default (TF32 on NVIDIA)
  update      one sequential update against its FLOP floor (`benchmarks.update_cost`)
  training    whole training against bare stepping (`benchmarks.throughput`): env steps/s, compile time, peak memory
  sweep       4 budgets x 8 seeds in one program against one run after another (`benchmarks.sweep`)

`--small` measures tiny sizes, to try the script.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs
import marl_kl
from benchmarks import sweep, throughput, update_cost
from benchmarks.timing import machine, versions
from marl_kl import devices, files
from marl_kl.core import algorithms

Row = Mapping[str, Any]
Case = tuple[str, Callable[[], Sequence[Row]]]
"""What it measures, and how: some rows."""


def cases(small: bool) -> Iterator[Case]:
    """In the order of their importance."""
    ant = functools.partial(envs.make, "bilinear" if small else "ant_4x2")
    yield "repeat", functools.partial(repeat, ant)
    yield "precision", functools.partial(precision, 2 if small else 4)
    if small:
        yield "update", functools.partial(update, 2, (8,))
        yield "training", functools.partial(training, ant, 2, 4)
        return
    spring, humanoid = functools.partial(ant, backend="spring"), functools.partial(envs.make, "humanoid_17x1")
    for num_seeds, num_envs in ((8, 64), (32, 64), (1, 64), (128, 64), (8, 256), (32, 256)):
        for env in (ant, spring):
            yield "training", functools.partial(training, env, num_seeds, num_envs)
        if num_seeds in (8, 32):
            yield "training", functools.partial(training, humanoid, num_seeds, num_envs)
        if (num_seeds, num_envs) == (8, 64):
            yield "update", functools.partial(update, 4, (64, 64))
        if (num_seeds, num_envs) == (32, 64):
            yield "sweep", one_sweep
            yield "update", functools.partial(update, 17, (128, 128, 128))


def repeat(make_env: Callable[[], envs.Env]) -> list[Row]:
    """Two updates from the same key, twice, by one program."""
    config = marl_kl.TrustRegionConfig(num_envs=16, rollout_length=16)
    train = marl_kl.make_train(make_env(), "hatrpo_w", config)

    @jax.jit
    def run(key):
        return jax.lax.scan(lambda state, _: train.update(state), train.init(key), None, 2)[0].learner

    first, second = (jax.tree.map(np.asarray, run(jax.random.key(0))) for _ in range(2))
    differences = [np.max(np.abs(a - b), initial=0.0) for a, b in zip(*map(jax.tree.leaves, (first, second)))]
    return [{"same_bits": not any(differences), "largest_difference": float(max(differences))}]


def precision(num_agents: int) -> list[Row]:
    """Of one update on a random batch."""
    config = marl_kl.TrustRegionConfig(hidden_sizes=(64, 64), cg_subsample=1.0)
    actor, actors, batch = update_cost.problem(num_agents, config)
    algorithm = algorithms.get("hatrpo_w").build(actor, config)

    def step(actors, batch):
        new, _, _ = jax.jit(algorithm.update)(jax.random.key(0), actors, algorithm.init(actors), batch)
        change = jax.tree.map(lambda after, before: np.asarray(after - before, np.float64), new, actors)
        return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(change)])

    steps = {}
    for name in ("float32", "default"):
        with jax.default_matmul_precision(name):
            steps[name] = step(actors, batch)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, (actors, batch))
        exact = step(*wide)
    return [
        {"precision": name, "error": float(np.linalg.norm(found - exact) / np.linalg.norm(exact))}
        for name, found in steps.items()
    ]


def update(num_agents: int, hidden: tuple[int, ...]) -> list[Row]:
    return [update_cost.measure(num_agents, hidden, 5, update_cost.matrix_rate())]


def training(make_env: Callable[[], envs.Env], num_seeds: int, num_envs: int) -> list[Row]:
    """HATRPO-W and MAPPO next to bare stepping."""
    env = make_env()
    rows = throughput.measure(env, ("hatrpo_w", "mappo"), num_envs, 32, num_seeds, 3)
    known = {"env": env.spec.name, "backend": dict(env.spec.metadata).get("backend", "none"), "num_envs": num_envs}
    return [{**known, **row, "device_memory": str(devices.memory_in_use())} for row in rows]


def one_sweep() -> list[Row]:
    budgets = np.geomspace(0.01, 0.3, 4).tolist()
    env = envs.make("matrix_game")
    return [sweep.measure(env, "hatrpo_w", budgets, 8, 2, num_envs=32, rollout_length=64, total_env_steps=20 * 2048)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="no row is begun after these (default: 9)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    options = parser.parse_args(argv)
    marl_kl.use_all_cpu_cores()
    begin = time.perf_counter()
    document: dict[str, Any] = {"machine": machine(), "versions": versions(), "rows": []}
    print(f"{document['machine']}, {document['versions']}", flush=True)
    for name, measure in cases(options.small):
        if time.perf_counter() - begin > 60 * options.minutes:
            print("the time is over", flush=True)
            break
        try:
            rows = measure()
        except (MemoryError, jax.errors.JaxRuntimeError) as error:  # of one size; the others are measured
            rows = [{"error": str(error).splitlines()[0]}]
        for row in rows:
            document["rows"].append({"case": name, "at_s": round(time.perf_counter() - begin, 1), **row})
            print(json.dumps(document["rows"][-1]), flush=True)
        if options.json is not None:
            files.write_file(options.json, json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
