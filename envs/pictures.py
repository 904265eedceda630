"""What `Env.draw` of the environments here is made of: matplotlib, and colours that differ for everybody.

Every function draws on empty `axes`; arrays are numpy's. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
"""Of Okabe and Ito: distinct under the common colour-vision deficiencies and in grey."""

_MAP = "cividis"
_MARK = PALETTE[1]
_MAX_CELLS = 4096
"""Of a payoff that is drawn entry by entry."""
_MAX_NUMBERS = 100
_MAX_TICKS = 30


def agent_colours(num_agents: int) -> tuple[str | tuple[float, ...], ...]:
    """One colour per agent."""
    if num_agents <= len(PALETTE):
        return PALETTE[:num_agents]
    import matplotlib

    spectrum = matplotlib.colormaps["turbo"]
    return tuple(spectrum(0.04 + 0.92 * agent / (num_agents - 1))[:3] for agent in range(num_agents))


def payoff(axes: Any, table: np.ndarray, choices: np.ndarray | None, players: Sequence[str]) -> None:
    """The payoff of every joint choice as a matrix, with the chosen entry framed; of large games only the choices.

    Rows are the choices of the first half of the players, columns those of the others, the last player's changing fastest.

    Args:
        table: [k_1, ..., k_M] payoff. choices: [M] int, or None. players: M names.
    """
    from matplotlib.patches import Rectangle

    if table.size > _MAX_CELLS:
        joint_choice(axes, table.shape, choices, players)
        return
    half = len(players) // 2
    shapes = table.shape[:half], table.shape[half:]
    matrix = table.reshape(int(np.prod(shapes[0])), -1)
    axes.imshow(matrix, cmap=_MAP, aspect="auto")
    if choices is not None:
        flat = int(np.ravel_multi_index(tuple(choices), table.shape))
        row, column = divmod(flat, matrix.shape[1])
        corner = column - 0.5, row - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=_MARK, linewidth=3.5, clip_on=False, zorder=3))
    if matrix.size <= _MAX_NUMBERS:
        middle = 0.5 * (matrix.min() + matrix.max())
        for (row, column), value in np.ndenumerate(matrix):
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color="k" if value > middle else "w")
    for axis, shape, names in zip((axes.yaxis, axes.xaxis), shapes, (players[:half], players[half:])):
        joint = list(np.ndindex(*shape)) if len(shape) and np.prod(shape) <= _MAX_TICKS else []
        crowded = axis is axes.xaxis and len(joint) * (2 * len(shape)) > 60
        axis.set_ticks(range(len(joint)), [" ".join(map(str, choice)) for choice in joint], rotation=90 * crowded)
        axis.set_label_text("choices of " * bool(names) + _listed(names))


def joint_choice(axes: Any, num_choices: Sequence[int], choices: np.ndarray | None, players: Sequence[str]) -> None:
    """A row per player: the choices that it has, and the one that it has made.

    Args:
        num_choices: [M]. choices: [M] int, or None. players: M names.
    """
    has = np.arange(max(num_choices)) < np.asarray(num_choices)[:, None]
    shown = np.where(has, 0.15, np.nan)
    if choices is not None:
        shown[np.arange(len(players)), choices] = 0.8
    axes.imshow(shown, cmap="Greys", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    few = len(players) <= _MAX_TICKS
    axes.set_yticks(range(len(players)) if few else [], players if few else [])
    axes.set_xticks(range(len(has[0])) if len(has[0]) <= _MAX_TICKS else [])
    if few:
        axes.hlines(np.arange(1, len(players)) - 0.5, -0.5, len(has[0]) - 0.5, color="w", linewidth=4)
    axes.set_xlabel("choice")
    axes.set_ylabel("" if few else f"{len(players)} players")


def landscape(
    axes: Any,
    reward: Callable[[Any], Any],
    action: np.ndarray | None,
    low: float,
    high: float,
    agents: Sequence[str],
) -> None:
    """The reward of two agents with one action each as contours, and their joint action as a point.

    Args:
        reward: `reward(actions[K, 2]) -> [K]`.
        action: [2], or None.
        low, high: the range of both actions that is shown at least.
        agents: two names.
    """
    if action is not None:
        low, high = min(low, 1.1 * float(action.min())), max(high, 1.1 * float(action.max()))
    ticks = np.linspace(low, high, 81)
    x, y = np.meshgrid(ticks, ticks)
    z = np.asarray(reward(np.stack([x.ravel(), y.ravel()], axis=-1))).reshape(x.shape)
    axes.contourf(x, y, z, levels=24, cmap=_MAP)
    lines = axes.contour(x, y, z, levels=8, colors="w", linewidths=0.6)
    axes.clabel(lines, fmt="%.3g", fontsize=8)
    if action is not None:
        axes.plot(*action, "o", color=_MARK, markersize=11, markeredgecolor="w", markeredgewidth=1.5)
    axes.set_aspect("equal")
    axes.set_xlabel(f"action of {agents[0]}")
    axes.set_ylabel(f"action of {agents[1]}")


def maze(axes: Any, is_wall: np.ndarray, dots: np.ndarray, position: np.ndarray, agents: Sequence[str]) -> None:
    """Agents in a grid of cells, as discs that stay apart in a common cell, and dots.

    Args:
        is_wall: [H, W] bool. dots: [D, 2] and position: [N, 2] int, (row, column).
    """
    axes.imshow(is_wall, cmap="Greys", vmin=0.0, vmax=1.6, interpolation="nearest")
    axes.plot(dots[:, 1], dots[:, 0], "o", color="k", markersize=4)
    angle = 2 * np.pi * np.arange(len(agents)) / len(agents)
    for agent, (colour, place) in enumerate(zip(agent_colours(len(agents)), position)):
        row, column = place + 0.25 * np.array([np.sin(angle[agent]), np.cos(angle[agent])])
        axes.plot(column, row, "o", color=colour, markersize=9, markeredgecolor="w", label=agents[agent])
    free = np.argwhere(~is_wall)
    (top, left), (bottom, right) = free.min(axis=0) - 1.5, free.max(axis=0) + 1.5
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    _legend(axes)


def particles(
    axes: Any, position: np.ndarray, radius: np.ndarray, agents: Sequence[str], messages: Sequence[str]
) -> None:
    """Agents and landmarks in the plane, as discs of their true size; landmarks are grey and numbered.

    Args:
        position: [N + L, 2], agents first. radius: [N + L]. agents: N names. messages: N texts next to the agents.
    """
    from matplotlib.patches import Circle

    n = len(agents)
    for number, (place, size) in enumerate(zip(position[n:], radius[n:])):
        axes.add_patch(Circle(place, size, facecolor="0.75", edgecolor="0.4"))
        axes.annotate(str(number), place, (5, -10), textcoords="offset points", fontsize=8, color="0.3")
    for agent, colour, place, size, message in zip(agents, agent_colours(n), position, radius, messages):
        axes.add_patch(Circle(place, size, facecolor=colour, edgecolor="w", alpha=0.9))
        axes.annotate(message, place, (6, 6), textcoords="offset points", fontsize=8)
        axes.plot([], [], "o", color=colour, label=agent)
    reach = max(1.5, float(np.abs(position).max()) + 0.2)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    _legend(axes)


def battle(
    axes: Any,
    position: np.ndarray,
    health: np.ndarray,
    is_enemy: np.ndarray,
    symbols: Sequence[str],
    size: tuple[float, float],
) -> None:
    """Units of two teams on a map, with a bar of their health; the dead ones are faded crosses.

    Args:
        position: [U, 2]. health: [U] fraction of the full one, 0: dead. is_enemy: [U] bool.
        symbols: U letters, for the types of the units.
        size: width and height of the map.
    """
    bar = 0.04 * size[0]
    for place, left, enemy, symbol in zip(position, health, is_enemy, symbols):
        colour, shape = (PALETTE[1], "s") if enemy else (PALETTE[0], "o")
        if left <= 0:
            axes.plot(*place, "x", color=colour, markersize=8, alpha=0.4)
            continue
        axes.plot(*place, shape, color=colour, markersize=9, markeredgecolor="w", alpha=0.9)
        axes.text(*place, symbol, ha="center", va="center_baseline", fontsize=7, color="w", weight="bold")
        x, y = place + np.array([-0.5 * bar, 0.024 * size[1]])
        axes.plot([x, x + bar], [y, y], color="0.8", linewidth=2.5, solid_capstyle="butt", zorder=4)
        axes.plot([x, x + left * bar], [y, y], color="k", linewidth=2.5, solid_capstyle="butt", zorder=4)
    for label, colour, shape in (("allies", PALETTE[0], "o"), ("enemies", PALETTE[1], "s")):
        axes.plot([], [], shape, color=colour, label=label)
    axes.plot([], [], "x", color="0.6", label="dead")
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]), aspect="equal", xticks=[], yticks=[])
    _legend(axes)


def _legend(axes: Any) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else (*names[:2], "...", names[-1]))
