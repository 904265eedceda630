"""Multi-agent Brax: nine algorithms, the allocation of the KL budget, and whether a better critic gains as much.

python -m experiments.brax_suite --quick
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import envs
import marl_kl
from envs.base import Env
from experiments import brax_figures, device_pace, settings, study
from experiments.brax_figures import ByScenario
from experiments.brax_scores import Scores, beats, only, overall, scored, variance_ratio
from experiments.intervals import Estimate, estimate, ratio
from experiments.leaders import leading, normalised
from experiments.study import Piece, Report, Results
from experiments.styles import ADAPTIVE, FIRST_ORDER, TRUST_REGION, label
from marl_kl.analysis.statistics import interquartile_mean
from marl_kl.core import evaluation
from marl_kl.training import presets

PRESET = "quick"
"""Of everything that is not searched; it was chosen with hatrpo and happo on ant_4x2."""

THRESHOLDS = (0.005, 0.015, 0.045)
"""KL budget per agent: searched with hatrpo, for all trust-region methods. The joint budget is the number of agents
times the best one: budgets must be equal, and a search with the baseline can only favour the baseline."""
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
"""actor_lr: searched with every first-order method."""
SEARCH_SEEDS = (100, 101)
CRITIC = "hatrpo_critic"
CRITIC_EPOCHS = 15
"""`CRITIC` is hatrpo with three times as many critic epochs."""

SHOWN = 40
"""Points of a curve, at most."""


class Size(NamedTuple):
    """scenarios: env steps per seed of each; the search takes half of them. seeds: as many as the search has runs, so
    that both are one program. is_long: whether a piece takes so long that it must be resumable inside."""

    scenarios: Mapping[str, int]
    seeds: int
    num_envs: int
    rollout_length: int
    methods: tuple[str, ...]
    is_long: bool = False


_ALL = TRUST_REGION + FIRST_ORDER + ("ippo", "maspo", "mars")
_QUICK = {"ant_4x2": 120_000, "walker2d_3x2": 80_000, "halfcheetah_6x1": 80_000, "humanoid_17x1": 60_000}
SIZES = {
    # no body, whose compilation would take most of the time
    "smoke": Size({"bilinear": 96}, 6, 2, 16, ("hatrpo", "hatrpo_w")),
    "quick": Size(_QUICK, 6, 16, 128, _ALL),
    # a GPU wants many environments and short rollouts
    "full": Size(dict.fromkeys(presets.get(PRESET).scenarios, 3_000_000), 6, 256, 32, _ALL, is_long=True),
}

_TRAINING = {
    "ant": 21_000, "halfcheetah": 10_500, "humanoid": 5_800, "humanoidstandup": 2_000, "manyagent": 6_000,
    "walker2d": 15_500,
}  # fmt: skip
"""Env steps per second of six teams trained in parallel on two quiet CPU cores; for humanoidstandup and the swimmer
estimated from their bare stepping (benchmarks/results/bodies.json)."""


def is_trust_region(method: str) -> bool:
    return method in TRUST_REGION or method == CRITIC


def is_searched(method: str) -> bool:
    """Whether it has its own search; the other trust-region methods use hatrpo's result."""
    return method == "hatrpo" or not is_trust_region(method)


def tried(method: str) -> tuple[float, ...]:
    """The values that are tried for a method."""
    return THRESHOLDS if is_trust_region(method) else LEARNING_RATES


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    folder = study.WORK / f"brax_suite-{size}" / "sweeps" if chosen.is_long else None
    found = []
    for scenario, env_steps in chosen.scenarios.items():
        found.append(
            Piece(
                f"{scenario}-untrained", 30.0, _settings(scenario, "hatrpo", chosen, with_training=False),
                lambda scenario=scenario: begin(scenario, chosen),
            )
        )  # fmt: skip
        for method in (*chosen.methods, CRITIC):
            found.append(
                Piece(
                    f"{scenario}-{method}", _seconds(scenario, method, env_steps * chosen.seeds),
                    _settings(scenario, method, chosen),
                    lambda *of_hatrpo, scenario=scenario, method=method: play(
                        scenario, method, chosen, *of_hatrpo, folder=folder
                    ),
                    needs=() if is_searched(method) else (f"{scenario}-hatrpo",),
                )
            )  # fmt: skip
    return found


