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
from experiments import exact_gaussians, settings, stage_games, study
from experiments.exact_gaussians import Team
from experiments.study import CONTRARY, MIXED, NOT_SEEN, PARTLY, Piece, Report, Results, Row

GLOBAL, LOCAL = np.array([5.62, 5.00]), np.array([1.60, 1.02])
"""The peaks of the expected reward at standard deviation 1, worth 0.885 and 0.554."""
NEAR = 1.0
"""A team ended at a peak if both means are within this distance of it."""
BOX = (-1.0, 6.0)
AT_GLOBAL, AT_LOCAL, ELSEWHERE = 0, 1, 2
SHOWN_STARTS = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [2.0, 3.0], [-0.5, 2.0]])
BATCH = 128
DRAWN = 60
"""Updates of a path that are kept; at the middle budget all have arrived by then."""
BASIN_COLOURS = ("#4B4B8F", "#E3D28B", "0.87")
"""Of `AT_GLOBAL`, `AT_LOCAL`, `ELSEWHERE`: no algorithm's."""


class Size(NamedTuple):
    """budgets: joint. grid: starts along a side. updates: of every run; enough for the smallest budget to cross the
    box. orders: sequences of random orders that HATRPO goes through with exact gradients from each start; those of one
    start are no other's. The other allocators leave nothing to chance."""

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
             **settings.of_config(_sampled_config(method)), **common},
            lambda method=method: climb_by_samples(method, chosen),
        )
        for method in chosen_methods(size)
    ]  # fmt: skip
    return exact + sampled


def chosen_methods(size: str) -> tuple[str, ...]:
    return study.TRUST_REGION[:2] if size == "smoke" else study.TRUST_REGION


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
    return [m for m in study.TRUST_REGION if f"sampled-{m}" in results.pieces]


def budgets_of(size: Size, case: str) -> tuple[float, ...]:
    return size.sampled_budgets if case == "sampled" else size.budgets


def at_global(results: Results, case: str, method: str) -> np.ndarray:
    """[budget, start, run] whether it ended at the global peak; runs are seeds, or sequences of orders."""
    return (results.pieces[f"{case}-{method}"]["ended"] == AT_GLOBAL).astype(float)


def more_often(results: Results, case: str, method: str, index: int) -> study.Estimate:
    """Share of starts that end at the global peak, less HATRPO's; the starts are resampled, in pairs. Every start has
    orders of its own, so that the interval covers their chance as well."""
    own, base = (at_global(results, case, m)[index].mean(-1) for m in (method, "hatrpo"))
    return study.estimate(own - base, np.mean)


_BENT = (
    "Unequal shares bend the path (equal ones go diagonally), so starts near the ridge change sides, in both "
    "directions; a local optimum that has been reached is not left. "
)
_TRIED = (
    "Tried: a whole grid of starts, joint budgets over a factor of a hundred, standard deviations fixed and learned, "
    "exact gradients and sampled ones."
)
_WHY = {
    NOT_SEEN: "Which peak is climbed is decided by the slope at the start; no allocation steps over a valley that "
    "wide. " + _TRIED,
    PARTLY: "In some cases only, and from a few starts in a hundred. " + _BENT + _TRIED,
    MIXED: "From a few starts in a hundred more in some cases, from a few less in others. " + _BENT + _TRIED,
    CONTRARY: "From a few starts in a hundred fewer. " + _BENT + _TRIED,
}


def report(results: Results) -> Report:
    size = SIZES[results.size]
    rows = [_row(results, size, method) for method in methods_of(results)[1:]]
    rows.append(_left_row(results, size))
    figures = {
        "paths": (_paths(results, size), "Means of the two policies on the expected reward, exact gradients, standard "
                  "deviation 1, from five starts (circles), a dot after every update; + is the global peak, x the "
                  "local one."),
        "basins": (_basins(results, size), "Where a start ends, exact gradients, standard deviation 1: at the global "
                   "peak, at the local one, or elsewhere (off along the slope). HATRPO: with the first of its "
                   "sequences of random orders, another one for each start; the percentage is that of all sequences."),
        "shares": (_share_figure(results, size), "Share of the starts that end at the global peak, with 95 % intervals "
                   "over starts."),
    }  # fmt: skip
    return Report(rows, figures, _text(results, size))


