"""The sparse matrix game: does an unequal allocation of the KL budget reach the maximum in fewer steps?

python -m experiments.matrix_game --quick
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import envs
from experiments import settings, stage_games, study, styles
from experiments.intervals import estimate, ratio
from experiments.shares import leading, normalised, stays_text
from experiments.study import Piece, Report, Results
from experiments.styles import ADAPTIVE, FIRST_ORDER, TRUST_REGION, label

BATCH = 64
BUDGETS = (0.04, 0.12, 0.4, 1.2)
"""Joint KL budgets: what trust-region methods are searched over."""
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
"""What first-order methods are searched over, with as many trials. Teams this small need larger ones than a body."""
SEARCH_SEEDS = 8
NEAR = 0.99
DENSE = 40
"""Updates of which curves and shares are kept one by one; most games are decided within them."""
SHOWN_TRIAL = 1
"""Index of the budget whose shares are drawn."""


class Game(NamedTuple):
    """actions: choices of every agent. rewarded: how many joint actions pay 1."""

    actions: tuple[int, ...]
    rewarded: int

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.actions))}-{self.rewarded}"

    @property
    def title(self) -> str:
        even = len(set(self.actions)) == 1
        choices = str(self.actions[0]) if even else ", ".join(map(str, self.actions))
        return f"{len(self.actions)} agents, {choices} actions: {self.rewarded} of {int(np.prod(self.actions))} pay"

    def payoff(self) -> np.ndarray:
        """`envs.matrix_game`'s own if one joint action of a square game pays; else drawn, the same for every seed."""
        if self.rewarded == 1 and len(set(self.actions)) == 1:
            return np.asarray(
                envs.make("matrix_game", num_agents=len(self.actions), num_actions=self.actions[0]).params
            )
        payoff = np.zeros(int(np.prod(self.actions)), np.float32)
        payoff[np.random.default_rng(0).permutation(payoff.size)[: self.rewarded]] = 1.0
        return payoff.reshape(self.actions)


class Size(NamedTuple):
    games: tuple[Game, ...]
    seeds: int
    updates: int
    methods: tuple[str, ...]


MAIN = Game((3, 3, 3, 3), 1)
_QUICK_GAMES = (
    MAIN, Game((3, 3, 3, 3), 9), Game((5, 5, 5, 5), 1), Game((2, 3, 4, 6), 1),
)  # fmt: skip
_ALL = TRUST_REGION + FIRST_ORDER
SIZES = {
    "smoke": Size((Game((2, 2), 1),), 2, 4, ("hatrpo", "hatrpo_w")),
    "quick": Size(_QUICK_GAMES, 32, 160, _ALL),
    "full": Size(
        (*_QUICK_GAMES, Game((3, 3, 3, 3), 3), Game((3,) * 6, 1), Game((8, 8, 8, 8), 1), Game((3,) * 8, 1)),
        100,
        400,
        _ALL,
    ),
}


def is_trust_region(method: str) -> bool:
    return method in TRUST_REGION


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    work = chosen.seeds * chosen.updates / (32 * 160)
    return [
        Piece(
            f"{game.name}-{method}",
            12 * work if size != "smoke" else 5,
            {"game": list(game), "method": method, "seeds": chosen.seeds, "updates": chosen.updates,
             "searched": list(BUDGETS if is_trust_region(method) else LEARNING_RATES), "search_seeds": SEARCH_SEEDS,
             "near": NEAR, "dense": DENSE, "shown_trial": SHOWN_TRIAL,
             **settings.of_config(stage_games.game_config(method, BATCH), method)},
            lambda game=game, method=method: play(game, method, chosen),
        )
        for game in chosen.games
        for method in chosen.methods
    ]  # fmt: skip


def play(game: Game, method: str, size: Size) -> study.Values:
    """All trials of a method on a game.

    Returns:
        steps: [trial, seed] env steps until the expected payoff was 99 % of the maximum; NaN if it never was.
        value: [seed, P] expected payoff of the chosen trial, at the env steps `shown` [P], the reported seeds (all but
        the first 8, which are for the search). spent: [trial, update] KL spent, mean over seeds.
        Trust-region methods also the results of `allocation`.
    """
    payoff = game.payoff()
    trust_region = is_trust_region(method)
    searched = {"kl_budget": BUDGETS} if trust_region else {"actor_lr": LEARNING_RATES}
    runs = stage_games.combinations(**searched, seed=np.arange(SEARCH_SEEDS + size.seeds))
    seeds = runs.pop("seed")

    def record(policy, params, metrics):
        kept = {
            "value": stage_games.expected_payoff(stage_games.probabilities(policy), params),
            "spent": metrics["kl_total"],
        }
        if not trust_region:
            return kept
        return kept | {"threshold": metrics["kl_threshold"], "position": metrics["position"]}

    env = envs.make("matrix_game", payoff=payoff)
    config = stage_games.game_config(method, BATCH)
    kept = stage_games.learn(env, method, config, runs, seeds, size.updates, record)
    by_trial = {name: values.reshape(4, -1, *values.shape[1:]) for name, values in kept.items()}
    value = by_trial["value"]
    reached = value >= NEAR * payoff.max()
    steps = np.where(reached.any(-1), (reached.argmax(-1) + 1) * BATCH, np.nan)
    shown = shown_updates(size.updates)
    results = {"steps": steps, "shown": (shown + 1) * BATCH, "spent": by_trial["spent"].mean(1)}
    curves = value[chosen_trial(results, size), SEARCH_SEEDS:]
    results["value"] = np.round(curves[:, shown], 3)
    if not trust_region:
        return results
    of_agents = (by_trial[name][:, SEARCH_SEEDS:] for name in ("threshold", "position"))
    return results | allocation(*of_agents, reached[:, SEARCH_SEEDS:])


