"""How algorithms look in every figure of the studies, and the parts that these figures share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.intervals import Estimate
from marl_kl.analysis.figure_style import ALGORITHM_STYLES
from marl_kl.analysis.figure_style import AlgorithmStyle as Style
from marl_kl.analysis.statistics import bootstrap_interval, interquartile_mean

TRUST_REGION = ("hatrpo", "hatrpo_w", "hatrpo_g", "hatrpo_n")
ADAPTIVE = TRUST_REGION[1:]
"""Those that allocate the joint KL budget unequally."""
FIRST_ORDER = ("happo", "mappo")


def label(algorithm: str) -> str:
    return ALGORITHM_STYLES[algorithm].label


def line_style(algorithm: str) -> dict:
    style = ALGORITHM_STYLES[algorithm]
    return {"color": style.colour, "linestyle": style.dashes, "label": style.label}


def point_style(algorithm: str) -> dict:
    style = ALGORITHM_STYLES[algorithm]
    return {"color": style.colour, "marker": style.marker, "label": style.label}


def clean(axes: Axes) -> None:
    """Removes the upper and right spine and puts a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def curve(axes: Axes, x: np.ndarray, scores: np.ndarray, algorithm: str | Style) -> None:
    """IQM over runs of `scores` [R, X] and its interval."""
    style = ALGORITHM_STYLES[algorithm] if isinstance(algorithm, str) else algorithm
    band = bootstrap_interval(scores, num_resamples=500)
    axes.fill_between(x, *band, color=style.colour, alpha=0.15, linewidth=0)
    axes.plot(
        x, interquartile_mean(scores), linewidth=1.8, color=style.colour, linestyle=style.dashes, label=style.label
    )


def error_bars(axes: Axes, x: Sequence[float], found: Sequence[Estimate], shift: float = 0.0, **style) -> None:
    """Estimates over `x` [X]; `shift` moves them aside, so that several in one panel do not hide each other."""
    x = np.asarray(x, np.float64)
    value, low, high = np.array(found).T
    is_log = axes.get_xscale() == "log"
    x = x * 1.1**shift if is_log else x + 0.012 * np.ptp(x) * shift
    around = np.maximum([value - low, high - value], 0)
    axes.errorbar(x, value, around, **{"linewidth": 1.2, "markersize": 4.5} | style)


def budget_axis(axes: Axes, budgets: Sequence[float], name: str = "joint KL budget") -> None:
    """A logarithmic axis with a tick at each budget."""
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel(name)


def legend_below(figure: Figure, panels: Iterable[Axes], columns: int = 4, **options) -> None:
    """One legend for all panels, each label once."""
    handles = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels())}
    where = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    figure.legend(handles.values(), handles.keys(), **where | options)
