"""What a stored run costs beside its programs: display, logs, tables and checkpoints, as a share of the training time.

    python -m benchmarks.host_overhead [--env ant_4x2] [--seeds 64] [--num-envs 16] [--rollout-length 64]
                                       [--updates 5 45] [--repeats 3] [--json FILE]

Runs of two lengths, in turn; the second has more checkpoints, chunks and rows, and what both spend once (checks, start,
pictures at the end) cancels: *host* is the time that the longer one takes more outside its programs, *training* what it
takes more within them. Medians over repeats.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import envs
import marl_kl
from benchmarks.timing import machine, versions


def run(env: envs.Env, seeds: int, updates: int, num_envs: int, rollout_length: int) -> tuple[float, float]:
    """Seconds within the programs of training, and outside all programs, of a run of `updates` updates."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        result = marl_kl.train(
            env, "hatrpo_w", seeds=seeds, out=Path(folder, "run"), progress="plain", num_envs=num_envs,
            rollout_length=rollout_length, total_env_steps=updates * num_envs * rollout_length, eval_interval=0,
            save_interval=10,
        )  # fmt: skip
        return result.timing.train, time.perf_counter() - begin - sum(result.timing)


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="ant_4x2")
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--rollout-length", type=int, default=64)
    parser.add_argument("--updates", type=int, nargs=2, default=[5, 45], metavar=("SHORT", "LONG"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args(arguments)
    marl_kl.use_all_cpu_cores()
    env, sizes = envs.make(options.env), (options.num_envs, options.rollout_length)
    rounds = [[run(env, options.seeds, updates, *sizes) for updates in options.updates] for _ in range(options.repeats)]
    training, host = np.median(np.diff(rounds, axis=1)[:, 0], axis=0) / np.diff(options.updates)
    figures = {
        "machine": f"{machine()}, {versions()}", "env": options.env, "seeds": options.seeds,
        "training_ms_per_update": 1e3 * training, "host_ms_per_update": 1e3 * host, "share": host / training,
    }  # fmt: skip
    print(f"{figures['machine']}; {options.env}, {options.seeds} seeds, a checkpoint every 10 updates: training "
          f"{1e3 * training:.1f} ms per update, host {1e3 * host:.1f} ms ({100 * host / training:.2f} %)")  # fmt: skip
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
