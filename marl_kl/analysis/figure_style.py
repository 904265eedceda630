"""What all figures share: palette, bins, axes, titles, file formats.

Figures are made without pyplot, so that no global state is changed and no display is needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from envs.pictures import PALETTE
from marl_kl.results import TrainResult

DIVERGING = "PuOr_r"
"""Purple, white, orange: distinct under the common colour-vision deficiencies."""


class AlgorithmStyle(NamedTuple):
    """How an algorithm looks in every figure: display name, colour, matplotlib's line style and marker."""

    label: str
    colour: str
    dashes: Any
    marker: str


_LONG, _DOTS, _MIXED, _SHORT = (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1))
ALGORITHM_STYLES = {
    "hatrpo": AlgorithmStyle("HATRPO", "#333333", "-", "o"),
    "hatrpo_w": AlgorithmStyle("HATRPO-W", PALETTE[0], _LONG, "s"),
    "hatrpo_g": AlgorithmStyle("HATRPO-G", PALETTE[1], _DOTS, "^"),
    "hatrpo_n": AlgorithmStyle("HATRPO-N", PALETTE[2], _MIXED, "D"),
    "happo": AlgorithmStyle("HAPPO", PALETTE[3], "-", "v"),
    "mappo": AlgorithmStyle("MAPPO", PALETTE[4], _SHORT, "P"),
    "ippo": AlgorithmStyle("IPPO", PALETTE[5], _DOTS, "<"),
    "maspo": AlgorithmStyle("MASPO", "#882255", _LONG, ">"),
    "mars": AlgorithmStyle("MARS", "#8C510A", _MIXED, "X"),
    "maddpg": AlgorithmStyle("MADDPG", "#117733", _SHORT, "p"),
    "haddpg": AlgorithmStyle("HADDPG", "#332288", "-", "h"),
    "matd3": AlgorithmStyle("MATD3", "#999933", _DOTS, "d"),
    "hatd3": AlgorithmStyle("HATD3", "#AA4499", _LONG, "*"),
}
"""By algorithm, in the order of all tables; colours differ, and so do dashes and markers, for grey prints."""


def algorithm_style(algorithm: str) -> AlgorithmStyle:
    """Of `ALGORITHM_STYLES`; black, under its own name, for an algorithm of the user's."""
    return ALGORITHM_STYLES.get(algorithm, AlgorithmStyle(algorithm, "#000000", "-", "o"))


MAX_BINS = 200
"""Columns of a heat map, at most: more would be thinner than a pixel."""

_PNG_DPI = 150


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as "png", "pdf" or "svg", without the time at which it was made."""
    content = io.BytesIO()
    no_date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    figure.savefig(content, format=kind, dpi=_PNG_DPI, metadata=no_date[kind])
    return content.getvalue()


class NotebookFigure(Figure):
    """A figure that notebooks show, also without pyplot."""

    def _repr_png_(self) -> bytes:
        return figure_bytes(self, "png")


def mark_agents(axes: Axes, colours: Sequence | None) -> None:
    """Draws a square of each agent's colour between its name and its row."""
    if colours is None:
        return
    axes.tick_params(axis="y", pad=15)
    offset = axes.get_yaxis_transform() + ScaledTranslation(-8 / 72, 0, axes.figure.dpi_scale_trans)
    for row, colour in enumerate(colours):
        axes.plot(
            0, row, "s", color=colour, markersize=7, markeredgewidth=0, clip_on=False, transform=offset, scalex=False,
            scaley=False,
        )  # fmt: skip


def healthy_seeds(result: TrainResult) -> np.ndarray:
    """[S] bool: the seeds that did not fail."""
    failed = {failure.seed for failure in result.failures}
    return np.array([seed not in failed for seed in result.seeds])


def bin_edges(count: int, max_bins: int = MAX_BINS) -> np.ndarray:
    """[bins + 1] edges from 0 to `count`; bins have equal width, the last one may be narrower."""
    return np.append(np.arange(0, count, bin_width(count, max_bins)), count)


def bin_width(count: int, max_bins: int = MAX_BINS) -> int:
    """The width of all bins but the last."""
    return -(-count // max_bins)


def binned_means(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[..., U] -> [..., bins] means; NaN counts as missing."""
    present = np.isfinite(values)
    sums = np.add.reduceat(np.where(present, values, 0.0), edges[:-1], axis=-1)
    counts = np.add.reduceat(present, edges[:-1], axis=-1, dtype=np.int64)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def step_unit(most: float) -> tuple[str, float]:
    """For an axis up to `most` env steps: the suffix of its label, and the divisor of its values."""
    if most >= 2e6:
        return " (millions)", 1e6
    return (" (thousands)", 1e3) if most >= 2e4 else ("", 1.0)


def hide_spines(axes: Axes) -> None:
    """Hides the upper and the right spine."""
    axes.spines[["top", "right"]].set_visible(False)


def title_figure(figure: Figure, result: TrainResult, what: str) -> None:
    """The title, with the run's algorithm, environment and seeds, and a line that names failed seeds."""
    seeds = f"seed {result.seeds[0]}" if len(result.seeds) == 1 else f"{len(result.seeds)} seeds"
    backend = dict(result.spec.metadata).get("backend")
    env = f"{result.spec.name} ({backend})" if backend else result.spec.name
    figure.suptitle(
        f"{what}: {algorithm_style(result.algorithm).label} on {env}, {seeds}", fontsize=11, x=0.01, ha="left"
    )
    if result.failures:
        # As an x label of the whole figure, so that the layout leaves room for it.
        failed = "; ".join(f"seed {f.seed} ({f.quantity} not finite in update {f.update + 1})" for f in result.failures)
        figure.supxlabel(f"left out: {failed}", fontsize=8, color=PALETTE[1], x=0.01, ha="left")
