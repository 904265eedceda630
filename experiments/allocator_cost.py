"""The cost of each allocator: the agents' update alone, from 2 to 32 agents, and whole updates of a team with a body.

Run it on a quiet machine.

python -m experiments.allocator_cost --quick
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import envs
import marl_kl
from benchmarks.throughput import training
from benchmarks.update_cost import BATCH, compiled_update, problem
from experiments import settings, study, styles
from experiments.intervals import Estimate, estimate
from experiments.methods import METHODS, Method
from experiments.study import Piece, Report, Results
from experiments.styles import TRUST_REGION, label
from marl_kl import devices
from marl_kl.training import presets

SEEDS = 6
"""Teams trained side by side where whole updates are timed."""

MEASURED = {name: Method(label(name), name, settings.published(name)) for name in TRUST_REGION} | {
    "hatrpo_w_cross": Method(
        "HATRPO-W, cross-fitted", "hatrpo_w", {**METHODS["hatrpo_w_cross"].fields, "line_search": "geometric"}
    )
}
"""As published, and with the default's utility. All take the published line search."""


class Size(NamedTuple):
    """agents: of the random batches on which updates are timed. env, num_envs, rollout_length: of whole updates.
    repeats: of every program, interleaved."""

    agents: tuple[int, ...]
    methods: tuple[str, ...]
    hidden: tuple[int, ...]
    repeats: int
    env: str
    num_envs: int
    rollout_length: int


