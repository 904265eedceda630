"""What does a joint budget do to agents that want different things?

python -m experiments.mixed_motives --quick

Random games in which every agent has its own reward: two teams with opposed rewards, or a reward half of which is
shared. There is no common return to raise; what is measured is how far the agents end from a Nash equilibrium.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import envs
from experiments import stage_games, study, styles
from experiments.intervals import estimate
from experiments.study import Piece, Report, Results
from experiments.styles import TRUST_REGION, label

NUM_AGENTS = 4
NUM_ACTIONS = 3
BATCH = 256
BUDGETS = (0.04, 0.16, 0.64, 2.56)
KINDS = ("two teams with opposed rewards", "half of the reward shared, half individual")


class Size(NamedTuple):
    """games: random ones of each kind."""

    methods: tuple[str, ...]
    games: int
    updates: int


SIZES = {
    "smoke": Size(TRUST_REGION[:2], 1, 2),
    "quick": Size(TRUST_REGION, 24, 60),
    "full": Size(TRUST_REGION, 200, 300),
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
        Piece(method, seconds, settings | {"method": method}, lambda method=method: play(method, chosen))
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


def play(method: str, size: Size) -> study.Values:
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
    regret = {method: results.pieces[method]["regret"][..., 1] for method in size.methods}
    rows = [
        [kind, label(method), *(_cell(regret, method, index, budget) for budget in range(len(BUDGETS)))]
        for index, kind in enumerate(KINDS)
        for method in size.methods
    ]
    tables = {"regret": study.table(["games", "method", *(f"joint KL budget {b:g}" for b in BUDGETS)], rows)}
    return Report(tables, {"regret": _figure(regret, size)})


def _cell(regret: dict, method: str, kind: int, budget: int) -> str:
    """HATRPO's regret, or the difference from it, game by game."""
    own, equal = (regret[name][kind, budget] for name in (method, "hatrpo"))
    if method == "hatrpo":
        return f"{equal.mean():.2f}"
    return estimate(own - equal, np.mean).text(sign="+")


def _figure(regret: dict, size: Size) -> Figure:
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    panels = figure.subplots(1, len(KINDS))
    for kind, axes in enumerate(panels):
        styles.budget_axis(axes, BUDGETS)
        for place, method in enumerate(size.methods):
            found = [estimate(of_budget, np.mean) for of_budget in regret[method][kind]]
            styles.error_bars(axes, BUDGETS, found, place - 1.5, **styles.point_style(method))
        axes.set_title(KINDS[kind], fontsize=10, loc="left")
        axes.set_ylim(bottom=0)
        styles.clean(axes)
    panels[0].set_ylabel("total regret at the end")
    styles.legend_below(figure, panels[:1])
    return figure


STUDY = study.Study("mixed_motives", "Mixed motives: agents with different goals", pieces, report)


if __name__ == "__main__":
    study.main(STUDY)
