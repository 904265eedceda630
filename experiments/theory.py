"""Algorithm 1 in random games: does the return never fall, does it end in a Nash equilibrium, and what remains of that
when a KL budget is allocated instead?

python -m experiments.theory --quick
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import study, styles, tabular
from experiments.intervals import Estimate, estimate, proportion
from experiments.study import Piece, Report, Results
from experiments.styles import ADAPTIVE, TRUST_REGION, label
from marl_kl.core import allocators

SHAPES = ((2, 2), (2, 2, 2), (2, 3, 2))
STATES = 3
ROUNDING = 1e-10
"""Falls of the return that are smaller than this are rounding."""


class Size(NamedTuple):
    """games: random ones, the same for all. iterations: of Algorithm 1; budgeted: updates with a budget; permutations:
    random orders of each game."""

    games: int
    iterations: int
    budgets: tuple[float, ...]
    budgeted: int
    gamma: float
    permutations: int


SIZES = {
    "smoke": Size(1, 3, (0.1,), 2, 0.9, 1),
    "quick": Size(18, 120, (1e-5, 1e-3, 0.1, 1.0), 40, 0.9, 5),
    "full": Size(200, 400, (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 3.0), 200, 0.9, 20),
}
DISCOUNTS = (0.1, 0.2, 0.3)
"""Of the games in which Algorithm 1 runs: C grows like 1 / (1 - gamma)^2 and shrinks every step accordingly."""
ORDERS = ("largest", "smallest", "random")
SHARES = {"uniform": allocators.uniform, "water_filling": allocators.water_filling, "natural": allocators.natural}
_OF_SHARES = {"uniform": "equal", "water_filling": "water-filling", "natural": "natural"}
EARLY = 5
"""Updates over which orders are compared too."""


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    settings = {"games": chosen.games, "shapes": [list(s) for s in SHAPES], "states": STATES}
    of_budgets = settings | {"budgets": list(chosen.budgets), "discount": chosen.gamma, "epsilon": tabular.EPSILON}
    first = Piece(
        "algorithm_1", 0.03 * chosen.games * chosen.iterations,
        settings | {"iterations": chosen.iterations, "discounts": list(DISCOUNTS)}, lambda: algorithm_1(chosen),
    )  # fmt: skip
    updates = chosen.games * chosen.budgeted * len(chosen.budgets)
    budgeted = [
        Piece(
            f"budget-{method}", 5 + 0.01 * updates, of_budgets | {"updates": chosen.budgeted, "method": method},
            lambda method=method: with_budgets(method, chosen),
        )
        for method in TRUST_REGION
    ]  # fmt: skip
    updates = chosen.games * len(chosen.budgets) * len(SHARES) * (2 + chosen.permutations) * EARLY
    orders = Piece(
        "orders", 10 + 0.01 * updates,
        of_budgets | {"orders": list(ORDERS), "permutations": chosen.permutations, "shares": list(SHARES),
                      "early": EARLY},
        lambda: by_order(chosen),
    )  # fmt: skip
    return [first, *budgeted, orders]


def random_start(index: int, gamma: float):
    """Game number `index` and the policies it starts with."""
    rng = np.random.default_rng([index, STATES])
    game, policies, _ = tabular.random_game(rng, STATES, SHAPES[index % len(SHAPES)], gamma)
    return game, policies, rng


def algorithm_1(size: Size) -> study.Values:
    """Returns: value [game, iteration + 1]; exploitability [game, 2] at the start and at the end."""
    values, exploited = [], []
    for index in range(size.games):
        game, policies, rng = random_start(index, DISCOUNTS[index % len(DISCOUNTS)])
        ends, trace = [tabular.exploitability(game, policies)], [tabular.evaluate(game, policies)[-1]]
        for _ in range(size.iterations):
            policies = tabular.algorithm_1_iteration(game, policies, rng.permutation(len(policies)).tolist())
            trace.append(tabular.evaluate(game, policies)[-1])
        values.append(trace)
        exploited.append([*ends, tabular.exploitability(game, policies)])
    values = np.array(values)
    return {
        "value": values[:, :: max(1, size.iterations // 60)],
        "smallest_change": np.diff(values).min(1), "gain": values[:, -1] - values[:, 0],
        "exploitability": np.array(exploited),
    }  # fmt: skip


def with_budgets(method: str, size: Size) -> study.Values:
    """The same with a budget that `method` allocates.

    Returns:
        real, surrogate, predicted, guaranteed: [budget, game, update] gain in return, the sum of surrogate gains, that
        to first order, and the lower bound of Theorem 2; exploitability: [budget, game, 2]; value: [budget, game,
        update + 1]; largest: [budget, game, update] largest share of the budget.
    """
    allocator = tabular.allocator_of(method)
    shape = (len(size.budgets), size.games, size.budgeted)
    names = ("real", "surrogate", "predicted", "guaranteed", "largest")
    kept = {name: np.zeros(shape) for name in names}
    exploited = np.zeros((*shape[:2], 2))
    value = np.zeros((*shape[:2], size.budgeted + 1))
    for b, budget in enumerate(size.budgets):
        for g in range(size.games):
            game, policies, _ = random_start(g, size.gamma)
            exploited[b, g, 0] = tabular.exploitability(game, policies)
            value[b, g, 0] = tabular.evaluate(game, policies)[-1]
            for u in range(size.budgeted):
                done = tabular.budgeted_iteration(game, policies, allocator, budget, jax.random.key(u))
                policies = done.policies
                value[b, g, u + 1] = tabular.evaluate(game, policies)[-1]
                row = (value[b, g, u + 1] - value[b, g, u], done.gain, done.predicted, done.guaranteed)
                for name, number in zip(names, (*row, done.thresholds.max() / budget)):
                    kept[name][b, g, u] = number
            exploited[b, g, 1] = tabular.exploitability(game, policies)
    return kept | {"exploitability": exploited, "value": value}


def by_order(size: Size) -> study.Values:
    """Equal, water-filling and natural thresholds in order of utility: largest first, smallest first, and at random.

    Returns:
        uniform, water_filling, natural: [order, budget, game, 2] gain in return of the first update, and of the first
        `EARLY`; the random one is the mean over permutations.
    """
    gains = {name: np.zeros((len(ORDERS), len(size.budgets), size.games, 2)) for name in SHARES}
    for name, share in SHARES.items():
        for o, order in enumerate(ORDERS):
            allocator = tabular.planned_in(order, share)
            draws = size.permutations if order == "random" else 1
            for b, budget in enumerate(size.budgets):
                for g in range(size.games):
                    game, policies, _ = random_start(g, size.gamma)
                    drawn = [_early_gains(game, policies, allocator, budget, size.games * d + g) for d in range(draws)]
                    gains[name][o, b, g] = np.mean(drawn, axis=0)
    return gains


def _early_gains(game, policies, allocator, budget: float, seed: int) -> tuple[float, float]:
    """Gain in return of the first update and of the first `EARLY`."""
    start = tabular.evaluate(game, policies)[-1]
    gains = []
    for key in jax.random.split(jax.random.key(seed), EARLY):
        policies = tabular.budgeted_iteration(game, policies, allocator, budget, key).policies
        gains.append(tabular.evaluate(game, policies)[-1] - start)
    return gains[0], gains[-1]


# What is shown


def report(results: Results) -> Report:
    size = SIZES[results.size]
    exact = results.pieces["algorithm_1"]
    of_budgets = {method: results.pieces[f"budget-{method}"] for method in TRUST_REGION}
    budgets = [f"joint KL budget {budget:g}" for budget in size.budgets]
    tables = {
        "algorithm_1": _algorithm_1_table(exact),
        "monotone": study.table(
            ["method", *budgets],
            [[label(m), *(_monotone_cell(v, b) for b in range(len(budgets)))] for m, v in of_budgets.items()],
        ),
        "first_update": study.table(
            ["method", *budgets],
            [
                [
                    label(m),
                    *(f.text() for f in _ratios(of_budgets[m]["real"][..., 0], of_budgets["hatrpo"]["real"][..., 0])),
                ]
                for m in ADAPTIVE
            ],
        ),
        "last_update": study.table(
            ["method", *budgets],
            [[label(m), *_last_cells(gained(of_budgets[m]), gained(of_budgets["hatrpo"]))] for m in ADAPTIVE],
        ),
        "end": _end_table(of_budgets, size),
        "orders": study.table(
            ["thresholds", "order", "updates", *budgets],
            [
                [_OF_SHARES[name], title, count, *(f.text(3) for f in order_ratios(results, name, order, updates))]
                for name in SHARES
                for title, order, count, updates in (
                    ("largest first", "largest", "first", 0),
                    ("largest first", "largest", f"first {EARLY}", 1),
                    ("random", "random", "first", 0),
                )
            ],
        ),
    }
    figures = {
        "algorithm_1": _algorithm_1_figure(exact, size),
        "budgets": _budgets_figure(of_budgets, size),
        "orders": _orders_figure(results, size),
    }
    return Report(tables, figures)


def _algorithm_1_table(exact: dict) -> str:
    start, end = exact["exploitability"].T
    changes = exact["smallest_change"]
    rows = [
        ["smallest change of the return in any iteration", f"{changes.min():.1e}"],
        ["games in which the return fell in any iteration", proportion(changes < -ROUNDING).text(0, percent=True)],
        ["exploitability at the end / at the start, mean", estimate(end / start, np.mean).text(2, percent=True)],
        ["the same, largest of any game", f"{100 * (end / start).max():.2f} %"],
    ]
    return study.table(["Algorithm 1", ""], rows)


def fell(values: dict, budget: int) -> np.ndarray:
    """[game, update] whether the return fell by more than rounding."""
    return values["real"][budget] < -ROUNDING


def guaranteed(values: dict, budget: int) -> np.ndarray:
    """[game, update] whether Theorem 2 guarantees that it does not: 1 or 0; NaN where no agent could gain any more."""
    moved = values["surrogate"][budget] > ROUNDING
    return np.where(moved, values["guaranteed"][budget] >= 0, np.nan)


def gained(values: dict) -> np.ndarray:
    """[budget, game] gain in return of all updates together."""
    return values["value"][..., -1] - values["value"][..., 0]


def _monotone_cell(values: dict, budget: int) -> str:
    games = proportion(fell(values, budget).any(-1)).text(0, percent=True)
    return f"{games}; {100 * np.nanmean(guaranteed(values, budget)):.0f} %"


def _ratios(own: np.ndarray, equal: np.ndarray) -> list[Estimate]:
    """By budget: mean over games of own / equal [budget, game]."""
    return [estimate(ratio, np.mean) for ratio in own / equal]


def _last_cells(own: np.ndarray, equal: np.ndarray) -> list[str]:
    """The ratio of the gains, and the games that end more than 1 % lower and higher."""
    lower, higher = (own / equal < 0.99).sum(-1), (own / equal > 1.01).sum(-1)
    return [f"{f.text(3)}; {low} / {high}" for f, low, high in zip(_ratios(own, equal), lower, higher)]


def _end_table(of_budgets: dict, size: Size) -> str:
    """Gains as a share of the largest of all methods and budgets in that game, and what is left to exploit."""
    gains = np.stack([gained(values) for values in of_budgets.values()])
    relative = 100 * (gains / gains.max((0, 1))).mean(-1)
    rows = []
    for b, budget in enumerate(size.budgets):
        ends = [values["exploitability"][b] for values in of_budgets.values()]
        left = [100 * np.mean(end[:, 1] / end[:, 0]) for end in ends]
        rows.append([f"{budget:g}", *(f"{share:.1f} %, {rest:.1f} %" for share, rest in zip(relative[:, b], left))])
    return study.table(["joint KL budget", *map(label, of_budgets)], rows)


def order_ratios(results: Results, name: str, order: str, updates: int) -> list[Estimate]:
    """By budget: mean over games of the gain in `order` over that with the smallest utility first; `updates`: 0 for the
    first update, 1 for the first `EARLY`."""
    gains = results.pieces["orders"][name][..., updates]
    return _ratios(*(gains[ORDERS.index(o)] for o in (order, "smallest")))


def _algorithm_1_figure(exact: dict, size: Size) -> Figure:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    value = exact["value"]
    x = np.arange(value.shape[1]) * max(1, size.iterations // 60)
    share = (value - value[:, :1]) / np.maximum(value[:, -1:] - value[:, :1], 1e-12)
    axes.plot(x, share.T, color="0.2", linewidth=1, alpha=0.6)
    axes.set_xlabel("iteration")
    axes.set_ylabel("share of the way from\nfirst to last return")
    styles.clean(axes)
    return figure


def _budgets_figure(of_budgets: dict, size: Size) -> Figure:
    figure = Figure(figsize=(10.5, 3.5), layout="constrained")
    panels = left, middle, right = figure.subplots(1, 3)
    for axes in panels:
        styles.budget_axis(axes, size.budgets)
    for place, (method, values) in enumerate(of_budgets.items()):
        look = styles.point_style(method)
        found = [estimate(share, np.mean) for share in values["largest"][:, :, 0]]
        styles.error_bars(left, size.budgets, found, place - 1.5, **look)
        promised = [100 * np.nanmean(guaranteed(values, b), -1) for b in range(len(size.budgets))]
        styles.error_bars(middle, size.budgets, [estimate(p, np.mean) for p in promised], place - 1.5, **look)
        ratios = _ratios(*(values[name][:, :, :EARLY].sum(-1) for name in ("real", "predicted")))
        styles.error_bars(right, size.budgets, ratios, place - 1.5, **look)
    left.set_ylim(0, 1.05)
    left.set_ylabel("largest share of the budget,\nfirst update")
    middle.set_ylabel("% of updates guaranteed\nby Theorem 2")
    right.set_ylabel(f"real / predicted gain,\nfirst {EARLY} updates")
    right.axhline(1, color="0.6", linewidth=0.8)
    for axes in panels:
        styles.clean(axes)
    styles.legend_below(figure, [left])
    return figure


def _orders_figure(results: Results, size: Size) -> Figure:
    figure = Figure(figsize=(7.4, 3.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    methods = {"uniform": "hatrpo", "water_filling": "hatrpo_w", "natural": "hatrpo_n"}
    for axes, order, title in zip(panels, ("largest", "random"), ("largest utility first", "random order")):
        styles.budget_axis(axes, size.budgets)
        for place, (name, method) in enumerate(methods.items()):
            look = styles.point_style(method) | {"label": f"{_OF_SHARES[name]} thresholds"}
            styles.error_bars(axes, size.budgets, order_ratios(results, name, order, 0), place - 1, **look)
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set_title(title, fontsize=10, loc="left")
        styles.clean(axes)
    panels[0].set_ylabel("gain of the first update over\nthat with the smallest first")
    styles.legend_below(figure, panels[:1], 3)
    return figure


STUDY = study.Study("theory", "Theory: monotone improvement and Nash equilibria", pieces, report)


if __name__ == "__main__":
    study.main(STUDY)
