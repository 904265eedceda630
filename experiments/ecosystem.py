"""Do the algorithms learn on environments of others? SMAX 3m and MPE's simple spread (JaxMARL), and PaxMen, 5 seeds.

    python -m experiments.ecosystem --out FOLDER --results experiments/results            # the cases without a row yet
    python -m experiments.ecosystem --out FOLDER --results experiments/results --only jaxmarl/3m:hatrpo paxmen_4:mappo
    python -m experiments.ecosystem --out FOLDER --smoke                                  # a few updates, to see it run

Writes every run to FOLDER/<task>/<algorithm>-<env steps>; to the results' folder every seed's evaluations as
ecosystem.csv, and ecosystem.md: return of the deterministic team before and after training, mean over episodes and
seeds with its 95 % interval (bootstrap over seeds); where the environment says which returns are those of won episodes
(SMAX), the share of won ones; the return of the sampling team over the last tenth of the updates; and what these rows say. Rows
of other cases, or of another number of env steps, stay as they are. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import envs
import marl_kl
from envs.base import EnvSpec
from marl_kl.analysis.statistics import bootstrap_interval
from marl_kl.analysis.text_tables import markdown_row
from marl_kl.storage.files import write_file

SMAX, SPREAD, PAXMEN = "jaxmarl/3m", "jaxmarl/MPE_simple_spread_v3", "paxmen_4"
COMMON = {"num_envs": 32, "rollout_length": 128, "eval_episodes": 64, "eval_interval": 25}
FIRST_ORDER = {"actor_lr": 1e-3, "actor_minibatches": 4}
"""Rollouts of 4,096 samples of a cheap environment bear more and larger steps than those of a body."""
SETTINGS = {
    name: FIRST_ORDER if name in marl_kl.core.algorithms.names(marl_kl.FirstOrderConfig) else {}
    for name in marl_kl.core.algorithms.names()
}
"""Beside `COMMON`, by algorithm; nothing was searched."""

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

WIN_RATE = 0.8
"""What is asked of SMAX 3m."""


class Reference(NamedTuple):
    """A run of JaxMARL's own script with its default settings on the same environment.

    Attributes:
        script: its name, and what is particular about it.
        algorithm: ours, to be held against it.
        env_steps: per seed; the script anneals its learning rate over them.
        seeds: how many.
        low, high: 95 % interval of the mean sampling return of the last tenth, or of two seeds the two.
        text: as it is shown.
    """

    script: str
    task: str
    algorithm: str
    env_steps: int
    seeds: int
    low: float
    high: float
    text: str


REFERENCES = (
    Reference(
        "`ippo_ff_mpe.py`", SPREAD, "ippo", 1_000_000, 5, -25.23, -22.72, "-24.23 [-25.23, -22.72]"
    ),
    Reference(
        "`mappo_rnn_smax.py` (GRU, its own options of 3m)", SMAX, "mappo", 1_000_000, 2, 1.76, 1.78,
        "1.78 and 1.76; won 0.81 and 0.79",
    ),
)  # fmt: skip


class Row(NamedTuple):
    """One line of the table, as it is written; intervals are "mean [low, high]"."""

    task: str
    algorithm: str
    env_steps: str
    returns: str
    won: str
    sampling: str
    speed: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one row of."""
        return self.task, self.algorithm, self.env_steps

    @property
    def budget(self) -> int:
        return int(self.env_steps.replace(",", ""))


HEADER = Row(
    "task", "algorithm", "env steps per seed", "return: untrained → trained", "won: untrained → trained",
    "sampling, last tenth", "env steps/s",
)  # fmt: skip
CSV_HEADER = ("task", "algorithm", "budget", "seed", "env_steps", "return", "won")

_NOTE = """Written by `experiments/ecosystem.py` (raw: [ecosystem.csv](ecosystem.csv)): 5 seeds, 32 environments x 128
steps, deterministic teams over 64 episodes, mean and 95 % interval (bootstrap of the mean over seeds). Defaults, but
for the first-order methods `actor_lr` 1e-3 and 4 minibatches; nothing was searched. CPU, jaxmarl 0.2.0. The speeds are
of all seeds together, on whatever else the machine was doing.

JaxMARL's own scripts, with their default settings, on the same environment (learning rate annealed over their budget):

| script | environment | env steps | seeds | sampling return, last tenth |
|---|---|---|---|---|
"""

