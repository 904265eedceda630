"""The figures of `brax_suite`: curves, all bodies together, probabilities of improvement, the allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from experiments import styles
from experiments.brax_scores import Scores, beats, overall
from experiments.study import Values
from experiments.styles import ADAPTIVE, STYLES, TRUST_REGION, label
from marl_kl.analysis.statistics import performance_profile

ByScenario = Mapping[str, Mapping[str, Values]]
"""scenario -> method -> what `brax_suite.play` returns."""


def curves(by_scenario: ByScenario, began: Mapping[str, float], methods: Sequence[str]) -> Figure:
    """Left the trust-region methods, right the others with HATRPO; dotted: untrained policies."""
    groups = [
        [m for m in methods if m in TRUST_REGION],
        [m for m in methods if m not in ADAPTIVE],
    ]
    figure = Figure(figsize=(8.6, 2.5 * len(by_scenario) + 0.9), layout="constrained")
    panels = figure.subplots(len(by_scenario), 2, squeeze=False, sharex="row", sharey="row")
    for (scenario, values), line in zip(by_scenario.items(), panels):
        for axes, group in zip(line, groups):
            axes.axhline(began[scenario], color="0.6", linewidth=1, linestyle=":")
            for method in group:
                of_method = values[method]
                known = np.isfinite(of_method["returns"]).all(axis=0)
                styles.curve(axes, of_method["env_steps"][known] / 1e3, of_method["returns"][:, known], method)
            axes.set_xlim(left=0)
            styles.clean(axes)
        line[0].set_title(scenario, fontsize=10, loc="left")
        line[0].set_ylabel("return")
    for axes in panels[-1]:
        axes.set_xlabel("env steps per seed (thousands)")
    styles.legend_below(figure, panels[0], 5, fontsize=9)
    return figure


def all_together(scores: Mapping[str, Scores], methods: Sequence[str]) -> Figure:
    """Left IQM and interval of all in `scores`; those that are not in `methods` are hatched. Right the profiles of
    `methods`."""
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    bars, profiles = figure.subplots(1, 2, width_ratios=(1, 1.25))
    found = {method: overall(each) for method, each in scores.items()}
    for place, (method, (middle, low, high)) in enumerate(found.items()):
        colour = STYLES[method].colour
        hatch = None if method in methods else "////"
        bars.barh(place, high - low, left=low, height=0.5, facecolor=(colour, 0.35), edgecolor=(colour, 0.6),
                  hatch=hatch, linewidth=0)  # fmt: skip
        bars.plot([middle, middle], [place - 0.25, place + 0.25], color=colour, linewidth=2.5)
    bars.set_yticks(range(len(scores)), [label(method) for method in scores], fontsize=8.5)
    bars.invert_yaxis()
    bars.margins(x=0.06)
    bars.use_sticky_edges = False
    bars.tick_params(axis="y", length=0)
    bars.set_xlabel("final return, normalised (IQM)")
    levels = np.linspace(min(0.0, *(each.normalized.min() for each in scores.values())), 1, 101)
    for method in methods:
        each = scores[method]
        profile = performance_profile(each.normalized, levels, each.scenario)
        profiles.step(levels, 100 * profile, where="post", linewidth=1.6, **styles.line_style(method))
    profiles.set_xlabel("level of the normalised final return")
    profiles.set_ylabel("runs above it (%)")
    profiles.legend(frameon=False, fontsize=7.5, ncols=2)
    for axes in (bars, profiles):
        styles.clean(axes)
    return figure


def improvement(scores: Mapping[str, Scores], methods: Sequence[str]) -> Figure:
    """P(row ends above column) for every pair."""
    side = 0.62 * len(methods) + 1.8
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.add_subplot()
    value = np.full((len(methods), len(methods)), np.nan)
    for row, column in np.argwhere(~np.eye(len(methods), dtype=bool)):
        value[row, column], low, high = beats(scores[methods[row]], scores[methods[column]])
        colour = "white" if abs(value[row, column] - 0.5) > 0.33 else "black"
        weight = "bold" if low > 0.5 or high < 0.5 else "normal"
        axes.text(column, row, f"{value[row, column]:.2f}", ha="center", va="center", fontsize=8.5, color=colour,
                  weight=weight)  # fmt: skip
    image = axes.imshow(value, cmap="PuOr_r", vmin=0, vmax=1)
    names = [label(method) for method in methods]
    axes.set_xticks(range(len(methods)), names, rotation=35, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(methods)), names, fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.75, label="P(row ends above column)")
    return figure


def heat_maps(by_scenario: ByScenario, agents: Mapping[str, Sequence[str]], adaptive: Sequence[str]) -> Figure:
    """Each agent's share of the thresholds over training, in multiples of an equal share; agents: names by scenario.

    HATRPO-G has its own scale in each scenario: its shares differ several times as much as the others'.
    """
    heights = [0.9 + 0.11 * len(agents[scenario]) for scenario in by_scenario]
    figure = Figure(figsize=(3.0 * len(adaptive) + 1.2, sum(heights) + 1.0), layout="constrained")
    panels = figure.subplots(len(by_scenario), len(adaptive), squeeze=False, height_ratios=heights)
    for (scenario, values), line in zip(by_scenario.items(), panels):
        names = agents[scenario]
        relative = {method: values[method]["share"].T * len(names) for method in adaptive}
        for axes, method in zip(line, adaptive):
            alike = [method] if method == "hatrpo_g" else [m for m in adaptive if m != "hatrpo_g"]
            reach = max(0.02, *(np.abs(relative[m] - 1).max() for m in alike))
            ends = np.concatenate([[0.0], values[method]["env_steps"]]) / 1e3
            image = axes.pcolormesh(ends, np.arange(len(names) + 1) - 0.5, relative[method], cmap="PuOr_r",
                                    norm=TwoSlopeNorm(1.0, 1 - reach, 1 + reach), rasterized=True)  # fmt: skip
            axes.set_yticks(range(len(names)), names if axes is line[0] else [], fontsize=7 if len(names) > 8 else 8.5)
            axes.invert_yaxis()
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=8.5)
            title = f"{scenario}, {label(method)}" if axes is line[0] else label(method)
            axes.set_title(title, fontsize=9, loc="left")
            bar = figure.colorbar(image, ax=axes, pad=0.02, ticks=[1 - 0.8 * reach, 1, 1 + 0.8 * reach], format="%.2f")
            bar.ax.tick_params(labelsize=7.5)
    for axes in panels[-1]:
        axes.set_xlabel("env steps per seed (thousands)", fontsize=9)
    return figure
