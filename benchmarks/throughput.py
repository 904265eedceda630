"""Training env steps per second as a fraction of bare environment stepping in the same process.

    python benchmarks/throughput.py [--env ant_4x2] [--backends mjx spring] [--algorithms hatrpo hatrpo_w]
                                    [--seeds 1 4 16] [--num-envs 64] [--rollout-length 64] [--json FILE]
    python benchmarks/throughput.py --env jaxmarl/3m --backends none    # an environment without backends

Bare: as many parallel environments, on the same devices, uniformly random actions, no policy, no resets, no
learning. Training: whole updates (rollout with resets, advantages, actors, critic) with the default config
otherwise. Both run in turn; medians over repeats. Compile time is that of one training update; peak memory is
that of the process so far.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

import envs
import marl_kl
from marl_kl import devices
from marl_kl.trainer import make_train


def bare_stepping(env, mesh, num_seeds: int, num_envs: int, length: int):
    """A compiled program that takes `length` steps in [seed, num_envs] environments, and its first argument."""
    options = env.spec.cpu_compiler_options
    reset = jax.vmap(jax.vmap(env.reset, (0, None)), (0, None))
    step = jax.vmap(env.step, (0, 0, 0, None))
    spec = env.spec

    def random_action(key):
        if spec.action_kind == "discrete":
            return jax.random.randint(key, (num_envs, spec.num_agents), 0, np.asarray(spec.action_sizes))
        return jax.random.uniform(key, (num_envs, spec.num_agents, spec.action_size), minval=-1.0, maxval=1.0)

    def one_seed(key, env_state):
        def env_step(env_state, key):
            action = random_action(key)
            return step(jax.random.split(key, num_envs), env_state, action, env.params)[0], None

        return jax.lax.scan(env_step, env_state, jax.random.split(key, length))[0]

    keys = jax.random.split(jax.random.key(0), (num_seeds, num_envs))
    start = devices.over_seeds(lambda k: reset(k, env.params)[0], mesh, (devices.SEEDS,), devices.SEEDS, options)(
        devices.place(keys, mesh)
    )
    keys = devices.place(jax.random.split(jax.random.key(1), num_seeds), mesh)
    program = devices.over_seeds(jax.vmap(one_seed), mesh, (devices.SEEDS, devices.SEEDS), devices.SEEDS, options)
    return lambda: program(keys, start)


def training(env, algorithm: str, config, mesh, num_seeds: int):
    """A function that makes one update of all seeds, and the seconds its compilation took."""
    options = env.spec.cpu_compiler_options
    train = make_train(env, algorithm, config)
    keys = devices.place(jax.vmap(jax.random.key)(jnp.arange(num_seeds)), mesh)
    state = devices.over_seeds(jax.vmap(train.init), mesh, (devices.SEEDS,), devices.SEEDS, options)(keys)
    jax.block_until_ready(state)
    update = devices.over_seeds(
        jax.vmap(train.update), mesh, (devices.SEEDS,), devices.SEEDS, options, donate_argnums=0
    )
    program, compile_seconds = compiled(update, state)
    box = [state]

    def step():
        box[0], metrics = program(box[0])
        return metrics

    return step, compile_seconds


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


def measure(env, algorithms, config, num_seeds: int, repeats: int) -> list[dict]:
    """One row per algorithm."""
    mesh = devices.seed_mesh(num_seeds)
    calls = {"bare": bare_stepping(env, mesh, num_seeds, config.num_envs, config.rollout_length)}
    compile_seconds = {}
    for algorithm in algorithms:
        calls[algorithm], compile_seconds[algorithm] = training(env, algorithm, config, mesh, num_seeds)
    steps = num_seeds * config.batch_size
    rates = {name: steps / median for name, median in in_turn(calls, repeats).items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        {
            "algorithm": name, "seeds": num_seeds, "devices": mesh.size, "bare": rates["bare"], "training": rates[name],
            "fraction": rates[name] / rates["bare"], "compile_s": compile_seconds[name], "peak_gib": peak,
        }
        for name in algorithms
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="ant_4x2")
    parser.add_argument("--backends", nargs="+", default=["mjx", "spring"])
    parser.add_argument("--algorithms", nargs="+", default=["hatrpo", "hatrpo_w"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--rollout-length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args()
    marl_kl.use_all_cpu_cores()
    config = marl_kl.TrustRegionConfig(num_envs=options.num_envs, rollout_length=options.rollout_length)
    print(f"{machine()}, {versions()}; {options.num_envs} envs per seed")
    print(f"{'env':>18} {'algorithm':>10} {'seeds':>5} {'devices':>7} {'bare/s':>9} {'training/s':>10} {'fraction':>8} "
          f"{'compile s':>9} {'peak GiB':>8}")  # fmt: skip
    rows = []
    for backend in options.backends:
        env = envs.make(options.env, **({} if backend == "none" else {"backend": backend}))
        for num_seeds in options.seeds:
            for row in measure(env, options.algorithms, config, num_seeds, options.repeats):
                rows.append({"env": options.env, "backend": backend, **row})
                print(f"{options.env + '/' + backend:>18} {row['algorithm']:>10} {row['seeds']:5d} {row['devices']:7d} "
                      f"{row['bare']:9.0f} {row['training']:10.0f} {row['fraction']:8.2f} {row['compile_s']:9.1f} "
                      f"{row['peak_gib']:8.2f}", flush=True)  # fmt: skip
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"versions": versions(), "num_envs": options.num_envs, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
