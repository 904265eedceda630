"""Do the algorithms learn on environments of other libraries? SMAX 3m and MPE's simple spread (JaxMARL), and PaxMen.

    python -m experiments.ecosystem --out FOLDER                                  # the cases without results yet
    python -m experiments.ecosystem --out FOLDER --only jaxmarl/3m:hatrpo         # this one (again)
    python -m experiments.ecosystem --out FOLDER --results FOLDER --smoke         # a few updates: does everything run?
    python -m experiments.ecosystem --report                                      # the table again, from stored results

Writes every run to FOLDER/<task>/<algorithm>-<env steps>, where an interrupted run is resumed; every seed's evaluations
to ecosystem.csv and returns during training to ecosystem-training.csv, next to the page ecosystem.md with their table.
Results of other cases, or of another number of env steps, are kept.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import envs
import marl_kl
from envs.base import EnvSpec
from experiments import settings, study
from experiments.intervals import Estimate, estimate
from marl_kl.core import algorithms
from marl_kl.storage.files import write_file

SMAX, SPREAD, PAXMEN = "jaxmarl/3m", "jaxmarl/MPE_simple_spread_v3", "paxmen_4"
COMMON = {"num_envs": 32, "rollout_length": 128, "eval_episodes": 64, "eval_interval": 25}
FIRST_ORDER = {"actor_lr": 1e-3, "actor_minibatches": 4}
"""Rollouts of 4,096 samples of a cheap environment allow larger and more steps than those of a body."""
SETTINGS = {
    name: FIRST_ORDER if name in algorithms.names(marl_kl.FirstOrderConfig) else settings.published(name)
    for name in algorithms.names(marl_kl.OnPolicyConfig)
}
"""In addition to `COMMON`, by algorithm; there was no search."""

CASES = {
    **{f"{SMAX}:{name}": 2_000_000 for name in ("mappo", "hatrpo")},
    **{f"{SPREAD}:{name}": 1_000_000 for name in ("mappo", "hatrpo", "ippo")},
    **{f"{SPREAD}:{name}": 500_000 for name in SETTINGS if name not in ("mappo", "hatrpo", "ippo")},
    **{f"{PAXMEN}:{name}": 1_000_000 for name in ("mappo", "hatrpo_w")},
}
"""Env steps per seed, by task:algorithm."""

SMOKE = {
    "num_envs": 4, "rollout_length": 8, "eval_episodes": 4, "eval_interval": 1, "total_env_steps": 64,
    "hidden_sizes": (8,), "critic_epochs": 1, "chunk_updates": 1,
}  # fmt: skip

Key = tuple[str, str, str]
"""task, algorithm, env steps per seed: what there is one row of."""
EVALUATIONS = ("task", "algorithm", "budget", "seed", "env_steps", "return", "won")
TRAINING = ("task", "algorithm", "budget", "mean", "low", "high", "steps_per_second")
"""Columns of the two files. Of training: the return of the stochastic policy over the last tenth of the updates, mean
over seeds and 95 % interval."""


def won(spec: EnvSpec, episode_return: np.ndarray) -> np.ndarray | None:
    """[...] bool: whether episodes of these returns were won; None if the return does not show it."""
    threshold = dict(spec.metadata).get("won_above")
    return None if threshold is None else episode_return > float(threshold)


def key_of(result: marl_kl.TrainResult) -> Key:
    return result.spec.name, result.algorithm, str(result.env_steps[-1])


def evaluation_lines(result: marl_kl.TrainResult) -> list[tuple[str, ...]]:
    """Every evaluation of every seed: means over its episodes."""
    returns = result.evaluation.episode_return
    wins = won(result.spec, returns)
    return [
        (
            *key_of(result), str(result.seeds[seed]), str(result.evaluation.env_steps[index]),
            f"{returns[seed, index].mean():.6g}", "" if wins is None else f"{wins[seed, index].mean():.6g}",
        )
        for seed, index in np.ndindex(returns.shape[:2])
    ]  # fmt: skip


def training_line(result: marl_kl.TrainResult) -> tuple[str, ...]:
    returns = result.metrics["episode_return"]
    last = returns[:, -max(1, returns.shape[1] // 10) :].mean(1)
    numbers = (*estimate(last, np.mean), result.steps_per_second)
    return (*key_of(result), *(f"{number:.6g}" for number in numbers))


def read(path: Path, header: Sequence[str]) -> list[tuple[str, ...]]:
    """The lines of a file, without its header; none if it does not exist."""
    if not path.exists():
        return []
    first, *lines = csv.reader(io.StringIO(path.read_text()))
    if first != list(header):
        raise ValueError(f"{path}: its columns are {', '.join(first)}; they must be {', '.join(header)}")
    return [tuple(line) for line in lines]


def write(path: Path, header: Sequence[str], lines: Sequence[tuple[str, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    write_file(path, text.getvalue())


def table(evaluations: Sequence[tuple[str, ...]], training: Sequence[tuple[str, ...]]) -> str:
    """One row per case: deterministic policy before and after training, over seeds; stochastic policy at the end."""
    names = list(SETTINGS)
    rows = []
    for line in sorted(training, key=lambda line: (line[0], names.index(line[1]), int(line[2]))):
        own = np.array([e[4:] for e in evaluations if e[:3] == line[:3]])
        steps = own[:, 0].astype(int)
        won = "" if "" in own[:, 2] else _before_and_after(steps, own[:, 2])
        *stochastic, speed = map(float, line[3:])
        rows.append([*line[:2], f"{int(line[2]):,}", _before_and_after(steps, own[:, 1]), won, Estimate(*stochastic).text(),
                     f"{speed:,.0f}"])  # fmt: skip
    header = ["task", "algorithm", "env steps per seed", "return: untrained → trained", "won: untrained → trained",
              "stochastic, last tenth", "env steps/s"]  # fmt: skip
    return study.table(header, rows)


def _before_and_after(steps: np.ndarray, values: np.ndarray) -> str:
    """Of the first and the last evaluation of every seed."""
    ends = (values[steps == end].astype(float) for end in (steps.min(), steps.max()))
    return " → ".join(estimate(end, np.mean).text() for end in ends)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="TASK:ALGORITHM", choices=list(CASES), help="default: all missing")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--env-steps", type=float, help="per seed, instead of the case's own")
    parser.add_argument("--smoke", action="store_true", help="a few updates of each")
    parser.add_argument("--report", action="store_true", help="only the table")
    parser.add_argument("--out", type=Path, default=study.WORK / "ecosystem", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=study.RESULTS, help="folder of the page and its raw results")
    options = parser.parse_args(arguments)
    page, files = options.results / "ecosystem.md", {"ecosystem.csv": EVALUATIONS, "ecosystem-training.csv": TRAINING}
    evaluations, training = (read(options.results / name, header) for name, header in files.items())
    if not options.report:
        marl_kl.use_all_cpu_cores()
    for case in () if options.report else options.only or CASES:
        task, algorithm = case.split(":")
        fields = {"total_env_steps": int(options.env_steps or CASES[case]), **COMMON, **SETTINGS[algorithm]}
        config = algorithms.get(algorithm).config_class(**(SMOKE if options.smoke else fields))
        key = (task, algorithm, str(config.num_updates * config.batch_size))
        if options.only is None and key in {line[:3] for line in training}:
            continue
        out = options.out / task.replace("/", "_") / f"{algorithm}-{config.total_env_steps}"
        result = marl_kl.train(
            envs.make(task), algorithm, seeds=options.seeds, config=config, out=out, resume=True, progress="plain"
        )
        evaluations = [line for line in evaluations if line[:3] != key] + evaluation_lines(result)
        training = [line for line in training if line[:3] != key] + [training_line(result)]
        for (name, header), lines in zip(files.items(), (evaluations, training)):
            write(options.results / name, header, lines)
    text = page.read_text() if page.exists() else "# Other environments\n\n<!-- table: returns -->\n\n<!-- end -->\n"
    write_file(page, study.with_tables(text, {"returns": table(evaluations, training)}))
    print(f"table: {page}")


if __name__ == "__main__":
    main()
