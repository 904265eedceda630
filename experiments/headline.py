"""The first screen of experiments/RESULTS.md: its figure, and what was found of each claim of the paper.

Shek, Shi and Tokekar 2025, "Multi-Agent Trust Region Policy Optimisation: A Joint Constraint Approach": HATRPO-W and
HATRPO-G.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import (
    allocator_cost,
    bodies_at_scale,
    budgets_at_scale,
    matrix_game,
    shares,
    signal_map,
    smax,
    study,
    styles,
    two_peaks,
)
from experiments.bodies_at_scale import gain_over_hatrpo
from experiments.curves import pace_text
from experiments.intervals import Estimate, estimate, ratio
from experiments.methods import METHOD_STYLES, METHODS
from experiments.signal_map import RATIOS
from experiments.study import Results

STUDIES = (
    signal_map.STUDY,
    bodies_at_scale.STUDY,
    budgets_at_scale.STUDY,
    smax.STUDY,
    matrix_game.STUDY,
    two_peaks.STUDY,
    allocator_cost.STUDY,
)
"""Whose raw results are needed."""

PUBLISHED_GAIN = 0.225
"""Of HATRPO-W's final return over HATRPO's."""

Runs = Mapping[str, Mapping[str, study.Values]]
"""Where and how long -> method -> values."""


def long_runs(of: Mapping[str, Results]) -> Runs:
    """The runs on bodies that are done; a row per body and length."""
    found = {}
    for scenario, values in bodies_at_scale.together(of["bodies_at_scale"]).items():
        found[f"{scenario}, {_millions(values)}"] = values
    budgets = of["budgets_at_scale"]
    for row in budgets_at_scale.rows_of(budgets):
        values = {method: budgets_at_scale.at_budget(budgets, row, method) for method in METHODS}
        values = {method: own for method, own in values.items() if own}
        found[f"{row.scenario}, {_millions(values)}, {row.budget:g} per agent"] = values
    return found


def bodies_together(of: Mapping[str, Results]) -> list[Mapping[str, study.Values]]:
    """Of which means over bodies are taken."""
    return list(bodies_at_scale.complete(bodies_at_scale.together(of["bodies_at_scale"])).values())


def _millions(values: Mapping[str, study.Values]) -> str:
    return f"{values['hatrpo']['env_steps'][-1] / 1e6:.2g} million"


# The figure


COMPARED = ("hatrpo_w", "hatrpo_g", "hatrpo_w_cross", "hatrpo_n_cross")


def figure(of: Mapping[str, Results]) -> Figure:
    """Final returns over HATRPO's: left in the game where KL is scarcest and signal largest, right on bodies."""
    shown = Figure(figsize=(10.8, 4.6), layout="constrained")
    panels = shown.subplots(1, 2, width_ratios=(1.0, 1.2))
    _gain_in_the_game(panels[0], of["signal_map"])
    _gain_on_bodies(panels[1], of)
    for axes in panels:
        styles.clean(axes)
    styles.legend_below(shown, panels, 4, fontsize=8.5)
    return shown


def _gain_in_the_game(axes: Axes, results: Results) -> None:
    done = signal_map.cells(results)
    cell = max(done, key=lambda cell: (cell.samples, -cell.budget))
    axes.set_xscale("log", base=2)
    shown = [method for method in COMPARED if method in done[cell]]
    for place, method in enumerate(shown):
        gains = [signal_map.gain_over_hatrpo(done[cell], method, "final", game) for game in range(len(RATIOS))]
        look = METHOD_STYLES[method]
        found = [Estimate(*(100 * (end - 1) for end in gain)) for gain in gains]
        shift = 0.5 * (place - (len(shown) - 1) / 2)
        styles.error_bars(axes, RATIOS, found, shift, color=look.colour, marker=look.marker, label=look.label)
    axes.axhline(0, color="0.3", linewidth=1)
    axes.set_xticks(RATIOS, ["alike", *(f"{ratio:g} : 1" for ratio in RATIOS[1:])])
    axes.set_xlabel("weight of each of four agents over the next one's")
    axes.set_ylabel("final improvement against HATRPO's (%)")
    axes.set_title(f"game, {cell.samples:,} samples, joint budget {cell.budget:g}", fontsize=10, loc="left")


def _gain_on_bodies(axes: Axes, of: Mapping[str, Results]) -> None:
    bodies = bodies_together(of)
    shown = {name.replace(", ", "\n", 1): [values] for name, values in long_runs(of).items()}
    lengths = " and ".join(sorted({_millions(values) for values in bodies}))
    shown[f"geometric mean of {len(bodies)} teams\n{lengths}"] = bodies
    for place, method in enumerate(COMPARED):
        rows = {row: runs for row, runs in enumerate(shown.values()) if all(method in values for values in runs)}
        if not rows:
            continue
        found = [gain_over_hatrpo(runs, method) for runs in rows.values()]
        value, low, high = 100 * (np.transpose(found) - 1)
        look = METHOD_STYLES[method]
        where = np.array(list(rows)) + 0.16 * (place - 1.5)
        axes.errorbar(
            value, where, xerr=[value - low, high - value], fmt=look.marker, color=look.colour, label=look.label,
            markersize=4.5, linewidth=1.2,
        )  # fmt: skip
    axes.axvline(0, color="0.3", linewidth=1)
    published = f"HATRPO-W in the paper, +{100 * PUBLISHED_GAIN:g} %"
    axes.axvline(100 * PUBLISHED_GAIN, color="0.5", linestyle=":", label=published)
    axes.axhline(len(shown) - 1.5, color="0.85", linewidth=1)
    axes.set_yticks(range(len(shown)), list(shown), fontsize=8.5)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_title("bodies, env steps per seed", fontsize=10, loc="left")
    axes.set_xlabel("final return against HATRPO's (%)")


