"""Multi-agent Brax: nine algorithms beside each other, who is given the KL budget, and whether a better critic does it.

python -m experiments.brax_suite --quick
"""

from __future__ import annotations

import functools
import math
import time
from typing import Mapping, NamedTuple, Sequence

import jax
import numpy as np
from matplotlib.figure import Figure

import envs
import marl_kl
from envs.types import Env
from experiments import study
from experiments.study import HOLDS, NOT_SEEN, PARTLY, Estimate, Piece, Report, Results, Row
from marl_kl import presets
from marl_kl.statistics import (
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

PRESET = "quick"
"""Of everything that is not searched; it was chosen with hatrpo and happo on ant_4x2."""

THRESHOLDS = (0.005, 0.015, 0.045)
"""KL budget per agent: what is tried with hatrpo, for all trust-region methods. The joint budget is the number of
agents times the one found: budgets must be equal, and a search with the baseline favours the baseline if anyone."""
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
"""actor_lr: what is tried with every first-order method."""
SEARCH_SEEDS = (100, 101)
CRITIC = "hatrpo_critic"
CRITIC_EPOCHS = 15
"""`CRITIC` is hatrpo whose critic makes three times as many passes over each batch as everybody's."""

SHOWN = 40
"""Points of a curve, at most."""


class Size(NamedTuple):
    """scenarios: env steps per seed of each; the search takes half of them. seeds: as many as the search has runs, so
    that both are one program."""

    scenarios: Mapping[str, int]
    seeds: int
    num_envs: int
    rollout_length: int
    methods: tuple[str, ...]


_ALL = study.TRUST_REGION + study.FIRST_ORDER + ("ippo", "maspo", "mars")
_QUICK = {"ant_4x2": 120_000, "walker2d_3x2": 80_000, "halfcheetah_6x1": 80_000, "humanoid_17x1": 60_000}
SIZES = {
    # no body, whose compilation would take most of the time
    "smoke": Size({"bilinear": 96}, 6, 2, 16, ("hatrpo", "hatrpo_w")),
    "quick": Size(_QUICK, 6, 16, 128, _ALL),
    "full": Size(dict.fromkeys(presets.get(PRESET).scenarios, 10_000_000), 12, 64, 128, _ALL),
}

_BARE = {
    "ant": 21_366, "halfcheetah": 9_060, "humanoid": 13_282, "humanoidstandup": 3_598, "manyagent": 9_525,
    "walker2d": 12_610,
}  # fmt: skip
"""Bare env steps per second on two CPU cores (benchmarks/results/bodies.json)."""
_TRAINING = 0.7
"""Share of the bare pace at which training goes, evaluation included."""
_COMPILE = 50.0


def is_trust_region(method: str) -> bool:
    return method in study.TRUST_REGION or method == CRITIC


def is_searched(method: str) -> bool:
    """Whether it has a search of its own; other trust-region methods take what hatrpo has found."""
    return method == "hatrpo" or not is_trust_region(method)


def tried(method: str) -> tuple[float, ...]:
    """The values that are tried for a method."""
    return THRESHOLDS if is_trust_region(method) else LEARNING_RATES


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    pace = _pace(chosen) if size == "full" else 1.0
    common = {
        "seeds": chosen.seeds, "num_envs": chosen.num_envs, "rollout_length": chosen.rollout_length,
        "search_seeds": list(SEARCH_SEEDS),
    }  # fmt: skip
    return [
        Piece(
            f"{scenario}-{method}", _seconds(scenario, method, env_steps * chosen.seeds, pace),
            {**common, "scenario": scenario, "env_steps": env_steps, "method": method, "tried": list(tried(method))},
            lambda *found, scenario=scenario, method=method: play(scenario, method, chosen, *found),
            needs=() if is_searched(method) else (f"{scenario}-hatrpo",),
        )
        for scenario, env_steps in chosen.scenarios.items()
        for method in (*chosen.methods, CRITIC)
    ]  # fmt: skip


def _seconds(scenario: str, method: str, env_steps: int, pace: float) -> float:
    work = 1.5 if is_searched(method) else 1.0
    return _COMPILE + work * env_steps / (_TRAINING * _BARE.get(scenario.split("_")[0], 1e5)) / pace


def _pace(size: Size) -> float:
    """How many times as fast as two CPU cores the device found here steps as many bare ants as `size` has."""
    env = envs.make("ant_4x2")
    count = size.seeds * size.num_envs
    keys = jax.random.split(jax.random.key(0), count)
    state, _ = jax.jit(jax.vmap(env.reset, (0, None)))(keys, env.params)
    print(f"stepping {count} ants to find this device's pace ...", flush=True)
    return _steps_per_second(env, state, count) / _BARE["ant"]


def _steps_per_second(env: Env, state, count: int, length: int = 50) -> float:
    def step(state, key):
        actions = jax.random.uniform(key, (count, *env.spec.action_shape), minval=-1.0)
        keys = jax.random.split(key, count)
        return jax.vmap(env.step, (0, 0, 0, None))(keys, state, actions, env.params)[0], None

    run = jax.jit(lambda state, key: jax.lax.scan(step, state, jax.random.split(key, length))[0])
    for seed in range(2):  # the first one compiles
        begin = time.perf_counter()
        jax.block_until_ready(run(state, jax.random.key(seed)))
    return count * length / (time.perf_counter() - begin)


# Training


def _config(scenario: str, method: str, size: Size) -> marl_kl.Config:
    known = scenario if scenario in presets.get(PRESET).scenarios else "ant_4x2"  # its env steps are replaced
    changes = {"critic_epochs": CRITIC_EPOCHS} if method == CRITIC else {}
    return presets.config(
        PRESET, known, _algorithm(method), total_env_steps=size.scenarios[scenario], num_envs=size.num_envs,
        rollout_length=size.rollout_length, eval_episodes=min(16, size.num_envs), eval_interval=0, **changes,
    )  # fmt: skip


def _algorithm(method: str) -> str:
    return "hatrpo" if method == CRITIC else method


def last_tenth(returns: np.ndarray) -> np.ndarray:
    """[..., update] -> [...]: mean over the last tenth of the updates, of what is not NaN."""
    return np.nanmean(returns[..., -max(1, returns.shape[-1] // 10) :], axis=-1)


def play(scenario: str, method: str, size: Size, of_hatrpo: study.Values | None = None) -> study.Values:
    """Searches, unless hatrpo has done it for the method, and trains on other seeds with what was found.

    Returns:
        trials: [trial, seed] return of the sampling team at the end of the search; empty if there was none. chosen: KL
        budget per agent, or actor_lr. env_steps: [P]. returns: [seed, P] of the sampling team. final: [seed] its mean
        over the last tenth of the updates. untrained, trained: [seed] of the deterministic team. explained_variance:
        [seed] of the critic, mean over updates. pace: env steps per second.
        Trust-region methods also: spent: [seed] share of the budget spent, mean over updates; and what `shares` says.
    """
    env = envs.make(scenario)
    config = _config(scenario, method, size)
    swept, scale = ("kl_budget", env.spec.num_agents) if is_trust_region(method) else ("actor_lr", 1)
    train = functools.partial(marl_kl.sweep, env, _algorithm(method), progress="none")
    if of_hatrpo is None:
        half = config.replace(total_env_steps=config.total_env_steps // 2)
        search = train(grid={swept: [scale * value for value in tried(method)]}, seeds=SEARCH_SEEDS, config=half)
        trials = last_tenth(search.metrics["episode_return"])
        chosen = tried(method)[int(np.argmax(trials.mean(1)))]
    else:
        trials, chosen = np.empty((0, len(SEARCH_SEEDS))), of_hatrpo["chosen"].item()
    result = train(grid={swept: [scale * chosen]}, seeds=size.seeds, config=config)
    metrics = {name: values[0] for name, values in result.metrics.items()}
    edges = np.unique(np.linspace(0, result.env_steps.shape[1], SHOWN + 1).astype(int))
    values = {
        "trials": trials,
        "chosen": np.array(chosen),
        "env_steps": result.env_steps[0, edges[1:] - 1],
        "returns": _binned(metrics["episode_return"], edges),
        "final": last_tenth(metrics["episode_return"]),
        "untrained": result.untrained.episode_return[0].mean(-1),
        "trained": result.final.episode_return[0].mean(-1),
        "explained_variance": metrics["explained_variance"].mean(1),
        "pace": np.array(round(size.seeds * int(result.env_steps[0, -1]) / result.timing.train)),
    }
    if not is_trust_region(method):
        return values
    budget = scale * chosen
    spent = (metrics["kl_total"] / budget).mean(1)
    return values | {"spent": spent} | shares(metrics["utility"], metrics["kl_threshold"] / budget, edges)


def _binned(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[seed, update, ...] -> [seed, bin, ...] means of what is not NaN; NaN where all is."""
    slices = [values[:, begin:end] for begin, end in zip(edges[:-1], edges[1:])]
    present = [np.isfinite(part).sum(axis=1) for part in slices]
    sums = [np.nansum(part, axis=1) for part in slices]
    return np.stack([np.where(n, s / np.maximum(n, 1), np.nan) for n, s in zip(present, sums)], axis=1)


def shares(utility: np.ndarray, share: np.ndarray, edges: np.ndarray) -> study.Values:
    """Who is given how much, and whether it follows utility.

    Args:
        utility, share: [seed, update, agent]. edges: of the bins of updates.

    Returns:
        share: [bin, agent] mean over seeds. largest: [seed] the largest share, mean over updates. correlation: [seed]
        Pearson's, over updates and agents, between an agent's part of the team's utility and its share; NaN where
        shares are all equal. stays: [seed] how often the agent with the largest share has it again in the next update;
        by_chance: [seed] how often it would if updates came in random order.
    """
    part = utility / np.maximum(utility.sum(-1, keepdims=True), 1e-30)
    correlation = [_correlation(p.ravel(), s.ravel()) for p, s in zip(part, share)]
    leader = share.argmax(-1)
    led = (leader[..., None] == np.arange(share.shape[-1])).mean(1)
    return {
        "share": _binned(share, edges).mean(0),
        "largest": share.max(-1).mean(1),
        "correlation": np.array(correlation),
        "stays": (leader[:, 1:] == leader[:, :-1]).mean(1),
        "by_chance": (led**2).sum(-1),
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    is_constant = np.ptp(x) < 1e-6 or np.ptp(y) < 1e-6
    return math.nan if is_constant else float(np.corrcoef(x, y)[0, 1])


# What is shown


class Scores(NamedTuple):
    """Final returns of one method, all scenarios together.

    Attributes:
        normalized: [R] on each scenario's scale: 0 where the teams began, on average, 1 where the best run ended.
        scenario: [R] indices.
    """

    normalized: np.ndarray
    scenario: np.ndarray


def report(results: Results) -> Report:
    size = SIZES[results.size]
    methods = (*size.methods, CRITIC)
    by_scenario = {s: {m: results.pieces[f"{s}-{m}"] for m in methods} for s in size.scenarios}
    scores = {method: _scores(by_scenario, method) for method in methods}
    adaptive = [method for method in size.methods if method in study.ADAPTIVE]
    rows = [_final_row(method, by_scenario) for method in (*adaptive, CRITIC)]
    if {"hatrpo_w", "hatrpo_g"} <= set(methods):
        rows.append(_variance_row(scores))
    rows += [
        _beats_row(better, worse, scores)
        for better, worse in (("hatrpo", "mappo"), ("happo", "mappo"), ("hatrpo", "happo"))
        if {better, worse} <= set(methods)
    ]
    rows += [make(method, by_scenario) for method in adaptive for make in (_correlation_row, _stays_row)]
    rows = [row for row in rows if row is not None]
    figures = {
        "curves": (_curves(by_scenario, size), "Return of the sampling team against env steps: IQM over seeds and its "
                   "95 % interval. Left: the trust-region methods, one joint KL budget for all. Right: the others, with "
                   "HATRPO again. Episodes of halfcheetah all last 1,000 steps and end together: hence the stairs."),
        "overall": (_overall(scores, size), "All scenarios together, final returns normalised per scenario (0: where "
                    "the teams began, 1: where the best run ended). Left: IQM and its 95 % stratified interval. Right: "
                    "share of the runs above a level."),
        "improvement": (_improvement(scores, size), "Probability that a run of the row's method ends above one of the "
                        "column's, mean over scenarios. Bold: the 95 % interval excludes 0.5."),
        "shares": (_shares(by_scenario, adaptive), "Share of the joint KL budget given to each agent over training, "
                   "mean over seeds. White in the scale: an equal share. Those of HATRPO-G add up to more than 1: what "
                   "one agent leaves unspent is given again."),
    }  # fmt: skip
    return Report(rows, figures, _text(results, by_scenario, scores, size))


def _scores(by_scenario: dict, method: str) -> Scores:
    normalized, scenario = [], []
    for index, values in enumerate(by_scenario.values()):
        low = np.mean([_first(v["returns"]) for v in values.values()])
        high = max(v["final"].max() for v in values.values())
        normalized.append((values[method]["final"] - low) / max(high - low, 1e-9))
        scenario.append(np.full(len(values[method]["final"]), index))
    return Scores(np.concatenate(normalized), np.concatenate(scenario))


def _overall_estimate(scores: Scores) -> Estimate:
    """IQM over all runs of all scenarios, runs resampled within each scenario."""
    interval = bootstrap_interval(scores.normalized, strata=scores.scenario)
    return Estimate(float(interquartile_mean(scores.normalized)), *map(float, interval))


def _first(returns: np.ndarray) -> float:
    """Of curves [seed, P] the mean at the first point that all seeds have."""
    return float(returns[:, np.isfinite(returns).all(axis=0)][:, 0].mean())


_TRIED = (
    "Tried: the best of three budgets for HATRPO, on every body; at CPU size only, so nothing is said about the ten "
    "million steps of the papers."
)
_ALIKE = (
    "Utilities of 2,048 samples differ little more than by chance, so shares stay near equal ones (largest share: see the "
    "table) and where they do not, they follow the batch. What differs between allocators is less than what differs "
    "between seeds. "
)
_LEFT_OVER = (
    "What the first agents' line searches do not spend is passed on, so more of the budget is used and the last agent, "
    "whose score is lowest, is given most of it. It shows in no return. "
)
_FEW_PASSES = (
    "Three times the passes explain hardly more of the returns (see under the tables): at these batch sizes 5 are enough, "
    "and better advantages were not to be had this way."
)
_WHY_FINAL = {
    "hatrpo_w": {NOT_SEEN: _ALIKE + _TRIED},
    "hatrpo_g": {NOT_SEEN: _LEFT_OVER + _TRIED},
    "hatrpo_n": {NOT_SEEN: _ALIKE + _TRIED},
    CRITIC: {NOT_SEEN: _FEW_PASSES},
}
_SHARE_MORE = 1.225


def _final_row(method: str, by_scenario: dict) -> Row:
    """Final return over HATRPO's, scenario by scenario."""
    found = {
        scenario: study.ratio(values[method]["final"], values["hatrpo"]["final"])
        for scenario, values in by_scenario.items()
    }
    verdict = study.counted([study.judged(ratio, _SHARE_MORE, 1.0) for ratio in found.values()])
    claims = {
        "hatrpo_w": "HATRPO-W's final return is at least 22.5 % above HATRPO's (Shek et al. 2025)",
        "hatrpo_g": "HATRPO-G's final return is at least 22.5 % above HATRPO's (Shek et al. 2025)",
        "hatrpo_n": "HATRPO-N's final return is at least 22.5 % above HATRPO's (ours)",
        CRITIC: f"A critic with {CRITIC_EPOCHS} passes per batch instead of 5 does as much for HATRPO (no theorem)",
    }
    return Row(
        claims[method],
        "its final return / HATRPO's: " + ", ".join(f"{name} {ratio.number()}" for name, ratio in found.items()),
        ", ".join(ratio.interval() for ratio in found.values()),
        verdict,
        study.because(verdict, _WHY_FINAL[method]),
    )


def _pooled(first: Scores, second: Scores, statistic) -> Estimate:
    """`statistic`(first [..., R], second [..., Q]) and its interval, runs resampled within method and scenario."""
    count = len(first.normalized)
    both = np.concatenate([first.normalized, second.normalized])
    strata = np.concatenate([first.scenario, 1 + first.scenario.max() + second.scenario])

    def of_both(scores, axis):
        return statistic(*np.split(np.moveaxis(scores, axis, -1), [count], axis=-1))

    return Estimate(float(of_both(both, 0)), *map(float, bootstrap_interval(both, strata=strata, statistic=of_both)))


_WHY_VARIANCE = {
    NOT_SEEN: "A variance of a few seeds is known to a factor of three or so; none of these runs can tell 39 % less "
    "from nothing.",
    PARTLY: "Less, but with so few seeds the size of the difference is not known.",
}


def _variance_row(scores: Mapping[str, Scores]) -> Row:
    w, g = scores["hatrpo_w"], scores["hatrpo_g"]

    def ratio(of_w, of_g):
        within = [
            np.mean([np.var(x[..., s.scenario == i], axis=-1, ddof=1) for i in np.unique(s.scenario)], axis=0)
            for x, s in ((of_w, w), (of_g, g))
        ]
        return within[1] / np.maximum(within[0], 1e-12)

    found = _pooled(w, g, ratio)
    verdict = study.judged(found, 1 / (1 - 0.39), 1.0)
    return Row(
        "HATRPO-W's variance across seeds is 39 % below HATRPO-G's (Shek et al. 2025)",
        f"G's variance of normalised final returns / W's: {found.number()} (claimed: {1 / (1 - 0.39):.2f})",
        found.interval(),
        verdict,
        study.because(verdict, _WHY_VARIANCE),
    )


_WHY_BEATS = {
    NOT_SEEN: "Who is ahead depends on the body, see the table. Kuba et al. trained for ten million steps, these runs for "
    "about a hundred thousand: how a method learns in the end is not seen here."
}


def _beats_row(better: str, worse: str, scores: Mapping[str, Scores]) -> Row:
    x, y = scores[better], scores[worse]
    value = float(probability_of_improvement(x.normalized, y.normalized, x.scenario, y.scenario))
    found = Estimate(value, *map(float, improvement_interval(x.normalized, y.normalized, x.scenario, y.scenario)))
    verdict = study.judged(found, 0.75, 0.5)
    source = "Kuba et al. 2022" if worse == "mappo" else "no theorem"
    return Row(
        f"{study.LABELS[better]} ends above {study.LABELS[worse]} in three of four pairs of runs ({source})",
        f"probability of improvement {found.number()}",
        found.interval(),
        verdict,
        study.because(verdict, _WHY_BEATS),
    )


_WHY_CORRELATION = {
    "hatrpo_w": {HOLDS: "The share is a function of the utilities, a straight line where they differ little."},
    "hatrpo_g": {
        PARTLY: "A little, on one body, and on the others the contrary: an agent is given a share of what is left, and what "
        "is left unspent makes the later ones' shares larger, who have the smaller scores. The order of moves counts for "
        "more than the utility."
    },
    "hatrpo_n": {HOLDS: "The share grows with the square of the utility, almost a straight line where they differ little."},
}
def _over_scenarios(by_scenario: dict, method: str, value) -> dict[str, Estimate]:
    found = {s: value(values[method]) for s, values in by_scenario.items()}
    return {s: study.estimate(each[np.isfinite(each)]) for s, each in found.items() if np.isfinite(each).any()}


def _correlation_row(method: str, by_scenario: dict) -> Row | None:
    found = _over_scenarios(by_scenario, method, lambda values: values["correlation"])
    if not found:
        return None
    verdict = study.counted([study.judged(each, 0.5, 0.0) for each in found.values()])
    return Row(
        f"{study.LABELS[method]}: an agent's part of the team's utility and its KL share correlate (Shek et al. 2025), "
        "r ≥ 0.5",
        ", ".join(f"{name} {each.number()}" for name, each in found.items()),
        ", ".join(each.interval() for each in found.values()),
        verdict,
        study.because(verdict, _WHY_CORRELATION[method]),
    )


_WHY_STAYS = {
    HOLDS: "Some agents have more to gain for many updates on end: their joints carry the body.",
    PARTLY: "In some bodies agents differ for long, in others the lead follows the chance of a batch.",
    NOT_SEEN: "The lead follows the chance of a batch: which agent's gradient is larger changes from update to update.",
}


def _stays_row(method: str, by_scenario: dict) -> Row | None:
    found = _over_scenarios(by_scenario, method, lambda values: values["stays"] - values["by_chance"])
    if not found:
        return None
    verdict = study.counted([study.judged(each, 0.1, 0.0) for each in found.values()])
    return Row(
        f"{study.LABELS[method]}: who has the largest share keeps it for a while (10 points more often than by chance)",
        ", ".join(f"{name} {each.number(0, percent=True)}" for name, each in found.items()),
        ", ".join(each.interval(0, percent=True) for each in found.values()),
        verdict,
        study.because(verdict, _WHY_STAYS),
    )


def _curves(by_scenario: dict, size: Size) -> Figure:
    groups = [
        [m for m in size.methods if m in study.TRUST_REGION],
        [m for m in size.methods if m not in study.ADAPTIVE],
    ]
    figure = Figure(figsize=(8.6, 2.5 * len(by_scenario) + 0.9), layout="constrained")
    panels = figure.subplots(len(by_scenario), 2, squeeze=False, sharex="row", sharey="row")
    for (scenario, values), line in zip(by_scenario.items(), panels):
        for axes, methods in zip(line, groups):
            for method in methods:
                of_method = values[method]
                known = np.isfinite(of_method["returns"]).all(axis=0)
                study.curve(axes, of_method["env_steps"][known] / 1e3, of_method["returns"][:, known], method)
            study.strip(axes)
        line[0].set_title(scenario, fontsize=10, loc="left")
        line[0].set_ylabel("return")
    for axes in panels[-1]:
        axes.set_xlabel("env steps per seed (thousands)")
    handles = {label: handle for axes in panels[0] for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _overall(scores: Mapping[str, Scores], size: Size) -> Figure:
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    bars, profiles = figure.subplots(1, 2, width_ratios=(1, 1.25))
    for place, (method, each) in enumerate(scores.items()):
        middle, low, high = _overall_estimate(each)
        colour = study.COLOURS[method]
        bars.barh(place, high - low, left=low, height=0.5, color=colour, alpha=0.35, linewidth=0)
        bars.plot([middle, middle], [place - 0.25, place + 0.25], color=colour, linewidth=2.5)
    bars.set_yticks(range(len(scores)), [study.LABELS[method] for method in scores], fontsize=8.5)
    bars.invert_yaxis()
    ends = np.array([_overall_estimate(each)[1:] for each in scores.values()])
    bars.set_xlim(ends.min() - 0.02, ends.max() + 0.02)
    bars.tick_params(axis="y", length=0)
    bars.set_xlabel("final return, normalised (IQM)")
    levels = np.linspace(min(0.0, *(each.normalized.min() for each in scores.values())), 1, 101)
    for method in size.methods:
        each = scores[method]
        profile = performance_profile(each.normalized, levels, each.scenario)
        profiles.step(levels, 100 * profile, where="post", linewidth=1.6, **study.line_style(method))
    profiles.set_xlabel("level of the normalised final return")
    profiles.set_ylabel("runs above it (%)")
    profiles.legend(frameon=False, fontsize=7.5, ncols=2)
    for axes in (bars, profiles):
        study.strip(axes)
    return figure


def _improvement(scores: Mapping[str, Scores], size: Size) -> Figure:
    methods = size.methods
    side = 0.62 * len(methods) + 1.8
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.add_subplot()
    value = np.full((len(methods), len(methods)), np.nan)
    for row, column in np.argwhere(~np.eye(len(methods), dtype=bool)):
        x, y = scores[methods[row]], scores[methods[column]]
        pair = x.normalized, y.normalized, x.scenario, y.scenario
        value[row, column] = probability_of_improvement(*pair)
        low, high = improvement_interval(*pair)
        is_dark = abs(value[row, column] - 0.5) > 0.33
        axes.text(column, row, f"{value[row, column]:.2f}", ha="center", va="center", fontsize=8.5,
                  color="white" if is_dark else "black", weight="bold" if low > 0.5 or high < 0.5 else "normal")  # fmt: skip
    image = axes.imshow(value, cmap="PuOr_r", vmin=0, vmax=1)
    names = [study.LABELS[method] for method in methods]
    axes.set_xticks(range(len(methods)), names, rotation=35, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(methods)), names, fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.75, label="P(row ends above column)")
    return figure


def _shares(by_scenario: dict, adaptive: Sequence[str]) -> Figure:
    heights = [0.9 + 0.11 * next(iter(v.values()))["share"].shape[1] for v in by_scenario.values()]
    figure = Figure(figsize=(2.7 * len(adaptive) + 1.2, sum(heights) + 1.0), layout="constrained")
    panels = figure.subplots(len(by_scenario), len(adaptive), squeeze=False, height_ratios=heights)
    for (scenario, values), line in zip(by_scenario.items(), panels):
        names = envs.make(scenario).spec.agents
        top = max(values[method]["share"].max() for method in adaptive)
        for axes, method in zip(line, adaptive):
            share = values[method]["share"].T
            ends = np.concatenate([[0.0], values[method]["env_steps"]]) / 1e3
            image = axes.pcolormesh(ends, np.arange(len(share) + 1) - 0.5, share, vmin=0, vmax=top, rasterized=True)
            axes.set_yticks(range(len(share)), names if axes is line[0] else [], fontsize=7 if len(share) > 8 else 8.5)
            axes.invert_yaxis()
            axes.tick_params(axis="y", length=0)
            title = f"{scenario}, {study.LABELS[method]}" if axes is line[0] else study.LABELS[method]
            axes.set_title(title, fontsize=9, loc="left")
        bar = figure.colorbar(image, ax=line[-1], label="share")
        bar.ax.axhline(1 / len(names), color="white", linewidth=1.5)
    for axes in panels[-1]:
        axes.set_xlabel("env steps per seed (thousands)", fontsize=9)
    return figure


def _text(results: Results, by_scenario: dict, scores: Mapping[str, Scores], size: Size) -> str:
    found = {m: [values[m]["chosen"].item() for values in by_scenario.values()] for m in size.methods if is_searched(m)}
    each = "; ".join(f"{study.LABELS[m]} {', '.join(f'{value:g}' for value in values)}" for m, values in found.items())
    lines = [
        f"Settings: preset `{PRESET}` (chosen with HATRPO and HAPPO on ant_4x2), {size.num_envs} environments x "
        f"{size.rollout_length} steps per update, {size.seeds} seeds, the default backend of each body. Search: three "
        f"trials on every scenario, {len(SEARCH_SEEDS)} other seeds each, half of the env steps. HATRPO searches the KL "
        f"budget per agent among {list(THRESHOLDS)}, for all trust-region methods, because joint budgets must be equal; "
        f"each of the others its actor_lr among {list(LEARNING_RATES)}. Found, scenario by scenario: {each}.",
        "",
        "Return of the sampling team over the last tenth of the updates, IQM [95 %]; in brackets the deterministic team "
        "at the end, IQM:",
        "",
        "| scenario (env steps per seed, untrained) | " + " | ".join(study.LABELS[m] for m in scores) + " |",
        "|---|" + "---|" * len(scores),
    ]
    for name, values in by_scenario.items():
        untrained = np.mean([v["untrained"].mean() for v in values.values()])
        cells = [
            f"{study.estimate(values[m]['final']).text(0)} ({interquartile_mean(values[m]['trained']):.0f})"
            for m in scores
        ]
        steps = int(values["hatrpo"]["env_steps"][-1])
        lines.append(f"| {name} ({steps:,}, {untrained:.0f}) | " + " | ".join(cells) + " |")
    lines.append("| all, normalised | " + " | ".join(_overall_estimate(s).text() for s in scores.values()) + " |")
    lines += [
        "",
        "Mean over seeds: KL spent (share of the joint budget); largest share given; who leads leads again in the next "
        "update (by chance, with the same frequencies):",
        "",
        "| scenario | " + " | ".join(study.LABELS[m] for m in scores if is_trust_region(m)) + " |",
        "|---|" + "---|" * sum(map(is_trust_region, scores)),
    ]
    for name, values in by_scenario.items():
        lines.append(f"| {name} | " + " | ".join(_spent_cell(values[m]) for m in scores if is_trust_region(m)) + " |")
    critics = ", ".join(
        f"{name} {values['hatrpo']['explained_variance'].mean():.2f} → {values[CRITIC]['explained_variance'].mean():.2f}"
        for name, values in by_scenario.items()
    )
    lines += ["", f"Variance of the returns that the critic explains, mean over updates, with 5 → {CRITIC_EPOCHS} passes: "
              f"{critics}."]  # fmt: skip
    return "\n".join(lines)


def _spent_cell(values: study.Values) -> str:
    spent = f"{100 * values['spent'].mean():.0f} %; {100 * values['largest'].mean():.0f} %"
    if np.isnan(values["correlation"]).all():
        return spent
    return f"{spent}; {100 * values['stays'].mean():.0f} % ({100 * values['by_chance'].mean():.0f} %)"


STUDY = study.Study(
    "brax_suite",
    "Multi-agent Brax",
    "Nine algorithms on bodies: does sharing the joint KL budget unequally give larger returns at equal joint budgets, "
    "who is given it, and would a better critic have done the same?",
    pieces,
    report,
)


if __name__ == "__main__":
    # the search and the runs with what it found are one program
    jax.config.update("jax_compilation_cache_dir", str(study.WORK / "compiled"))
    study.main(STUDY)