SIZES = {
    "smoke": Size((2,), ("hatrpo", "hatrpo_w_cross"), (8,), 2, "bilinear", 2, 8),
    "quick": Size((2, 4, 8, 16, 32), tuple(MEASURED), (64, 64), 15, "ant_4x2", 16, 128),
    "full": Size((2, 4, 8, 16, 32, 64), tuple(MEASURED), (128, 128, 128), 31, "ant_4x2", 64, 128),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    common = {"repeats": chosen.repeats, "methods": list(chosen.methods)}
    batches = [
        Piece(
            f"{n}-agents", 10 + 0.03 * n * chosen.repeats * len(chosen.hidden) / 2,
            {**common, **settings.of_config(_batch_config(chosen, "hatrpo_w"), "hatrpo_w"), "agents": n, "batch": BATCH},
            lambda n=n: measure(n, chosen),
        )
        for n in chosen.agents
    ]  # fmt: skip
    steps = SEEDS * chosen.num_envs * chosen.rollout_length * (1 + chosen.repeats)
    whole = Piece(
        "training", len(chosen.methods) * (40 + steps / 18_000),
        {**common, **settings.of_config(_training_config(chosen, "hatrpo_w"), "hatrpo_w"), "env": chosen.env, "seeds": SEEDS},
        lambda: measure_training(chosen),
    )  # fmt: skip
    return [*batches, whole]


def _batch_config(size: Size, method: str) -> marl_kl.TrustRegionConfig:
    return marl_kl.TrustRegionConfig(hidden_sizes=size.hidden, **settings.UNEVALUATED, **MEASURED[method].fields)


def _training_config(size: Size, method: str) -> marl_kl.TrustRegionConfig:
    """The preset's, but for the networks."""
    return presets.config(
        "quick", "ant_4x2", MEASURED[method].algorithm, num_envs=size.num_envs, rollout_length=size.rollout_length,
        hidden_sizes=size.hidden, eval_episodes=16, eval_interval=0, **MEASURED[method].fields,
    )  # fmt: skip


def solves(method: str, num_agents: int) -> tuple[int, int]:
    """Conjugate-gradient solves, and evaluations of trial steps, of one update.

    Every agent's own step is one solve; an allocator that looks at utilities needs a trial step of every agent before
    the first move, or two on halves of the batch; the greedy one evaluates the trial steps of all agents before every move.
    """
    own = num_agents
    if method == "hatrpo":
        return own, 0
    return own + num_agents, num_agents * (1 + num_agents) if method == "hatrpo_g" else 0


def measure(num_agents: int, size: Size) -> study.Values:
    """Returns: seconds [method, repeat] of one update, methods interleaved; counts [method, 2] of `solves`."""
    configs = {method: _batch_config(size, method) for method in size.methods}
    actor, actors, batch = problem(num_agents, configs["hatrpo"])
    programs = [
        compiled_update(MEASURED[method].algorithm, actor, config, actors, batch)[0]
        for method, config in configs.items()
    ]
    counts = np.array([solves(method, num_agents) for method in size.methods])
    return {"seconds": interleaved(programs, size.repeats), "counts": counts}


def measure_training(size: Size) -> study.Values:
    """Returns: seconds [method, repeat] of one whole update of `SEEDS` teams: rollout, advantages, actors, critic."""
    mesh = devices.seed_mesh(SEEDS)
    env = envs.make(size.env)
    programs = [
        training(env, MEASURED[method].algorithm, _training_config(size, method), mesh, SEEDS)[0]
        for method in size.methods
    ]
    return {"seconds": interleaved(programs, size.repeats)}


def interleaved(programs: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """[program, repeat] seconds: every program once, not measured, then all of them `repeats` times."""
    for program in programs:
        jax.block_until_ready(program())
    seconds = np.zeros((len(programs), repeats))
    for repeat in range(repeats):
        for index, program in enumerate(programs):
            begin = time.perf_counter()
            jax.block_until_ready(program())
            seconds[index, repeat] = time.perf_counter() - begin
    return seconds


# What is shown


def report(results: Results) -> Report:
    size = SIZES[results.size]
    labels = [MEASURED[method].label for method in size.methods]
    counts = {n: results.pieces[f"{n}-agents"]["counts"].astype(int) for n in size.agents}
    medians = np.median(results.pieces["training"]["seconds"], axis=-1)
    tables = {
        "training": study.table(
            ["method", "seconds of a whole update", "times HATRPO's"],
            [
                [name, f"{median:.3g}", slower(results, "training", index).text()]
                for index, (name, median) in enumerate(zip(labels, medians))
            ],
        ),
        "update": study.table(
            ["agents", *labels[1:]],
            [
                [str(n), *(slower(results, f"{n}-agents", index).text() for index in range(1, len(labels)))]
                for n in size.agents
            ],
        ),
        "work": study.table(
            ["agents", *labels],
            [[str(n), *(f"{own} + {trial}" for own, trial in of_methods)] for n, of_methods in counts.items()],
        ),
    }
    return Report(tables, {"seconds": _figure(results, size)})


def slower(results: Results, piece: str, index: int) -> Estimate:
    """Median over repeats of the time over HATRPO's in the same repeat."""
    seconds = results.pieces[piece]["seconds"]
    return estimate(seconds[index] / seconds[0], np.median)


def _figure(results: Results, size: Size) -> Figure:
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    agents = np.asarray(size.agents)
    for index, method in enumerate(size.methods):
        found = [estimate(results.pieces[f"{n}-agents"]["seconds"][index], np.median) for n in size.agents]
        look = styles.point_style(MEASURED[method].algorithm) | {"label": MEASURED[method].label, "markersize": 5}
        if method not in TRUST_REGION:
            look |= {"markerfacecolor": "white", "linestyle": ":"}
        styles.error_bars(axes, agents, found, **look)
        if index == 0:
            axes.plot(agents, found[0].value * agents / agents[0], ":", color="0.5", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(agents, [str(n) for n in agents])
    axes.set_xlabel("agents")
    axes.set_ylabel("seconds of one update of the actors")
    axes.legend(frameon=False)
    styles.clean(axes)
    return figure


STUDY = study.Study("allocator_cost", "The cost of each allocator", pieces, report)


if __name__ == "__main__":
    study.main(STUDY)
