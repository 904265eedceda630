"""One sweep against the same runs one after another, in the same process.

    python -m benchmarks.sweep [--env matrix_game] [--env-option steps=16] [--algorithm hatrpo_w] [--settings 4]
                               [--seeds 8] [--num-envs 32] [--rollout-length 64] [--updates 20] [--scripts 4]
                               [--json FILE]

The sweep is `--settings` KL budgets x `--seeds` seeds in one program. One after another: every run alone, in a program
of one run, in two ways: compiled once and reused for all (what only a program with traced numbers allows), and as a
script would, `marl_kl.train` again and again, each call compiling; of the latter the first `--scripts` are made, and
the time of all is reckoned from their mean. Evaluation before the first and after the last update is part of all. jax's
compilation cache is switched off.

At the end: how far the runs of the sweep are from the single ones, as a share of the largest value of the metric that
differs most, after the first update (rounding: batches of other sizes sum in another order) and over all updates (what
training has made of it since).
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import platform
import time

import jax
import numpy as np

import envs
import marl_kl


def measure(env, algorithm: str, budgets, num_seeds: int, num_scripts: int, **fields) -> dict:
    """Seconds of all ways: all in all, compiling, and running."""
    fields |= {"progress": "none"}
    grid, num_runs = {"kl_budget": budgets}, len(budgets) * num_seeds
    swept, seconds = _timed(lambda: marl_kl.sweep(env, algorithm, grid=grid, seeds=num_seeds, **fields))
    row = _parts("sweep", swept.timing, seconds)
    alone, seconds = _timed(lambda: marl_kl.sweep(env, algorithm, grid=grid, seeds=num_seeds, runs_at_once=1, **fields))
    row |= _parts("singles_compiled_once", alone.timing, seconds)
    whole = []
    for k, seed in list(itertools.product(range(len(budgets)), range(num_seeds)))[:num_scripts]:
        single, seconds = _timed(
            lambda: marl_kl.train(env, algorithm, seeds=[seed], kl_budget=float(budgets[k]), **fields)
        )
        print(f"script {len(whole) + 1} of {num_scripts}: {seconds:.1f} s", flush=True)
        _refuse_other_numbers(alone, k, seed, single)
        whole.append(seconds)
    row |= {"scripts": num_scripts, "script_s": float(np.mean(whole)), "singles_s": float(np.mean(whole)) * num_runs}
    distances = [_distances(swept, alone, k, seed) for k in range(len(budgets)) for seed in range(num_seeds)]
    row["distance_first_update"], row["distance"] = map(max, zip(*distances))
    return row


def _timed(call):
    """What `call` returns, and the seconds it took."""
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def _parts(name: str, timing, seconds: float) -> dict[str, float]:
    print(f"{name}: {seconds:.1f} s, of which compiling {timing.compile:.1f} s", flush=True)
    running = timing.train + timing.evaluate
    return {f"{name}_s": seconds, f"{name}_compile_s": timing.compile, f"{name}_running_s": running}


def _refuse_other_numbers(alone: marl_kl.SweepResult, setting: int, seed: int, single: marl_kl.TrainResult) -> None:
    """A run alone is the same by `sweep` and by `train`: the same program, compiled again."""
    for name, values in single.metrics.items():
        np.testing.assert_allclose(alone.metrics[name][setting, seed], values[0], rtol=1e-3, atol=1e-4, err_msg=name)


def _distances(swept: marl_kl.SweepResult, alone: marl_kl.SweepResult, setting: int, seed: int):
    """Of one run of the sweep from the single run: after the first update, and over all updates; see `_distance`."""
    run = (setting, seed)
    pairs = {name: (swept.metrics[name][run], wanted[run]) for name, wanted in alone.metrics.items()}
    where = f"budget {setting}, seed {seed}"
    return tuple(
        max((_distance(got[:n], wanted[:n], swept.metrics[name]), name, where) for name, (got, wanted) in pairs.items())
        for n in (1, None)
    )


def _distance(got: np.ndarray, wanted: np.ndarray, everywhere: np.ndarray) -> float:
    """The largest |got - wanted| as a share of the largest |value| of all runs, but at least of 1e-3: what is 0 but for
    rounding has no scale of its own. Inf where only one of them is NaN.
    """
    if np.any(np.isnan(got) != np.isnan(wanted)):
        return float("inf")
    got, wanted = np.nan_to_num(got), np.nan_to_num(wanted)
    return float(np.max(np.abs(got - wanted)) / max(float(np.nanmax(np.abs(everywhere))), 1e-3))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="matrix_game")
    parser.add_argument("--env-option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--algorithm", default="hatrpo_w")
    parser.add_argument("--settings", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--rollout-length", type=int, default=64)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--scripts", type=int, default=4)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    marl_kl.use_all_cpu_cores()
    pairs = (option.split("=", 1) for option in options.env_option)
    env = envs.make(options.env, **{name: ast.literal_eval(text) for name, text in pairs})
    budgets = np.geomspace(0.01, 0.3, options.settings).tolist()
    steps = options.num_envs * options.rollout_length * options.updates
    row = measure(
        env, options.algorithm, budgets, options.seeds, min(options.scripts, options.settings * options.seeds),
        num_envs=options.num_envs, rollout_length=options.rollout_length, total_env_steps=steps,
    )  # fmt: skip
    versions = f"jax {jax.__version__}, python {platform.python_version()}"
    machine = f"{jax.devices()[0].device_kind} x {len(jax.devices())}"
    print(f"{machine}, {versions}; {options.env}, {options.algorithm}, {options.settings} budgets x {options.seeds} "
          f"seeds, {options.updates} updates of {options.num_envs} x {options.rollout_length} env steps")  # fmt: skip
    ways = {
        "each compiled": ("sweep_s", "singles_s"),
        "compiled once": ("sweep_s", "singles_compiled_once_s"),
        "without compiling": ("sweep_running_s", "singles_compiled_once_running_s"),
    }
    print(f"{'seconds':>18} {'sweep':>8} {'one by one':>10} {'ratio':>6}")
    for name, (ours, theirs) in ways.items():
        print(f"{name:>18} {row[ours]:8.1f} {row[theirs]:10.1f} {row[theirs] / row[ours]:6.1f}")
    for when, field in {"after the first update": "distance_first_update", "over all updates": "distance"}.items():
        share, metric, where = row[field]
        print(f"distance of the sweep's runs from the single ones {when}: {share:.1e} ({metric}, {where})")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"versions": versions, "machine": machine, "options": vars(options), **row}, file, indent=1)


if __name__ == "__main__":
    main()
