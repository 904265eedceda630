"""Does unequal KL pay? Allocators with utilities of the batch and of held-out halves, at the lengths of the papers.

python -m experiments.bodies_at_scale --quick

Pieces are stored one by one next to the results, each as soon as it is done: the same command resumes where it was
stopped, inside a piece too, and `--report` shows those that exist. All methods take matched line searches, so that equal
budgets are equal KL; the share really spent is in the tables. Every method is tuned with the same number of trials, the
trust-region methods by HATRPO's search: one joint budget for all, chosen for the baseline. The trials of first-order
methods are as long as the runs, because a step size that leads after a third of a run need not hold until its end.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import envs
import marl_kl
from experiments import settings, shares, study, styles
from experiments.curves import bin_edges, binned, last_fifth, last_tenth, pace_text
from experiments.intervals import Estimate, estimate, mean_ratio
from experiments.methods import (
    METHOD_STYLES,
    METHODS,
    SEARCHED,
    config_of,
    is_trust_region,
    swept_field,
    train_with,
)
from experiments.study import Piece, Report, Results
from marl_kl.training import presets

STUDY_NAME = "bodies_at_scale"

EXTENSION = 3.0
"""The grid is extended by this factor while its best value is at an end."""
TRIALS = 6
"""Trials at most."""
SEARCH_SEEDS = (100, 101)
EVALUATIONS = 20


class Size(NamedTuple):
    """A study's size.

    Attributes:
        env_steps: per seed, by scenario. search_env_steps: the same in trials of KL budgets; trials of step sizes are as
            long as the runs.
        seeds: per piece. groups: pieces per scenario and method, so that one does not take hours.
        blocks: scenario and methods, in the order in which they run.
    """

    env_steps: Mapping[str, int]
    search_env_steps: int
    seeds: int
    groups: int
    num_envs: int
    rollout_length: int
    blocks: Sequence[tuple[str, Sequence[str]]]


_REQUIRED = ("hatrpo", "hatrpo_w", "hatrpo_w_cross", "hatrpo_n_cross", "happo")
_OPTIONAL = ("hatrpo_g", "hatrpo_g_cross", "hatrpo_w_published", "hatrpo_geometric", "mappo")
_BODIES = {"ant_4x2": 3_000_000, "hopper_3x1": 3_000_000, "walker2d_3x2": 3_000_000}
_UNLIKE_AGENTS = dict.fromkeys(("ant_3|1", "walker2d_2|4", "humanoid_9|8"), 1_500_000)
SIZES = {
    "smoke": Size({"bilinear": 128}, 32, 2, 2, 2, 16, [("bilinear", ["hatrpo_w_cross"])]),
    "quick": Size(
        _BODIES | _UNLIKE_AGENTS, 1_000_000, 4, 2, 32, 128,
        [
            ("ant_4x2", ["hatrpo", "hatrpo_w_cross"]),
            ("ant_4x2", ["hatrpo_w"]),
            ("ant_3|1", _REQUIRED[:4]),
            ("ant_4x2", _REQUIRED),
            ("hopper_3x1", _REQUIRED),
            ("walker2d_3x2", _REQUIRED),
            ("walker2d_2|4", _REQUIRED[:4]),
            ("humanoid_9|8", _REQUIRED[:4]),
            *((body, _OPTIONAL) for body in _BODIES),
        ],
    ),
    "full": Size(
        dict.fromkeys(presets.get("quick").scenarios, 10_000_000), 2_000_000, 10, 1, 256, 32,
        [(scenario, [*_REQUIRED, "mappo"]) for scenario in presets.get("quick").scenarios],
    ),
}  # fmt: skip

_PARTITIONS = {
    "ant_3|1": [[f"{joint}_{leg}" for leg in (1, 2, 3) for joint in ("hip", "ankle")], ["hip_4", "ankle_4"]],
    "walker2d_2|4": [
        ["thigh_joint", "thigh_left_joint"],
        [f"{joint}{side}_joint" for side in ("", "_left") for joint in ("leg", "foot")],
    ],
}
"""Teams of unlike agents that no scenario of Multi-Agent MuJoCo has: legs of the ant; hips, and knees and ankles, of the walker."""


@functools.cache
def make_env(scenario: str):
    if scenario in _PARTITIONS:
        return envs.make(scenario.split("_")[0], partition=_PARTITIONS[scenario])
    return envs.make(scenario)


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    found = {}
    for scenario, methods in chosen.blocks:
        for group in range(chosen.groups):
            for method in methods:
                name = _name(scenario, "search", _search_of(method))
                found.setdefault(name, _search_piece(name, size, scenario, _search_of(method)))
                found[_name(scenario, method, group)] = _run_piece(size, scenario, method, group, needs=(name,))
    return list(found.values())


def _name(scenario: str, *parts: str | int) -> str:
    """Of a piece and its file: "humanoid_9_8-hatrpo-0"."""
    return "-".join(map(str, (scenario.replace("|", "_"), *parts)))


def _search_piece(name: str, size: str, scenario: str, method: str) -> Piece:
    chosen, config = SIZES[size], _search_config(scenario, method, SIZES[size])
    first_values = SEARCHED[swept_field(method)]
    facts = {"searched": list(first_values), "search_seeds": list(SEARCH_SEEDS), **_facts(scenario, method, config)}
    seconds = 300.0 + len(first_values) * len(SEARCH_SEEDS) * config.total_env_steps / 20_000
    return Piece(name, seconds, facts, lambda: search(scenario, method, chosen, _work(size, name)))


def _run_piece(size: str, scenario: str, method: str, group: int, needs: tuple[str, ...]) -> Piece:
    chosen, config = SIZES[size], _config(scenario, method, SIZES[size])
    name = _name(scenario, method, group)
    seeds = range(group * chosen.seeds, (group + 1) * chosen.seeds)
    facts = {"seeds": list(seeds), **_facts(scenario, method, config)}
    seconds = 120.0 + len(seeds) * config.total_env_steps / 20_000
    return Piece(
        name, seconds, facts, lambda found: play(scenario, method, seeds, chosen, _work(size, name), found), needs
    )


def _facts(scenario: str, method: str, config: marl_kl.Config) -> dict[str, Any]:
    """What the numbers of a piece depend on."""
    spec = make_env(scenario).spec
    shrinkage = (
        {"shrinkage": "beyond chance, equal shares in random order"}
        if METHODS[method].fields.get("utility_smoothing")
        else {}
    )
    return {
        "scenario": scenario,
        "method": method,
        **dict(spec.metadata),
        **settings.of_config(config, METHODS[method].algorithm),
        **shrinkage,
    }


def _work(size: str, name: str) -> Path:
    """Where a piece that was interrupted is resumed."""
    return study.WORK / f"{STUDY_NAME}-{size}" / name


def _search_of(method: str) -> str:
    """The method whose search serves this one."""
    return "hatrpo" if is_trust_region(method) else method


def _config(scenario: str, method: str, size: Size) -> marl_kl.Config:
    return config_of(scenario, method, size.env_steps[scenario], size.num_envs, size.rollout_length, EVALUATIONS)


# Training


def _search_config(scenario: str, method: str, size: Size) -> marl_kl.Config:
    config = _config(scenario, method, size).replace(eval_interval=0)
    return config.replace(total_env_steps=size.search_env_steps) if is_trust_region(method) else config


def search(scenario: str, method: str, size: Size, work: Path) -> study.Values:
    """Tries values until the best one is not at an end of those tried.

    Returns:
        tried: [trial] values in increasing order. trials: [trial, seed] return of the stochastic policy at the end.
        chosen: the best value.
    """
    config = _search_config(scenario, method, size)
    found: dict[float, np.ndarray] = {}
    wanted: Sequence[float] = SEARCHED[swept_field(method)]
    while wanted:
        folder = work / f"search-{len(found)}"
        result = train_with(make_env(scenario), method, wanted, SEARCH_SEEDS, config, folder)
        found |= dict(zip(wanted, last_tenth(result.metrics["episode_return"])))
        tried = sorted(found)
        best = max(tried, key=lambda value: found[value].mean())
        beyond = {tried[0]: tried[0] / EXTENSION, tried[-1]: tried[-1] * EXTENSION}
        wanted = [beyond[best]] if best in beyond and len(found) < TRIALS else []
    shutil.rmtree(work, ignore_errors=True)
    return {"tried": np.array(tried), "trials": np.array([found[value] for value in tried]), "chosen": np.array(best)}


def play(
    scenario: str, method: str, seeds: Sequence[int], size: Size, work: Path, searched: study.Values
) -> study.Values:
    """Trains with the value that the search chose, on other seeds.

    Returns:
        env_steps: [P]; returns: [seed, P] of the stochastic policy. final: [seed] its mean over the last tenth of the
        updates. eval_env_steps: [V]; evaluated: [seed, V] of the deterministic policy, mean over episodes.
        Trust-region methods also: spent: [seed] share of the budget spent, mean over updates; `shares.of_run` (of the adaptive
        ones); signal: [P, agent] median `signal_fraction` over seeds, where it was measured.
    """
    chosen = float(searched["chosen"])
    config = _config(scenario, method, size)
    result = train_with(make_env(scenario), method, [chosen], seeds, config, work / "runs")
    metrics = {name: values[0] for name, values in result.metrics.items()}
    edges = bin_edges(result.env_steps.shape[1])
    values = {
        "env_steps": result.env_steps[0, edges[1:] - 1],
        "returns": binned(metrics["episode_return"], edges),
        "final": last_tenth(metrics["episode_return"]),
        "eval_env_steps": result.evaluations[0].env_steps,
        "evaluated": result.evaluations[0].episode_return.mean(-1),
    }
    if is_trust_region(method):
        budget = chosen * make_env(scenario).spec.num_agents
        values["spent"] = (metrics["kl_total"] / budget).mean(1)
        if METHODS[method].algorithm != "hatrpo":
            values |= shares.of_run(metrics["utility"], metrics["kl_threshold"], metrics["kl"], edges)
        if "signal_fraction" in metrics:
            values["signal"] = np.nanmedian(binned(metrics["signal_fraction"], edges), axis=0)
    shutil.rmtree(work, ignore_errors=True)
    return values


# What is shown


def report(results: Results) -> Report:
    """Of the pieces that are done."""
    by_scenario = together(results)
    methods = [method for method in METHODS if any(method in values for values in by_scenario.values())]
    rows = {scenario: _title(scenario, values) for scenario, values in by_scenario.items()}

    def table(cell, names=methods, last_row=()):
        body = [
            [rows[scenario], *(cell(values, method) if method in values else "–" for method in names)]
            for scenario, values in by_scenario.items()
        ]
        first = "scenario (env steps per seed × seeds)"
        return study.table([first, *(METHODS[method].label for method in names)], [*body, *last_row])

    def gains(score):
        def text(bodies, method):
            both_ran = all(method in values and "hatrpo" in values for values in bodies)
            return gain_over_hatrpo(bodies, method, score).text() if both_ran else "–"

        bodies = list(by_scenario.values())
        of_all = ["geometric mean", *(text(bodies, method) for method in compared)]
        return table(lambda values, method: text([values], method), compared, [of_all])

    compared = [method for method in methods if method != "hatrpo"]
    budgeted = [method for method in methods if is_trust_region(method)]
    adaptive = [method for method in budgeted if METHODS[method].algorithm != "hatrpo"]
    # Smoothed, shrunk utilities give equal shares in most updates, and then no agent leads.
    led = [method for method in adaptive if not METHODS[method].fields.get("utility_smoothing")]
    tables = {
        "final": table(lambda values, m: estimate(of_training(values[m])).text(0)),
        "evaluated": table(lambda values, m: estimate(of_evaluation(values[m])).text(0)),
        "gain_evaluated": gains(of_evaluation),
        "gain": gains(of_training),
        "pace": table(_pace, compared),
        "spent": table(lambda values, m: f"{100 * values[m]['spent'].mean():.0f} %", budgeted),
        "shares": table(_shares, adaptive),
        "leaders": table(lambda values, m: shares.stays_text(values[m]["stays"], values[m]["by_chance"]), led),
        "signal": table(_signal, adaptive),
        "search": study.table(
            ["scenario, method", "return at the end of each trial (mean of two seeds)", "chosen"],
            [
                _trials(scenario, method, results.pieces[name])
                for scenario in by_scenario
                for method in METHODS
                if (name := _name(scenario, "search", method)) in results.pieces
            ],
        ),
    }
    figures = {"curves": curves(by_scenario), "allocation": allocation(by_scenario)}
    return Report(tables, figures)


_OVER_SEEDS = ("env_steps", "eval_env_steps", "share", "signal", "led")
"""The results that have no seed axis: the same in all pieces, or means over seeds."""


def together(results: Results) -> dict[str, dict[str, study.Values]]:
    """scenario -> method -> values of all groups of seeds that are done; those of which none is are left out."""
    by_scenario = {}
    for scenario in dict.fromkeys(scenario for scenario, _ in SIZES[results.size].blocks):
        found = {method: _together(results, scenario, method) for method in METHODS}
        if any(found.values()):
            by_scenario[scenario] = {method: values for method, values in found.items() if values}
    return by_scenario


def _together(results: Results, scenario: str, method: str) -> study.Values:
    """The groups of seeds that are done, as one; empty if none is."""
    size = SIZES[results.size]
    names = [_name(scenario, method, group) for group in range(size.groups)]
    done = [results.pieces[name] for name in names if name in results.pieces]
    return {
        field: np.mean([values[field] for values in done], axis=0)
        if field in _OVER_SEEDS
        else np.concatenate([values[field] for values in done])
        for field in (done[0] if done else ())
    }


def of_training(values: study.Values) -> np.ndarray:
    """[seed] final return of stochastic policies."""
    return values["final"]


def of_evaluation(values: study.Values) -> np.ndarray:
    """[seed] final return of deterministic policies."""
    return last_fifth(values["evaluated"])


def gain_over_hatrpo(
    bodies: Sequence[Mapping[str, study.Values]],
    method: str,
    score: Callable[[study.Values], np.ndarray] = of_training,
) -> Estimate:
    """The method's final return over HATRPO's on bodies that both ran on; of several bodies the geometric mean."""
    return mean_ratio([(score(values[method]), score(values["hatrpo"])) for values in bodies])


def _title(scenario: str, values: Mapping[str, study.Values]) -> str:
    shown = next(iter(values.values()))
    seeds = {len(own["final"]) for own in values.values()}
    return f"{scenario} ({int(shown['env_steps'][-1]):,} × {'/'.join(map(str, sorted(seeds)))} seeds)"


def _pace(values: Mapping[str, study.Values], method: str) -> str:
    return pace_text(values[method], values["hatrpo"]) if "hatrpo" in values else "–"


def _shares(values: Mapping[str, study.Values], method: str) -> str:
    own = values[method]
    mean = own["share"].mean(0)
    correlation = own["correlation"][np.isfinite(own["correlation"])]
    found = f", r = {correlation.mean():.2f}" if len(correlation) else ""
    return f"{100 * own['largest'].mean():.0f} %; {' '.join(f'{100 * part:.0f}' for part in mean)}{found}"


def _signal(values: Mapping[str, study.Values], method: str) -> str:
    if "signal" not in values[method]:
        return "–"
    thirds = np.array_split(values[method]["signal"], 3)
    return ", ".join(f"{100 * np.nanmean(part):.0f} %" for part in thirds)


def _trials(scenario: str, method: str, values: study.Values) -> list[str]:
    each = [f"{value:.2g}: {trial.mean():.0f}" for value, trial in zip(values["tried"], values["trials"])]
    facts = ", ".join(each), f"{float(values['chosen']):.2g}"
    return [f"{scenario}, {METHODS[method].label}", *facts]


def curves(rows: Mapping[str, Mapping[str, study.Values]]) -> Figure:
    """Left training returns (stochastic policies), right evaluation returns (deterministic policies); by title and method."""
    figure = Figure(figsize=(9.0, 2.7 * len(rows) + 0.8), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False, sharex="row", sharey="row")
    for (title, values), (training, evaluation) in zip(rows.items(), panels):
        for method, own in values.items():
            known = np.isfinite(own["returns"]).all(axis=0)
            style = METHOD_STYLES[method]
            styles.curve(training, own["env_steps"][known] / 1e6, own["returns"][:, known], style)
            styles.curve(evaluation, own["eval_env_steps"] / 1e6, own["evaluated"], style)
        training.set_title(title, fontsize=10, loc="left")
        training.set_ylabel("return")
        for axes in (training, evaluation):
            axes.set_xlim(left=0)
            styles.clean(axes)
    panels[0][1].set_title("evaluation return (deterministic policies)", fontsize=9, loc="right")
    panels[0][0].set_title("training return (stochastic policies)", fontsize=9, loc="right")
    for axes in panels[-1]:
        axes.set_xlabel("env steps per seed (millions)")
    styles.legend_below(figure, panels.ravel(), 4, fontsize=8.5)
    return figure


def allocation(by_scenario: Mapping[str, Mapping[str, study.Values]]) -> Figure:
    """The share of each agent against its signal, both means over a bin of updates, as multiples of the team's mean."""
    shown = [
        method
        for method in ("hatrpo_w", "hatrpo_w_cross", "hatrpo_n_cross")
        if any(method in values for values in by_scenario.values())
    ]
    figure = Figure(figsize=(3.0 * len(shown), 3.6), layout="constrained")
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, shown):
        for place, (scenario, values) in enumerate(by_scenario.items()):
            if method not in values:
                continue
            signal, share = values[method]["signal"], values[method]["share"]
            relative = signal / np.maximum(np.nanmean(signal, axis=1, keepdims=True), 1e-3)
            look = {"color": f"C{place}", "markersize": 4, "alpha": 0.6, "label": scenario}
            axes.plot(relative.ravel(), (share * share.shape[1]).ravel(), ".", **look)
        axes.axhline(1, color="0.6", linewidth=1, linestyle=":")
        axes.set_title(METHODS[method].label, fontsize=10, loc="left")
        axes.set_xlabel("signal fraction / mean of the team")
        axes.set_xlim(-1, 4)
        styles.clean(axes)
    panels[0].set_ylabel("share of the budget / equal share")
    styles.legend_below(figure, panels, 5, fontsize=8.5)
    return figure


STUDY = study.Study(STUDY_NAME, "Bodies at scale", pieces, report, is_incremental=True)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(study.WORK / "compiled"))
    study.main(STUDY)
