"""What each allocator costs: the agents' update alone, from 2 to 32 agents, and whole updates of a team with a body.

Seconds mean something on a quiet machine only.

python -m experiments.allocator_cost --quick
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import envs
import marl_kl
from benchmarks.throughput import training
from benchmarks.update_cost import BATCH, compiled_update, problem
from experiments import settings, study
from experiments.study import CONTRARY, HOLDS, MIXED, NOT_SEEN, PARTLY, Estimate, Piece, Report, Results, Row
from marl_kl import devices
from marl_kl.training import presets

SEEDS = 6
"""Teams trained side by side where whole updates are timed."""
CLOSE, HALF = 1.25, 1.5
"""Times HATRPO's: what we take for "close", and from where on it is not."""


class Size(NamedTuple):
    """agents: of the random batches on which updates are timed. env, num_envs, rollout_length: of whole updates.
    repeats: of every program, all taking turns."""

    agents: tuple[int, ...]
    methods: tuple[str, ...]
    hidden: tuple[int, ...]
    repeats: int
    env: str
    num_envs: int
    rollout_length: int


SIZES = {
    "smoke": Size((2,), study.TRUST_REGION[:2], (8,), 2, "bilinear", 2, 8),
    "quick": Size((2, 4, 8, 16, 32), study.TRUST_REGION, (64, 64), 15, "ant_4x2", 16, 128),
    "full": Size((2, 4, 8, 16, 32, 64), study.TRUST_REGION, (128, 128, 128), 31, "ant_4x2", 64, 128),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    common = {"repeats": chosen.repeats, "methods": list(chosen.methods)}
    batches = [
        Piece(
            f"{n}-agents", 10 + 0.03 * n * chosen.repeats * len(chosen.hidden) / 2,
            {**common, **settings.of_config(_batch_config(chosen)), "agents": n, "batch": BATCH},
            lambda n=n: measure(n, chosen),
        )
        for n in chosen.agents
    ]  # fmt: skip
    steps = SEEDS * chosen.num_envs * chosen.rollout_length * (1 + chosen.repeats)
    whole = Piece(
        "training", len(chosen.methods) * (40 + steps / 18_000),
        {**common, **settings.of_config(_training_config(chosen)), "env": chosen.env, "seeds": SEEDS},
        lambda: measure_training(chosen),
    )  # fmt: skip
    return [*batches, whole]


def _batch_config(size: Size) -> marl_kl.TrustRegionConfig:
    return marl_kl.TrustRegionConfig(hidden_sizes=size.hidden)


def _training_config(size: Size) -> marl_kl.TrustRegionConfig:
    """That of `brax_suite`, but for the networks."""
    return presets.config(
        "quick", "ant_4x2", "hatrpo", num_envs=size.num_envs, rollout_length=size.rollout_length,
        hidden_sizes=size.hidden,
    )  # fmt: skip


def solves(method: str, num_agents: int) -> tuple[int, int]:
    """Conjugate-gradient solves, and trial steps tried out or weighed anew, of one update.

    Every agent's own step is one solve; an allocator that looks at utilities needs a trial step of every agent before
    anyone moves; the greedy one weighs the trial steps of all agents before every move.
    """
    own = num_agents
    if method == "hatrpo":
        return own, 0
    return own + num_agents, num_agents * (1 + num_agents) if method == "hatrpo_g" else 0


def measure(num_agents: int, size: Size) -> study.Values:
    """Returns: seconds [method, repeat] of one update, methods taking turns; counts [method, 2] of `solves`."""
    config = _batch_config(size)
    actor, actors, batch = problem(num_agents, config)
    programs = [compiled_update(method, actor, config, actors, batch)[0] for method in size.methods]
    counts = np.array([solves(method, num_agents) for method in size.methods])
    return {"seconds": in_turn(programs, size.repeats), "counts": counts}


def measure_training(size: Size) -> study.Values:
    """Returns: seconds [method, repeat] of one whole update of `SEEDS` teams: rollout, advantages, actors, critic."""
    mesh = devices.seed_mesh(SEEDS)
    env, config = envs.make(size.env), _training_config(size)
    return {"seconds": in_turn([training(env, m, config, mesh, SEEDS)[0] for m in size.methods], size.repeats)}


def in_turn(programs: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """[program, repeat] seconds: every program once, unmeasured, then all in turn, `repeats` times."""
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
    others = range(1, len(size.methods))
    rows = [make(results, size, index) for make in (_training_row, _update_row) for index in others]
    figure = (_figure(results, size), "Seconds of one update: medians over repeats with 95 % intervals; dotted: in "
              "proportion to the number of agents.")  # fmt: skip
    return Report(rows, {"seconds": figure}, _text(results, size))


def slower(results: Results, piece: str, index: int) -> Estimate:
    """Median over repeats of the time over HATRPO's in the same repeat."""
    seconds = results.pieces[piece]["seconds"]
    return study.estimate(seconds[index] / seconds[0], np.median)


def close(found: Estimate) -> str:
    """The verdict on the claim of at most `CLOSE` times HATRPO's time; partly up to `HALF`."""
    return study.judged(Estimate(-found.value, -found.high, -found.low), -CLOSE, -HALF)


_BESIDE = "Beside stepping the body and fitting the critic, which are the same for all, the actors' update is little."
_WHY_TRAINING = {
    HOLDS: _BESIDE,
    PARTLY: _BESIDE + " But it is about twice as long as HATRPO's, and that shows.",
    NOT_SEEN: "The interval is too wide to tell. Tried: the methods taking turns, update by update.",
    CONTRARY: "On so fast a body the actors' update is most of the time. Tried: one body, the methods taking turns.",
}


def _training_row(results: Results, size: Size, index: int) -> Row:
    found = slower(results, "training", index)
    verdict = close(found)
    return Row(
        f"Training with {study.LABELS[size.methods[index]]} takes as long as with HATRPO (Shek et al. 2025: close; at "
        "most a quarter longer)",
        f"whole updates on {size.env}, times HATRPO's: {found.number()}",
        found.interval(),
        verdict,
        study.because(verdict, _WHY_TRAINING),
    )


_SOLVES = "Each agent's trial step is a second conjugate-gradient solve, so the update takes up to twice as long. "
_TRIED = "Tried: from few agents to many, conjugate gradient on a tenth of the batch."
_ORDER = "That its order follows the shares costs nothing. "
_WEIGHED = "And the trial steps of all agents are weighed anew before every move: N² passes over the batch. "


def _why_update(method: str) -> Mapping[str, str]:
    reason = _SOLVES + (_WEIGHED if method == "hatrpo_g" else _ORDER)
    return {
        HOLDS: "The solves of the trial steps are cheap beside the line search.",
        PARTLY: reason,
        MIXED: reason + _TRIED,
        NOT_SEEN: reason + _TRIED,
        CONTRARY: reason + _TRIED,
    }


def _update_row(results: Results, size: Size, index: int) -> Row:
    found = [slower(results, f"{n}-agents", index) for n in size.agents]
    verdict = study.counted([close(each) for each in found])
    return Row(
        f"{study.LABELS[size.methods[index]]}'s update of the actors alone takes at most a quarter longer than "
        "HATRPO's (no source)",
        "times HATRPO's: " + ", ".join(f"{f.number()} ({n} agents)" for f, n in zip(found, size.agents)),
        "; ".join(f.interval() for f in found),
        verdict,
        study.because(verdict, _why_update(size.methods[index])),
    )


def _figure(results: Results, size: Size) -> Figure:
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    agents = np.asarray(size.agents)
    for index, method in enumerate(size.methods):
        found = [study.estimate(results.pieces[f"{n}-agents"]["seconds"][index], np.median) for n in size.agents]
        middle = np.array([f.value for f in found])
        around = [middle - [f.low for f in found], [f.high for f in found] - middle]
        axes.errorbar(agents, middle, np.maximum(around, 0), linewidth=1.2, markersize=5, **study.point_style(method))
        if index == 0:
            axes.plot(agents, middle[0] * agents / agents[0], ":", color="0.5", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(agents, [str(n) for n in agents])
    axes.set_xlabel("agents")
    axes.set_ylabel("seconds of one update of the actors")
    axes.legend(frameon=False)
    study.strip(axes)
    return figure


def _text(results: Results, size: Size) -> str:
    lines = [
        f"Batch {BATCH}, hidden layers {'-'.join(map(str, size.hidden))}, the defaults otherwise (conjugate gradient "
        f"on a tenth of the batch); {size.repeats} repeats, the methods taking turns. Whole updates: {SEEDS} teams "
        f"side by side on {size.env}, {size.num_envs} environments x {size.rollout_length} steps each, preset `quick`: "
        "rollout, advantages, actors and critic. A claim holds partly if the whole interval is below half longer, but "
        "not below a quarter.",
        "",
        "Conjugate-gradient solves + trial steps weighed, per update:",
        "",
        "| agents | " + " | ".join(study.LABELS[m] for m in size.methods) + " |",
        "|---|" + "---|" * len(size.methods),
    ]
    for n in size.agents:
        counts = results.pieces[f"{n}-agents"]["counts"].astype(int)
        lines.append(f"| {n} | " + " | ".join(f"{own} + {trial}" for own, trial in counts) + " |")
    medians = np.median(results.pieces["training"]["seconds"], axis=-1)
    each = ", ".join(f"{study.LABELS[m]} {value:.3g}" for m, value in zip(size.methods, medians))
    lines += ["", f"Seconds of a whole update, medians: {each}."]
    return "\n".join(lines)


STUDY = study.Study(
    "allocator_cost",
    "What the allocators cost",
    "How much longer does an update take when the budget is shared out unequally, from few agents to many?",
    pieces,
    report,
)


if __name__ == "__main__":
    study.main(STUDY)
