"""What a stored run costs beside its programs: display, logs, tables and checkpoints, as a share of the training time.

    python -m benchmarks.host_overhead [--env ant_4x2] [--seeds 64] [--num-envs 8] [--rollout-length 64]
                                       [--updates 20] [--repeats 3] [--json FILE]

*Host* is the time of the training loop outside the programs of training and evaluation; checks before it and pictures
after it are not in it. Medians over repeats.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np

import envs
import marl_kl
from benchmarks.timing import machine, versions
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.training import runner
from marl_kl.training.shard_loop import ShardLoop


def run(env: envs.Env, seeds: int, updates: int, num_envs: int, rollout_length: int) -> tuple[float, float]:
    """Seconds of the training loop within the programs of training, and outside all programs."""
    host = []

    class TimedLoop(ShardLoop):
        def run(self) -> Snapshot:
            begin, before = time.perf_counter(), sum(self.now.timing)
            snapshot = super().run()
            host.append(time.perf_counter() - begin - (sum(snapshot.timing) - before))
            return snapshot

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(runner, "ShardLoop", TimedLoop):
        result = marl_kl.train(
            env, "hatrpo_w", seeds=seeds, out=Path(folder, "run"), progress="plain", num_envs=num_envs,
            rollout_length=rollout_length, total_env_steps=updates * num_envs * rollout_length, eval_interval=0,
            eval_episodes=1, save_interval=10,
        )  # fmt: skip
    return result.timing.train, host[0]


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="ant_4x2")
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--rollout-length", type=int, default=64)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args(arguments)
    marl_kl.use_all_cpu_cores()
    env, sizes = envs.make(options.env), (options.num_envs, options.rollout_length)
    rounds = [run(env, options.seeds, options.updates, *sizes) for _ in range(options.repeats)]
    training, host = np.median(rounds, axis=0) / options.updates
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
