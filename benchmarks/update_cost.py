"""Seconds for one sequential HATRPO update, against a double-backward version and against its FLOP floor.

    python -m benchmarks.update_cost [--agents 2 4 8 17] [--hidden 64,64 128,128,128] [--repeats 9] [--json FILE]

Per setting, in one process and in turn:
  ours       all samples in conjugate gradient, 10 iterations without early stop: the work of the reference
  default    our default config (conjugate gradient on a tenth of the samples)
  hatrpo_w, hatrpo_g   our defaults with these allocators
  plain      `plain_hatrpo.py` under jit: double-backward Hessian-vector products, with at most as many
             line-search evaluations as ours needed, so that only the method differs
  floor      FLOPs of `ours` divided by this machine's rate for a large matrix product, measured here

Medians over repeats. The public PyTorch implementation, measured on two cores of one kind of machine, is quoted
for orientation; ratios to it hold on such a machine only.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import marl_kl
from benchmarks.plain_hatrpo import plain_update
from envs.base import EnvSpec
from marl_kl.core import algorithms
from marl_kl.core.policies import init_actors, make_actor
from marl_kl.core.types import Batch

BATCH, OBS, ACT = 4000, 30, 2
PYTORCH_SECONDS = {
    (2, (64, 64)): 0.22, (4, (64, 64)): 0.47, (8, (64, 64)): 0.92, (17, (64, 64)): 1.80,
    (2, (128, 128, 128)): 0.78, (4, (128, 128, 128)): 1.38, (8, (128, 128, 128)): 2.82, (17, (128, 128, 128)): 6.2,
}  # fmt: skip


def problem(num_agents: int, config):
    """A random batch on which every agent finds a step."""
    spec = EnvSpec(
        "synthetic", tuple(f"agent_{i}" for i in range(num_agents)), (OBS,) * num_agents, (ACT,) * num_agents,
        "continuous", OBS, 1000,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    actor = make_actor(spec, config)
    actors = init_actors(jax.random.key(0), spec, config)
    obs = jnp.asarray(rng.normal(size=(num_agents, BATCH, OBS)), jnp.float32)
    mask = jnp.ones((num_agents, BATCH, ACT), bool)
    policy = actor.distribution(jax.vmap(actor.outputs)(actors, obs), mask)
    action = policy.sample(jax.random.key(1))
    # like real advantages, it depends on the actions
    advantage = jnp.tanh(jnp.sum(action * jnp.sin(obs[..., :ACT]), axis=(0, 2))) + 0.5 * rng.normal(size=BATCH)
    advantage = (advantage - advantage.mean()) / advantage.std()
    batch = Batch(obs, action, mask, jnp.broadcast_to(advantage.astype(jnp.float32), (num_agents, BATCH)))
    return actor, actors, batch


def compiled_update(name: str, actor, config, actors, batch):
    """The algorithm's compiled update, and its compile time in seconds."""
    algorithm = algorithms.get(name).build(actor, config)
    arguments = (jax.random.key(0), actors, algorithm.init(actors), batch)
    begin = time.perf_counter()
    program = jax.jit(algorithm.update).lower(*arguments).compile()
    return functools.partial(program, *arguments), time.perf_counter() - begin


def compiled_plain(actor, config, actors, batch):
    """The plain update with the largest number of line-search evaluations that was needed."""
    num_agents = batch.advantage.shape[0]
    thresholds = jnp.full(num_agents, config.kl_budget / num_agents)
    update = functools.partial(plain_update, actor, config, order=list(range(num_agents)), thresholds=thresholds)
    begin = time.perf_counter()
    program = jax.jit(lambda actors, batch: update(actors=actors, batch=batch)).lower(actors, batch).compile()
    return functools.partial(program, actors, batch), time.perf_counter() - begin


