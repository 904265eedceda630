"""How fast and how faithful every body is, on every engine and backend: one table.

    python -m benchmarks.bodies [--bodies ant humanoid ...] [--num-envs 64] [--json FILE]

Speed: env steps per second of parallel environments under random actions, no policy, resets or learning; median of
repeats. Compile time is that of this program. Error: of one control step from states visited under random actions,
against C MuJoCo in float64 with 100 solver iterations on the same model (Euclidean norm of the error in q, median and
99th percentile), beside the distance that the body moves in q.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

import marl_kl.devices  # noqa: F401  the size of XLA's thread pool
from envs.bodies import brax_engine, mjx_engine
from envs.bodies.physics import Physics

STEPS, REPEATS, COMPARED = 32, 3, 256
SEGMENTS = {"manyagent_ant": 6, "manyagent_swimmer": 20}


class Case(NamedTuple):
    """A body on a backend; `unit_controls`: whether C MuJoCo's controls are ours stretched from [-1, 1]."""

    body: str
    backend: str
    physics: Physics
    unit_controls: bool


def load(body: str, backend: str) -> Case:
    """`backend`: Brax's, or "gymnasium" for engine mjx."""
    if backend == "gymnasium":
        return Case(body, backend, mjx_engine.load(body, SEGMENTS.get(body)), False)
    return Case(body, backend, brax_engine.load(body, backend), brax_engine.BODIES[body].unit_controls)


def coordinates(state: Any) -> tuple[jax.Array, jax.Array]:
    """q and qd of an engine's state."""
    if isinstance(state, dict):
        return state["qpos"], state["qvel"]
    return (state.qpos, state.qvel) if hasattr(state, "qpos") else (state.q, state.qd)


def rollout(case: Case, num_envs: int):
    """A compiled program of STEPS random steps, its argument, and the seconds its compilation took.

    It returns q, qd before and q after every step, and the controls, leaves [STEPS, num_envs, ...].
    """
    low, high = jnp.asarray(case.physics.tree.control_range).T

    def run(key):
        state, _ = jax.vmap(case.physics.reset)(jax.random.split(key, num_envs))

        def step(state, key):
            control = jax.random.uniform(key, (num_envs, len(low)), minval=low, maxval=high)
            after, seen = jax.vmap(case.physics.step)(state, control)
            return after, (*coordinates(state), coordinates(after)[0], control, seen.terminated)

        return jax.lax.scan(step, state, jax.random.split(key, STEPS))[1]

    begin = time.perf_counter()
    options = dict(case.physics.compiler_options)
    program = jax.jit(run, compiler_options=options).lower(jax.random.key(0)).compile()
    return program, time.perf_counter() - begin


def step_errors(case: Case, visited) -> tuple[np.ndarray, np.ndarray]:
    """[COMPARED] error in q of one control step, [COMPARED] distance moved in q."""
    q, qd, after, control, terminated = (np.asarray(x, np.float64).reshape(-1, *x.shape[2:]) for x in visited)
    upright = np.flatnonzero(
        np.isfinite(after).all(-1) & (np.cumsum(terminated.reshape(STEPS, -1), 0).reshape(-1) == 0)
    )
    chosen = np.random.default_rng(0).permutation(upright)[:COMPARED]
    model = case.physics.model
    model.opt.iterations, model.opt.ls_iterations = 100, 50
    data = mujoco.MjData(model)
    low, high = model.actuator_ctrlrange.T
    frames = round(case.physics.seconds / model.opt.timestep)
    errors, moved = [], []
    for index in chosen:
        data.qpos[:], data.qvel[:] = q[index], qd[index]
        data.qacc_warmstart[:] = 0.0
        data.ctrl[:] = low + (control[index] + 1) * (high - low) / 2 if case.unit_controls else control[index]
        mujoco.mj_step(model, data, frames)
        errors.append(np.linalg.norm(after[index] - data.qpos))
        moved.append(np.linalg.norm(q[index] - data.qpos))
    return np.asarray(errors), np.asarray(moved)


def measure(case: Case, num_envs: int) -> dict:
    """One row."""
    program, compile_s = rollout(case, num_envs)
    visited = jax.block_until_ready(program(jax.random.key(0)))
    times = []
    for repeat in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(program(jax.random.key(repeat)))
        times.append(time.perf_counter() - begin)
    errors, moved = step_errors(case, visited)
    return {
        "body": case.body, "backend": case.backend, "steps_per_s": num_envs * STEPS / float(np.median(times)),
        "compile_s": compile_s, "moved": float(np.median(moved)), "error": float(np.median(errors)),
        "error_99": float(np.quantile(errors, 0.99)),
    }  # fmt: skip


def cases(bodies) -> list[tuple[str, str]]:
    """All bodies on all that they run on."""
    on_brax = [(body, backend) for body in brax_engine.BODIES for backend in brax_engine.BACKENDS]
    on_mjx = [(body, "gymnasium") for body in mjx_engine.BODIES]
    return sorted((body, backend) for body, backend in on_brax + on_mjx if bodies is None or body in bodies)


def merged(path: Path, where: dict, rows: list[dict]) -> list[dict]:
    """`rows`, and those in the file at `path` of other bodies and backends, if they were measured alike; sorted."""
    stored = json.loads(path.read_text()) if path.exists() else where | {"rows": []}
    kept = stored["rows"] if where.items() <= stored.items() else []
    by_case = {(row["body"], row["backend"]): row for row in [*kept, *rows]}
    return [by_case[case] for case in sorted(by_case)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bodies", nargs="+")
    parser.add_argument("--backends", nargs="+")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--json", type=Path, help="where to write the figures; other rows measured alike are kept")
    options = parser.parse_args()
    versions = f"jax {jax.__version__}, mujoco {mujoco.__version__}, python {platform.python_version()}"
    cores = f" with {len(os.sched_getaffinity(0))} cores" if jax.default_backend() == "cpu" else ""
    device = f"{jax.devices()[0].device_kind}{cores}"
    print(f"{device}, {versions}; {options.num_envs} environments")
    print(f"{'body':>20} {'backend':>12} {'steps/s':>9} {'compile s':>9} {'moved':>8} {'error':>9} {'error 99 %':>10}")
    rows = []
    for body, backend in cases(options.bodies):
        if options.backends and backend not in options.backends:
            continue
        try:
            row = measure(load(body, backend), options.num_envs)
        except Exception as error:
            print(
                f"{body:>20} {backend:>12} fails: {type(error).__name__}: {str(error).splitlines()[0][:80]}", flush=True
            )
            continue
        rows.append(row)
        print(f"{body:>20} {backend:>12} {row['steps_per_s']:9.0f} {row['compile_s']:9.1f} {row['moved']:8.2g} "
              f"{row['error']:9.2g} {row['error_99']:10.2g}", flush=True)  # fmt: skip
    if options.json:
        where = {"device": device, "versions": versions, "num_envs": options.num_envs}
        options.json.write_text(json.dumps(where | {"rows": merged(options.json, where, rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
