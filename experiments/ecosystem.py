"""Do the algorithms learn on environments of others? SMAX 3m and MPE's simple spread (JaxMARL), and PaxMen, 5 seeds.

    python experiments/ecosystem.py [--tasks jaxmarl/3m ...] [--algorithms mappo ...] --out FOLDER [--smoke]

Writes every run to FOLDER/<task>/<algorithm>, every seed's evaluations to FOLDER/evaluations.csv and a Markdown table
to FOLDER/table.md: return of the deterministic team before and after training, mean over episodes and seeds with its
95 % interval (bootstrap over seeds); where the environment says which returns are those of won episodes (SMAX), the
share of won ones; and the return of the sampling team over the last tenth of the updates. All runs of a task take the same
number of env steps. A run that was stopped goes on where it was. `--smoke` runs it all in a few updates, to see that it
runs.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Iterator

import numpy as np

import envs
import marl_kl
from envs.types import EnvSpec
from marl_kl.files import write_file
from marl_kl.statistics import bootstrap_interval
from marl_kl.summary import markdown_row

ENV_STEPS = {"jaxmarl/3m": 1_000_000, "jaxmarl/MPE_simple_spread_v3": 1_000_000, "paxmen_4": 1_000_000}
"""Env steps per seed."""

COMMON = {"num_envs": 32, "rollout_length": 128, "eval_episodes": 64, "eval_interval": 25}
FIRST_ORDER = {"actor_lr": 1e-3, "actor_minibatches": 4}
"""Rollouts of 4,096 samples of a cheap environment bear more and larger steps than those of a body."""
SETTINGS = {
    "mappo": FIRST_ORDER,
    "hatrpo": {},
    "happo": FIRST_ORDER,
    "hatrpo_w": {},
    "hatrpo_g": {},
    "hatrpo_n": {},
    "ippo": FIRST_ORDER,
    "maspo": FIRST_ORDER,
    "mars": FIRST_ORDER,
}
"""Beside `COMMON`, by algorithm; nothing was searched. The first four are trained if none are named."""

SMOKE = {
    "num_envs": 4, "rollout_length": 8, "eval_episodes": 4, "eval_interval": 1, "total_env_steps": 64,
    "hidden_sizes": (8,), "critic_epochs": 1, "chunk_updates": 1,
}  # fmt: skip

_HEADER = """| task | algorithm | env steps per seed | return: untrained → trained | won: untrained → trained | \
sampling, last tenth | env steps/s |
|---|---|---|---|---|---|---|
"""


def won(spec: EnvSpec, episode_return: np.ndarray) -> np.ndarray | None:
    """[...] bool: whether episodes of these returns were won; None where a return does not tell."""
    threshold = dict(spec.metadata).get("won_above")
    return None if threshold is None else episode_return > float(threshold)


def _over_seeds(per_seed: np.ndarray, digits: int) -> str:
    low, high = bootstrap_interval(per_seed, statistic=np.mean)
    return f"{per_seed.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def row(result: marl_kl.TrainResult) -> str:
    """One line of the table."""
    returns = result.evaluation.episode_return
    wins = won(result.spec, returns)
    training = result.metrics["episode_return"]
    last = training[:, -max(1, training.shape[1] // 10) :]

    def ends(values, digits):
        first, final = values[:, 0].mean(-1), values[:, -1].mean(-1)
        return f"{_over_seeds(first, digits)} → {_over_seeds(final, digits)}"

    cells = [
        result.spec.name,
        result.algorithm,
        f"{result.env_steps[-1]:,}",
        ends(returns, 2),
        "" if wins is None else ends(wins, 2),
        _over_seeds(last.mean(1), 2),
        f"{result.steps_per_second:,.0f}",
    ]
    return markdown_row(cells) + "\n"


def evaluations(result: marl_kl.TrainResult) -> Iterator[tuple]:
    """Every evaluation of every seed, as a line of the CSV file: means over its episodes."""
    returns = result.evaluation.episode_return
    wins = won(result.spec, returns)
    for seed, evaluation in np.ndindex(returns.shape[:2]):
        index = seed, evaluation
        yield (
            result.spec.name, result.algorithm, result.seeds[seed], int(result.evaluation.env_steps[evaluation]),
            f"{returns[index].mean():.6g}", "" if wins is None else f"{wins[index].mean():.6g}",
        )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(ENV_STEPS), choices=list(ENV_STEPS))
    parser.add_argument("--algorithms", nargs="+", default=list(SETTINGS)[:4], choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--env-steps", type=float, help="per seed, instead of the default")
    parser.add_argument("--smoke", action="store_true", help="a few updates of each")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    marl_kl.use_all_cpu_cores()
    table, lines = _HEADER, io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(("task", "algorithm", "seed", "env_steps", "return", "won"))
    for task in options.tasks:
        env = envs.make(task)
        for algorithm in options.algorithms:
            fields = {"total_env_steps": options.env_steps or ENV_STEPS[task], **COMMON, **SETTINGS[algorithm]}
            result = marl_kl.train(
                env, algorithm, seeds=options.seeds, out=options.out / task.replace("/", "_") / algorithm, resume=True,
                progress="plain", **(SMOKE if options.smoke else fields),
            )  # fmt: skip
            table += row(result)
            writer.writerows(evaluations(result))
            write_file(options.out / "table.md", table)
            write_file(options.out / "evaluations.csv", lines.getvalue())
    print(table)


if __name__ == "__main__":
    main()
