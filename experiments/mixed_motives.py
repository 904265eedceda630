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

import envs
from experiments import stage_games, study
from experiments.study import NOT_SEEN, PARTLY, Piece, Report, Results, Row

NUM_AGENTS = 4
NUM_ACTIONS = 3
BATCH = 256
BUDGETS = (0.16, 2.56)
KINDS = ("two teams with opposed rewards", "half of the reward shared, half one's own")


class Size(NamedTuple):
    """games: random ones of each kind."""

    methods: tuple[str, ...]
    games: int
    updates: int


SIZES = {
    "smoke": Size(study.TRUST_REGION[:2], 1, 2),
    "quick": Size(study.TRUST_REGION, 16, 60),
    "full": Size(study.TRUST_REGION, 200, 300),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    settings = {"games": chosen.games, "updates": chosen.updates, "budgets": list(BUDGETS), "batch": BATCH}
    seconds = 12 * max(0.3, chosen.games * chosen.updates / 960)
    return [
        Piece(method, seconds, settings, lambda method=method: play_for_themselves(method, chosen))
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
    """One method in all games, at both budgets.

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
    rows = [_row(results, method, kind) for kind in range(len(KINDS)) for method in adaptive]
    text = (
        f"Settings: {NUM_AGENTS} agents with {NUM_ACTIONS} actions, {size.games} random games of each kind, batches of "
        f"{BATCH}, {size.updates} updates. *Regret* is what all agents together could gain, each by deviating alone: the "
        "mean over the last ten updates. Nothing is searched."
    )
    return Report(rows, {}, text)


def _row(results: Results, method: str, kind: int) -> Row:
    own, equal = (results.pieces[name]["regret"][kind, ..., 1] for name in (method, "hatrpo"))
    found = [study.estimate(o - e, np.mean) for o, e in zip(own, equal)]
    verdict = study.counted([study.judged(study.Estimate(-f.value, -f.high, -f.low), 0.1, 0.0) for f in found])
    reasons = {
        NOT_SEEN: "Opponents chase each other: a joint budget moves it to whoever is just being exploited, which does "
        "not end the chase." if kind == 0 else "Each agent climbs its own reward; the budget decides who climbs "
        "first, not where to.",
        PARTLY: "At one of the two budgets only, or by less than that; see the numbers.",
    }  # fmt: skip
    farther = "On the contrary: it ends farther away at one budget at least. " if any(f.low > 0 for f in found) else ""
    return Row(
        f"{KINDS[kind][0].upper()}{KINDS[kind][1:]}: {study.LABELS[method]} ends nearer to a Nash equilibrium than "
        "equal shares (total regret at least 0.1 lower)",
        "difference in regret: " + ", ".join(f"{f.value:+.2f} at {b:g}" for f, b in zip(found, BUDGETS))
        + f" (equal shares: {', '.join(f'{e.mean():.2f}' for e in equal)})",
        "; ".join(f.interval() for f in found),
        verdict,
        farther + study.because(verdict, reasons),
    )  # fmt: skip


STUDY = study.Study(
    "mixed_motives",
    "Mixed motives: agents with different goals",
    "What does a joint budget do to agents that want different things?",
    pieces,
    report,
)


if __name__ == "__main__":
    study.main(STUDY)
