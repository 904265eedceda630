"""`marl-kl evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np

from envs.types import EnvSpec
from marl_kl.commands.stored import run_and_env
from marl_kl.commands.words import add_command


def add_evaluate(commands) -> None:
    """Describes `marl-kl evaluate`."""
    text = "evaluate the teams of a run again, in their training physics and, if wanted, in MuJoCo's C engine"
    parser = add_command(commands, _evaluate, "evaluate RUN [--episodes N] [--seed S] [--in mujoco]", text, ". All policies are deterministic.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--episodes", type=int, metavar="N", help="episodes per seed (default: the run's eval_episodes)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="only the team that this seed trained (default: all)")
    parser.add_argument(
        "--in", choices=("mujoco",), dest="physics",
        help="mujoco: also in the Gymnasium v5 environment of the body (needs the extra `mujoco`)",
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from marl_kl import evaluate, reporting, summary

    run, env = run_and_env(arguments.run, "evaluate it from Python: marl_kl.evaluate.evaluate_again(env, ...)")
    config = run.config
    if arguments.episodes is not None:
        if arguments.episodes < 1:
            raise ValueError(f"episodes={arguments.episodes}; it must be at least 1")
        config = config.replace(eval_episodes=arguments.episodes)
    seeds = run.seeds if arguments.seed is None else (arguments.seed,)
    learners = [run.learner_of(seed) for seed in seeds]
    there = None
    if arguments.physics == "mujoco":
        from marl_kl import mujoco_check

        there = mujoco_check.counterpart(env)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *learners)
    scores = [summary.Scores(_physics(run.spec), evaluate.evaluate_again(env, config, seeds, run.update, stacked))]
    episodes = f"{config.eval_episodes} episodes per seed, mean ± std"
    notes = [f"after {run.update:,} updates; {episodes}; deterministic policies"]
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


def _physics(spec: EnvSpec) -> str:
    facts = dict(spec.metadata)
    return "training" if "engine" not in facts else " ".join(dict.fromkeys((facts["engine"], facts["backend"])))