def shown_updates(num_updates: int) -> np.ndarray:
    """[P] indices: the first `DENSE` updates one by one, then ever fewer."""
    dense = np.arange(min(DENSE, num_updates))
    later = np.geomspace(1, num_updates, 60).round().astype(int) - 1
    return np.union1d(dense, later)


def allocation(threshold: np.ndarray, position: np.ndarray, reached: np.ndarray) -> study.Values:
    """Allocation and order while a run is under way: in the updates up to the one that reaches 99 %. Afterwards no
    agent has anything to gain, and the allocation means nothing.

    An agent's share is its threshold over the sum of all agents' thresholds in that update.

    Args:
        threshold, position: [trial, seed, update, agent]. reached: [trial, seed, update] bool.

    Returns:
        largest: [trial, update] the largest share, mean over the seeds under way; NaN where fewer than a quarter are.
        stays: [trial, seed] how often the agent with the largest share has it again in the next update; by_chance:
        [trial, seed] how often it would if the same updates came in random order. one_run, one_order: [update, agent]
        shares of one run of the trial `SHOWN_TRIAL`, and when each agent moved (0: first).
    """
    under_way = ~np.logical_or.accumulate(reached, axis=-1)
    under_way = np.concatenate([np.ones_like(under_way[..., :1]), under_way[..., :-1]], axis=-1)
    share = normalised(threshold)
    largest = np.where(under_way, share.max(-1), 0.0).sum(1) / np.maximum(under_way.sum(1), 1)
    leaders = leading(share, under_way)
    return {
        "largest": np.where(under_way.mean(1) >= 0.25, largest, np.nan)[:, :DENSE],
        "stays": leaders.stays,
        "by_chance": leaders.by_chance,
        "one_run": share[SHOWN_TRIAL, 0, :DENSE],
        "one_order": position[SHOWN_TRIAL, 0, :DENSE],
    }


# What is shown


def censored(values: study.Values, size: Size) -> np.ndarray:
    """[trial, seed] steps of the reported seeds; runs that never reached 99 % count as the whole run."""
    return np.where(np.isnan(values["steps"]), size.updates * BATCH, values["steps"])[:, SEARCH_SEEDS:]


def chosen_trial(values: study.Values, size: Size) -> int:
    """The trial with the fewest steps on the search seeds, which are not reported."""
    whole = np.where(np.isnan(values["steps"]), size.updates * BATCH, values["steps"])[:, :SEARCH_SEEDS]
    return int(np.argmin(whole.mean(1)))


def best_steps(values: study.Values, size: Size) -> np.ndarray:
    """[seed] steps at the chosen trial."""
    return censored(values, size)[chosen_trial(values, size)]


def report(results: Results) -> Report:
    size = SIZES[results.size]
    by_game = {game: {m: results.pieces[f"{game.name}-{m}"] for m in size.methods} for game in size.games}
    main = by_game[size.games[0]]
    methods = [method for method in size.methods if is_trust_region(method)]
    adaptive = [method for method in methods if method in ADAPTIVE]
    labels = [label(method) for method in adaptive]
    tables = {
        "equal_budgets": study.table(
            ["joint KL budget", *labels],
            [
                [
                    f"{budget:g}",
                    *(_ratio(*(censored(main[m], size)[i] for m in ("hatrpo", method))) for method in adaptive),
                ]
                for i, budget in enumerate(BUDGETS)
            ],
        ),
        "own_best": study.table(
            ["game", *labels],
            [
                [
                    game.title,
                    *(_ratio(*(best_steps(values[m], size) for m in ("hatrpo", method))) for method in adaptive),
                ]
                for game, values in by_game.items()
            ],
        ),
        "steps": study.table(
            ["game", *map(label, size.methods)],
            [
                [game.title, *(_steps_cell(of_method, size) for of_method in values.values())]
                for game, values in by_game.items()
            ],
        ),
        "leaders": study.table(
            ["game", *labels],
            [[game.title, *(_stays_cell(values[m]) for m in adaptive)] for game, values in by_game.items()],
        ),
    }
    figures = {
        "curves": _curves(by_game, size),
        "steps": _steps(by_game, methods, size),
        "shares": _shares(main, methods, size),
    }
    return Report(tables, figures)


