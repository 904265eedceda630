"""The sparse matrix game: does unequal sharing of the KL budget reach the maximum in fewer steps?

python -m experiments.matrix_game --quick
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import envs
from experiments import settings, stage_games, study
from experiments.study import CONTRARY, HOLDS, MIXED, NOT_SEEN, PARTLY, Estimate, Piece, Report, Results, Row
from experiments.who_leads import leading, normalised

BATCH = 64
BUDGETS = (0.04, 0.12, 0.4, 1.2)
"""Joint KL budgets: what trust-region methods are searched over."""
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
"""What first-order methods are searched over: as many trials. A team of 9 parameters needs larger ones than a body."""
SEARCH_SEEDS = 8
NEAR = 0.99
DENSE = 40
"""Updates of which curves and shares are kept one by one; the games are over after 8 to 30 of them."""
SHOWN_TRIAL = 1
"""Of the budgets: the one whose shares are drawn."""


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
_ALL = study.TRUST_REGION + study.FIRST_ORDER
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
    return method in study.TRUST_REGION


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
             **settings.of_config(stage_games.game_config(method, BATCH))},
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
        Trust-region methods also what `who_is_given` says.
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
    return results | who_is_given(*of_agents, reached[:, SEARCH_SEEDS:])


def shown_updates(num_updates: int) -> np.ndarray:
    """[P] indices: the first `DENSE` updates one by one, then ever fewer."""
    dense = np.arange(min(DENSE, num_updates))
    later = np.geomspace(1, num_updates, 60).round().astype(int) - 1
    return np.union1d(dense, later)


def who_is_given(threshold: np.ndarray, position: np.ndarray, reached: np.ndarray) -> study.Values:
    """Who is given how much, and who moves when, while a run is under way: in the updates up to the one that reaches
    99 %. Afterwards no agent has anything to gain, and who is given most means nothing.

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
    """[trial, seed] steps of the reported seeds; runs that never got there count as the whole run."""
    return np.where(np.isnan(values["steps"]), size.updates * BATCH, values["steps"])[:, SEARCH_SEEDS:]


def chosen_trial(values: study.Values, size: Size) -> int:
    """The trial with the fewest steps on the search seeds, which are reported nowhere."""
    whole = np.where(np.isnan(values["steps"]), size.updates * BATCH, values["steps"])[:, :SEARCH_SEEDS]
    return int(np.argmin(whole.mean(1)))


def report(results: Results) -> Report:
    size = SIZES[results.size]
    methods = [method for method in size.methods if is_trust_region(method)]
    by_game = {game: {m: results.pieces[f"{game.name}-{m}"] for m in size.methods} for game in size.games}
    adaptive = [method for method in methods if method != "hatrpo"]
    main = size.games[0]
    rows = [
        row
        for method in adaptive
        for row in (
            _equal_budget_row(method, main, by_game[main], size),
            _best_row(method, by_game, size),
            _stays_row(method, by_game),
        )
        if row is not None
    ]
    figures = {
        "curves": (_curves(by_game, size), "Expected payoff against env steps, each method at the trial chosen on the "
                   "search seeds: IQM over seeds and its 95 % interval."),
        "steps": (_steps(by_game, size), "Env steps to 99 % of the maximum at equal joint KL budgets: IQM over seeds "
                  "and its 95 % interval; runs that did not get there count as the whole run."),
        "shares": (_shares(by_game[main], methods, size), f"Who is given how much and moves when, {main.title}. Upper "
                   "row: shares of what is given in each update of one run, until it has reached 99 % (bar); the "
                   "digits say in which order the agents moved. Below: the largest share, mean over the seeds that "
                   "have not reached 99 %, as long as a quarter has not. HATRPO-G gives shares of what is left, the "
                   "last agent all of it."),
    }  # fmt: skip
    return Report(rows, figures, _text(by_game, size))


_TRIED = "Tried: budgets over a factor of 30, four games of different size, sparsity and symmetry, 32 seeds."
_NOISE = (
    "Agents have about equally far to go, so on average equal shares are right. Utilities differ by the chance of 64 "
    "samples of a rare reward, and shares that follow chance waste KL; with a large budget they hand most of it to one "
    "agent, which settles on an action that may be wrong. "
)
_LEFT_OVER = (
    "What the first agents' line searches do not spend goes to the next one, so more of the budget is used; that is "
    "worth a little where the budget is what limits learning, and harmful where it is large. "
)
_WHY_EQUAL = {
    NOT_SEEN: _NOISE + _TRIED,
    CONTRARY: _NOISE + _TRIED,
    PARTLY: _LEFT_OVER,
    MIXED: _LEFT_OVER + _TRIED,
}


