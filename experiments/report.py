"""All tables and figures again from the stored raw results, and the figure of experiments/RESULTS.md.

python -m experiments.report
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import (
    allocation_ablations,
    allocator_cost,
    bilinear,
    bodies_at_scale,
    brax_suite,
    budgets_at_scale,
    ecosystem,
    matrix_game,
    mixed_motives,
    off_policy,
    parameter_sharing,
    signal_map,
    smax,
    study,
    styles,
    theory,
    two_peaks,
)
from experiments.intervals import Estimate
from experiments.study import Results
from experiments.styles import ADAPTIVE
from experiments.weighted_game import BUDGETS

STUDIES = (
    allocation_ablations.STUDY,
    signal_map.STUDY,
    bodies_at_scale.STUDY,
    budgets_at_scale.STUDY,
    smax.STUDY,
    off_policy.STUDY,
    brax_suite.STUDY,
    matrix_game.STUDY,
    two_peaks.STUDY,
    theory.STUDY,
    bilinear.STUDY,
    parameter_sharing.STUDY,
    mixed_motives.STUDY,
    allocator_cost.STUDY,
)
PUBLISHED_GAIN = 0.225
"""Of HATRPO-W's final return over HATRPO's (Shek et al. 2025)."""


def headline(game: Results, bodies: Results) -> Figure:
    """Left the gain over HATRPO in the game whose agents matter 8 : 4 : 2 : 1, right on bodies."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2)
    _gain_in_the_game(panels[0], game)
    _gain_on_bodies(panels[1], bodies)
    for axes in panels:
        axes.axhline(0, color="0.3", linewidth=1)
        styles.clean(axes)
    styles.legend_below(figure, panels, 4)
    return figure


def _gain_in_the_game(axes: Axes, results: Results) -> None:
    styles.budget_axis(axes, BUDGETS)
    for place, method in enumerate(ADAPTIVE):
        found = allocation_ablations.change(results, method, "hatrpo")
        styles.error_bars(axes, BUDGETS, found, place - 1, **styles.point_style(method))
    axes.set_title("game whose agents matter 8:4:2:1", fontsize=10, loc="left")
    axes.set_ylabel("mean payoff − HATRPO's (maximum 1)")


def _gain_on_bodies(axes: Axes, results: Results) -> None:
    scenarios = brax_suite.SIZES[results.size].scenarios
    for place, method in enumerate(ADAPTIVE):
        found = []
        for scenario in scenarios:
            values = {m: results.pieces[f"{scenario}-{m}"] for m in ("hatrpo", method)}
            ratio = brax_suite.final_ratio(values, method)
            found.append(Estimate(*(100 * (end - 1) for end in ratio)))
        look = styles.point_style(method) | {"linestyle": "none"}
        styles.error_bars(axes, np.arange(len(scenarios)), found, 4 * (place - 1), **look)
    published = f"HATRPO-W as published, +{100 * PUBLISHED_GAIN:g} %"
    axes.axhline(100 * PUBLISHED_GAIN, color="0.5", linestyle=":", label=published)
    axes.set_xticks(range(len(scenarios)), scenarios, fontsize=8.5)
    axes.set_title("bodies, 60–120 thousand env steps, 6 seeds", fontsize=10, loc="left")
    axes.set_ylabel("final return against HATRPO's (%)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=study.RESULTS, help="folder of the raw results")
    parser.add_argument("--pdf", action="store_true", help="figures as PDF too")
    options = parser.parse_args()
    for one in STUDIES:
        print(study.write_report(one, study.load(one, options.results), options.results, options.pdf), flush=True)
    ecosystem.main(["--report", "--results", str(options.results)])
    game, bodies = (study.load(one, options.results) for one in (allocation_ablations.STUDY, brax_suite.STUDY))
    study.write_figure(headline(game, bodies), options.results / "gain_over_hatrpo", options.pdf)


if __name__ == "__main__":
    main()
