"""MADDPG and its relatives next to HAPPO and HATRPO, at the same number of env steps.

python -m experiments.off_policy --quick
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import envs
import marl_kl
from envs.base import Env
from experiments import settings, study, styles
from experiments.intervals import estimate
from experiments.study import Piece, Report, Results
from experiments.styles import label
from marl_kl.analysis.statistics import interquartile_mean
from marl_kl.core import algorithms
from marl_kl.training import presets

OFF_POLICY = ("maddpg", "haddpg", "matd3", "hatd3")
METHODS = (*OFF_POLICY, "happo", "hatrpo")

GAME, SPREAD = "matrix_game", "jaxmarl/MPE_simple_spread_v3"
ANT, CHEETAH, LONG_ANT = "ant_4x2", "halfcheetah_6x1", "ant_4x2-mjx"


class Body(NamedTuple):
    """env: its name. backend: the physics. tuned: the scenario of the preset `off_policy` whose n-step returns and rates it has."""

    env: str
    backend: str
    tuned: str


BODIES = {
    ANT: Body("ant_4x2", "spring", "ant_4x2"),
    CHEETAH: Body("halfcheetah_6x1", "spring", "halfcheetah_2x3"),
    LONG_ANT: Body("ant_4x2", "mjx", "ant_4x2"),
}
ON_BODIES = {"gamma": 0.99, "eval_episodes": 16}
SMALLER: dict[str, Any] = {
    "hidden_sizes": (64, 64),
    "minibatch_size": 256,
    "num_envs": 50,
    "rollout_length": 10,
    "replay_size": 300_000,
}
"""Of the off-policy algorithms on bodies in the quick study: a thirtieth of the recipe's arithmetic, and as many gradient
steps after as many env steps, in more environments."""

OF_GAMES = {
    GAME: {
        "off": {"num_envs": 16, "rollout_length": 4, "hidden_sizes": (64, 64), "minibatch_size": 256, "warmup_steps": 2_000,
                "replay_size": 64_000, "actor_lr": 1e-3, "exploration_epsilon": 0.1},
        "happo": {"num_envs": 64, "rollout_length": 1, "hidden_sizes": (16,), "actor_lr": 5e-3, "clip_eps": 0.4},
        "hatrpo": {"num_envs": 64, "rollout_length": 1, "hidden_sizes": (16,), "kl_budget": 0.1},
    },
    SPREAD: {
        "off": {"num_envs": 16, "rollout_length": 50, "hidden_sizes": (64, 64), "minibatch_size": 1000, "warmup_steps": 10_000,
                "replay_size": 300_000, "actor_lr": 7e-4, "critic_lr": 7e-4, "max_grad_norm": 10.0, "gamma": 0.95},
        "happo": {"num_envs": 32, "rollout_length": 128, "actor_lr": 1e-3, "actor_minibatches": 4},
        "hatrpo": {"num_envs": 32, "rollout_length": 128},
    },
}  # fmt: skip
"""Config fields of the games, by kind of algorithm; nothing was searched."""

SMOKE = {"num_envs": 2, "rollout_length": 8, "hidden_sizes": (8,), "eval_episodes": 2, "eval_interval": 0}
SMOKE_OFF = {"warmup_steps": 16, "replay_size": 64, "minibatch_size": 4, "updates_per_step": 0.25, "n_step": 2}


class Amount(NamedTuple):
    """env_steps: per seed."""

    env_steps: int
    seeds: int
    methods: tuple[str, ...] = METHODS


class Size(NamedTuple):
    """is_recipe: whether networks and minibatches are the recipe's on bodies."""

    tasks: Mapping[str, Amount]
    is_recipe: bool = False


SIZES = {
    "smoke": Size({GAME: Amount(64, 2, ("hatd3", "hatrpo"))}),
    # an even number of seeds uses both cores, where there are two
    "quick": Size(
        {
            GAME: Amount(50_000, 5),
            ANT: Amount(300_000, 6),
            CHEETAH: Amount(300_000, 6),
            LONG_ANT: Amount(1_000_000, 2, ("hatd3",)),
            SPREAD: Amount(300_000, 5),
        }
    ),
    "full": Size(
        {
            GAME: Amount(50_000, 5),
            ANT: Amount(1_000_000, 6),
            CHEETAH: Amount(1_000_000, 6),
            LONG_ANT: Amount(10_000_000, 6),
            SPREAD: Amount(1_000_000, 6),
        },
        is_recipe=True,
    ),
}

_PACE = {GAME: 2_000, SPREAD: 1_500, ANT: 4_000, CHEETAH: 2_000, LONG_ANT: 2_000}
"""Env steps per second of the off-policy algorithms, all seeds together: a guess for two quiet CPU cores."""


