"""The figures of a comparison: learning curves, final returns, performance profiles, probabilities of improvement.

Methods differ in colour and in dashes, for grey prints and colour-blind readers; each algorithm has its own
(`figure_style.ALGORITHM_STYLES`), unless several methods are of one algorithm.
"""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from marl_kl.analysis.comparison.estimates import FINAL_SHARE, Comparison, TaskScale
from marl_kl.analysis.figure_style import (
    ALGORITHM_STYLES,
    DIVERGING,
    PALETTE,
    AlgorithmStyle,
    algorithm_style,
    hide_spines,
    step_unit,
)
from marl_kl.analysis.statistics import MIN_RUNS

_COLOURS = (*PALETTE, "#000000", "#7F7F7F")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = "osD^vPX"
_MANY = 4
"""With more methods the bands are paler."""
_COLUMNS = 3
_MAX_MARKERS = 30


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Name -> figure; those between methods only if two of them share a task."""
    curves = {"learning_curves": learning_curves(comparison)}
    if comparison.overall is None:
        return curves
    return curves | {
        "final_returns": final_returns(comparison),
        "performance_profiles": performance_profiles(comparison),
        "probability_of_improvement": probability_of_improvement(comparison),
    }


def learning_curves(comparison: Comparison) -> Figure:
    """A panel per task: interquartile mean over seeds against env steps, with its bootstrap interval."""
    columns = 2 if len(comparison.tasks) == 4 else min(_COLUMNS, len(comparison.tasks))
    rows = -(-len(comparison.tasks) // columns)
    width = 6.4 if columns == 1 else 4.1 * columns
    figure = Figure(figsize=(width, (3.6 if columns == 1 else 3.1) * rows + 1.0), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(comparison.tasks) :]:
        axes.set_axis_off()
    for index, (axes, scale) in enumerate(zip(grid.flat, comparison.tasks)):
        _draw_curves(axes, comparison, scale)
        axes.set_title(scale.name, fontsize=10, loc="left")
        axes.set_ylabel(f"{comparison.metric} return" if index % columns == 0 else "")
    policies = "deterministic policies" if comparison.metric == "evaluation" else "stochastic policies"
    dotted = "; dotted: the threshold" if any(scale.threshold is not None for scale in comparison.tasks) else ""
    _finish(
        figure, comparison,
        f"{comparison.metric.capitalize()} return of the team ({policies}): interquartile mean over seeds; bands: 95 % "
        f"bootstrap intervals, from {MIN_RUNS} seeds on{dotted}.",
        markers=any(len(scale.env_steps) <= _MAX_MARKERS for scale in comparison.tasks),
    )  # fmt: skip
    return figure


def final_returns(comparison: Comparison) -> Figure:
    """Interquartile mean of the normalised final returns over all runs of all tasks, with its interval."""
    overall = comparison.overall
    figure = Figure(figsize=(6.4, 0.38 * len(comparison.methods) + 1.9), layout="constrained")
    axes = figure.add_subplot()
    for row, method in enumerate(comparison.methods):
        value, lower, upper = (values[row] for values in overall.iqm)
        colour, _ = _style(comparison, method)
        axes.barh(row, upper - lower, left=lower, height=0.5, color=colour, alpha=0.35, linewidth=0)
        axes.plot([value, value], [row - 0.25, row + 0.25], color=colour, linewidth=2.5)
    axes.set_yticks(
        range(len(comparison.methods)), [_wrapped(_label(method)) for method in comparison.methods], fontsize=8.5
    )
    axes.set_ylim(len(comparison.methods) - 0.5, -0.5)
    ends = np.concatenate([ends[np.isfinite(ends)] for ends in overall.iqm])
    room = 0.05 * max(float(np.ptp(ends)), 0.1)
    axes.set_xlim(ends.min() - room, ends.max() + room)
    axes.set_xlabel("normalised final return (IQM)")
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    hide_spines(axes)
    _finish(figure, comparison, f"{_scope(comparison)}; bars: 95 % stratified bootstrap intervals.", legend=False)
    return figure


def performance_profiles(comparison: Comparison) -> Figure:
    """Share of runs whose normalised final return is above a level, against that level."""
    overall = comparison.overall
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for row, method in enumerate(comparison.methods):
        value, lower, upper = (100 * values[row] for values in overall.profile)
        colour, dashes = _style(comparison, method)
        axes.fill_between(
            overall.levels, lower, upper, step="post", color=colour, alpha=_alpha(comparison), linewidth=0
        )
        axes.step(overall.levels, value, where="post", color=colour, linestyle=dashes, linewidth=1.8)
    axes.set_xlabel("normalised final return τ")
    axes.set_ylabel("runs above τ (%)")
    axes.set_ylim(-2, 102)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    hide_spines(axes)
    _finish(
        figure, comparison, f"Performance profiles. {_scope(comparison)}; bands: 95 % stratified bootstrap intervals."
    )
    return figure


def probability_of_improvement(comparison: Comparison) -> Figure:
    """Matrix: the probability that a run of the row's method has a higher final return than one of the column's."""
    value, lower, upper = comparison.overall.improvement
    count = len(comparison.methods)
    side = max(0.95 * count, 2.4)
    figure = Figure(figsize=(side + 2.6, side + 1.9), layout="constrained")
    axes = figure.add_subplot()
    shown = np.where(np.eye(count, dtype=bool), np.nan, value)
    image = axes.imshow(shown, cmap=DIVERGING, vmin=0.0, vmax=1.0)
    for row, column in zip(*np.nonzero(~np.eye(count, dtype=bool))):
        ends = f"\n[{lower[row, column]:.2f}, {upper[row, column]:.2f}]" if np.isfinite(lower[row, column]) else ""
        is_dark = abs(value[row, column] - 0.5) > 0.33
        axes.text(
            column, row, f"{value[row, column]:.2f}{ends}", ha="center", va="center", fontsize=8,
            color="white" if is_dark else "black",
        )  # fmt: skip
    names = [_wrapped(_label(method), 16) for method in comparison.methods]
    axes.set_xticks(range(count), names, fontsize=8, rotation=30, ha="right")
    axes.set_yticks(range(count), names, fontsize=8)
    axes.set_ylabel("method X")
    axes.set_xlabel("method Y")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=18)
    bar.set_label("P(final return of X > that of Y)")
    bar.outline.set_visible(False)
    _finish(figure, comparison, f"{_scope(comparison)}; [ ]: 95 % stratified bootstrap intervals.", legend=False)
    return figure


def _draw_curves(axes: Axes, comparison: Comparison, scale: TaskScale) -> None:
    unit, divisor = step_unit(float(scale.env_steps[-1]))
    steps = scale.env_steps / divisor
    is_marked = len(steps) <= _MAX_MARKERS
    for entry in (entry for entry in comparison.entries if entry.task == scale.name):
        colour, dashes = _style(comparison, entry.method)
        value, lower, upper = entry.curve
        axes.fill_between(steps, lower, upper, color=colour, alpha=_alpha(comparison), linewidth=0)
        marker = {"marker": _marker(comparison, entry.method), "markersize": 4} if is_marked else {}
        axes.plot(steps, value, color=colour, linestyle=dashes, linewidth=1.8, **marker)
    if scale.threshold is not None:
        axes.axhline(scale.threshold, color="0.45", linewidth=0.8, linestyle=":")
    axes.set_xlabel(f"env steps per seed{unit}")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    hide_spines(axes)


def _look(comparison: Comparison, method: str) -> AlgorithmStyle:
    """The algorithm's; by position if two methods are of one algorithm, or one is unknown: of the first 32, neighbours
    differ in colour and dashes, all in one of them."""
    algorithms = [_algorithm(other) for other in comparison.methods]
    if len(set(algorithms)) == len(algorithms) and set(algorithms) <= set(ALGORITHM_STYLES):
        return ALGORITHM_STYLES[_algorithm(method)]._replace(label=_label(method))
    index = comparison.methods.index(method)
    dashes = _DASHES[(index + index // len(_COLOURS)) % len(_DASHES)]
    return AlgorithmStyle(_label(method), _COLOURS[index % len(_COLOURS)], dashes, _MARKERS[index % len(_MARKERS)])


def _algorithm(method: str) -> str:
    return method.split(",")[0]


def _label(method: str) -> str:
    """`hatrpo_w, gamma=0.9` -> `HATRPO-W, gamma=0.9`."""
    algorithm = _algorithm(method)
    return algorithm_style(algorithm).label + method.removeprefix(algorithm)


def _style(comparison: Comparison, method: str) -> tuple[str, object]:
    """Colour and dashes."""
    return _look(comparison, method)[1:3]


def _marker(comparison: Comparison, method: str) -> str:
    return _look(comparison, method).marker


def _alpha(comparison: Comparison) -> float:
    return 0.18 if len(comparison.methods) <= _MANY else 0.09


def _scope(comparison: Comparison) -> str:
    tasks = comparison.overall.tasks
    share = FINAL_SHARE[comparison.metric]
    end = f"in the last {100 * share:.0f} % of" if share else "at the end of"
    where = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks ({', '.join(tasks)})"
    return f"{comparison.metric.capitalize()} returns {end} the common env steps, on {where}"


def _finish(figure: Figure, comparison: Comparison, caption: str, legend: bool = True, markers: bool = False) -> None:
    """Adds the legend, and below the panels the caption and the warnings."""
    width = int(16.5 * figure.get_figwidth())
    lines = [textwrap.fill(text, width) for text in (caption, *(f"Warning: {w}." for w in comparison.warnings))]
    # As an x label of the whole figure, so that the layout leaves room for it.
    figure.supxlabel("\n".join(lines), fontsize=7.5, x=0.01, ha="left", color="0.25")
    if not legend:
        return
    handles = []
    for method in comparison.methods:
        colour, dashes = _style(comparison, method)
        marker = {"marker": _marker(comparison, method), "markersize": 4} if markers else {}
        line = Line2D(
            [], [], color=colour, linestyle=dashes, linewidth=1.8, label=_wrapped(_label(method), 34), **marker
        )
        handles.append(line)
    longest = max(min(34, len(method)) for method in comparison.methods)
    columns = max(1, min(len(handles), int(12 * figure.get_figwidth() / (longest + 7))))
    figure.legend(
        handles=handles, frameon=False, fontsize=8.5, loc="outside upper left", ncols=columns, handlelength=2.8
    )


def _wrapped(text: str, width: int = 28) -> str:
    return "\n".join(textwrap.wrap(text, width, break_long_words=False))