def _ratio(of_hatrpo: np.ndarray, of_method: np.ndarray) -> str:
    return ratio(of_hatrpo, of_method).text()


def _steps_cell(values: study.Values, size: Size) -> str:
    reached = np.mean(~np.isnan(values["steps"][chosen_trial(values, size), SEARCH_SEEDS:]))
    return f"{estimate(best_steps(values, size)).text(0)} ({100 * reached:.0f} %)"


def _stays_cell(values: study.Values) -> str:
    return stays_text(*(values[name][SHOWN_TRIAL] for name in ("stays", "by_chance")))


def _panels(count: int, height: float = 2.9) -> tuple[Figure, np.ndarray]:
    columns = 2 if count in (2, 4) else min(3, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(3.6 * columns, height * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for unused in axes.ravel()[count:]:
        unused.set_axis_off()
    return figure, axes.ravel()


def _curves(by_game: dict, size: Size) -> Figure:
    figure, panels = _panels(len(by_game))
    for axes, (game, values) in zip(panels, by_game.items()):
        for method, of_method in values.items():
            styles.curve(axes, of_method["shown"], of_method["value"], method)
        slowest = max(estimate(best_steps(v, size)).value for v in values.values())
        axes.set_xlim(0, min(1.5 * slowest, size.updates * BATCH))
        axes.set_title(game.title, fontsize=9, loc="left")
        axes.set_xlabel("env steps")
        axes.set_ylabel("expected payoff")
        styles.clean(axes)
    styles.legend_below(figure, panels[:1], 3)
    return figure


def _steps(by_game: dict, methods: list[str], size: Size) -> Figure:
    figure, panels = _panels(len(by_game))
    for axes, (game, values) in zip(panels, by_game.items()):
        styles.budget_axis(axes, BUDGETS)
        for place, method in enumerate(methods):
            found = [estimate(steps) for steps in censored(values[method], size)]
            styles.error_bars(axes, BUDGETS, found, place - 1.5, **styles.point_style(method))
        axes.set_yscale("log")
        axes.set_title(game.title, fontsize=9, loc="left")
        axes.set_ylabel("env steps to 99 %")
        styles.clean(axes)
    styles.legend_below(figure, panels[:1])
    return figure


def _shares(values: dict, methods: list[str], size: Size) -> Figure:
    figure = Figure(figsize=(3.0 * len(methods) + 0.8, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, len(methods), height_ratios=(1.0, 1.1))
    ends = {method: int(censored(values[method], size)[SHOWN_TRIAL, 0]) // BATCH for method in methods}
    shown = min(DENSE, size.updates, 1 + max(ends.values()))
    for column, method in enumerate(methods):
        axes = figure.add_subplot(grid[0, column])
        share, order = (values[method][name][:shown].T for name in ("one_run", "one_order"))
        share = np.where(np.arange(shown) < ends[method], share, np.nan)
        edges = np.arange(shown + 1) + 0.5, np.arange(len(share) + 1) + 0.5
        image = axes.pcolormesh(*edges, share, vmin=0, vmax=1, rasterized=True)
        for agent, update in np.argwhere(np.isfinite(share)):
            colour = "black" if share[agent, update] > 0.6 else "white"
            where = {"ha": "center", "va": "center", "fontsize": 6, "color": colour}
            axes.text(update + 1, agent + 1, f"{order[agent, update] + 1:.0f}", **where)
        axes.axvline(ends[method] + 0.5, color="0.3", linewidth=2)
        axes.set_yticks(range(1, len(share) + 1))
        axes.set_title(label(method), fontsize=9.5, loc="left")
        axes.set_xlabel("update")
        axes.set_ylabel("agent" if column == 0 else "")
    figure.colorbar(image, ax=axes, label="share of the thresholds")
    axes = figure.add_subplot(grid[1, :])
    for method in methods:
        largest = values[method]["largest"][SHOWN_TRIAL]
        axes.plot(np.arange(1, len(largest) + 1), largest, linewidth=1.8, **styles.line_style(method))
    axes.set_xlabel(f"update (joint KL budget {BUDGETS[SHOWN_TRIAL]})")
    axes.set_ylabel("largest share of the thresholds")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, ncols=4, loc="upper left")
    styles.clean(axes)
    return figure


STUDY = study.Study("matrix_game", "Sparse matrix games: steps to 99 % of the maximum", pieces, report)


if __name__ == "__main__":
    study.main(STUDY)