def _settings(scenario: str, method: str, size: Size, with_training: bool = True) -> dict[str, Any]:
    """Everything that the numbers of a piece depend on; fewer settings for untrained policies."""
    config = _config(scenario, method, size)
    fields = settings.of_config(config, _algorithm(method))
    facts = dict(make_env(scenario).spec.metadata)
    facts.pop("partition", None)  # the scenario's name says it
    common = {"scenario": scenario, **facts, "seeds": size.seeds}
    if not with_training:
        kept = ("eval_episodes", "hidden_sizes", "activation", "init_std", "squash", "recurrent")
        return common | {name: fields[name] for name in kept}
    return common | {
        "method": method, "algorithm": _algorithm(method), "tried": list(tried(method)),
        "search_seeds": list(SEARCH_SEEDS), "search_env_steps": _search_env_steps(config), "shown": SHOWN, **fields,
    }  # fmt: skip


@functools.cache
def make_env(scenario: str) -> Env:
    return envs.make(scenario)


def _body(scenario: str) -> str:
    return scenario.split("_")[0]


def _seconds(scenario: str, method: str, env_steps: int) -> float:
    """On two quiet CPU cores."""
    work = 1.5 if is_searched(method) else 1.0
    return device_pace.COMPILE + work * env_steps / _TRAINING.get(_body(scenario), 1e5)


def pace(size: str) -> float:
    """Speed of this device as a multiple of two quiet CPU cores, compilation included."""
    chosen = SIZES[size]
    if not any(_body(scenario) in _TRAINING for scenario in chosen.scenarios):
        return 1.0
    return device_pace.relative_pace([piece.seconds for piece in pieces(size)], chosen.seeds, chosen.num_envs)


# Training


def _config(scenario: str, method: str, size: Size) -> marl_kl.Config:
    known = scenario if scenario in presets.get(PRESET).scenarios else "ant_4x2"  # its env steps are replaced
    changes = {"critic_epochs": CRITIC_EPOCHS} if method == CRITIC else {}
    changes |= settings.published(_algorithm(method))
    return presets.config(
        PRESET, known, _algorithm(method), total_env_steps=size.scenarios[scenario], num_envs=size.num_envs,
        rollout_length=size.rollout_length, eval_episodes=min(16, size.num_envs), eval_interval=0, **changes,
    )  # fmt: skip


def _algorithm(method: str) -> str:
    return "hatrpo" if method == CRITIC else method


def _search_env_steps(config: marl_kl.Config) -> int:
    return config.total_env_steps // 2


def begin(scenario: str, size: Size) -> study.Values:
    """Teams before the first update, the same for all methods.

    Returns:
        returns: [seed] of the stochastic policy, mean over `eval_episodes` whole episodes. The episodes that end during
        the first update are biased: the short ones end first, and on some bodies none does.
    """
    env, config, seeds = make_env(scenario), _config(scenario, "hatrpo", size), range(size.seeds)
    train = marl_kl.make_train(env, "hatrpo", config)
    keys = jax.vmap(jax.random.key)(np.arange(size.seeds, dtype=np.uint32))
    learner = jax.jit(jax.vmap(lambda key: train.init(key).learner))(keys)
    episodes = evaluation.evaluate_again(env, config, seeds, 0, learner, stochastic=True)
    return {"returns": np.asarray(episodes.episode_return, np.float64).mean(-1)}