def flops(num_agents: int, hidden: tuple[int, ...], cg_iters: int, evaluations: float) -> float:
    """FLOPs of the matrix products that one full-batch update needs at least.

    A forward pass multiplies with every weight (W in all, W1 in the first layer); a derivative along parameters
    does so twice, and once in the first layer, whose input is constant; its transpose likewise.
    """
    sizes = (OBS, *hidden, ACT)
    products = [a * b for a, b in zip(sizes, sizes[1:])]
    every, first = sum(products), products[0]
    derivative = 2 * every - first
    multiplications = every + derivative + cg_iters * 2 * derivative + evaluations * every
    return 2.0 * BATCH * num_agents * multiplications


def matrix_rate(size: int = 2048, repeats: int = 7) -> float:
    """FLOP/s of a size x size float32 matrix product."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    return 2.0 * size**3 / min(_seconds(lambda: product(a, a)) for _ in range(repeats))


def _seconds(call) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def measure(num_agents: int, hidden: tuple[int, ...], repeats: int, rate: float) -> dict:
    """One row of the table."""
    default = marl_kl.TrustRegionConfig(hidden_sizes=hidden)
    identical = default.replace(cg_subsample=1.0, cg_tol=0.0, line_search="geometric")  # as the plain version's
    actor, actors, batch = problem(num_agents, default)
    programs, compile_seconds = {}, {}

    def add(name, program_and_seconds):
        programs[name], compile_seconds[name] = program_and_seconds

    add("ours", compiled_update("hatrpo", actor, identical, actors, batch))
    add("default", compiled_update("hatrpo", actor, default, actors, batch))
    for name in ("hatrpo_w", "hatrpo_g"):
        add(name, compiled_update(name, actor, default, actors, batch))
    _, _, metrics = programs["ours"]()
    tries = 1 + np.log(np.asarray(metrics["step_fraction"])) / np.log(default.backtrack_coef)
    as_many = identical.replace(line_search_steps=int(round(tries.max())))
    add("plain", compiled_plain(actor, as_many, actors, batch))

    jax.block_until_ready([program() for program in programs.values()])
    times = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            times[name].append(_seconds(program))
    row = {f"{name}_s": float(np.median(seconds)) for name, seconds in times.items()}
    work = flops(num_agents, hidden, default.cg_iters, float(tries.mean()))
    return {
        "agents": num_agents,
        "hidden": list(hidden),
        **row,
        "floor_s": work / rate,
        "gflop": work / 1e9,
        "line_search_evaluations": float(tries.mean()),
        "pytorch_s": PYTORCH_SECONDS.get((num_agents, hidden)),
        "compile_s": {name: round(seconds, 2) for name, seconds in compile_seconds.items()},
    }


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, nargs="+", default=[2, 4, 8, 17])
    parser.add_argument("--hidden", nargs="+", default=["64,64", "128,128,128"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args(argv)
    rate = matrix_rate()
    versions = f"jax {jax.__version__}, python {platform.python_version()}"
    machine = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {versions}"
    print(f"{machine}; matrix product {rate / 1e9:.0f} GFLOP/s")
    columns = ("ours", "floor", "plain", "default", "hatrpo_w", "hatrpo_g", "pytorch")
    print(f"{'agents':>6} {'hidden':>12} " + " ".join(f"{c + ' s':>11}" for c in columns) + "   plain/ours ours/floor")
    rows = []
    for hidden in (tuple(map(int, text.split(","))) for text in options.hidden):
        for num_agents in options.agents:
            row = measure(num_agents, hidden, options.repeats, rate)
            rows.append(row)
            seconds = " ".join(f"{row[c + '_s'] or float('nan'):11.4f}" for c in columns)
            ratios = f"{row['plain_s'] / row['ours_s']:10.2f} {row['ours_s'] / row['floor_s']:10.2f}"
            print(f"{num_agents:6d} {'-'.join(map(str, hidden)):>12} {seconds}   {ratios}", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"versions": versions, "gflops_per_s": rate / 1e9, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
