"""Does each of the twelve scenarios of the HATRPO paper train? HATRPO-W on a CPU-sized budget, 6 seeds each.

    python experiments/twelve_scenarios.py [--scenarios ant_4x2 ...] --out FOLDER

Writes every run's raw results to FOLDER/<scenario> and a Markdown table to FOLDER/table.md. Per scenario: return of the
deterministic team before and after training, and return of the sampling team (each environment's last finished episode)
over the first and the last tenth of the updates since episodes of every seed ended, means over seeds, and the interval
of the difference (95 %, bootstrap of the mean over seeds); a dash where episodes ended in fewer than two updates. A run
that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import envs
import marl_kl
from marl_kl.analysis.statistics import bootstrap_interval
from marl_kl.analysis.text_tables import markdown_row
from marl_kl.storage.files import write_file
from marl_kl.training import presets

PRESET = "quick"
"""Those of the README's run, for all scenarios; nothing was tuned per scenario but the env steps."""

_HEADER = """| scenario | env steps per seed | deterministic: untrained → trained | difference [95 %] | \
sampling: first → last tenth | difference [95 %] | env steps/s |
|---|---|---|---|---|---|---|
"""


def compared(before: np.ndarray, after: np.ndarray) -> list[str]:
    """ "before → after" and the difference with its interval, from one number per seed each."""
    low, high = bootstrap_interval(after - before, statistic=np.mean)
    return [f"{before.mean():.0f} → {after.mean():.0f}", f"{(after - before).mean():+.0f} [{low:+.0f}, {high:+.0f}]"]


def ends(training: np.ndarray, finished: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Per seed, the mean of `training` over the first and the last tenth of the updates since all seeds have a return.

    None if episodes ended in fewer than two updates: the last return is then the first.

    Args:
        training: [seed, update] mean return of the last finished episodes, NaN before there is one.
        finished: [seed, update] episodes that ended in the update.
    """
    if np.count_nonzero((finished > 0).any(axis=0)) < 2:
        return None
    ended = training[:, ~np.isnan(training).any(axis=0)]
    tenth = max(1, ended.shape[1] // 10)
    return ended[:, :tenth].mean(axis=1), ended[:, -tenth:].mean(axis=1)


def row(scenario: str, result: marl_kl.TrainResult) -> str:
    """One line of the table."""
    evaluation = result.evaluation.episode_return.mean(-1)
    sampling = ends(result.metrics["episode_return"], result.metrics["episodes_finished"])
    cells = [
        scenario,
        f"{result.env_steps[-1]:,}",
        *compared(evaluation[:, 0], evaluation[:, -1]),
        *(["–", "–"] if sampling is None else compared(*sampling)),
        f"{result.steps_per_second:,.0f}",
    ]
    return markdown_row(cells) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    scenarios = list(presets.get(PRESET).scenarios)
    parser.add_argument("--scenarios", nargs="+", default=scenarios, choices=scenarios)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    marl_kl.use_all_cpu_cores()
    table = _HEADER
    for scenario in options.scenarios:
        result = marl_kl.train(
            envs.make(scenario), "hatrpo_w", seeds=options.seeds, config=presets.config(PRESET, scenario, "hatrpo_w"),
            out=options.out / scenario, resume=True, progress="plain",
        )  # fmt: skip
        table += row(scenario, result)
        write_file(options.out / "table.md", table)
    print(table)


if __name__ == "__main__":
    main()
