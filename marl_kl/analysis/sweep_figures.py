"""The figure of a sweep: the final return against each swept field."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marl_kl.analysis import sweep_tables
from marl_kl.analysis.figure_style import PALETTE, algorithm_style, hide_spines
from marl_kl.analysis.statistics import MIN_RUNS, bootstrap_interval, interquartile_mean
from marl_kl.results import SweepResult

_COLUMNS = 3
_CHARACTERS_PER_INCH = 17
"""Of the caption."""
_LOG_RATIO = 10.0
"""Positive values that span more are drawn on a logarithmic axis."""


def has_returns(result: SweepResult) -> bool:
    """Whether a run that did not fail is finished."""
    return any(len(returns) for returns in sweep_tables.final_returns(result))


def returns_by_field(result: SweepResult) -> Figure:
    """A panel per swept field: the final evaluation return of the runs with each of its values, over all values of the
    other fields: interquartile mean, from three runs on with its bootstrap interval, and each setting's mean (grey).

    Runs are resampled within their settings. Failed and unfinished runs are left out.
    """
    names = list(result.settings[0])
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(max(4.8, 3.1 * columns), 2.7 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    returns = sweep_tables.final_returns(result)
    for index, (axes, name) in enumerate(zip(grid.flat, names)):
        _draw(axes, name, [fields[name] for fields in result.settings], returns)
        axes.set_ylabel("final evaluation return" if index % columns == 0 else "")
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    figure.suptitle(
        f"Sweep: {algorithm_style(result.algorithm).label} on {result.spec.name}", fontsize=11, x=0.01, ha="left"
    )
    caption = (
        f"Deterministic policies. IQM over all runs with a value; bars: 95 % bootstrap intervals, from {MIN_RUNS} runs on; "
        "grey: settings."
    )
    width = int(_CHARACTERS_PER_INCH * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(caption, width), fontsize=7.5, x=0.01, ha="left", color="0.25")
    return figure


def _draw(axes: Axes, name: str, of_settings: list[Any], returns: list[np.ndarray]) -> None:
    """of_settings: the field's value in each setting. returns: [S'] of each setting."""
    values = sorted(set(of_settings), key=lambda value: (isinstance(value, str), value))
    positions = _positions(axes, values)
    for value, x in zip(values, positions):
        own = [k for k, other in enumerate(of_settings) if other == value and len(returns[k])]
        if not own:
            continue
        axes.plot([x] * len(own), [returns[k].mean() for k in own], "o", color="0.72", markersize=3.5, zorder=1)
        pooled = np.concatenate([returns[k] for k in own])
        if len(pooled) >= MIN_RUNS:
            strata = np.repeat(own, [len(returns[k]) for k in own])
            axes.vlines(x, *bootstrap_interval(pooled, strata=strata), color=PALETTE[0], linewidth=2, zorder=2)
        axes.plot([x], [interquartile_mean(pooled)], "s", color=PALETTE[0], markersize=5, zorder=3)
    axes.set_xlabel(name)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    hide_spines(axes)


def _positions(axes: Axes, values: list[Any]) -> list[float]:
    """Along the axis, which they also scale and label: numbers as they are, up to ten of them with a tick each; others
    in equal distances."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        texts = [sweep_tables.cell(value) for value in values]
        is_long = max(map(len, texts)) > 6
        axes.set_xticks(range(len(values)), texts, rotation=30 if is_long else 0, ha="right" if is_long else "center")
        axes.set_xlim(-0.5, len(values) - 0.5)
        return [float(index) for index in range(len(values))]
    if values[0] > 0 and values[-1] / values[0] >= _LOG_RATIO:
        axes.set_xscale("log")
    if len(values) <= 10:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.margins(x=0.1)
    return [float(value) for value in values]