def _equal_budget_row(method: str, game: Game, values: dict, size: Size) -> Row:
    """The ratio of steps at each of the equal budgets, all of which count."""
    ratios = [
        study.ratio(*(censored(values[m], size)[trial] for m in ("hatrpo", method))) for trial in range(len(BUDGETS))
    ]
    verdict = study.counted([study.judged(ratio, 2.0, 1.0) for ratio in ratios])
    each = ", ".join(f"{ratio.number()} at {budget}" for ratio, budget in zip(ratios, BUDGETS))
    return Row(
        f"{study.LABELS[method]} needs 2–3 times fewer steps to 99 % than HATRPO (Shek et al. 2025), equal budgets",
        f"HATRPO's steps / its steps: {each}",
        ", ".join(ratio.interval() for ratio in ratios),
        verdict,
        study.because(verdict, _WHY_EQUAL),
    )


_OWN_BEST = (
    "HATRPO can use a larger budget: its best trial is one at which unequal shares already let single agents settle "
    "too early. "
)
_WHY_BEST = {
    NOT_SEEN: _OWN_BEST + _TRIED,
    CONTRARY: _OWN_BEST + _TRIED,
    PARTLY: "In some games only, see the numbers.",
    MIXED: "In some games only, see the numbers. " + _TRIED,
}


def _best_row(method: str, by_game: dict, size: Size) -> Row:
    """Each at its own best trial, in all games."""
    ratios = {}
    for game, values in by_game.items():
        chosen = [censored(values[m], size)[chosen_trial(values[m], size)] for m in ("hatrpo", method)]
        ratios[game] = study.ratio(*chosen)
    verdict = study.counted([study.judged(ratio, 2.0, 1.0) for ratio in ratios.values()])
    lows, highs = (min(r.low for r in ratios.values()), max(r.high for r in ratios.values()))
    return Row(
        f"the same for {study.LABELS[method]}, each at the best of 4 trials, {len(ratios)} games",
        "; ".join(f"{game.name}: {ratio.text()}" for game, ratio in ratios.items()),
        f"all within [{lows:.2f}, {highs:.2f}]",
        verdict,
        study.because(verdict, _WHY_BEST),
    )


def _stays(values: study.Values) -> Estimate | None:
    """How much more often than by chance a leader leads again, of the runs with enough updates under way."""
    found = (values["stays"] - values["by_chance"])[SHOWN_TRIAL]
    known = found[np.isfinite(found)]
    return study.estimate(known, np.mean) if len(known) > 1 and known.any() else None


_WHY_STAYS = {
    HOLDS: "Who is behind has more to gain until it has caught up, which takes several updates.",
    PARTLY: "Agents differ for some updates on end (one has more choices, or has not found its action yet), but with "
    "64 samples of a rare reward most is chance.",
    NOT_SEEN: "Utilities of 64 samples of a rare reward follow the batch. Tried: four games, the updates before 99 % "
    "only.",
    MIXED: "In some games an agent stays in front, in others agents take turns: who has just moved far has less to "
    "gain. Tried: four games, the updates before 99 % only.",
    CONTRARY: "Agents take turns: who has just moved far has less to gain. Tried: four games, the updates before 99 % "
    "only.",
}


_LAST_MOVER = " HATRPO-G's largest share mostly goes to the last to move, whose score is lowest."