# The claims


def claims(of: Mapping[str, Results]) -> str:
    """A row per claim: what the paper reports, what was found, in which study."""
    runs = long_runs(of)
    rows = [
        ("final return over HATRPO's: W +22.5 %, G +25.2 %", _gains(of, runs), "bodies_at_scale, budgets_at_scale, smax"),
        ("variance over seeds: G's 39 % above W's", _variances(runs), "bodies_at_scale"),
        ("2–3 times fewer steps to 99 % of a sparse matrix game", _steps(of, runs), "matrix_game, bodies_at_scale"),
        ("leaves a local optimum in which HATRPO stays", _optimum(of["two_peaks"]), "two_peaks"),
        ("shares follow utilities", _correlation(runs), "bodies_at_scale"),
        ("the agent with the largest share alternates", _alternation(runs), "bodies_at_scale"),
        ("training takes about as long", _seconds(of["allocator_cost"]), "allocator_cost"),
    ]  # fmt: skip
    linked = [
        (claim, found, ", ".join(f"[{name}](results/{name}.md)" for name in where.split(", ")))
        for claim, found, where in rows
    ]
    return study.table(["the paper", "here", "study"], linked)


def _each(runs: Runs, cell, *methods: str) -> str:
    """ "ant_4x2, 3 million: ...; ..." of the runs that have all of the methods."""
    return "; ".join(f"{row}: {cell(values)}" for row, values in runs.items() if set(methods) <= set(values))


def _gains(of: Mapping[str, Results], runs: Runs) -> str:
    named = {"W": "hatrpo_w", "G": "hatrpo_g"}
    found = [
        _each(runs, lambda values, n=name, m=method: f"{n} {gain_over_hatrpo([values], m).text()}", method)
        for name, method in named.items()
    ]
    bodies = bodies_together(of)
    mean = (
        f"geometric mean of the {len(bodies)} teams of bodies_at_scale: W {gain_over_hatrpo(bodies, 'hatrpo_w').text()}"
    )
    won = [of["smax"].pieces[f"2s3z-{method}"]["won"] for method in ("hatrpo", "hatrpo_w")]
    last = [estimate(own[:, -1]).value for own in won]
    return "; ".join([*filter(None, found), mean, f"SMAX 2s3z: episodes won, HATRPO {last[0]:.2f}, W {last[1]:.2f}"])


def _variances(runs: Runs) -> str:
    def cell(values):
        found = ratio(values["hatrpo_g"]["final"], values["hatrpo_w"]["final"], functools.partial(np.var, ddof=1))
        return f"G's over W's {found.text()}"

    return _each(runs, cell, "hatrpo_w", "hatrpo_g") or "HATRPO-G was not run at scale"


def _steps(of: Mapping[str, Results], runs: Runs) -> str:
    game = of["matrix_game"]
    size = matrix_game.SIZES[game.size]
    first = size.games[0].name
    steps = [matrix_game.best_steps(game.pieces[f"{first}-{m}"], size) for m in ("hatrpo", "hatrpo_w")]
    there = f"HATRPO's over W's, each at its best budget: {ratio(*steps).text()}"
    bodies = _each(runs, lambda values: pace_text(values["hatrpo_w"], values["hatrpo"]), "hatrpo_w")
    return f"{there}; to 90 % of HATRPO's final return on {bodies}"


def _optimum(results: Results) -> str:
    budgets = two_peaks.budgets_of(two_peaks.SIZES[results.size], "sampled")
    more = [two_peaks.more_often(results, "sampled", "hatrpo_w", place) for place in range(len(budgets))]
    each = ", ".join(Estimate(*(100 * number for number in own)).text(1, sign="+") for own in more)
    joint = ", ".join(f"{budget:g}" for budget in budgets)
    return f"never, once there; points more starts that end at the global one, trained on samples with budgets {joint}: {each}"


def _correlation(runs: Runs) -> str:
    def cell(values):
        of_share, of_spent = (values["hatrpo_w"][name].mean() for name in ("correlation", "correlation_spent"))
        signal = 100 * np.nanmean(values["hatrpo_w"]["signal"])
        return f"r = {of_share:.2f} (with shares of the KL spent {of_spent:.2f}); {signal:.1f} % of the predicted gain is real"

    return _each({row: values for row, values in runs.items() if "correlation" in values.get("hatrpo_w", {})}, cell)


def _alternation(runs: Runs) -> str:
    def cell(values):
        own = values["hatrpo_w"]
        return f"leads the next update too in {shares.stays_text(own['stays'], own['by_chance'])}"

    known = {row: values for row, values in runs.items() if "stays" in values.get("hatrpo_w", {})}
    return f"{_each(known, cell)} (in brackets: in random order; difference in points)"


def _seconds(results: Results) -> str:
    methods = allocator_cost.SIZES[results.size].methods
    slower = {
        method: allocator_cost.slower(results, "training", methods.index(method)) for method in ("hatrpo_w", "hatrpo_g")
    }
    return f"W {slower['hatrpo_w'].text()}, G {slower['hatrpo_g'].text()} times HATRPO's"
