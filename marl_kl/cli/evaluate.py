"""`marl-kl evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

import marl_kl
from envs.base import EnvSpec
from marl_kl.cli.options import add_command, add_setting, one_line_warnings, use_devices_of, working
from marl_kl.results import EpisodeStatistics
from marl_kl.storage import stored_sweeps

if TYPE_CHECKING:
    from marl_kl.analysis.reevaluation import EvaluationResult


def add_evaluate(commands) -> None:
    """Adds `marl-kl evaluate`."""
    text = "evaluate the policies of a run again, in their training physics and, on request, in MuJoCo's C engine"
    usage = (
        "evaluate RUN|SWEEP [--setting K] [--best | --absolute] [--stochastic] [--episodes N] [--seed S] [--in mujoco]"
    )
    parser = add_command(commands, _evaluate, usage, text, ". Policies are deterministic by default.")
    parser.add_argument("run", type=Path, metavar="RUN|SWEEP", help="the folder of a run or of a sweep")
    add_setting(parser)
    parser.add_argument(
        "--episodes", type=int, metavar="N", help="episodes per seed (default: the run's eval_episodes)"
    )
    parser.add_argument("--best", action="store_true", help="each seed's best evaluated policies instead of the last")
    parser.add_argument(
        "--absolute",
        action="store_true",
        help="the absolute metric: the best policies in ten times the episodes, other ones than those they were chosen "
        "by; with all seeds and without --episodes it is stored in the run's folder, where `compare` reads it",
    )
    parser.add_argument("--stochastic", action="store_true", help="sample the actions, as in training")
    parser.add_argument("--seed", type=int, metavar="S", help="the training seed to evaluate (default: all)")
    parser.add_argument(
        "--in",
        choices=("mujoco",),
        dest="physics",
        help="mujoco: also in the Gymnasium v5 environment of the body (needs the extra `mujoco`)",
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from marl_kl.analysis.text_tables import wide_console

    use_devices_of(stored_sweeps.record_of(arguments.run, arguments.setting))
    with one_line_warnings(), working("compiling and playing episodes"):
        result = marl_kl.evaluate(
            arguments.run,
            which="best" if arguments.best else "last",
            setting=arguments.setting,
            seeds=None if arguments.seed is None else (arguments.seed,),
            episodes=arguments.episodes,
            stochastic=arguments.stochastic,
            absolute=arguments.absolute,
            in_mujoco=arguments.physics == "mujoco",
        )
    wide_console().print(_table(result, _notes(arguments, result)))
    return 0


def _notes(arguments: argparse.Namespace, result: EvaluationResult) -> list[str]:
    updates = ", ".join(f"{update:,}" for update in dict.fromkeys(result.updates))
    which = "best" if arguments.best or arguments.absolute else "last"
    kind = "stochastic" if arguments.stochastic else "deterministic"
    episodes = result.episode_return.shape[1]
    notes = [
        f"{which} {kind} policies, after {updates} updates; {episodes} episodes per seed: mean ± std over episodes"
    ]
    if arguments.absolute:
        notes.append("absolute metric: in other episodes than those the policies were chosen by")
        notes.append(
            f"stored in {result.stored}" if result.stored else
            "not stored: only the full metric is (all seeds, all episodes, deterministic policies)"
        )  # fmt: skip
    if result.mujoco is not None:
        differences = "; ".join(result.mujoco_differences)
        notes.append(f"C MuJoCo is Gymnasium's {result.mujoco_env}; known differences: {differences}")
    return notes


def _table(result: EvaluationResult, notes: Sequence[str]) -> Table:
    """Mean ± std over episodes per seed, in each physics; in the last row over the seeds' means."""
    from marl_kl.analysis.text_tables import mean_and_std, terminal_table

    scores = {_physics(result.spec): EpisodeStatistics(result.episode_return, result.episode_length)}
    if result.mujoco is not None:
        scores["C MuJoCo"] = result.mujoco
    heads = [f"{what} in {physics}" for physics in scores for what in ("return", "length")]
    if len(result.seeds) > 1:
        notes = [*notes, "last row: mean ± std over the seeds' means"]
    table = terminal_table(["seed", *heads], f"evaluation returns of {result.algorithm} on {result.spec.name}", notes)
    columns = [np.asarray(values, np.float64) for score in scores.values() for values in score]
    for index, seed in enumerate(result.seeds):
        table.add_row(str(seed), *(mean_and_std(values[index]) for values in columns))
    if len(result.seeds) > 1:
        table.add_section()
        table.add_row("all", *(mean_and_std(values.mean(axis=-1)) for values in columns), style="bold")
    return table


def _physics(spec: EnvSpec) -> str:
    metadata = dict(spec.metadata)
    if "engine" not in metadata:
        return "the training environment"
    return " ".join(dict.fromkeys((metadata["engine"], metadata["backend"])))
