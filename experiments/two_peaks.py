"""The two-peak game: from which starts does a team end at the higher peak, and does the allocation matter?

python -m experiments.two_peaks --quick
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import envs
from envs.games import two_peaks_expectation
from experiments import exact_gaussians, settings, stage_games, study, styles
from experiments.exact_gaussians import Team
from experiments.intervals import Estimate, estimate, proportion
from experiments.study import Piece, Report, Results
from experiments.styles import TRUST_REGION, label

GLOBAL, LOCAL = np.array([5.62, 5.00]), np.array([1.60, 1.02])
"""The peaks of the expected reward at standard deviation 1, worth 0.885 and 0.554."""
NEAR = 1.0
"""A team ended at a peak if both means are within this distance of it."""
BOX = (-1.0, 6.0)
AT_GLOBAL, AT_LOCAL, ELSEWHERE = 0, 1, 2
SHOWN_STARTS = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [2.0, 3.0], [-0.5, 2.0]])
BATCH = 128
DRAWN = 60
"""Updates of a path that are kept; enough to reach a peak at the middle budget."""
BASIN_COLOURS = ("#4B4B8F", "#E3D28B", "0.87")
"""Of `AT_GLOBAL`, `AT_LOCAL`, `ELSEWHERE`: no algorithm's."""


class Size(NamedTuple):
    """budgets: joint. grid: starts along a side. updates: of every run; enough for the smallest budget to cross the
    box. orders: sequences of random orders of HATRPO with exact gradients, different ones for each start. The
    other allocators have no randomness."""

    budgets: tuple[float, ...]
    grid: int
    updates: int
    sampled_budgets: tuple[float, ...]
    sampled_grid: int
    sampled_updates: int
    seeds: int
    orders: int

    def repeats(self, method: str) -> int:
        """Runs with exact gradients from each start."""
        return self.orders if method == "hatrpo" else 1


SIZES = {
    "smoke": Size((0.2,), 3, 4, (0.2,), 2, 4, 1, 2),
    "quick": Size((0.01, 0.1, 1.0), 29, 250, (0.02, 0.2, 1.0), 6, 120, 5, 4),
    "full": Size((0.002, 0.02, 0.2, 1.0, 4.0), 85, 600, (0.02, 0.2, 1.0, 4.0), 12, 250, 8, 4),
}


def starts(side: int) -> np.ndarray:
    """[side^2, 2] an even grid on the box."""
    line = np.linspace(*BOX, side)
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    common = {"near": NEAR, "global": GLOBAL.tolist(), "local": LOCAL.tolist(), "box": list(BOX)}
    exact = [
        Piece(
            f"exact-{kind}-{method}",
            6 + 2 * chosen.repeats(method) * (chosen.grid / 29) ** 2 * len(chosen.budgets) / 3 * chosen.updates / 250,
            {"method": method, "learn_std": kind == "learned", "grid": chosen.grid, "budgets": list(chosen.budgets),
             "updates": chosen.updates, "repeats": chosen.repeats(method), "drawn": DRAWN,
             "shown_starts": SHOWN_STARTS.tolist(), **common},
            lambda method=method, kind=kind: climb_exactly(method, kind == "learned", chosen),
        )
        for kind in ("fixed", "learned")
        for method in chosen_methods(size)
    ]  # fmt: skip
    sampled = [
        Piece(
            f"sampled-{method}",
            40 * chosen.sampled_grid**2 * chosen.seeds * len(chosen.sampled_budgets) * chosen.sampled_updates / 64800,
            {"method": method, "grid": chosen.sampled_grid, "seeds": chosen.seeds,
             "budgets": list(chosen.sampled_budgets), "updates": chosen.sampled_updates,
             **settings.of_config(_sampled_config(method), method), **common},
            lambda method=method: climb_by_samples(method, chosen),
        )
        for method in chosen_methods(size)
    ]  # fmt: skip
    return exact + sampled


def chosen_methods(size: str) -> tuple[str, ...]:
    return TRUST_REGION[:2] if size == "smoke" else TRUST_REGION


def ended(mean: np.ndarray) -> np.ndarray:
    """`AT_GLOBAL`, `AT_LOCAL` or `ELSEWHERE` of final means [..., 2]."""
    near = [np.abs(mean - peak).max(-1) <= NEAR for peak in (GLOBAL, LOCAL)]
    return np.where(near[0], AT_GLOBAL, np.where(near[1], AT_LOCAL, ELSEWHERE))