def last_tenth(returns: np.ndarray) -> np.ndarray:
    """[..., update] -> [...]: mean over the last tenth of the updates, of what is not NaN."""
    return np.nanmean(returns[..., -max(1, returns.shape[-1] // 10) :], axis=-1)


def play(
    scenario: str, method: str, size: Size, of_hatrpo: study.Values | None = None, folder: Path | None = None
) -> study.Values:
    """Searches, unless hatrpo's search serves the method too, and trains on other seeds with the best value.

    Args:
        of_hatrpo: the results of hatrpo on the scenario, for methods without a search.
        folder: where runs are stored until the piece is done; None stores nothing.

    Returns:
        trials: [trial, seed] return of the stochastic policy at the end of the search; empty without a search. chosen: KL
        budget per agent, or actor_lr. env_steps: [P]. returns: [seed, P] of the stochastic policy. final: [seed] its mean
        over the last tenth of the updates. untrained, trained: [seed] of the deterministic policy. explained_variance:
        [seed] of the critic, mean over updates.
        Trust-region methods also: spent: [seed] share of the budget spent, mean over updates. Those that allocate the
        budget unequally also `shares`.
    """
    env = make_env(scenario)
    config = _config(scenario, method, size)
    swept, scale = ("kl_budget", env.spec.num_agents) if is_trust_region(method) else ("actor_lr", 1)

    def train(name: str, values: Sequence[float], seeds, config) -> marl_kl.SweepResult:
        grid = {swept: [scale * value for value in values]}
        out = folder and folder / f"{scenario}-{method}-{name}"
        return marl_kl.sweep(
            env, _algorithm(method), grid=grid, seeds=seeds, config=config, out=out, resume=out is not None,
            progress="none",
        )  # fmt: skip

    if of_hatrpo is None:
        half = config.replace(total_env_steps=_search_env_steps(config))
        trials = last_tenth(train("search", tried(method), SEARCH_SEEDS, half).metrics["episode_return"])
        chosen = tried(method)[int(np.argmax(trials.mean(1)))]
    else:
        trials, chosen = np.empty((0, len(SEARCH_SEEDS))), of_hatrpo["chosen"].item()
    result = train("runs", [chosen], size.seeds, config)
    for name in ("search", "runs") if folder else ():
        shutil.rmtree(folder / f"{scenario}-{method}-{name}", ignore_errors=True)
    metrics = {name: values[0] for name, values in result.metrics.items()}
    edges = np.unique(np.linspace(0, result.env_steps.shape[1], SHOWN + 1).astype(int))
    values = {
        "trials": trials,
        "chosen": np.array(chosen),
        "env_steps": result.env_steps[0, edges[1:] - 1],
        "returns": binned(metrics["episode_return"], edges),
        "final": last_tenth(metrics["episode_return"]),
        "untrained": result.untrained.episode_return[0].mean(-1),
        "trained": result.final.episode_return[0].mean(-1),
        "explained_variance": metrics["explained_variance"].mean(1),
    }
    if not is_trust_region(method):
        return values
    values["spent"] = (metrics["kl_total"] / (scale * chosen)).mean(1)
    if method not in ADAPTIVE:
        return values
    return values | shares(metrics["utility"], metrics["kl_threshold"], metrics["kl"], edges)


def binned(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[seed, update, ...] -> [seed, bin, ...] means of what is not NaN; NaN where all is."""
    slices = [values[:, begin:end] for begin, end in zip(edges[:-1], edges[1:])]
    present = [np.isfinite(part).sum(axis=1) for part in slices]
    sums = [np.nansum(part, axis=1) for part in slices]
    return np.stack([np.where(n, s / np.maximum(n, 1), np.nan) for n, s in zip(present, sums)], axis=1)


def shares(utility: np.ndarray, threshold: np.ndarray, kl: np.ndarray, edges: np.ndarray) -> study.Values:
    """How the budget is allocated, and whether the shares follow the utilities.

    An agent's share is its threshold over the sum of all agents' thresholds in that update.

    Args:
        utility, threshold, kl: [seed, update, agent]. edges: of the bins of updates.

    Returns:
        share: [bin, agent] mean over seeds. largest: [seed] the largest share, mean over updates. correlation: [seed]
        Pearson's, over updates and agents, between an agent's part of the team's utility and its share;
        correlation_spent: with its part of the KL spent; NaN where one of both never changes. led: [agent] how often it
        had the largest share, mean over seeds. stays: [seed] how often the agent with the largest share has it again in
        the next update; by_chance: [seed] how often it would if the same updates came in random order.
    """
    part, share, spent = map(normalised, (utility, threshold, kl))
    leaders = leading(share)
    return {
        "share": binned(share, edges).mean(0),
        "largest": share.max(-1).mean(1),
        "correlation": np.array([_correlation(p.ravel(), s.ravel()) for p, s in zip(part, share)]),
        "correlation_spent": np.array([_correlation(p.ravel(), s.ravel()) for p, s in zip(part, spent)]),
        "led": leaders.counts.mean(0) / share.shape[1],
        "stays": leaders.stays,
        "by_chance": leaders.by_chance,
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    is_constant = np.ptp(x) < 1e-6 or np.ptp(y) < 1e-6
    return math.nan if is_constant else float(np.corrcoef(x, y)[0, 1])


# What is shown


def report(results: Results) -> Report:
    size = SIZES[results.size]
    methods = (*size.methods, CRITIC)
    by_scenario = {s: {m: results.pieces[f"{s}-{m}"] for m in methods} for s in size.scenarios}
    began = {s: float(results.pieces[f"{s}-untrained"]["returns"].mean()) for s in size.scenarios}
    scores = {method: scored(by_scenario, began, method) for method in methods}
    adaptive = [method for method in size.methods if method in ADAPTIVE]
    agents = {scenario: make_env(scenario).spec.agents for scenario in by_scenario}
    tables = {
        "ratios": _by_scenario_table(by_scenario, {label(m): _final_ratio(m) for m in (*adaptive, CRITIC)}),
        "returns": _returns_table(by_scenario, began, scores),
        "improvement": study.table(
            ["P(a run of the first ends above one of the second)", "estimate"],
            [[f"{label(x)}, {label(y)}", beats(scores[x], scores[y]).text()] for x, y in _pairs(methods)],
        ),
        "variance": _variance_table(scores, list(by_scenario)),
        "correlation": _by_scenario_table(
            by_scenario,
            {
                f"{label(m)}, share {of}": _over_seeds(m, name)
                for m in adaptive
                for of, name in (("of the thresholds", "correlation"), ("of the KL spent", "correlation_spent"))
            },
        ),
        "leaders": _by_scenario_table(
            by_scenario,
            {
                f"{label(m)}, {title}": _leading(m, *columns)
                for m in adaptive
                for title, columns in (
                    ("two random updates − chance", ("by_chance", None)),
                    ("next update − two random ones", ("stays", "by_chance")),
                )
            },
        ),
        "shares": study.table(
            ["scenario (equal share)", *(label(m) for m in methods if is_trust_region(m))],
            [
                [
                    f"{s} ({100 / len(agents[s]):.0f} %)",
                    *(_shares_cell(values[m], agents[s]) for m in methods if is_trust_region(m)),
                ]
                for s, values in by_scenario.items()
            ],
        ),
        "search": _by_scenario_table(by_scenario, {label(m): _chosen(m) for m in size.methods if is_searched(m)}),
        "critic": _by_scenario_table(
            by_scenario,
            {
                f"{epochs} epochs": lambda values, m=m: f"{values[m]['explained_variance'].mean():.2f}"
                for epochs, m in ((5, "hatrpo"), (CRITIC_EPOCHS, CRITIC))
            },
        ),
    }
    figures = {
        "curves": brax_figures.curves(by_scenario, began, size.methods),
        "overall": brax_figures.all_together(scores, size.methods),
        "improvement": brax_figures.improvement(scores, size.methods),
        "shares": brax_figures.heat_maps(by_scenario, agents, adaptive),
    }
    return Report(tables, figures)


Cell = Callable[[Mapping[str, study.Values]], str]
"""method -> what `play` returns, of one scenario; the text of a cell."""


def _by_scenario_table(by_scenario: ByScenario, rows: Mapping[str, Cell]) -> str:
    body = [[name, *map(cell, by_scenario.values())] for name, cell in rows.items()]
    return study.table(["", *by_scenario], body)


def final_ratio(values: Mapping[str, study.Values], method: str) -> Estimate:
    """Final return over HATRPO's on one scenario."""
    return ratio(values[method]["final"], values["hatrpo"]["final"])


def _final_ratio(method: str) -> Cell:
    return lambda values: final_ratio(values, method).text()


def _over_seeds(method: str, name: str) -> Cell:
    def cell(values):
        known = values[method][name][np.isfinite(values[method][name])]
        return estimate(known).text() if len(known) else "–"

    return cell


def _leading(method: str, name: str, minus: str | None) -> Cell:
    """The difference of two frequencies in points; None: what it would be if all agents led equally often."""

    def cell(values):
        own = values[method]
        if np.isnan(own["correlation"]).all():
            return "–"
        difference = own[name] - (1 / own["share"].shape[1] if minus is None else own[minus])
        return estimate(100 * difference[np.isfinite(difference)]).text(0, sign="+")

    return cell


def _chosen(method: str) -> Cell:
    """The value that the search found; † at an end of the grid."""

    def cell(values):
        chosen = values[method]["chosen"].item()
        return f"{chosen:g}" + " †" * (chosen in (tried(method)[0], tried(method)[-1]))

    return cell


def _returns_table(by_scenario: ByScenario, began: Mapping[str, float], scores: Mapping[str, Scores]) -> str:
    rows = []
    for name, values in by_scenario.items():
        cells = [
            f"{estimate(values[m]['final']).text(0)} ({interquartile_mean(values[m]['trained']):.0f})" for m in scores
        ]
        untrained = np.mean([v["untrained"].mean() for v in values.values()])
        steps = int(values["hatrpo"]["env_steps"][-1])
        rows.append([f"{name} ({steps:,})", f"{began[name]:.0f} ({untrained:.0f})", *cells])
    rows.append(["all, normalised", "0", *(overall(s).text() for s in scores.values())])
    return study.table(["scenario (env steps per seed)", "untrained", *map(label, scores)], rows)


def _pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Every method against HATRPO, and the pairs of Kuba et al. 2022."""
    of_paper = [("hatrpo", "mappo"), ("happo", "mappo"), ("hatrpo", "happo")]
    known = [pair for pair in of_paper if set(pair) <= set(methods)]
    return [*((method, "hatrpo") for method in methods if method != "hatrpo"), *known]


def _variance_table(scores: Mapping[str, Scores], scenarios: Sequence[str]) -> str:
    """Variance over seeds of HATRPO-G over that of HATRPO-W."""
    if not {"hatrpo_w", "hatrpo_g"} <= set(scores):
        return study.table(["HATRPO-G / HATRPO-W"], [])
    g, w = scores["hatrpo_g"], scores["hatrpo_w"]
    each = [variance_ratio(only(g, i), only(w, i)).text() for i in range(len(scenarios))]
    return study.table(
        ["", *scenarios, "geometric mean"], [["HATRPO-G / HATRPO-W", *each, variance_ratio(g, w).text()]]
    )


def _shares_cell(values: study.Values, agents: Sequence[str]) -> str:
    spent = f"{100 * values['spent'].mean():.0f} %"
    if "led" not in values:
        return spent
    spent += f"; {100 * values['largest'].mean():.0f} %"
    if np.isnan(values["correlation"]).all():
        return spent
    first = int(values["led"].argmax())
    return (
        f"{spent}; {agents[first]} {100 * values['led'][first]:.0f} %; {100 * values['stays'].mean():.0f} % "
        f"({100 * values['by_chance'].mean():.0f} %)"
    )


STUDY = study.Study("brax_suite", "Multi-agent Brax", pieces, report, pace)


if __name__ == "__main__":
    # the search and the runs with what it found are one program
    jax.config.update("jax_compilation_cache_dir", str(study.WORK / "compiled"))
    study.main(STUDY)
