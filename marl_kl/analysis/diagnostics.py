"""Diagnostics of a run: the quantities that tell whether it learned as it should, and advice where one does not."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from envs.pictures import agent_colours
from marl_kl.analysis.figure_style import (
    PALETTE,
    bin_edges,
    binned_means,
    healthy_seeds,
    hide_spines,
    step_unit,
    title_figure,
)
from marl_kl.results import AGENT_METRICS, TrainResult

LAST = 0.25
"""Advice is about the mean over this last part of the updates."""

_COLUMNS = 3


class _Quantity(NamedTuple):
    """What a panel shows.

    Attributes:
        title: the panel's. metric: its name. scale: result -> divisor of the values.
        is_crossed: (mean over the last updates) -> whether the advice is given; None: never.
        advice: one line, after the value.
        limit: a dotted line at this height; None: none.
    """

    title: str
    metric: str
    scale: Callable[[TrainResult], float] = lambda result: 1.0
    is_crossed: Callable[[float], bool] | None = None
    advice: str = ""
    limit: float | None = None


def _budget(result: TrainResult) -> float:
    return float(getattr(result.config, "kl_budget", None) or 1.0)


def _horizon_return(result: TrainResult) -> float:
    """The best episodes' return over the env steps that Q looks ahead: the discount's horizon, at least an episode."""
    returns, lengths = (np.asarray(result.metrics[name]) for name in ("episode_return", "episode_length"))
    per_step = np.abs(returns) / lengths
    if not np.isfinite(per_step).any():
        return math.nan
    discount = 1 - float(result.config.gamma)
    horizon = max(float(np.nanmean(lengths)), 1 / discount if discount else math.inf)
    return max(float(np.nanmax(per_step)) * horizon, 1e-9)


_QUANTITIES = (
    _Quantity(
        "explained variance", "explained_variance", is_crossed=lambda mean: mean < 0, limit=0.0,
        advice="the critic is worse than a constant: lower critic_lr, or raise critic_epochs",
    ),
    _Quantity("value loss", "value_loss"),
    _Quantity("entropy of each agent (nats)", "entropy"),
    _Quantity(
        "KL spent / budget", "kl_total", scale=_budget, is_crossed=lambda mean: mean < 0.6, limit=0.6,
        advice="steps are shortened or rejected: lower kl_budget, or raise cg_subsample or cg_damping "
        "(line_search=kl_matched spends more than geometric)",
    ),
    _Quantity(
        "largest compound factor", "factor_max", is_crossed=lambda mean: mean > 100, limit=100.0,
        advice="a few samples carry the updates of later agents: lower kl_budget (or actor_lr), or use a larger batch",
    ),
    _Quantity("episode length (env steps)", "episode_length"),
    _Quantity(
        "samples beyond the clip", "clip_fraction", is_crossed=lambda mean: mean > 0.5, limit=0.5,
        advice="half of the samples ended further from the old policy than the surrogate means them to: lower actor_lr or "
        "actor_epochs",
    ),
    _Quantity("Q loss", "q_loss"),
    _Quantity(
        "mean Q / best return of its horizon", "q_mean", scale=_horizon_return, is_crossed=lambda mean: mean > 2, limit=2.0,
        advice="the critic overestimates: use matd3 or hatd3, or lower critic_lr or n_step",
    ),
    _Quantity("actor loss of each agent", "actor_loss"),
)  # fmt: skip
"""All quantities, their thresholds and the advice."""


def advice(result: TrainResult) -> list[str]:
    """A line for each quantity whose threshold is crossed at the end of the run."""
    lines = []
    for quantity in _shown(result):
        values = _values(result, quantity)
        last = values[:, -max(1, round(LAST * values.shape[1])) :]
        if quantity.is_crossed is None or not np.isfinite(last).any():
            continue
        mean = float(np.nanmean(last))
        if quantity.is_crossed(mean):
            lines.append(f"{quantity.title} {mean:.2g} at the end: {quantity.advice}")
    return lines


def has_diagnostics(result: TrainResult) -> bool:
    """Whether there is a metric to draw, of a seed that did not fail."""
    return bool(_shown(result)) and bool(len(result.env_steps)) and bool(healthy_seeds(result).any())


def figure(result: TrainResult) -> Figure:
    """A panel per quantity against env steps, mean and range over seeds (of an agent's metric: a line per agent), and
    below them the `advice`.

    Failed seeds are left out.
    """
    shown = _shown(result)
    warned = advice(result)
    rows = -(-len(shown) // _COLUMNS)
    drawn = Figure(figsize=(8.4, 1.9 * rows + 0.6 + 0.3 * len(warned)), layout="constrained")
    grid = drawn.subplots(rows, _COLUMNS, squeeze=False, sharex=True)
    unit, divisor = step_unit(float(result.env_steps[-1]))
    edges = bin_edges(len(result.env_steps))
    steps = binned_means(result.env_steps[None].astype(np.float64), edges)[0] / divisor
    for axes, quantity in zip(grid.flat, shown):
        is_crossed = any(line.startswith(quantity.title) for line in warned)
        _draw(axes, steps, _values(result, quantity), edges, quantity, is_crossed)
        if quantity.metric in AGENT_METRICS and result.spec.num_agents <= len(PALETTE):
            axes.legend(axes.get_lines(), result.spec.agents, frameon=False, fontsize=6.5, labelspacing=0.2)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    for column in range(_COLUMNS):
        used = [row for row in range(rows) if row * _COLUMNS + column < len(shown)]
        if used:
            grid[used[-1], column].set_xlabel(f"env steps per seed{unit}", fontsize=8.5)
            grid[used[-1], column].tick_params(labelbottom=True)
    title_figure(drawn, result, "Diagnostics")
    if warned:
        failed = drawn.get_supxlabel()
        text = "\n".join([*(_wrapped(f"! {line}") for line in warned), *([failed] if failed else [])])
        drawn.supxlabel(text, fontsize=8, color=PALETTE[1], x=0.01, ha="left")
    return drawn


def _shown(result: TrainResult) -> list[_Quantity]:
    """Those that the run has."""
    has_budget = getattr(result.config, "kl_budget", None) is not None
    known = [quantity for quantity in _QUANTITIES if quantity.metric in result.metrics]
    return [quantity for quantity in known if has_budget or quantity.scale is not _budget]


def _values(result: TrainResult, quantity: _Quantity) -> np.ndarray:
    """[S', U] or [S', U, N] of the seeds that did not fail."""
    values = np.asarray(result.metrics[quantity.metric], np.float64)[healthy_seeds(result)]
    return values / quantity.scale(result)


def _draw(
    axes: Axes, steps: np.ndarray, values: np.ndarray, edges: np.ndarray, quantity: _Quantity, is_crossed: bool
) -> None:
    if values.ndim == 3:
        for agent, colour in enumerate(agent_colours(values.shape[-1])):
            (line,) = binned_means(_mean(values[..., agent])[None], edges)
            axes.plot(steps, line, color=colour, linewidth=1.0)
    else:
        binned = binned_means(values, edges)
        colour = PALETTE[1] if is_crossed else PALETTE[0]
        axes.plot(steps, _mean(binned), color=colour, linewidth=1.4)
        if len(binned) > 1:
            low, high = (reduce(axis=0) for reduce in (_filled(binned, np.inf).min, _filled(binned, -np.inf).max))
            axes.fill_between(steps, low, high, where=low <= high, color=colour, alpha=0.2, linewidth=0)
    if quantity.limit is not None and is_crossed:
        axes.axhline(quantity.limit, color="#333333", linewidth=1, linestyle=":")
    axes.set_title(
        f"{'! ' * is_crossed}{quantity.title}", fontsize=9, loc="left", color=PALETTE[1] if is_crossed else "black"
    )
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    hide_spines(axes)


def _mean(values: np.ndarray) -> np.ndarray:
    """[S, X] -> [X] over finite values; NaN if there are none."""
    return binned_means(values.T, np.array([0, len(values)]))[:, 0]


def _filled(values: np.ndarray, missing: float) -> np.ndarray:
    return np.where(np.isfinite(values), values, missing)


def _wrapped(line: str) -> str:
    return "\n   ".join(textwrap.wrap(line, 118))
