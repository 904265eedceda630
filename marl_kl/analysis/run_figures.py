"""The two figures of a run: the learning curve, and the share of the KL budget of each agent.

Failed seeds are left out, and a line below the figure names them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from marl_kl.analysis.figure_style import (
    DIVERGING,
    PALETTE,
    NotebookFigure,
    algorithm_style,
    bin_edges,
    bin_width,
    binned_means,
    healthy_seeds,
    hide_spines,
    mark_agents,
    step_unit,
    title_figure,
)
from marl_kl.analysis.statistics import MIN_RUNS, bootstrap_interval, interquartile_mean
from marl_kl.results import TrainResult

_ALLOCATED = PALETTE[0]
_SPENT = PALETTE[1]
_TRAINING = "#A0A0A0"
_EQUAL = "#333333"
_NOT_SPENT = "#BDBDBD"

_MIN_EVALUATIONS_FOR_CURVE = 4
_MAX_MARKERS = 30


def learning_curve(result: TrainResult) -> Figure:
    """Evaluation returns (the algorithm's colour) and training returns (grey) against env steps.

    Evaluation (deterministic policies): per seed the mean over episodes (thin), over seeds the interquartile mean
    (thick) and, from three seeds on, its 95 % bootstrap interval. Training (stochastic policies): mean and range over
    seeds.
    """
    healthy = healthy_seeds(result)
    figure = NotebookFigure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    handles = []
    steps_name, scale = step_unit(float(result.env_steps[-1]) if len(result.env_steps) else 0.0)
    if healthy.any():
        handles += _draw_evaluation(axes, result, healthy, scale)
        handles += _draw_training(axes, result, healthy, scale)
    else:
        axes.text(0.5, 0.5, "all seeds failed", transform=axes.transAxes, ha="center", color="0.4")
    axes.set_xlabel(f"env steps per seed{steps_name}")
    axes.set_ylabel("episode return of the team")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
    hide_spines(axes)
    if handles:
        axes.legend(handles=handles, frameon=False, fontsize=8.5, loc="best")
    title_figure(figure, result, "Learning curve")
    return figure


def has_kl_share(result: TrainResult) -> bool:
    """Whether the algorithm reports KL per agent and has a budget, as `kl_share` needs."""
    reported = "kl_threshold" in result.metrics or "kl" in result.metrics
    return reported and getattr(result.config, "kl_budget", None) is not None


def kl_share(result: TrainResult, colours: Sequence | None = None) -> Figure:
    """Heat map agents x env steps of each agent's share of the joint KL budget minus an equal share, and the KL spent.

    The map shows `kl_threshold / kl_budget - 1 / N`, averaged over seeds (and over neighbouring updates if there are
    more than 200): white is an equal share; cells fade to grey where the agent did not spend its share. The panel on the right shows the spread over single updates of single seeds, which an average hides; the
    panel below the team's `kl_total / kl_budget`.

    Args:
        result: the run.
        colours: one per agent, for a mark next to its name (those of the body's limbs); None: no marks.

    Raises:
        ValueError: the algorithm reports neither `kl_threshold` nor `kl`, or has no budget.
    """
    if not has_kl_share(result):
        raise ValueError(f"algorithm '{result.algorithm}' reports no KL per agent and budget to draw")
    healthy = healthy_seeds(result)
    agents = result.spec.agents
    height = max(1.5, 0.27 * len(agents))
    figure = Figure(figsize=(8.4, height + 2.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(4.2, 1.25), height_ratios=(height, 1.0))
    map_axes = figure.add_subplot(grid[0, 0])
    spread_axes = figure.add_subplot(grid[0, 1], sharey=map_axes)
    total_axes = figure.add_subplot(grid[1, 0], sharex=map_axes)
    key_axes = figure.add_subplot(grid[1, 1])
    key_axes.set_axis_off()
    title_figure(figure, result, "KL budget by agent")
    if not healthy.any():
        for axes in (spread_axes, total_axes):
            axes.set_axis_off()
        map_axes.text(0.5, 0.5, "all seeds failed", transform=map_axes.transAxes, ha="center", color="0.4")
        return figure
    budget = float(result.config.kl_budget)
    shown = "kl_threshold" if "kl_threshold" in result.metrics else "kl"
    share = 100 * result.metrics[shown][healthy] / budget
    spent = 100 * result.metrics["kl"][healthy] / budget if "kl" in result.metrics else None
    edges = bin_edges(share.shape[1])
    steps_name, scale = step_unit(float(result.env_steps[-1]))
    steps = np.append(0, result.env_steps)[edges] / scale
    verb = "allocated to" if shown == "kl_threshold" else "spent by"
    _draw_map(figure, map_axes, key_axes, share, spent if shown == "kl_threshold" else None, edges, steps, agents, verb)
    mark_agents(map_axes, colours)
    key = _draw_spread(spread_axes, share, spent if shown == "kl_threshold" else None)
    _draw_total(total_axes, result, healthy, budget, edges, steps)
    total_axes.set_xlabel(f"env steps per seed{steps_name}", fontsize=9)
    key_axes.legend(handles=key, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.05, -0.25))
    return figure


# Learning curve


def _draw_training(axes: Axes, result: TrainResult, healthy: np.ndarray, scale: float) -> list:
    if "episode_return" not in result.metrics:
        return []
    returns = np.asarray(result.metrics["episode_return"], dtype=np.float64)[healthy]
    started = np.isfinite(returns).any(axis=0)
    if not started.any():
        return []
    edges = bin_edges(int(started.sum()), 500)
    binned = binned_means(returns[:, started], edges)
    steps = binned_means(result.env_steps[started][None].astype(np.float64), edges)[0] / scale
    (line,) = axes.plot(steps, np.nanmean(binned, axis=0), color=_TRAINING, linewidth=1.2, zorder=1)
    label = "training return (stochastic policies)"
    if len(binned) > 1:
        axes.fill_between(
            steps, np.nanmin(binned, axis=0), np.nanmax(binned, axis=0), color=_TRAINING, alpha=0.18, linewidth=0
        )
        label = "training return (stochastic policies): mean, range over seeds"
    line.set_label(label)
    return [line]


def _draw_evaluation(axes: Axes, result: TrainResult, healthy: np.ndarray, scale: float) -> list:
    scores = np.asarray(result.evaluation.episode_return, dtype=np.float64)[healthy].mean(axis=-1)
    if not scores.shape[1]:
        return []
    steps = np.asarray(result.evaluation.env_steps) / scale
    colour = algorithm_style(result.algorithm).colour
    # Few evaluations are points: a line between them would suggest values that were not measured.
    is_curve = len(steps) >= _MIN_EVALUATIONS_FOR_CURVE
    single = dict(linewidth=0.8) if is_curve else dict(linewidth=0, marker="o", markersize=4, markeredgewidth=0)
    thick = dict(linewidth=2.2) if is_curve else dict(linewidth=0)
    if len(steps) <= _MAX_MARKERS:
        thick.update(marker="o", markersize=5 if is_curve else 7)
    label = "evaluation return (deterministic policies)"
    handles = []
    if len(scores) > 1:
        for curve in scores:
            axes.plot(steps, curve, color=colour, alpha=0.45, zorder=2, **single)
        handles.append(Line2D([], [], color=colour, alpha=0.45, label="evaluation return of each seed", **single))
        label = "evaluation return (deterministic policies): IQM"
    if len(scores) >= MIN_RUNS:
        lower, upper = bootstrap_interval(scores)
        if is_curve:
            axes.fill_between(steps, lower, upper, color=colour, alpha=0.2, linewidth=0, zorder=2)
        else:
            axes.vlines(steps, lower, upper, color=colour, linewidth=2, zorder=3)
        label += " and 95 % bootstrap interval"
    (line,) = axes.plot(steps, interquartile_mean(scores), color=colour, zorder=3, label=label, **thick)
    return [line, *handles]


# KL share


def _draw_map(
    figure: Figure, axes: Axes, key_axes: Axes, share: np.ndarray, spent: np.ndarray | None, edges: np.ndarray,
    steps: np.ndarray, agents: Sequence[str], verb: str,
) -> None:  # fmt: skip
    """share, spent: [S, U, N], percent of the budget; spent is None if share is what was spent. steps: [bins + 1]."""
    num_agents = len(agents)
    equal = 100 / num_agents
    binned = _over_seeds(share, edges)
    # An agent without a share is always on the scale, so that small differences do not look like extremes.
    most = max(equal, float(np.nanmax(np.abs(binned - equal), initial=0.0)))
    rows = np.arange(num_agents + 1) - 0.5
    image = axes.pcolormesh(steps, rows, binned - equal, cmap=DIVERGING, vmin=-most, vmax=most, rasterized=True)
    axes.set_facecolor(_NOT_SPENT)
    notes = ["mean over seeds"] * (len(share) > 1)
    if bin_width(int(edges[-1])) > 1:
        notes.append(f"bins of {bin_width(int(edges[-1]))} updates")
    if spent is not None:
        # Half of a share spent is normal (line searches shorten steps), and not faded.
        part = np.divide(_over_seeds(spent, edges), binned, out=np.zeros_like(binned), where=binned > 0)
        image.set_alpha(np.clip(2 * np.nan_to_num(part), 0.0, 1.0))
        notes.append("grey: not spent")
    axes.set_yticks(range(num_agents), agents, fontsize=8.5 if num_agents <= 10 else 7.5)
    axes.set_ylim(num_agents - 0.5, -0.5)
    axes.tick_params(axis="x", labelbottom=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    title = f"KL {verb} each agent minus an equal share, {equal:.3g} % of the budget"
    axes.set_title("\n".join([title, ", ".join(notes)]).rstrip(), fontsize=9, loc="left")
    bar_axes = key_axes.inset_axes((0.0, 0.86, 1.0, 0.14))
    bar = figure.colorbar(ScalarMappable(image.norm, image.cmap), cax=bar_axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_ticks([-most, 0, most], labels=[f"−{most:.0f} %", "0", f"+{most:.0f} %"])
    bar.ax.tick_params(labelsize=7.5, length=2)


def _over_seeds(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[S, U, N] -> [N, bins] means."""
    return binned_means(np.nanmean(values, axis=0).T, edges)


def _draw_spread(axes: Axes, share: np.ndarray, spent: np.ndarray | None) -> list:
    num_agents = share.shape[-1]
    rows = np.arange(num_agents)
    single = share.reshape(-1, num_agents)
    lower, upper = np.nanquantile(single, [0.1, 0.9], axis=0)
    axes.hlines(rows, lower, upper, color=_ALLOCATED, alpha=0.35, linewidth=6)
    axes.plot(np.nanmean(single, axis=0), rows, "|", color=_ALLOCATED, markersize=9, markeredgewidth=2)
    axes.axvline(100 / num_agents, color=_EQUAL, linewidth=1, linestyle=":")
    key = [
        Line2D([], [], color=_ALLOCATED, alpha=0.35, linewidth=6, label="80 % of single updates"),
        Line2D([], [], color=_ALLOCATED, marker="|", markersize=9, markeredgewidth=2, linestyle="", label="mean"),
        Line2D([], [], color=_EQUAL, linewidth=1, linestyle=":", label="equal shares"),
    ]
    if spent is not None:
        axes.plot(np.nanmean(spent, axis=(0, 1)), rows, "o", color=_SPENT, markersize=3.5)
        key.insert(2, Line2D([], [], color=_SPENT, marker="o", markersize=3.5, linestyle="", label="mean spent"))
    right = max(float(np.nanmax(upper)), 200 / num_agents)
    axes.set_xlim(0, min(104.0, 1.05 * right))
    axes.tick_params(axis="y", labelleft=False, length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f} %"))
    axes.set_title("share in single updates", fontsize=9, loc="left")
    hide_spines(axes)
    axes.spines["left"].set_visible(False)
    return key


def _draw_total(
    axes: Axes, result: TrainResult, healthy: np.ndarray, budget: float, edges: np.ndarray, steps: np.ndarray
) -> None:
    total = result.metrics.get("kl_total")
    if total is None:
        total = np.sum(result.metrics.get("kl", result.metrics.get("kl_threshold")), axis=-1)
    total = 100 * np.asarray(total, dtype=np.float64)[healthy] / budget
    binned = binned_means(total, edges)
    axes.stairs(np.nanmean(binned, axis=0), steps, color=_SPENT, linewidth=1.4, baseline=None)
    if len(binned) > 1:
        axes.stairs(
            np.nanmax(binned, axis=0),
            steps,
            baseline=np.nanmin(binned, axis=0),
            fill=True,
            color=_SPENT,
            alpha=0.2,
            linewidth=0,
        )
    axes.axhline(100, color=_EQUAL, linewidth=1, linestyle=":")
    axes.set_ylim(0, max(108.0, 1.05 * float(np.nanmax(binned, initial=0.0))))
    axes.set_yticks([0, 50, 100])
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f} %"))
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    seeds = ", mean and range over seeds" if len(binned) > 1 else ""
    axes.set_title(f"KL spent by the team, % of the budget of {budget:g}{seeds}", fontsize=9, loc="left")
    hide_spines(axes)