def _stays_row(method: str, by_game: dict) -> Row | None:
    found = {game.name: _stays(values[method]) for game, values in by_game.items()}
    found = {name: each for name, each in found.items() if each is not None}
    if not found:
        return None
    verdict = study.counted([study.judged(each, 0.1, 0.0) for each in found.values()])
    return Row(
        f"{study.LABELS[method]}: who has the largest share has it in the next update too, 10 points more often than "
        f"in one drawn at random (joint budget {BUDGETS[SHOWN_TRIAL]})",
        ", ".join(f"{name} {each.number(0, percent=True)}" for name, each in found.items()),
        ", ".join(each.interval(0, percent=True) for each in found.values()),
        verdict,
        study.because(verdict, _WHY_STAYS) + (_LAST_MOVER if method == "hatrpo_g" else ""),
    )


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
            study.curve(axes, of_method["shown"], of_method["value"], method)
        slowest = max(study.estimate(censored(v, size)[chosen_trial(v, size)]).value for v in values.values())
        axes.set_xlim(0, min(1.5 * slowest, size.updates * BATCH))
        axes.set_title(game.title, fontsize=9, loc="left")
        axes.set_xlabel("env steps")
        axes.set_ylabel("expected payoff")
        study.strip(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _steps(by_game: dict, size: Size) -> Figure:
    figure, panels = _panels(len(by_game))
    methods = [method for method in size.methods if is_trust_region(method)]
    for axes, (game, values) in zip(panels, by_game.items()):
        for place, method in enumerate(methods):
            found = [study.estimate(steps) for steps in censored(values[method], size)]
            middle = np.array([f.value for f in found])
            around = [middle - [f.low for f in found], [f.high for f in found] - middle]
            x = np.asarray(BUDGETS) * 1.08 ** (place - 1.5)
            axes.errorbar(x, middle, around, linewidth=1.2, markersize=4.5, **study.point_style(method))
        axes.set_xscale("log")
        axes.set_xticks(BUDGETS, [str(b) for b in BUDGETS], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_yscale("log")
        axes.set_title(game.title, fontsize=9, loc="left")
        axes.set_xlabel("joint KL budget")
        axes.set_ylabel("env steps to 99 %")
        study.strip(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _shares(values: dict, methods: list[str], size: Size) -> Figure:
    figure = Figure(figsize=(3.0 * len(methods) + 0.8, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, len(methods), height_ratios=(1.0, 1.1))
    ends = {method: _ended(values[method], size) for method in methods}
    shown = min(DENSE, size.updates, 1 + max(ends.values()))
    for column, method in enumerate(methods):
        axes = figure.add_subplot(grid[0, column])
        share, order = (values[method][name][:shown].T for name in ("one_run", "one_order"))
        share = np.where(np.arange(shown) < ends[method], share, np.nan)
        image = axes.pcolormesh(np.arange(shown + 1) + 0.5, np.arange(len(share) + 1) + 0.5, share, vmin=0, vmax=1,
                                rasterized=True)  # fmt: skip
        for agent, update in np.argwhere(np.isfinite(share)):
            colour = "black" if share[agent, update] > 0.6 else "white"
            axes.text(update + 1, agent + 1, f"{order[agent, update] + 1:.0f}", ha="center", va="center", fontsize=6,
                      color=colour)  # fmt: skip
        axes.axvline(ends[method] + 0.5, color="0.3", linewidth=2)
        axes.set_yticks(range(1, len(share) + 1))
        axes.set_title(study.LABELS[method], fontsize=9.5, loc="left")
        axes.set_xlabel("update")
        axes.set_ylabel("agent" if column == 0 else "")
    figure.colorbar(image, ax=axes, label="share of what is given")
    axes = figure.add_subplot(grid[1, :])
    for method in methods:
        largest = values[method]["largest"][SHOWN_TRIAL]
        axes.plot(np.arange(1, len(largest) + 1), largest, linewidth=1.8, **study.line_style(method))
    axes.set_xlabel(f"update (joint KL budget {BUDGETS[SHOWN_TRIAL]})")
    axes.set_ylabel("largest share of what is given")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, ncols=4, loc="upper left")
    study.strip(axes)
    return figure


def _ended(values: study.Values, size: Size) -> int:
    """Updates until the run whose shares are drawn reached 99 %."""
    return int(censored(values, size)[SHOWN_TRIAL, 0]) // BATCH


def _text(by_game: dict, size: Size) -> str:
    lines = [
        f"Settings: batches of {BATCH} joint actions, one hidden layer of 8, everything else the defaults; "
        f"{size.seeds} seeds and {size.updates} updates. Search, the same number of trials for all: joint KL budget "
        f"{list(BUDGETS)} for the trust-region methods, step size {list(LEARNING_RATES)} for HAPPO and MAPPO; the "
        f"trial is chosen on {SEARCH_SEEDS} other seeds. The expected payoff is computed from the policies after every "
        "update, not sampled. The paper prints neither the size of its game nor its budget.",
        "",
        "Env steps to 99 % at the chosen trial, IQM [95 %] (share of the seeds that got there):",
        "",
        "| game | " + " | ".join(study.LABELS[m] for m in size.methods) + " |",
        "|---|" + "---|" * len(size.methods),
    ]
    for game, values in by_game.items():
        cells = []
        for method in size.methods:
            trial = chosen_trial(values[method], size)
            arrived = np.mean(~np.isnan(values[method]["steps"][trial, SEARCH_SEEDS:]))
            cells.append(f"{study.estimate(censored(values[method], size)[trial]).text(0)} ({100 * arrived:.0f} %)")
        lines.append(f"| {game.title} | " + " | ".join(cells) + " |")
    adaptive = [method for method in size.methods if method in study.ADAPTIVE]
    lines += [
        "",
        f"How often the agent with the largest share has it again in the next update, joint budget "
        f"{BUDGETS[SHOWN_TRIAL]}, mean over seeds, the updates until 99 % only (in brackets: if the same updates came "
        "in random order). Water-filling and natural allocation let the agent with the largest share move first; "
        "HATRPO-G lets the best score move first and gives the last one most:",
        "",
        "| game | " + " | ".join(study.LABELS[m] for m in adaptive) + " |",
        "|---|" + "---|" * len(adaptive),
    ]
    for game, values in by_game.items():
        lines.append(f"| {game.title} | " + " | ".join(_stays_cell(values[m]) for m in adaptive) + " |")
    return "\n".join(lines)


def _stays_cell(values: study.Values) -> str:
    found = [values[name][SHOWN_TRIAL] for name in ("stays", "by_chance")]
    known = np.isfinite(found).all(axis=0)
    if not known.any():
        return "too few updates"
    stays, by_chance = (100 * values[known].mean() for values in found)
    return f"{stays:.0f} % ({by_chance:.0f} %)"


STUDY = study.Study(
    "matrix_game",
    "Sparse matrix games: steps to 99 % of the maximum",
    "One joint action out of many pays. Does sharing the joint KL budget unequally reach 99 % of the maximum in fewer "
    "env steps than equal thresholds, at equal joint budgets?",
    pieces,
    report,
)


if __name__ == "__main__":
    study.main(STUDY)
