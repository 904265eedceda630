"""The figures that only a report has: the body, shares per agent and update, the learning curves of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from envs.base import Env
from marl_kl.analysis import sweep_tables
from marl_kl.analysis.bodies import drawing, poses
from marl_kl.analysis.figure_style import (
    PALETTE,
    bin_edges,
    binned_means,
    healthy_seeds,
    hide_spines,
    mark_agents,
    step_unit,
    title_figure,
)
from marl_kl.analysis.statistics import MIN_RUNS, bootstrap_interval, interquartile_mean
from marl_kl.results import SweepResult, TrainResult

COLOURED_SETTINGS = 6
"""Settings of a sweep that have their own colour, best first; the others are grey."""


def body(env: Env) -> Figure:
    """The body in one pose, limbs coloured by agent, with the agents' names."""
    figure = Figure(figsize=(7.6, 3.6))
    axes = figure.add_axes((0.0, 0.0, 0.68, 1.0))
    drawing.still(axes, env, poses.pose(env))
    size = 8.5 if env.spec.num_agents <= 10 else 7
    drawing.legend(figure, env, loc="center left", bbox_to_anchor=(0.69, 0.5), fontsize=size, labelspacing=0.5)
    return figure


def agent_map(result: TrainResult, shares: np.ndarray, what: str, colours: Sequence | None = None) -> Figure:
    """Heat map agents x updates of a share in percent, mean over seeds; below it the mean over agents.

    Args:
        result: the run.
        shares: [S, U, N] in [0, 1], NaN where unknown.
        what: the share's name, for the titles.
        colours: one per agent, next to its name; None: no marks.
    """
    agents = result.spec.agents
    height = max(1.2, 0.27 * len(agents))
    figure = Figure(figsize=(8.4, height + 2.3), layout="constrained")
    title_figure(figure, result, what[0].upper() + what[1:])
    map_axes, team_axes = figure.subplots(2, 1, sharex=True, height_ratios=(height, 1.0))
    percent = 100 * shares[healthy_seeds(result)]
    edges = bin_edges(percent.shape[1])
    binned = binned_means(percent.transpose(0, 2, 1), edges)  # [S, N, bins]
    has_seeds = percent.shape[0] > 1
    map_axes.set_title(f"{what} by agent, %{', mean over seeds' * has_seeds}", fontsize=9, loc="left")
    _draw_agents(figure, map_axes, _mean(binned, 0), edges, agents)
    mark_agents(map_axes, colours)
    team_axes.set_title(f"mean over agents{', mean and range over seeds' * has_seeds}", fontsize=9, loc="left")
    _draw_team(team_axes, _mean(binned, 1), edges)
    return figure


def _draw_agents(figure: Figure, axes: Axes, percent: np.ndarray, edges: np.ndarray, agents: Sequence[str]) -> None:
    """percent: [N, bins]."""
    rows = np.arange(len(agents) + 1) - 0.5
    image = axes.pcolormesh(edges + 0.5, rows, percent, cmap="viridis", vmin=0.0, vmax=100.0, rasterized=True)
    axes.set_yticks(range(len(agents)), agents, fontsize=8.5 if len(agents) <= 10 else 7.5)
    axes.set_ylim(len(agents) - 0.5, -0.5)
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, aspect=12, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f} %"))
    bar.ax.tick_params(labelsize=7.5, length=2)


def _draw_team(axes: Axes, percent: np.ndarray, edges: np.ndarray) -> None:
    """percent: [S, bins]."""
    axes.stairs(_mean(percent, 0), edges + 0.5, color=PALETTE[0], linewidth=1.4, baseline=None)
    if len(percent) > 1:
        low, high = percent.min(axis=0), percent.max(axis=0)
        axes.stairs(high, edges + 0.5, baseline=low, fill=True, color=PALETTE[0], alpha=0.2, linewidth=0)
    axes.set_ylim(0, 108)
    axes.set_yticks([0, 50, 100])
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f} %"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("update", fontsize=9)
    hide_spines(axes)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Over finite values; NaN if there are none."""
    last = np.moveaxis(values, axis, -1)
    return binned_means(last, np.array([0, last.shape[-1]]))[..., 0]


def sweep_curves(result: SweepResult) -> Figure:
    """Training returns against env steps, a line per setting: interquartile mean over the seeds that did not fail, with
    its bootstrap interval from three of them on. The best settings have colours, the others are grey."""
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    unit, divisor = step_unit(float(result.env_steps.max()))
    failed = {(failure.setting, failure.seed) for failure in result.failures}
    ranking = sweep_tables.ranking(result)
    handles = []
    for rank, setting in reversed(list(enumerate(ranking))):
        healthy = [(setting, seed) not in failed for seed in result.seeds]
        returns = result.metrics["episode_return"][setting][healthy]
        returns = returns[np.isfinite(returns).any(axis=1)]  # seeds with a finished episode
        known = np.isfinite(returns).all(axis=0) & bool(len(returns))
        if not known.any():
            continue
        edges = bin_edges(int(known.sum()))
        curves = binned_means(returns[:, known], edges)
        steps = binned_means(result.env_steps[setting][known][None].astype(np.float64), edges)[0] / divisor
        is_coloured = rank < COLOURED_SETTINGS
        colour = PALETTE[rank % len(PALETTE)] if is_coloured else "0.75"
        axes.plot(steps, interquartile_mean(curves), color=colour, linewidth=1.8 if is_coloured else 0.9)
        if is_coloured and len(curves) >= MIN_RUNS:
            axes.fill_between(steps, *bootstrap_interval(curves), color=colour, alpha=0.15, linewidth=0)
        if is_coloured:
            label = f"{setting}: {sweep_tables.setting_text(result, setting)}"
            handles.append(Line2D([], [], color=colour, linewidth=1.8, label=label))
    handles.reverse()
    if len(ranking) > COLOURED_SETTINGS:
        handles.append(Line2D([], [], color="0.75", linewidth=0.9, label=f"{len(ranking) - COLOURED_SETTINGS} others"))
    axes.set_xlabel(f"env steps per seed{unit}")
    axes.set_ylabel("training return (stochastic policies)")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    hide_spines(axes)
    figure.legend(handles=handles, frameon=False, fontsize=8.5, loc="outside upper left", ncols=2)
    return figure