def make_env(task: str) -> Env:
    body = BODIES.get(task)
    return envs.make(task) if body is None else envs.make(body.env, backend=body.backend)


def config_of(task: str, method: str, size: Size) -> marl_kl.Config:
    config_class, is_off = algorithms.get(method).config_class, method in OFF_POLICY
    total = {"total_env_steps": size.tasks[task].env_steps}
    if size == SIZES["smoke"]:
        return config_class(**total, **SMOKE, **(SMOKE_OFF if is_off else {"critic_minibatches": 1}))
    if task in OF_GAMES:
        return config_class(**total, **OF_GAMES[task]["off" if is_off else method])
    if not is_off:
        return presets.config("quick", BODIES[task].env, method, **total, **ON_BODIES)
    recipe = presets.config("off_policy", BODIES[task].tuned, method, **total, **ON_BODIES)
    if size.is_recipe:
        return recipe
    # gradient steps are counted per step of all environments, here five times as many
    per_step = recipe.updates_per_step * SMALLER["num_envs"] / recipe.num_envs
    return recipe.replace(**SMALLER, updates_per_step=per_step)


def _piece_name(task: str, method: str) -> str:
    return f"{task.split('/')[-1]}-{method}"


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    return [
        Piece(
            _piece_name(task, method),
            60 + amount.env_steps * amount.seeds / (_PACE[task] * (1 if method in OFF_POLICY else 10)),
            {"task": task, "method": method, "seeds": amount.seeds, **settings.of_config(config_of(task, method, chosen), method)},
            lambda task=task, method=method: play(task, method, chosen, size),
        )
        for task, amount in chosen.tasks.items()
        for method in amount.methods
    ]  # fmt: skip


def play(task: str, method: str, size: Size, name: str) -> study.Values:
    """All seeds of a method on a task; a long one resumes where it was stopped.

    Returns:
        returns: [seed, evaluation] means over the episodes of the deterministic policy. env_steps: [evaluation].
        training: [seed] return of the last tenth of the updates. seconds: [] of training.
    """
    out = None if name == "smoke" else study.WORK / f"off_policy-{name}" / "runs" / _piece_name(task, method)
    result = marl_kl.train(
        make_env(task), method, seeds=size.tasks[task].seeds, config=config_of(task, method, size), out=out, resume=out is not None,
        progress="none" if out is None else "plain",
    )  # fmt: skip
    training = result.metrics["episode_return"]
    return {
        "returns": result.evaluation.episode_return.mean(-1),
        "env_steps": result.evaluation.env_steps,
        "training": np.nanmean(training[:, -max(1, training.shape[1] // 10) :], axis=1),
        "seconds": np.asarray(result.timing.train),
    }


# What is shown


def report(results: Results) -> Report:
    """Of the pieces that are done."""
    size = SIZES[results.size]
    done = study.done(results, {task: amount.methods for task, amount in size.tasks.items()}, _piece_name)
    rows = [_row(task, method, values) for task, of_task in done.items() for method, values in of_task.items()]
    header = [
        "task",
        "method",
        "untrained",
        "final, IQM and 95 % interval",
        "training return, last tenth",
        "env steps/s",
    ]
    return Report({"returns": study.table(header, rows)}, {"curves": _curves(done)})


def _row(task: str, method: str, values: study.Values) -> list[str]:
    returns, steps = values["returns"], values["env_steps"][-1] * len(values["returns"])
    untrained = float(interquartile_mean(returns[:, 0]))
    final, training = (estimate(scores).text() for scores in (returns[:, -1], values["training"]))
    return [
        task,
        label(method),
        f"{untrained:.2f}",
        final,
        training,
        f"{steps / max(float(values['seconds']), 1e-3):,.0f}",
    ]


def _curves(done: Mapping[str, Mapping[str, study.Values]]) -> Figure:
    figure = Figure(figsize=(max(6.0, 4.2 * len(done)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(done), squeeze=False)[0]
    for axes, (task, of_task) in zip(panels, done.items()):
        for method, values in of_task.items():
            styles.curve(axes, values["env_steps"] / 1000, values["returns"], method)
        axes.set_title(task.split("/")[-1], fontsize=10, loc="left")
        axes.set_xlabel("env steps per seed (thousands)")
        styles.clean(axes)
    panels[0].set_ylabel("evaluation return")
    styles.legend_below(figure, panels[:1], 3)
    return figure


STUDY = study.Study("off_policy", "Off-policy algorithms next to HAPPO and HATRPO", pieces, report, is_incremental=True)


if __name__ == "__main__":
    study.main(STUDY)
