"""`marl-kl evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np

from envs.base import EnvSpec
from marl_kl.cli.options import add_command
from marl_kl.cli.stored import add_setting, run_and_env
from marl_kl.storage import stored_sweeps as sweep_folders
from marl_kl.storage.files import one_line_error


def add_evaluate(commands) -> None:
    """Describes `marl-kl evaluate`."""
    text = "evaluate the teams of a run again, in their training physics and, if wanted, in MuJoCo's C engine"
    usage = (
        "evaluate RUN|SWEEP [--setting K] [--best | --absolute] [--stochastic] [--episodes N] [--seed S] [--in mujoco]"
    )
    parser = add_command(commands, _evaluate, usage, text, ". Policies are deterministic unless asked otherwise.")
    parser.add_argument("run", type=Path, metavar="RUN|SWEEP", help="the folder of a run, or of a sweep")
    add_setting(parser)
    parser.add_argument(
        "--episodes", type=int, metavar="N", help="episodes per seed (default: the run's eval_episodes)"
    )
    parser.add_argument("--best", action="store_true", help="each seed's team as it was evaluated best, not the last")
    parser.add_argument(
        "--absolute",
        action="store_true",
        help="the absolute metric: the best teams in ten times the episodes, others than those they were chosen by; "
        "of all seeds, and without --episodes, it is kept in the run's folder, where `compare` finds it",
    )
    parser.add_argument("--stochastic", action="store_true", help="sample the actions, as in training")
    parser.add_argument("--seed", type=int, metavar="S", help="only the team that this seed trained (default: all)")
    parser.add_argument(
        "--in",
        choices=("mujoco",),
        dest="physics",
        help="mujoco: also in the Gymnasium v5 environment of the body (needs the extra `mujoco`)",
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from marl_kl.analysis import summary
    from marl_kl.core import evaluation
    from marl_kl.storage import run_tables
    from marl_kl.training import reporting

    if arguments.stochastic and arguments.physics is not None:
        raise ValueError("--stochastic: in the C engine the policies are always deterministic; leave out --in mujoco")
    which = "best" if arguments.best or arguments.absolute else "last"
    from_python = "evaluate it from Python: marl_kl.core.evaluation.evaluate_again(env, ...)"
    run, env = run_and_env(arguments.run, from_python, which, arguments.setting)
    config = run.config
    if arguments.absolute:
        config = config.replace(eval_episodes=evaluation.ABSOLUTE_FACTOR * config.eval_episodes)
    if arguments.episodes is not None:
        if arguments.episodes < 1:
            raise ValueError(f"episodes={arguments.episodes}; it must be at least 1")
        config = config.replace(eval_episodes=arguments.episodes)
    seeds = run.seeds if arguments.seed is None else (arguments.seed,)
    learners = [run.learner_of(seed) for seed in seeds]
    there = None
    if arguments.physics == "mujoco":
        from marl_kl.analysis.bodies import mujoco_check

        there = mujoco_check.counterpart(env)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *learners)
    updates = [run.update_of(seed) for seed in seeds]
    again = evaluation.evaluate_again(
        env, config, seeds, updates, stacked, stochastic=arguments.stochastic, fresh=arguments.absolute
    )
    is_kept = arguments.absolute and not (arguments.stochastic or arguments.seed is not None or arguments.episodes)
    if is_kept:
        run_tables.write_absolute(_absolute_folder(arguments), seeds, updates, config.batch_size, again)
    scores = [summary.Scores(_physics(run.spec), again)]
    when = ", ".join(f"{update:,}" for update in dict.fromkeys(updates))
    teams = f"after {when} updates" if which == "last" else f"each seed's best evaluated team, after {when} updates"
    policies = "sampling policies" if arguments.stochastic else "deterministic policies"
    notes = [f"{teams}; {config.eval_episodes} episodes per seed, mean ± std; {policies}"]
    if arguments.absolute:
        notes.append("absolute metric: in other episodes than those by which the teams were chosen")
        kept = "kept in" if is_kept else "only the full metric (all seeds, all episodes, deterministic) is kept in"
        notes.append(f"{kept} {arguments.run / run_tables.ABSOLUTE}")
    if there is not None:
        per_seed = (
            mujoco_check.evaluate(there, env, config, learner, seed, config.eval_episodes)
            for seed, learner in zip(seeds, learners)
        )
        scores.append(summary.Scores("C MuJoCo", jax.tree.map(lambda *s: np.stack(s), *per_seed)))
        notes.append(f"C MuJoCo is Gymnasium's {there.name}; known differences: {'; '.join(there.differences)}")
    title = f"{run.algorithm} on {run.spec.name}"
    reporting.wide_console().print(summary.evaluation_table(title, seeds, scores, notes))
    return 0


def _absolute_folder(arguments: argparse.Namespace) -> Path:
    """Where the absolute metric is kept: beside the run's tables, or with the files of the setting."""
    if arguments.setting is None:
        return arguments.run
    folder = sweep_folders.folder_of(arguments.run, arguments.setting)
    with one_line_error("create", folder):
        folder.mkdir(exist_ok=True)
    return folder


def _physics(spec: EnvSpec) -> str:
    facts = dict(spec.metadata)
    return "training" if "engine" not in facts else " ".join(dict.fromkeys((facts["engine"], facts["backend"])))