def climb_exactly(method: str, learn_std: bool, size: Size) -> study.Values:
    """Exact gradients from every start.

    Returns:
        ended: [budget, start, repeat]. paths: [shown start, update, 2] means from the shown starts, middle budget.
    """
    update = exact_gaussians.make_update(two_peaks_expectation, exact_gaussians.ALLOCATORS[method](), learn_std)

    def run(key, start, budget):
        team = Team(start, jnp.zeros(2))
        return exact_gaussians.follow(update, key, team, budget, size.updates)[0].mean

    points = jnp.asarray(np.concatenate([starts(size.grid), SHOWN_STARTS]), jnp.float32)
    budgets = jnp.asarray(size.budgets)
    # the same orders at all budgets
    program = jax.jit(jax.vmap(jax.vmap(run, (0, 0, None)), (None, None, 0)))
    ends, paths = [], None
    for repeat in range(size.repeats(method)):
        mean = np.asarray(program(jax.random.split(jax.random.key(repeat), len(points)), points, budgets))
        ends.append(ended(mean[:, : size.grid**2, -1]))
        if paths is None:
            paths = mean[len(size.budgets) // 2, -len(SHOWN_STARTS) :, :DRAWN]
    return {"ended": np.stack(ends, axis=-1), "paths": paths}


def _sampled_config(method: str):
    return stage_games.game_config(method, BATCH, init_std=1.0)


def climb_by_samples(method: str, size: Size) -> study.Values:
    """The trainer from every start: standard deviations are learned, gradients are sampled.

    Returns:
        ended: [budget, start, seed].
    """
    points = starts(size.sampled_grid)
    env = envs.make("two_peaks")
    axes = {"kl_budget": size.sampled_budgets, "start": np.arange(len(points)), "seed": np.arange(size.seeds)}
    runs = stage_games.combinations(**axes)
    begin, seeds = points[runs.pop("start")], runs.pop("seed")
    config = _sampled_config(method)
    kept = stage_games.learn(env, method, config, runs, seeds, size.sampled_updates, _last_mean, start_means=begin)
    return {"ended": ended(kept["mean"][:, -1]).reshape(*map(len, axes.values()))}


def _last_mean(policy, params, metrics):
    return {"mean": policy.mean[:, 0]}


# What is shown

_CASES = {
    "exact-fixed": "exact gradients, standard deviation 1",
    "exact-learned": "exact gradients, standard deviation learned",
    "sampled": "sampled gradients (the trainer)",
}


def methods_of(results: Results) -> list[str]:
    return [m for m in TRUST_REGION if f"sampled-{m}" in results.pieces]


def budgets_of(size: Size, case: str) -> tuple[float, ...]:
    return size.sampled_budgets if case == "sampled" else size.budgets


def cases_of(size: Size) -> list[tuple[str, int, float]]:
    """Every case with the index and value of each of its budgets."""
    return [(case, *indexed) for case in _CASES for indexed in enumerate(budgets_of(size, case))]


def at_global(results: Results, case: str, method: str) -> np.ndarray:
    """[budget, start, run] whether it ended at the global peak; runs are seeds, or sequences of orders."""
    return (results.pieces[f"{case}-{method}"]["ended"] == AT_GLOBAL).astype(float)


def more_often(results: Results, case: str, method: str, index: int) -> Estimate:
    """Share of starts that end at the global peak minus HATRPO's; starts are resampled in pairs. Every start has
    its own orders, so the interval covers their randomness too."""
    own, base = (at_global(results, case, m)[index].mean(-1) for m in (method, "hatrpo"))
    return estimate(own - base, np.mean)


def report(results: Results) -> Report:
    size = SIZES[results.size]
    methods = methods_of(results)
    tables = {
        "differences": study.table(
            ["case", "joint KL budget", *(f"{label(m)} − HATRPO, points" for m in methods[1:])],
            [
                [_CASES[case], f"{budget:g}", *(_points(more_often(results, case, m, index)) for m in methods[1:])]
                for case, index, budget in cases_of(size)
            ],
        ),
        "basins": study.table(
            ["case", "joint KL budget", *map(label, methods), "starts gained / lost against HATRPO"],
            [
                [_CASES[case], f"{budget:g}", *_basin_cells(results, methods, case, index)]
                for case, index, budget in cases_of(size)
            ],
        ),
        "leaving": _leaving_table(results, size),
    }
    figures = {
        "paths": _paths(results, size),
        "basins": _basins(results, size),
        "shares": _share_figure(results, size),
    }
    return Report(tables, figures)


def _points(found: Estimate) -> str:
    return Estimate(*(100 * number for number in found)).text(1, sign="+")


def _basin_cells(results: Results, methods: list[str], case: str, index: int) -> list[str]:
    ends = {m: results.pieces[f"{case}-{m}"]["ended"][index] for m in methods}
    shares = [f"{100 * np.mean(e == AT_GLOBAL):.0f} % / {100 * np.mean(e == AT_LOCAL):.0f} %" for e in ends.values()]
    won = {m: at_global(results, case, m)[index] for m in methods}
    base = won.pop("hatrpo")
    moved = [f"{100 * np.mean(own > base):.0f} / {100 * np.mean(own < base):.0f} %" for own in won.values()]
    return [*shares, ", ".join(moved)]


def _leaving_table(results: Results, size: Size) -> str:
    """What becomes of starts at the local optimum: those within half of `NEAR` of it, or the nearest there is."""
    rows = []
    for case in _CASES:
        points = starts(size.sampled_grid if case == "sampled" else size.grid)
        distance = np.abs(points - LOCAL).max(-1)
        close = distance <= max(NEAR / 2, distance.min())
        left = np.concatenate([at_global(results, case, m)[:, close].ravel() for m in methods_of(results)])
        rows.append([_CASES[case], str(len(left)), proportion(left).text(1, percent=True)])
    return study.table(["case", "runs that start at the local peak", "end at the global peak"], rows)


def _surface(axes) -> None:
    line = np.linspace(-1.5, 7.5, 120)
    mean = jnp.asarray(np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2))
    height = np.asarray(jax.vmap(lambda m: two_peaks_expectation(m, 1.0))(mean)).reshape(120, 120)
    axes.contourf(line, line, height.T, levels=18, cmap="Greys", alpha=0.55)
    axes.plot(*GLOBAL, "+", color="black", markersize=9, markeredgewidth=1.6)
    axes.plot(*LOCAL, "x", color="black", markersize=7, markeredgewidth=1.6)
    axes.set_xlabel("mean of agent 1")


