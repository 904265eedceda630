"""The four allocations on Ant 4x2 at equal joint KL budgets: does sharing the budget unequally pay early on?

    python experiments/allocators_on_ant.py [--backends mjx spring] [--total-env-steps 200000] [--seeds 4] --out FOLDER

Writes every run's raw results to FOLDER/<backend>-<algorithm> and a Markdown table to FOLDER/table.md: evaluation
return of the deterministic team before and after, training return (stochastic policies) at the end and its area
under the curve, per seed averages with their standard deviation, KL spent, share of the budget of the agent that
got most (averaged over updates).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import envs
import marl_kl
from marl_kl.analysis.text_tables import markdown_row
from marl_kl.storage.files import write_file

SETTINGS = {"gamma": 0.97, "gae_lambda": 0.9, "cg_damping": 1.0}
"""Those of the README's run, for all four; they were chosen with hatrpo on mjx in a handful of trials."""

_HEADER = """| backend | algorithm | evaluation, untrained | evaluation, final | training return, final | its area under the curve | KL spent | largest share |
|---|---|---|---|---|---|---|---|
"""


def row(backend: str, result: marl_kl.TrainResult) -> str:
    """One line of the table; a +- b is mean and standard deviation over seeds."""

    def spread(per_seed, digits=0):
        return f"{np.mean(per_seed):.{digits}f} ± {np.std(per_seed):.{digits}f}"

    evaluation = result.evaluation.episode_return.mean(-1)
    training = result.metrics["episode_return"]
    spent = result.metrics["kl_total"].mean(1) / result.config.kl_budget
    share = (result.metrics["kl_threshold"] / result.config.kl_budget).max(-1).mean(1)
    cells = [
        backend, result.algorithm, spread(evaluation[:, 0]), spread(evaluation[:, -1]),
        spread(training[:, -10:].mean(1)), spread(np.nanmean(training, axis=1)), spread(spent, 2), spread(share, 2),
    ]  # fmt: skip
    return markdown_row(cells) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["mjx", "spring"])
    parser.add_argument(
        "--algorithms", nargs="+", default=list(marl_kl.core.algorithms.names(marl_kl.TrustRegionConfig))
    )
    parser.add_argument("--total-env-steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    marl_kl.use_all_cpu_cores()
    table = _HEADER
    for backend in options.backends:
        env = envs.make("ant_4x2", backend=backend)
        for algorithm in options.algorithms:
            result = marl_kl.train(
                env, algorithm, seeds=options.seeds, total_env_steps=options.total_env_steps,
                out=options.out / f"{backend}-{algorithm}", progress="plain", **SETTINGS,
            )  # fmt: skip
            table += row(backend, result)
            write_file(options.out / "table.md", table)
    print(table)


if __name__ == "__main__":
    main()
