"""Proposition 1: what does one policy for all agents cost in a game that needs two kinds of behaviour?

python -m experiments.parameter_sharing --quick
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import envs
from experiments import stage_games, study
from experiments.study import HOLDS, NOT_SEEN, PARTLY, Piece, Report, Results, Row

BATCH = 256
BUDGETS = (0.04, 0.12, 0.4, 1.2)
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
SEARCH_SEEDS = 3
REACHED = 0.99
"""Of the optimum, 1."""


class Method(NamedTuple):
    """A way to train the team; `shared` and `ids` as in the config of MAPPO."""

    name: str
    label: str
    algorithm: str
    shared: bool = False
    ids: bool = False


SHARED = Method("shared", "one network (MAPPO)", "mappo", shared=True)
METHODS = (
    SHARED,
    Method("ids", "one network told who it acts for (MAPPO)", "mappo", shared=True, ids=True),
    Method("mappo", "separate (MAPPO)", "mappo"),
    Method("hatrpo", "separate (HATRPO)", "hatrpo"),
    Method("hatrpo_n", "separate (HATRPO-N)", "hatrpo_n"),
)
_STYLES = {
    "shared": {"color": "#332288", "marker": "X"}, "ids": {"color": "#999933", "marker": "*"},
    **{name: {"color": study.COLOURS[name], "marker": study.MARKERS[name]} for name in ("mappo", "hatrpo", "hatrpo_n")},
}  # fmt: skip


class Size(NamedTuple):
    """seeds: of the trial that the search chose."""

    agents: tuple[int, ...]
    methods: tuple[Method, ...]
    seeds: int
    updates: int


SIZES = {
    "smoke": Size((2,), METHODS[:1], 1, 2),
    "quick": Size((2, 4, 6, 8, 10), (SHARED, *METHODS[2:]), 40, 80),
    "full": Size((2, 4, 6, 8, 10, 12), METHODS, 50, 600),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    runs = len(BUDGETS) * SEARCH_SEEDS + chosen.seeds
    return [
        Piece(
            f"{method.name}-{n}",
            20 + runs * chosen.updates * n / 4000,
            {"agents": n, "method": list(method), "seeds": chosen.seeds, "updates": chosen.updates, "batch": BATCH,
             "searched": list(searched(method)[1]), "search_seeds": SEARCH_SEEDS},
            lambda method=method, n=n: play(method, n, chosen),
        )
        for n in chosen.agents
        for method in chosen.methods
    ]  # fmt: skip


def searched(method: Method) -> tuple[str, tuple[float, ...]]:
    """The field that is searched over and its values: as many for every method."""
    return ("kl_budget", BUDGETS) if method.algorithm in study.TRUST_REGION else ("actor_lr", LEARNING_RATES)


def play(method: Method, num_agents: int, size: Size) -> study.Values:
    """Search on `SEARCH_SEEDS` seeds, then the trial with the highest mean of last values on others.

    Returns:
        search: [trial, search seed, 2], value: [seed, 2], exact expected payoff: the highest during the run, and the
        last. chosen: [] index of the trial.
    """
    fields = {"share_parameters": True, "agent_ids": method.ids} if method.shared else {}
    config = stage_games.game_config(method.algorithm, BATCH, **fields)
    env = envs.make("parameter_sharing", num_agents=num_agents)

    def record(policy, params, metrics):
        return {"value": expected(stage_games.probabilities(policy))}

    def learned(values, seeds) -> np.ndarray:
        """[trial, seed, 2]."""
        runs = stage_games.combinations(**{name: values}, seed=seeds)
        of_runs = runs.pop("seed")
        value = stage_games.learn(env, method.algorithm, config, runs, of_runs, size.updates, record)["value"]
        value = value.reshape(len(values), len(seeds), size.updates)
        return np.stack([value.max(-1), value[..., -1]], -1)

    name, trials = searched(method)
    search = learned(trials, np.arange(SEARCH_SEEDS))
    chosen = int(np.argmax(search[..., 1].mean(1)))
    value = learned(trials[chosen : chosen + 1], SEARCH_SEEDS + np.arange(size.seeds))[0]
    return {"search": search, "value": value, "chosen": np.array(chosen)}


def expected(probability) -> jnp.ndarray:
    """[] expected payoff of `envs.parameter_sharing` for policies [N, 2]: the halves play (0, 1) or (1, 0)."""
    half = len(probability) // 2
    first, second = probability[:half], probability[half:]
    return sum(jnp.prod(first[:, a]) * jnp.prod(second[:, 1 - a]) for a in (0, 1))


def bound(num_agents: int) -> float:
    """The best policy shared by all: 2 / 2^n (Kuba et al. 2022, Proposition 1)."""
    return 2 / 2**num_agents


# What is shown


def last_values(results: Results, method: Method, n: int) -> np.ndarray:
    """[seed]."""
    return results.pieces[f"{method.name}-{n}"]["value"][:, 1]


def report(results: Results) -> Report:
    size = SIZES[results.size]
    rows = [_bound_row(results, size)]
    rows += [_separate_row(results, size, method) for method in size.methods if method != SHARED]
    figures = {
        "price": (_figure(results, size), "Expected payoff after training, each method at the trial chosen on the "
                  "search seeds: IQM over seeds and its 95 % interval; grey: the bound of Proposition 1."),
    }  # fmt: skip
    return Report(rows, figures, _text(results, size))


def _bound_row(results: Results, size: Size) -> Row:
    shared = {n: results.pieces[f"{SHARED.name}-{n}"] for n in size.agents}
    highest = {n: max(p["search"][..., 0].max(), p["value"][:, 0].max()) / bound(n) for n, p in shared.items()}
    last = {n: study.estimate(last_values(results, SHARED, n) / bound(n)) for n in size.agents}
    verdict = HOLDS if max(highest.values()) <= 1 + 1e-4 else NOT_SEEN
    reasons = {
        HOLDS: "A theorem, confirmed. The untrained team, which plays at random, is already there; learning keeps it.",
        NOT_SEEN: f"A theorem, so the fault is here. Tried: {size.updates} updates of {BATCH} samples.",
    }
    return Row(
        "A policy shared by all agents earns at most 2/2ⁿ of the optimum (Kuba et al. 2022, Proposition 1)",
        "largest value in any update of any run, over the bound: "
        + ", ".join(f"{value:.3f} (n = {n})" for n, value in highest.items()),
        "after training, over the bound: " + ", ".join(f"{f.text()}" for f in last.values()),
        verdict,
        study.because(verdict, reasons),
    )


def _separate_row(results: Results, size: Size, method: Method) -> Row:
    last = {n: last_values(results, method, n) for n in size.agents}
    found = {n: study.proportion(values >= REACHED) for n, values in last.items()}
    verdict = study.counted([study.judged(f, 0.9, 0.0) for f in found.values()])
    tried = f" Tried: {len(BUDGETS)} trials on {SEARCH_SEEDS} seeds, {size.updates} updates of {BATCH} samples."
    reasons = {
        NOT_SEEN: "At random the pay is met 2/2ⁿ of the time, too seldom for these batches." + tried,
        PARTLY: "Only as long as the pay is met in the first batches: at random it is met 2/2ⁿ of the time. The "
        "optimum is there to be learned, but not always found in this time." + tried,
        HOLDS: "As soon as one of the two rewarded joint actions is met more often, separate networks run to it.",
    }
    return Row(
        f"{method.label[0].upper()}{method.label[1:]} reaches the optimum of the same games ({REACHED:g} of it, in "
        "nine runs of ten)",
        f"runs that do, of {size.seeds}: " + ", ".join(f"{f.number(0, True)} (n = {n})" for n, f in found.items())
        + "; lowest payoff after training: " + ", ".join(f"{values.min():.2f}" for values in last.values()),
        "; ".join(f"{f.interval(0, True)} %" for f in found.values()),
        verdict,
        study.because(verdict, reasons),
    )  # fmt: skip


def _figure(results: Results, size: Size) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    dense = np.linspace(min(size.agents) - 0.4, max(size.agents) + 0.4, 50)
    axes.plot(dense, 2 / 2**dense, color="0.6", linewidth=4, alpha=0.6, label="2/2ⁿ, the bound on one policy for all")
    for place, method in enumerate(size.methods):
        found = [study.estimate(last_values(results, method, n)) for n in size.agents]
        middle = np.array([f.value for f in found])
        around = [middle - [f.low for f in found], [f.high for f in found] - middle]
        x = np.asarray(size.agents) + (0.14 * (place - 2) if method != SHARED else 0.0)
        axes.errorbar(
            x, middle, np.maximum(around, 0), linewidth=1.2, markersize=6, label=method.label, **_STYLES[method.name]
        )
    axes.set_yscale("log")
    axes.set_xticks(size.agents)
    axes.set_xlabel("agents n")
    axes.set_ylabel("expected payoff (optimum: 1)")
    study.strip(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


def _text(results: Results, size: Size) -> str:
    return (
        f"Settings: batches of {BATCH}, {size.updates} updates, one hidden layer of 8, {size.seeds} seeds. Search, 4 "
        f"trials for all: step size {list(LEARNING_RATES)} (MAPPO), joint KL budget {list(BUDGETS)} (HATRPO and its "
        f"relatives), chosen on {SEARCH_SEEDS} other seeds. Payoffs are computed from the policies, not sampled."
    )


STUDY = study.Study(
    "parameter_sharing",
    "Proposition 1: the price of one policy for all",
    "Half of the agents must play one action and the other half the other. What do teams earn that share one network, "
    "and teams that do not?",
    pieces,
    report,
)


if __name__ == "__main__":
    study.main(STUDY)