_NOTE_BEHIND = """
JaxMARL's log multiplies the returns of simple spread by its three agents; here they are divided by 3 again. On
two cores `mappo_rnn_smax.py` did not end with jaxlib's default thread pool, and did with `NPROC=16` (compare
`marl_kl/devices.py`).
"""


def won(spec: EnvSpec, episode_return: np.ndarray) -> np.ndarray | None:
    """[...] bool: whether episodes of these returns were won; None where a return does not tell."""
    threshold = dict(spec.metadata).get("won_above")
    return None if threshold is None else episode_return > float(threshold)


def _over_seeds(per_seed: np.ndarray, digits: int) -> str:
    low, high = bootstrap_interval(per_seed, statistic=np.mean)
    return f"{per_seed.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def row(result: marl_kl.TrainResult) -> Row:
    """What a run says."""
    returns = result.evaluation.episode_return
    wins = won(result.spec, returns)
    training = result.metrics["episode_return"]
    last = training[:, -max(1, training.shape[1] // 10) :]

    def ends(values, digits):
        first, final = values[:, 0].mean(-1), values[:, -1].mean(-1)
        return f"{_over_seeds(first, digits)} → {_over_seeds(final, digits)}"

    return Row(
        result.spec.name,
        result.algorithm,
        f"{result.env_steps[-1]:,}",
        ends(returns, 2),
        "" if wins is None else ends(wins, 2),
        _over_seeds(last.mean(1), 2),
        f"{result.steps_per_second:,.0f}",
    )


def evaluations(result: marl_kl.TrainResult) -> Iterator[tuple[str, ...]]:
    """Every evaluation of every seed, as a line of the CSV file: means over its episodes."""
    returns = result.evaluation.episode_return
    wins = won(result.spec, returns)
    for seed, evaluation in np.ndindex(returns.shape[:2]):
        index = seed, evaluation
        yield (
            result.spec.name, result.algorithm, str(result.env_steps[-1]), str(result.seeds[seed]),
            str(result.evaluation.env_steps[evaluation]), f"{returns[index].mean():.6g}",
            "" if wins is None else f"{wins[index].mean():.6g}",
        )  # fmt: skip


# What was there before


def read_rows(path: Path) -> list[Row]:
    """The rows of a table that this script wrote; none if there is no such file."""
    if not path.exists():
        return []
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in path.read_text().splitlines()]
    known = {case.split(":")[0] for case in CASES}
    return [Row(*found) for found in cells if len(found) == len(HEADER) and found[0] in known]


def read_evaluations(path: Path) -> list[tuple[str, ...]]:
    """The lines of the CSV file, without its header; none if there is no such file."""
    if not path.exists():
        return []
    header, *lines = csv.reader(io.StringIO(path.read_text()))
    if tuple(header) != CSV_HEADER:
        raise ValueError(f"{path}: its columns are {', '.join(header)}; they must be {', '.join(CSV_HEADER)}")
    return [tuple(line) for line in lines]


def _sorted(rows: Sequence[Row]) -> list[Row]:
    tasks, names = list(dict.fromkeys(case.split(":")[0] for case in CASES)), list(SETTINGS)
    return sorted(rows, key=lambda one: (tasks.index(one.task), names.index(one.algorithm), one.budget))


# What the rows say


def interval(text: str) -> tuple[float, float, float]:
    """Mean, low and high of the last "mean [low, high]" in `text`."""
    *_, (mean, low, high) = re.findall(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", text)
    return float(mean), float(low), float(high)


def against(reference: Reference, rows: Sequence[Row]) -> str:
    """Our row of as many env steps beside JaxMARL's, in a sentence."""
    ours = [
        one for one in rows
        if (one.task, one.algorithm) == reference[1:3] and 0.98 < one.budget / reference.env_steps < 1.02
    ]  # fmt: skip
    title = f"`{reference.algorithm}` on {reference.task} beside JaxMARL's {reference.script}"
    if not ours:
        return f"- {title}: not run for {reference.env_steps:,} env steps, which is what JaxMARL's had."
    _, low, high = interval(ours[0].sampling)
    theirs = "interval" if reference.seeds > 2 else f"range of {reference.seeds} seeds, which is no interval,"
    numbers = f"{ours[0].sampling} against {reference.text}"
    if low > reference.high:
        return f"- {title}: **better** ({numbers}): our interval is above its {theirs}."
    if high < reference.low:
        return f"- {title}: **worse** ({numbers}): our interval is below its {theirs}."
    meet = "only touch" if high == reference.low else "overlap"
    return f"- {title}: **not worse** ({numbers}): our interval and its {theirs} {meet}."


def learned(one: Row) -> str:
    """Whether training has helped, and, where episodes are won, whether often enough, in a sentence."""
    untrained, trained = (interval(end) for end in one.returns.split("→"))
    apart = (
        "**learns**: the intervals before and after are apart"
        if trained[1] > untrained[2]
        else ("**not shown to learn**: the intervals before and after overlap")
    )
    sentence = f"- `{one.algorithm}` on {one.task}, {one.env_steps} env steps: {apart}"
    if not one.won:
        return f"{sentence}."
    mean, low, _ = interval(one.won)
    if low >= WIN_RATE:
        return f"{sentence}; at least {WIN_RATE} of the episodes are won, the interval included."
    reached = f"the mean is at least {WIN_RATE}, its interval begins below" if mean >= WIN_RATE else "it is below"
    return f"{sentence}; {WIN_RATE} of the episodes won: {reached} ({mean:.2f} from {low:.2f} on)."


def document(rows: Sequence[Row]) -> str:
    """ecosystem.md."""
    table = [markdown_row(HEADER), "|---" * len(HEADER) + "|", *map(markdown_row, rows)]
    references = [
        markdown_row((r.script, r.task, f"{r.env_steps:,}", str(r.seeds), r.text)) for r in REFERENCES
    ]  # fmt: skip
    verdicts = [*(against(reference, rows) for reference in REFERENCES), *map(learned, rows)]
    return "\n".join([*table, "", _NOTE + "\n".join(references), _NOTE_BEHIND, "What the rows say:", "", *verdicts, ""])


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="TASK:ALGORITHM", choices=list(CASES), help="default: all missing")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--env-steps", type=float, help="per seed, instead of the case's own")
    parser.add_argument("--smoke", action="store_true", help="a few updates of each")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are")
    parser.add_argument("--results", type=Path, help="where ecosystem.md and ecosystem.csv are; default: --out")
    options = parser.parse_args(arguments)
    marl_kl.use_all_cpu_cores()
    folder = options.results or options.out
    rows, lines = read_rows(folder / "ecosystem.md"), read_evaluations(folder / "ecosystem.csv")
    for case in options.only or CASES:
        task, algorithm = case.split(":")
        fields = {"total_env_steps": int(options.env_steps or CASES[case]), **COMMON, **SETTINGS[algorithm]}
        fields = SMOKE if options.smoke else fields
        config = marl_kl.core.algorithms.get(algorithm).config_class(**fields)
        key = (task, algorithm, f"{config.num_updates * config.batch_size:,}")
        if options.only is None and key in {one.key for one in rows}:
            continue
        out = options.out / task.replace("/", "_") / f"{algorithm}-{config.total_env_steps}"
        result = marl_kl.train(
            envs.make(task), algorithm, seeds=options.seeds, config=config, out=out, resume=True, progress="plain"
        )
        new = row(result)
        rows = _sorted([*(one for one in rows if one.key != new.key), new])
        lines = [line for line in lines if line[:3] != (task, algorithm, str(new.budget))] + [*evaluations(result)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([CSV_HEADER, *lines])
        write_file(folder / "ecosystem.csv", text.getvalue())
        write_file(folder / "ecosystem.md", document(rows))
        print(markdown_row(new), flush=True)
    print(document(rows))


if __name__ == "__main__":
    main()