def _row(results: Results, size: Size, method: str) -> Row:
    found = {
        (case, budget): more_often(results, case, method, index)
        for case in _CASES
        for index, budget in enumerate(budgets_of(size, case))
    }
    verdict = study.counted([study.judged(difference, 0.1, 0.0) for difference in found.values()])
    best = max(found, key=lambda key: found[key].value)
    worst = min(found, key=lambda key: found[key].value)
    return Row(
        f"{study.LABELS[method]} ends at the global optimum where HATRPO stays at the local one (Shek et al. 2025): "
        "from at least a tenth of the starts more, in every case",
        f"difference of the share of starts: best {found[best].number(1, True)} ({_CASES[best[0]]}, joint budget "
        f"{best[1]}), worst {found[worst].number(1, True)} ({_CASES[worst[0]]}, joint budget {worst[1]})",
        f"{found[best].interval(1, True)} % and {found[worst].interval(1, True)} %",
        verdict,
        study.because(verdict, _WHY),
    )


def _left_row(results: Results, size: Size) -> Row:
    """What becomes of starts at the local optimum: those within half of `NEAR` of it, or the nearest there is."""
    ends, escaped = [], {}
    for case in _CASES:
        points = starts(size.sampled_grid if case == "sampled" else size.grid)
        distance = np.abs(points - LOCAL).max(-1)
        close = distance <= max(NEAR / 2, distance.min())
        for method in methods_of(results):
            for index, budget in enumerate(budgets_of(size, case)):
                left = at_global(results, case, method)[index][close]
                escaped[case, method, budget] = left.mean()
                ends.append(left.ravel())
    best = max(escaped, key=lambda key: escaped[key])
    verdict = study.HOLDS if escaped[best] > 0.5 else PARTLY if escaped[best] > 0 else NOT_SEEN
    everywhere = study.proportion(np.concatenate(ends))
    largest = max(size.budgets)
    tried = (
        f"Tried: all methods, all budgets up to {largest:g}, where an agent's step is up to "
        f"{np.sqrt(2 * largest):.1f} standard deviations; fixed and learned ones; exact gradients and sampled ones. "
        f"The global peak is {np.abs(GLOBAL - LOCAL).max():.1f} away."
    )
    reasons = {
        NOT_SEEN: "Nothing in a sequential trust-region step looks further than its radius, whoever gets the budget, "
        "and the largest of these radii does not reach across the valley. " + tried,
        PARTLY: "Only with the largest steps, where a step can land on the other side. " + tried,
    }
    return Row(
        f"A local optimum can be left once a team is there (starts within {NEAR / 2:g} of it, or the nearest)",
        f"of {sum(map(len, ends))} runs, all cases, methods and budgets, {everywhere.number(1, True)} ended at the "
        f"global peak; at most {100 * escaped[best]:.0f} % of those of one method, case and budget",
        f"{everywhere.interval(1, True)} %",
        verdict,
        study.because(verdict, reasons),
    )


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
    for place, (axes, method) in enumerate(zip(figure.subplots(1, 4, sharey=True), methods_of(results))):
        _surface(axes)
        for start, path in zip(SHOWN_STARTS, results.pieces[f"exact-fixed-{method}"]["paths"]):
            points = np.concatenate([start[None], path])
            axes.plot(*points.T, "-", color=study.COLOURS[method], linewidth=1.1, marker=".", markersize=3.5)
            axes.plot(*start, "o", color=study.COLOURS[method], markersize=6, markeredgecolor="white")
        axes.set_xlim(-1.5, 7.5)
        axes.set_ylim(-1.5, 7.5)
        axes.set_title(study.LABELS[method], fontsize=10, loc="left")
        axes.set_ylabel("mean of agent 2" if place == 0 else "")
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
            axes.pcolormesh(
                edges, edges, ends[line].T, cmap=colours, vmin=-0.5, vmax=2.5, shading="nearest", rasterized=True
            )
            axes.plot(*GLOBAL, "+", color="white", markersize=8, markeredgewidth=1.6)
            axes.plot(*LOCAL, "x", color="black", markersize=6, markeredgewidth=1.6)
            share = 100 * np.mean(everything[line] == AT_GLOBAL)
            axes.set_title(f"{study.LABELS[method]}, {budget:g}: {share:.0f} %", fontsize=8.5, loc="left")
            axes.set_aspect("equal")
            if column == 0:
                axes.set_ylabel("mean of agent 2", fontsize=8)
            if line == lines - 1:
                axes.set_xlabel("mean of agent 1", fontsize=8)
    names = ("ends at the global peak", "ends at the local peak", "elsewhere")
    handles = [panels[0, 0].scatter([], [], marker="s", color=colours(i), label=name) for i, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _share_figure(results: Results, size: Size) -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (case, title) in zip(figure.subplots(1, 3, sharey=True), _CASES.items()):
        budgets = np.asarray(budgets_of(size, case))
        for place, method in enumerate(methods_of(results)):
            shares = at_global(results, case, method).mean(-1)
            found = [study.estimate(share, np.mean) for share in shares]
            middle = np.array([f.value for f in found])
            around = [middle - [f.low for f in found], [f.high for f in found] - middle]
            axes.errorbar(
                budgets * 1.06 ** (place - 1.5),
                middle,
                around,
                linewidth=1.2,
                markersize=4.5,
                **study.point_style(method),
            )
        axes.set_xscale("log")
        axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axes.set_xticks([], minor=True)
        axes.set_ylim(0, 1)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("joint KL budget")
        study.strip(axes)
    figure.axes[0].set_ylabel("share of starts that end\nat the global peak")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _text(results: Results, size: Size) -> str:
    lines = [
        f"*The global peak* is the higher one of the two, at means ({GLOBAL[0]}, {GLOBAL[1]:.2f}); it is no maximum of "
        "the whole plane, because beyond a mean of 8.86 the slope 0.1 a1 alone pays more. A start belongs to its basin "
        f"if the team's last means are both within {NEAR:g} of it. Starts: a grid of {size.grid} x {size.grid} on [-1, "
        f"6]^2 (exact; HATRPO with {size.orders} sequences of random orders from each), {size.sampled_grid} x "
        f"{size.sampled_grid} with {size.seeds} seeds each and batches of {BATCH} (sampled); {size.updates} and "
        f"{size.sampled_updates} updates, more than every budget needs to cross the box. "
        "Nothing is searched: all four have the same budgets and the same line search.",
        "",
        "Share of starts that end at the global peak / at the local peak:",
        "",
        "| case | joint budget | " + " | ".join(study.LABELS[m] for m in methods_of(results)) + " | starts that W, G, "
        "N gain / lose against HATRPO |",
        "|---|---|" + "---|" * (len(methods_of(results)) + 1),
    ]  # fmt: skip
    for case, title in _CASES.items():
        for index, budget in enumerate(budgets_of(size, case)):
            shares, moved = [], []
            base = at_global(results, case, "hatrpo")[index]
            for method in methods_of(results):
                ends = results.pieces[f"{case}-{method}"]["ended"][index]
                shares.append(f"{100 * np.mean(ends == AT_GLOBAL):.0f} % / {100 * np.mean(ends == AT_LOCAL):.0f} %")
                own = at_global(results, case, method)[index]
                moved.append(f"{100 * np.mean(own > base):.0f} / {100 * np.mean(own < base):.0f} %")
            lines.append(f"| {title} | {budget} | " + " | ".join(shares) + f" | {', '.join(moved[1:])} |")
    return "\n".join(lines)


STUDY = study.Study(
    "two_peaks",
    "Two peaks: basins of attraction",
    "Does adaptive allocation reach the higher peak from starts where HATRPO ends at the lower one? One pretty "
    "trajectory proves nothing, so a whole grid of starts is run.",
    pieces,
    report,
)


if __name__ == "__main__":
    study.main(STUDY)
