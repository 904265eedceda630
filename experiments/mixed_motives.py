"""What does a joint budget do to agents that want different things?

python -m experiments.mixed_motives --quick

Random games in which every agent has a reward of its own: two teams with opposed rewards, or a reward half of which is
shared. There is no common return to raise; what is measured is how far the team ends from a Nash equilibrium.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import envs
from experiments import stage_games, study
from experiments.study import CONTRARY, MIXED, NOT_SEEN, PARTLY, Piece, Report, Results, Row

NUM_AGENTS = 4
NUM_ACTIONS = 3
BATCH = 256
BUDGETS = (0.04, 0.16, 0.64, 2.56)
KINDS = ("two teams with opposed rewards", "half of the reward shared, half one's own")


class Size(NamedTuple):
    """games: random ones of each kind."""

    methods: tuple[str, ...]
    games: int
    updates: int


SIZES = {
    "smoke": Size(study.TRUST_REGION[:2], 1, 2),
    "quick": Size(study.TRUST_REGION, 24, 60),
    "full": Size(study.TRUST_REGION, 200, 300),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    settings = {
        "games": chosen.games, "updates": chosen.updates, "budgets": list(BUDGETS), "kinds": list(KINDS),
        "batch": BATCH, "agents": NUM_AGENTS, "actions": NUM_ACTIONS,
    }  # fmt: skip
    runs = len(KINDS) * len(BUDGETS) * chosen.games
    seconds = 12 + runs * chosen.updates / 800
    return [
        Piece(method, seconds, settings | {"method": method}, lambda method=method: play_for_themselves(method, chosen))
        for method in chosen.methods
    ]


def payoff_of(kind: int, rng: np.random.Generator) -> np.ndarray:
    """[3, 3, 3, 3, 4] random normal rewards of every agent, of `KINDS[kind]`."""
    joint_actions = (NUM_ACTIONS,) * NUM_AGENTS
    own = rng.normal(size=(*joint_actions, NUM_AGENTS))
    shared = rng.normal(size=(*joint_actions, 1))
    if kind == 0:
        return shared * np.array([1, 1, -1, -1])
    return 0.5 * shared + 0.5 * own


def play_for_themselves(method: str, size: Size) -> study.Values:
    """One method in all games, at all budgets.

    Returns:
        regret: [kind, budget, game, 2] `total_regret`, mean over the first and the last ten updates. largest: [kind,
        budget, game] mean largest share.
    """
    axes = {"kind": range(len(KINDS)), "kl_budget": BUDGETS, "game": range(size.games)}
    runs = stage_games.combinations(**axes)
    kinds, games = runs.pop("kind"), runs.pop("game")
    payoffs = np.stack([payoff_of(k, np.random.default_rng([k, g])) for k, g in zip(kinds, games)]).astype(np.float32)
    env = envs.make("matrix_game", payoff=payoffs[0], per_agent=True)
    config = stage_games.game_config(method, BATCH)

    def record(policy, payoff, metrics):
        return {"regret": total_regret(stage_games.probabilities(policy), payoff), "threshold": metrics["kl_threshold"]}

    kept = stage_games.learn(env, method, config, runs, games, size.updates, record, params=payoffs)
    shape = tuple(map(len, axes.values()))
    regret = np.stack([kept["regret"][:, :10].mean(1), kept["regret"][:, -10:].mean(1)], -1)
    largest = (kept["threshold"] / runs["kl_budget"][:, None, None]).max(-1).mean(1)
    return {"regret": regret.reshape(*shape, 2), "largest": largest.reshape(shape)}


def total_regret(probability: jax.Array, payoff: jax.Array) -> jax.Array:
    """[] what all agents together could gain, each by deviating alone; 0 in a Nash equilibrium and only there.

    The sum over agents of (best response's reward - own reward), for policies [N, A] and payoff [A, ..., A, N].
    """
    regret = jnp.zeros(())
    for agent in range(len(probability)):
        own = payoff[..., agent]
        for other in reversed(range(len(probability))):
            if other != agent:
                own = jnp.tensordot(own, probability[other], axes=(other, 0))
        regret += jnp.max(own) - own @ probability[agent]
    return regret


# What is shown


def report(results: Results) -> Report:
    size = SIZES[results.size]
    adaptive = [method for method in size.methods if method in study.ADAPTIVE]
    rows = [_row(results, size, method, kind) for kind in range(len(KINDS)) for method in adaptive]
    figures = {
        "regret": (_figure(results, size), "What all agents together could gain, each by deviating alone (0 in a Nash "
                   f"equilibrium): mean over the last ten of {size.updates} updates and over {size.games} random games "
                   "of each kind, with 95 % intervals."),
    }  # fmt: skip
    text = (
        f"Settings: {NUM_AGENTS} agents with {NUM_ACTIONS} actions, {size.games} random games of each kind, the same "
        f"for all, batches of {BATCH}, {size.updates} updates. *Regret* is what all agents together could gain, each "
        "by deviating alone: the mean over the last ten updates. Nothing is searched."
    )
    return Report(rows, figures, text)


def _row(results: Results, size: Size, method: str, kind: int) -> Row:
    own, equal = (results.pieces[name]["regret"][kind, ..., 1] for name in (method, "hatrpo"))
    found = [study.estimate(o - e, np.mean) for o, e in zip(own, equal)]
    verdict = study.counted([study.judged(study.Estimate(-f.value, -f.high, -f.low), 0.1, 0.0) for f in found])
    unlike = (
        "Who comes last may use all that others left: where the budget is large that is a long step, taken on samples "
        "of policies that are gone."
        if method == "hatrpo_g"
        else "Opponents chase each other, so nothing comes to rest. Whoever has most to gain gets the budget, and "
        "those who would answer cannot; equal shares let all move."
        if kind == 0
        else "Each agent climbs its own reward, and who has little to gain gets little budget to gain it with."
    )
    reasons = {
        NOT_SEEN: "The budget decides who moves first and how far, not where to.",
        CONTRARY: unlike,
        MIXED: unlike + " At other budgets it is the other way round; see the numbers.",
        PARTLY: "At some budgets only, or by less than that; see the numbers.",
    }
    tried = (
        f" Tried: {len(BUDGETS)} budgets, {size.games} games, {size.updates} updates of {BATCH} samples, from nearly "
        "uniform policies; random games of this kind only."
    )
    return Row(
        f"{KINDS[kind][0].upper()}{KINDS[kind][1:]}: {study.LABELS[method]} ends nearer to a Nash equilibrium than "
        "equal shares (total regret at least 0.1 lower), at every budget",
        "difference in regret: " + ", ".join(f"{f.value:+.2f} at {b:g}" for f, b in zip(found, BUDGETS))
        + f" (equal shares: {', '.join(f'{e.mean():.2f}' for e in equal)})",
        "; ".join(f.interval() for f in found),
        verdict,
        study.because(verdict, reasons) + tried,
    )  # fmt: skip


def _figure(results: Results, size: Size) -> Figure:
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    panels = figure.subplots(1, len(KINDS))
    for kind, axes in enumerate(panels):
        for place, method in enumerate(size.methods):
            regret = results.pieces[method]["regret"][kind, ..., 1]
            found = [study.estimate(of_budget, np.mean) for of_budget in regret]
            middle = np.array([f.value for f in found])
            around = [middle - [f.low for f in found], [f.high for f in found] - middle]
            x = np.asarray(BUDGETS) * 1.12 ** (place - 1.5)
            axes.errorbar(x, middle, np.maximum(around, 0), linewidth=1.2, markersize=5, **study.point_style(method))
        axes.set_title(KINDS[kind], fontsize=10, loc="left")
        axes.set_xscale("log")
        axes.set_xticks(BUDGETS, [f"{b:g}" for b in BUDGETS])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("joint KL budget")
        study.strip(axes)
    panels[0].set_ylabel("total regret at the end")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


STUDY = study.Study(
    "mixed_motives",
    "Mixed motives: agents with different goals",
    "What does a joint budget do to agents that want different things?",
    pieces,
    report,
)


if __name__ == "__main__":
    study.main(STUDY)
