"""Does unequal KL pay at ten million env steps, and at which joint budget? Sized for one GPU.

python -m experiments.budgets_at_scale --full --out experiments/results

A piece is one method on one body: all budgets and seeds train in one program, so that there is no search before it, and
every budget is reported. Pieces are stored one by one; the same command resumes, inside a piece too.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import marl_kl
from experiments import settings, shares, study
from experiments.bodies_at_scale import curves, of_evaluation, of_training
from experiments.body_runs import make_env
from experiments.curves import bin_edges, binned, last_tenth, pace_text
from experiments.intervals import estimate, ratio
from experiments.methods import METHODS, config_of
from experiments.study import Piece, Report, Results

STUDY_NAME = "budgets_at_scale"


class Size(NamedTuple):
    """env_steps: of each run, by scenario. budgets: per agent (a joint budget is that times the agents). methods: in the order
    in which they run. seeds: of every budget. num_envs, rollout_length: of every run. evaluations: of a run."""

    env_steps: Mapping[str, int]
    budgets: Sequence[float]
    methods: Sequence[str]
    seeds: int
    num_envs: int
    rollout_length: int
    evaluations: int


_METHODS = ("hatrpo", "hatrpo_w", "hatrpo_n_cross", "hatrpo_w_cross")
_BODIES = {"ant_4x2": 10_000_000, "hopper_3x1": 3_000_000, "walker2d_3x2": 3_000_000}
_BUDGETS = (0.005, 0.015)
SIZES = {
    "smoke": Size({"bilinear": 128}, _BUDGETS, ("hatrpo", "hatrpo_w_cross"), 2, 2, 16, 2),
    "quick": Size({"ant_4x2": 300_000}, _BUDGETS, _METHODS, 4, 32, 128, 5),
    "full": Size(_BODIES, _BUDGETS, _METHODS, 12, 256, 32, 10),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    return [_piece(size, scenario, method) for scenario in chosen.env_steps for method in chosen.methods]


def _piece(size: str, scenario: str, method: str) -> Piece:
    chosen, config = SIZES[size], _config(scenario, method, SIZES[size])
    budgets = _joint_budgets(scenario, chosen)
    facts = {
        "scenario": scenario, "method": method, "swept": budgets, "seeds": list(range(chosen.seeds)),
        **dict(make_env(scenario).spec.metadata), **settings.of_config(config, METHODS[method].algorithm),
    }  # fmt: skip
    name = _name(scenario, method)
    seconds = 120.0 + len(budgets) * chosen.seeds * config.total_env_steps / 20_000
    return Piece(
        name, seconds, facts, lambda: play(scenario, method, chosen, study.WORK / f"{STUDY_NAME}-{size}" / name)
    )


def _name(scenario: str, method: str) -> str:
    return f"{scenario}-{method}"


def _joint_budgets(scenario: str, size: Size) -> list[float]:
    return [make_env(scenario).spec.num_agents * budget for budget in size.budgets]


def _config(scenario: str, method: str, size: Size) -> marl_kl.Config:
    sizes = (size.env_steps[scenario], size.num_envs, size.rollout_length, size.evaluations)
    return config_of(scenario, method, *sizes)


def play(scenario: str, method: str, size: Size, work: Path) -> study.Values:
    """Trains with all budgets and seeds; stored in `work` until it is done, and resumed there.

    Returns:
        env_steps: [P]; returns: [budget, seed, P] of the stochastic policy. final: [budget, seed] its mean over the last
        tenth of the updates. eval_env_steps: [V]; evaluated: [budget, seed, V] of the deterministic policy, mean over
        episodes. spent: [budget, seed] share of the budget spent, mean over updates. seconds: of training alone.
        Adaptive methods also: share: [budget, P, agent]; largest: [budget, seed], see `shares.of_run`; signal: [budget, P, agent]
        median `signal_fraction` over seeds.
    """
    budgets, config = _joint_budgets(scenario, size), _config(scenario, method, size)
    result = marl_kl.sweep(
        make_env(scenario), METHODS[method].algorithm, grid={"kl_budget": budgets}, seeds=range(size.seeds),
        config=config, out=work, resume=True, progress="none",
    )  # fmt: skip
    metrics = result.metrics
    edges = bin_edges(result.env_steps.shape[1])
    found = {
        "env_steps": result.env_steps[0, edges[1:] - 1],
        "returns": np.stack([binned(own, edges) for own in metrics["episode_return"]]),
        "final": last_tenth(metrics["episode_return"]),
        "eval_env_steps": result.evaluations[0].env_steps,
        "evaluated": np.stack([own.episode_return.mean(-1) for own in result.evaluations]),
        "seconds": np.array(result.timing.train),
        "spent": (metrics["kl_total"] / np.reshape(budgets, (-1, 1, 1))).mean(-1),
    }
    if "signal_fraction" in metrics:
        allocated = [
            shares.of_run(*own, edges) for own in zip(metrics["utility"], metrics["kl_threshold"], metrics["kl"])
        ]
        found |= {name: np.stack([own[name] for own in allocated]) for name in ("share", "largest")}
        found["signal"] = np.stack([np.nanmedian(binned(own, edges), axis=0) for own in metrics["signal_fraction"]])
    shutil.rmtree(work, ignore_errors=True)
    return found


# What is shown


def report(results: Results) -> Report:
    """Of the pieces that are done."""
    size = SIZES[results.size]
    rows = rows_of(results)
    methods = [method for method in size.methods if any(at_budget(results, row, method) for row in rows)]

    def table(cell, names):
        body = [
            [
                row.scenario,
                f"{row.budget:g}",
                *(cell(row, found) if (found := at_budget(results, row, m)) else "–" for m in names),
            ]
            for row in rows
        ]
        return study.table(["scenario", "budget per agent", *(METHODS[m].label for m in names)], body)

    def gain(field):
        return lambda row, found: ratio(field(found), field(at_budget(results, row, "hatrpo"))).text()

    tables = {
        "final": table(lambda _, found: estimate(of_training(found)).text(0), methods),
        "gain": table(gain(of_training), methods[1:]),
        "pace": table(lambda row, found: pace_text(found, at_budget(results, row, "hatrpo")), methods[1:]),
        "evaluated": table(lambda _, found: estimate(of_evaluation(found)).text(0), methods),
        "gain_evaluated": table(gain(of_evaluation), methods[1:]),
        "spent": table(lambda _, found: f"{100 * found['spent'].mean():.0f} %", methods),
        "allocation": table(_allocation, methods[1:]),
    }
    by_method = [{method: found for method in methods if (found := at_budget(results, row, method))} for row in rows]
    titles = [f"{row.scenario}, {row.budget:g} per agent" for row in rows]
    return Report(tables, {"curves": curves(dict(zip(titles, by_method)))})


class Row(NamedTuple):
    """A scenario and one of its budgets per agent, the `place`-th."""

    scenario: str
    place: int
    budget: float


def rows_of(results: Results) -> list[Row]:
    """Those of which HATRPO is done."""
    size = SIZES[results.size]
    rows = [Row(scenario, place, budget) for scenario in size.env_steps for place, budget in enumerate(size.budgets)]
    return [row for row in rows if at_budget(results, row, "hatrpo")]


_OVER_BUDGETS = ("env_steps", "eval_env_steps", "seconds")


def at_budget(results: Results, row: Row, method: str) -> study.Values:
    """At this budget; empty if the piece is not done."""
    values = results.pieces.get(_name(row.scenario, method), {})
    return {field: value if field in _OVER_BUDGETS else value[row.place] for field, value in values.items()}


def _allocation(row: Row, found: study.Values) -> str:
    """The largest share, and the signal fraction in each third of the run."""
    thirds = [f"{100 * np.nanmean(part):.1f} %" for part in np.array_split(found["signal"], 3)]
    return f"{100 * found['largest'].mean():.0f} %; {', '.join(thirds)}"


STUDY = study.Study(STUDY_NAME, "Unequal KL at ten million env steps", pieces, report, is_incremental=True)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(study.WORK / "compiled"))
    study.main(STUDY)
