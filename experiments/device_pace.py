"""How fast this device trains on bodies, measured before a long study: its speed against two quiet CPU cores."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax

import envs
from envs.base import Env
from marl_kl import devices

COMPILE = 55.0
"""Seconds of compilation per piece; the host does it, whatever the device."""
REFERENCE = 33_000
"""Env steps per second of `measured_steps` on two quiet CPU cores."""


def relative_pace(seconds: Sequence[float], seeds: int, num_envs: int) -> float:
    """Speed of this device for pieces that take `seconds` on two quiet CPU cores, `seeds` x `num_envs` environments at
    once. Ants stand for all bodies."""
    print(f"stepping {seeds * num_envs} ants to measure the speed of this device ...", flush=True)
    return with_compilation(seconds, measured_steps(envs.make("ant_4x2"), seeds, num_envs) / REFERENCE)


def with_compilation(seconds: Sequence[float], stepping: float) -> float:
    """Overall speed if stepping is `stepping` times as fast and compilation is not faster."""
    compiling = sum(min(each, COMPILE) for each in seconds)
    return sum(seconds) / (compiling + (sum(seconds) - compiling) / stepping)


def measured_steps(env: Env, seeds: int, num_envs: int, length: int = 25, repeats: int = 4) -> float:
    """Env steps per second under random actions, without policy and learning; the best of the repeats."""

    def roll(key):
        state, _ = jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), env.params)

        def step(state, key):
            actions = jax.random.uniform(key, (num_envs, *env.spec.action_shape), minval=-1.0)
            keys = jax.random.split(key, num_envs)
            return jax.vmap(env.step, (0, 0, 0, None))(keys, state, actions, env.params)[0], None

        return jax.lax.scan(step, state, jax.random.split(key, length))[0]

    mesh = devices.seed_mesh(seeds)
    options = env.spec.cpu_compiler_options
    program = devices.over_seeds(jax.vmap(roll), mesh, (devices.SEEDS,), devices.SEEDS, options)
    seconds = []
    for seed in range(1 + repeats):
        keys = devices.shard(jax.random.split(jax.random.key(seed), seeds), mesh)
        start = time.perf_counter()
        jax.block_until_ready(program(keys))
        seconds.append(time.perf_counter() - start)
    return seeds * num_envs * length / min(seconds[1:])  # the first one compiles
