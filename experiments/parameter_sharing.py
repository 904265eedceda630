"""Proposition 1: what does one policy for all agents cost in a game that needs two kinds of behaviour?

python -m experiments.parameter_sharing --quick
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import envs
from experiments import stage_games, study, styles
from experiments.intervals import estimate, proportion
from experiments.study import Piece, Report, Results
from experiments.styles import TRUST_REGION

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
    Method("ids", "one network with agent ids (MAPPO)", "mappo", shared=True, ids=True),
    Method("mappo", "separate (MAPPO)", "mappo"),
    Method("hatrpo", "separate (HATRPO)", "hatrpo"),
    Method("hatrpo_n", "separate (HATRPO-N)", "hatrpo_n"),
)
_LOOKS = {"shared": {"color": "#332288", "marker": "X"}, "ids": {"color": "#999933", "marker": "*"}}
"""Of the methods that are not an algorithm with its usual networks."""


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
    return ("kl_budget", BUDGETS) if method.algorithm in TRUST_REGION else ("actor_lr", LEARNING_RATES)


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
    separate = [method for method in size.methods if method != SHARED]
    tables = {
        "bound": study.table(
            ["agents n", "bound 2/2ⁿ", "highest value of any update of any run / bound", "after training / bound"],
            [_bound_row(results, n) for n in size.agents],
        ),
        "separate": study.table(
            ["agents n", *(method.label for method in separate)],
            [[str(n), *(_separate_cell(last_values(results, m, n)) for m in separate)] for n in size.agents],
        ),
    }
    return Report(tables, {"price": _figure(results, size)})


def _bound_row(results: Results, n: int) -> list[str]:
    shared = results.pieces[f"{SHARED.name}-{n}"]
    highest = max(shared["search"][..., 0].max(), shared["value"][:, 0].max())
    after = estimate(last_values(results, SHARED, n) / bound(n))
    return [str(n), f"{bound(n):.3g}", f"{highest / bound(n):.3f}", after.text()]


def _separate_cell(values: np.ndarray) -> str:
    return f"{proportion(values >= REACHED).text(0, percent=True)}; {values.min():.2f}"


def _figure(results: Results, size: Size) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    dense = np.linspace(min(size.agents) - 0.4, max(size.agents) + 0.4, 50)
    axes.plot(dense, 2 / 2**dense, color="0.6", linewidth=4, alpha=0.6, label="2/2ⁿ, the bound on one policy for all")
    for place, method in enumerate(size.methods):
        found = [estimate(last_values(results, method, n)) for n in size.agents]
        shift = 0 if method == SHARED else 1.5 * (place - 2)
        look = _LOOKS.get(method.name) or styles.point_style(method.name)
        styles.error_bars(axes, size.agents, found, shift, **look | {"label": method.label, "markersize": 6})
    axes.set_yscale("log")
    axes.set_xticks(size.agents)
    axes.set_xlabel("agents n")
    axes.set_ylabel("expected payoff (optimum: 1)")
    styles.clean(axes)
    styles.legend_below(figure, [axes], 2, fontsize=8.5)
    return figure


STUDY = study.Study("parameter_sharing", "Proposition 1: the price of one policy for all", pieces, report)


if __name__ == "__main__":
    study.main(STUDY)
