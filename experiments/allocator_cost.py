"""What an update costs with each allocator, from 2 to 32 agents. Seconds mean something on a quiet machine only.

python -m experiments.allocator_cost --quick
"""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import marl_kl
from benchmarks.update_cost import BATCH, compiled_update, problem
from experiments import study
from experiments.study import HOLDS, NOT_SEEN, PARTLY, Piece, Report, Results, Row


class Size(NamedTuple):
    agents: tuple[int, ...]
    methods: tuple[str, ...]
    hidden: tuple[int, ...]
    repeats: int


SIZES = {
    "smoke": Size((2,), study.TRUST_REGION[:2], (8,), 2),
    "quick": Size((2, 4, 8, 16, 32), study.TRUST_REGION, (64, 64), 15),
    "full": Size((2, 4, 8, 16, 32, 64), study.TRUST_REGION, (128, 128, 128), 31),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    return [
        Piece(
            f"{n}-agents", 10 + 0.03 * n * chosen.repeats * len(chosen.hidden) / 2,
            {"agents": n, "hidden": list(chosen.hidden), "repeats": chosen.repeats, "methods": list(chosen.methods),
             "batch": BATCH},
            lambda n=n: measure(n, chosen),
        )
        for n in chosen.agents
    ]  # fmt: skip


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
    config = marl_kl.TrustRegionConfig(hidden_sizes=size.hidden)
    actor, actors, batch = problem(num_agents, config)
    programs = [compiled_update(method, actor, config, actors, batch)[0] for method in size.methods]
    jax.block_until_ready([program() for program in programs])
    seconds = np.zeros((len(programs), size.repeats))
    for repeat in range(size.repeats):
        for index, program in enumerate(programs):
            begin = time.perf_counter()
            jax.block_until_ready(program())
            seconds[index, repeat] = time.perf_counter() - begin
    return {"seconds": seconds, "counts": np.array([solves(method, num_agents) for method in size.methods])}


# What is shown


def report(results: Results) -> Report:
    size = SIZES[results.size]
    rows = [_row(results, size, index) for index in range(1, len(size.methods))]
    figure = (_figure(results, size), "Seconds of one update: medians over repeats with 95 % intervals; dotted: in "
              "proportion to the number of agents.")  # fmt: skip
    return Report(rows, {"seconds": figure}, _text(results, size))


def slower(results: Results, n: int, index: int) -> study.Estimate:
    """Median over repeats of the time over HATRPO's in the same repeat."""
    seconds = results.pieces[f"{n}-agents"]["seconds"]
    return study.estimate(seconds[index] / seconds[0], np.median)


def _row(results: Results, size: Size, index: int) -> Row:
    found = [slower(results, n, index) for n in size.agents]
    closeness = [study.Estimate(-f.value, -f.high, -f.low) for f in found]
    verdict = study.counted([study.judged(f, -1.25, -2.1) for f in closeness])
    reasons = {
        PARTLY: "A trial step of every agent is a second conjugate-gradient solve each, so the update takes up to "
        "twice as long; beside a rollout and the critic that is little.",
        NOT_SEEN: "Trial steps of all agents are weighed anew before every move: N² / 2 more passes over the batch.",
        HOLDS: "The solves of the trial steps are cheap beside the line search.",
    }
    return Row(
        f"{study.LABELS[size.methods[index]]}'s update takes as long as HATRPO's (Shek et al. 2025: close; at most a "
        "quarter longer)",
        "times HATRPO's: " + ", ".join(f"{f.number()} ({n} agents)" for f, n in zip(found, size.agents)),
        "; ".join(f.interval() for f in found),
        verdict,
        study.because(verdict, reasons),
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
    axes.set_ylabel("seconds of one update")
    axes.legend(frameon=False)
    study.strip(axes)
    return figure


def _text(results: Results, size: Size) -> str:
    lines = [
        f"Batch {BATCH}, hidden layers {'-'.join(map(str, size.hidden))}, the defaults otherwise (conjugate gradient "
        f"on a tenth of the batch); {size.repeats} repeats, the methods taking turns.",
        "",
        "Conjugate-gradient solves + trial steps weighed, per update:",
        "",
        "| agents | " + " | ".join(study.LABELS[m] for m in size.methods) + " |",
        "|---|" + "---|" * len(size.methods),
    ]
    for n in size.agents:
        counts = results.pieces[f"{n}-agents"]["counts"].astype(int)
        lines.append(f"| {n} | " + " | ".join(f"{own} + {trial}" for own, trial in counts) + " |")
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