def _paths(results: Results, size: Size) -> Figure:
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    panels[0].set_ylabel("mean of agent 2")
    for axes, method in zip(panels, methods_of(results)):
        _surface(axes)
        colour = styles.ALGORITHM_STYLES[method].colour
        for start, path in zip(SHOWN_STARTS, results.pieces[f"exact-fixed-{method}"]["paths"]):
            axes.plot(
                *np.concatenate([start[None], path]).T, "-", color=colour, linewidth=1.1, marker=".", markersize=3.5
            )
            axes.plot(*start, "o", color=colour, markersize=6, markeredgecolor="white")
        axes.set(xlim=(-1.5, 7.5), ylim=(-1.5, 7.5))
        axes.set_title(label(method), fontsize=10, loc="left")
    return figure


def _basins(results: Results, size: Size) -> Figure:
    colours = ListedColormap(BASIN_COLOURS)
    lines = len(size.budgets)
    figure = Figure(figsize=(8.6, 2.1 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, 4, sharex=True, sharey=True, squeeze=False)
    edges = np.linspace(*BOX, size.grid)
    for column, method in enumerate(methods_of(results)):
        everything = results.pieces[f"exact-fixed-{method}"]["ended"]
        ends = everything[..., 0].reshape(lines, size.grid, size.grid)
        for line, budget in enumerate(size.budgets):
            axes = panels[line, column]
            options = {"cmap": colours, "vmin": -0.5, "vmax": 2.5, "shading": "nearest", "rasterized": True}
            axes.pcolormesh(edges, edges, ends[line].T, **options)
            axes.plot(*GLOBAL, "+", color="white", markersize=8, markeredgewidth=1.6)
            axes.plot(*LOCAL, "x", color="black", markersize=6, markeredgewidth=1.6)
            share = 100 * np.mean(everything[line] == AT_GLOBAL)
            axes.set_title(f"{label(method)}, {budget:g}: {share:.0f} %", fontsize=8.5, loc="left")
            axes.set_aspect("equal")
    for axes in panels[:, 0]:
        axes.set_ylabel("mean of agent 2", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("mean of agent 1", fontsize=8)
    names = ("ends at the global peak", "ends at the local peak", "elsewhere")
    for index, name in enumerate(names):
        panels[0, 0].scatter([], [], marker="s", color=colours(index), label=name)
    styles.legend_below(figure, panels[0, :1], 3)
    return figure


def _share_figure(results: Results, size: Size) -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (case, title) in zip(panels, _CASES.items()):
        styles.budget_axis(axes, budgets_of(size, case))
        for place, method in enumerate(methods_of(results)):
            found = [estimate(share, np.mean) for share in at_global(results, case, method).mean(-1)]
            styles.error_bars(axes, budgets_of(size, case), found, place - 1.5, **styles.point_style(method))
        axes.set_ylim(0, 1)
        axes.set_title(title, fontsize=9, loc="left")
        styles.clean(axes)
    panels[0].set_ylabel("share of starts that end\nat the global peak")
    styles.legend_below(figure, panels[:1])
    return figure


STUDY = study.Study("two_peaks", "Two peaks: basins of attraction", pieces, report)


if __name__ == "__main__":
    study.main(STUDY)
