"""Multi-agent Brax: nine algorithms beside each other, who is given the KL budget, and whether a better critic does it.

python -m experiments.brax_suite --quick
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import envs
import marl_kl
from envs.base import Env
from experiments import brax_figures, settings, study
from experiments.brax_scores import Scores, overall, scored, variance_ratio
from experiments.study import CONTRARY, HOLDS, MIXED, NOT_SEEN, PARTLY, Estimate, Piece, Report, Results, Row
from experiments.who_leads import leading, normalised
from marl_kl import devices
from marl_kl.analysis.statistics import improvement_interval, interquartile_mean, probability_of_improvement
from marl_kl.core import evaluation
from marl_kl.training import presets

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
    that both are one program. is_long: whether a piece takes so long that it must be able to go on inside."""

    scenarios: Mapping[str, int]
    seeds: int
    num_envs: int
    rollout_length: int
    methods: tuple[str, ...]
    is_long: bool = False


_ALL = study.TRUST_REGION + study.FIRST_ORDER + ("ippo", "maspo", "mars")
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
"""Env steps per second of six teams trained side by side on two quiet CPU cores; those of the humanoid that stands up
and of the swimmer are guessed from their bare stepping (benchmarks/results/bodies.json)."""
_ANTS = 33_000
"""Env steps per second of bare ants on two quiet CPU cores, half of the ants on each."""
_COMPILE = 55.0
"""Seconds of compilation per piece, which is done by the host, whatever the device."""


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
    """Everything that the numbers of a piece depend on; of an untrained team fewer things."""
    config = _config(scenario, method, size)
    fields = settings.of_config(config)
    facts = dict(_make(scenario).spec.metadata)
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
def _make(scenario: str) -> Env:
    return envs.make(scenario)


def _body(scenario: str) -> str:
    return scenario.split("_")[0]


def _seconds(scenario: str, method: str, env_steps: int) -> float:
    """On two quiet CPU cores."""
    work = 1.5 if is_searched(method) else 1.0
    return _COMPILE + work * env_steps / _TRAINING.get(_body(scenario), 1e5)


def pace(size: str) -> float:
    """How many times as fast as two quiet CPU cores the device found here does a size, compilation included.

    Ants stand for all bodies: as many as the size has environments at once are stepped, spread over the devices as in
    training. Compiling takes as long as everywhere.
    """
    chosen = SIZES[size]
    if not any(_body(scenario) in _TRAINING for scenario in chosen.scenarios):
        return 1.0
    print(f"stepping {chosen.seeds * chosen.num_envs} ants to find the pace of this device ...", flush=True)
    stepping = steps_per_second(_make("ant_4x2"), chosen.seeds, chosen.num_envs) / _ANTS
    return overall_pace([piece.seconds for piece in pieces(size)], stepping)


def overall_pace(seconds: Sequence[float], stepping: float) -> float:
    """Seconds on two CPU cores over those here, of pieces whose stepping is so many times as fast, but not their
    compilation."""
    compiling = sum(min(each, _COMPILE) for each in seconds)
    return sum(seconds) / (compiling + (sum(seconds) - compiling) / stepping)


def steps_per_second(env: Env, seeds: int, num_envs: int, length: int = 25, repeats: int = 4) -> float:
    """Of `seeds` x `num_envs` environments under random actions, no policy, no learning; the best of the repeats."""

    def roll(key):
        state, _ = jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), env.params)

        def step(state, key):
            actions = jax.random.uniform(key, (num_envs, *env.spec.action_shape), minval=-1.0)
            keys = jax.random.split(key, num_envs)
            return jax.vmap(env.step, (0, 0, 0, None))(keys, state, actions, env.params)[0], None

        return jax.lax.scan(step, state, jax.random.split(key, length))[0]

    mesh = devices.seed_mesh(seeds)
    options = env.spec.cpu_compiler_options
    program = devices.over_seeds(jax.vmap(roll), mesh, (devices.SEEDS,), devices.SEEDS, options)
    seconds = []
    for seed in range(1 + repeats):
        keys = devices.shard(jax.random.split(jax.random.key(seed), seeds), mesh)
        start = time.perf_counter()
        jax.block_until_ready(program(keys))
        seconds.append(time.perf_counter() - start)
    return seeds * num_envs * length / min(seconds[1:])  # the first one compiles


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


def _search_env_steps(config: marl_kl.Config) -> int:
    return config.total_env_steps // 2


def begin(scenario: str, size: Size) -> study.Values:
    """Teams before the first update, the same for all methods.

    Returns:
        returns: [seed] of the sampling team, mean over `eval_episodes` whole episodes. The episodes that end during the
        first update are no measure: the short ones end first, and on some bodies none does.
    """
    env, config, seeds = _make(scenario), _config(scenario, "hatrpo", size), range(size.seeds)
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
    """Searches, unless hatrpo has done it for the method, and trains on other seeds with what was found.

    Args:
        of_hatrpo: the results of hatrpo on the scenario, for methods without a search.
        folder: where what is done is kept until the piece is; None keeps nothing.

    Returns:
        trials: [trial, seed] return of the sampling team at the end of the search; empty if there was none. chosen: KL
        budget per agent, or actor_lr. env_steps: [P]. returns: [seed, P] of the sampling team. final: [seed] its mean
        over the last tenth of the updates. untrained, trained: [seed] of the deterministic team. explained_variance:
        [seed] of the critic, mean over updates.
        Trust-region methods also: spent: [seed] share of the budget spent, mean over updates. Those that share the
        budget unequally also what `shares` says.
    """
    env = _make(scenario)
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
        "returns": _binned(metrics["episode_return"], edges),
        "final": last_tenth(metrics["episode_return"]),
        "untrained": result.untrained.episode_return[0].mean(-1),
        "trained": result.final.episode_return[0].mean(-1),
        "explained_variance": metrics["explained_variance"].mean(1),
    }
    if not is_trust_region(method):
        return values
    values["spent"] = (metrics["kl_total"] / (scale * chosen)).mean(1)
    if method not in study.ADAPTIVE:
        return values
    return values | shares(metrics["utility"], metrics["kl_threshold"], metrics["kl"], edges)


def _binned(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[seed, update, ...] -> [seed, bin, ...] means of what is not NaN; NaN where all is."""
    slices = [values[:, begin:end] for begin, end in zip(edges[:-1], edges[1:])]
    present = [np.isfinite(part).sum(axis=1) for part in slices]
    sums = [np.nansum(part, axis=1) for part in slices]
    return np.stack([np.where(n, s / np.maximum(n, 1), np.nan) for n, s in zip(present, sums)], axis=1)


def shares(utility: np.ndarray, threshold: np.ndarray, kl: np.ndarray, edges: np.ndarray) -> study.Values:
    """Who is given how much, and whether it follows utility.

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
        "share": _binned(share, edges).mean(0),
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

ByScenario = brax_figures.ByScenario


def report(results: Results) -> Report:
    size = SIZES[results.size]
    methods = (*size.methods, CRITIC)
    by_scenario = {s: {m: results.pieces[f"{s}-{m}"] for m in methods} for s in size.scenarios}
    began = {s: float(results.pieces[f"{s}-untrained"]["returns"].mean()) for s in size.scenarios}
    scores = {method: scored(by_scenario, began, method) for method in methods}
    adaptive = [method for method in size.methods if method in study.ADAPTIVE]
    rows = [_final_row(method, by_scenario) for method in (*adaptive, CRITIC)]
    if {"hatrpo_w", "hatrpo_g"} <= set(methods):
        rows += _variance_rows(scores, list(by_scenario))
    rows += [
        _beats_row(better, worse, scores)
        for better, worse in (("hatrpo", "mappo"), ("happo", "mappo"), ("hatrpo", "happo"))
        if {better, worse} <= set(methods)
    ]
    rows += [make(method, by_scenario) for method in adaptive for make in (_correlation_row, _leads_row, _stays_row)]
    rows = [row for row in rows if row is not None]
    agents = {scenario: _make(scenario).spec.agents for scenario in by_scenario}
    figures = {
        "curves": (brax_figures.curves(by_scenario, began, size.methods), "Return of the sampling team against env "
                   "steps: IQM over seeds and its 95 % interval; dotted: whole episodes of untrained teams. Left: the "
                   "trust-region methods, one joint KL budget for all. Right: the others, with HATRPO again. Episodes "
                   "of halfcheetah all last 1,000 steps and end together: hence the stairs."),
        "overall": (brax_figures.all_together(scores, size.methods), "All scenarios together, final returns normalised "
                    "per scenario (0: untrained sampling teams, 1: where the best run ended). Left: IQM and its 95 % "
                    "stratified interval; hatched: HATRPO with more passes of the critic. Right: share of the runs "
                    "above a level."),
        "improvement": (brax_figures.improvement(scores, size.methods), "Probability that a run of the row's method "
                        "ends above one of the column's, mean over scenarios. Bold: the 95 % interval excludes 0.5."),
        "shares": (brax_figures.heat_maps(by_scenario, agents, adaptive), "What each agent is given over training, in "
                   "equal shares (1: its threshold is the mean one of that update), mean over seeds. W and N have one "
                   "scale in each scenario, G another, wider one."),
    }  # fmt: skip
    return Report(rows, figures, _text(by_scenario, began, scores, size, len(results.machines) > 1))


def _cases(verdicts: Mapping[str, str]) -> str:
    """ "For it: ant_4x2. Against it: humanoid_17x1." of a claim about several scenarios; nothing where all is open."""
    speaking = {"For it": (HOLDS, PARTLY), "Against it": (CONTRARY,)}
    lists = {side: [name for name, v in verdicts.items() if v in kinds] for side, kinds in speaking.items()}
    return "".join(f"{side}: {', '.join(names)}. " for side, names in lists.items() if names)


def _row_of_cases(claim: str, quantity: str, found: Mapping[str, Estimate], claimed: float, nothing: float,
                  reasons: Mapping[str, str], digits: int = 2, percent: bool = False) -> Row:  # fmt: skip
    """A claim that a quantity is at least `claimed` in every scenario."""
    verdicts = {name: study.judged(each, claimed, nothing) for name, each in found.items()}
    verdict = study.counted(list(verdicts.values()))
    return Row(
        claim,
        quantity + ", ".join(f"{name} {each.number(digits, percent)}" for name, each in found.items()),
        ", ".join(each.interval(digits, percent) for each in found.values()),
        verdict,
        _cases(verdicts) + study.because(verdict, reasons),
    )


_TRIED = (
    "Tried: the best of three budgets for HATRPO on every body, four bodies, six seeds; at CPU size only, so nothing "
    "is said about the ten million steps of the papers."
)
_ALIKE = (
    "Utilities of 2,048 samples differ little, so the largest share is a few hundredths above an equal one (see the "
    "table), even on halfcheetah_6x1, where one agent leads far more often than the others. Almost equal thresholds "
    "make almost equal steps; what differs between these allocators is less than what differs between seeds. "
)
_LEFT_OVER = (
    "What the first agents' line searches do not spend is passed on, so more of the budget is used and the last agent, "
    "whose score is lowest, is given most of it. "
)
_HARM = (
    "With 17 agents that is several times an equal share; where a body falls over for a wrong step of one joint, this "
    "may cost return. "
)
_FEW_PASSES = (
    "Three times the passes explain hardly more of the returns (see under the tables), so advantages are hardly "
    "better, and no body gained from them; walker2d_3x2 rather lost. Tried: more passes only, not another critic or "
    "larger batches."
)
_SOME_GAIN = "On some bodies only; with six seeds a gain of a fifth is as large as what differs between seeds. "
_WHY_FINAL = {
    "hatrpo_w": {NOT_SEEN: _ALIKE + _TRIED, CONTRARY: _ALIKE + _TRIED, PARTLY: _SOME_GAIN + _TRIED,
                 MIXED: _SOME_GAIN + _TRIED},
    "hatrpo_g": {NOT_SEEN: _LEFT_OVER + _TRIED, CONTRARY: _LEFT_OVER + _HARM + _TRIED, PARTLY: _SOME_GAIN + _TRIED,
                 MIXED: _LEFT_OVER + _SOME_GAIN + _TRIED},
    "hatrpo_n": {NOT_SEEN: _ALIKE + _TRIED, CONTRARY: _ALIKE + _TRIED, PARTLY: _SOME_GAIN + _TRIED,
                 MIXED: _SOME_GAIN + _TRIED},
    CRITIC: {NOT_SEEN: _FEW_PASSES, CONTRARY: _FEW_PASSES},
}  # fmt: skip
_SHARE_MORE = 1.225


def _final_row(method: str, by_scenario: ByScenario) -> Row:
    """Final return over HATRPO's, scenario by scenario."""
    found = {
        scenario: study.ratio(values[method]["final"], values["hatrpo"]["final"])
        for scenario, values in by_scenario.items()
    }
    claims = {
        "hatrpo_w": "HATRPO-W's final return is at least 22.5 % above HATRPO's (Shek et al. 2025)",
        "hatrpo_g": "HATRPO-G's final return is at least 22.5 % above HATRPO's (Shek et al. 2025)",
        "hatrpo_n": "HATRPO-N's final return is at least 22.5 % above HATRPO's (ours)",
        CRITIC: f"A critic with {CRITIC_EPOCHS} passes per batch instead of 5 does as much for HATRPO (no theorem)",
    }
    return _row_of_cases(claims[method], "its final return / HATRPO's: ", found, _SHARE_MORE, 1.0, _WHY_FINAL[method])


_FEW_RUNS = "A variance of six runs is known to a factor of three or so. "
_WHY_VARIANCE = {
    HOLDS: "HATRPO-G gives single agents several times an equal share, which agent is chance: runs part sooner. "
    "The size of the difference is known roughly only.",
    PARTLY: "HATRPO-G gives single agents several times an equal share, which agent is chance: runs part sooner. But "
    + _FEW_RUNS[0].lower()
    + _FEW_RUNS[1:]
    + "So 39 % cannot be told from more or less.",
    NOT_SEEN: _FEW_RUNS + "39 % cannot be told from nothing. Tried: four bodies, whose ratios are averaged so that the "
    "one with the widest returns (halfcheetah_6x1) does not decide alone.",
    CONTRARY: "Not that we know; see the scenarios one by one.",
}


def _variance_rows(scores: Mapping[str, Scores], scenarios: Sequence[str]) -> list[Row]:
    """The published "39 %" in both readings."""
    w, g = scores["hatrpo_w"], scores["hatrpo_g"]
    found = variance_ratio(g, w)
    each = {name: variance_ratio(_only(g, i), _only(w, i)) for i, name in enumerate(scenarios)}
    readings = {
        "HATRPO-G's variance across seeds is 39 % above HATRPO-W's": 1.39,
        "HATRPO-W's variance across seeds is 39 % below HATRPO-G's": 1 / (1 - 0.39),
    }
    return [
        Row(
            f"{claim} (Shek et al. 2025, of whose figure this is one of two readings)",
            f"G's variance of final returns / W's: geometric mean {found.number()} (claimed: {claimed:.2f}); "
            + ", ".join(f"{name} {ratio.number()}" for name, ratio in each.items()),
            f"{found.interval()}; " + ", ".join(ratio.interval() for ratio in each.values()),
            study.judged(found, claimed, 1.0),
            study.because(study.judged(found, claimed, 1.0), _WHY_VARIANCE),
        )
        for claim, claimed in readings.items()
    ]


def _only(scores: Scores, scenario: int) -> Scores:
    chosen = scores.scenario == scenario
    return Scores(scores.normalized[chosen], scores.scenario[chosen])


_WHY_BEATS = {
    PARTLY: "More often than not, but not in three of four pairs; who is ahead depends on the body, see the table.",
    NOT_SEEN: "Who is ahead depends on the body, see the table. Tried: three step sizes for every first-order method "
    "and three budgets for HATRPO on each body. Kuba et al. trained for ten million steps, these runs for some hundred "
    "thousand at most: how a method learns in the end is not seen here.",
    CONTRARY: "Who is ahead depends on the body, see the table; so early a step of a fixed KL is shorter than what "
    "five epochs of clipped steps make. Tried: three step sizes and three budgets on each body; no more env steps.",
}


def _beats(better: str, worse: str, scores: Mapping[str, Scores]) -> Estimate:
    x, y = scores[better], scores[worse]
    value = float(probability_of_improvement(x.normalized, y.normalized, x.scenario, y.scenario))
    return Estimate(value, *map(float, improvement_interval(x.normalized, y.normalized, x.scenario, y.scenario)))


def _beats_row(better: str, worse: str, scores: Mapping[str, Scores]) -> Row:
    found = _beats(better, worse, scores)
    verdict = study.judged(found, 0.75, 0.5)
    source = "Kuba et al. 2022" if worse == "mappo" else "no theorem"
    return Row(
        f"{study.LABELS[better]} ends above {study.LABELS[worse]} in three of four pairs of runs ({source})",
        f"probability of improvement {found.number()}",
        found.interval(),
        verdict,
        study.because(verdict, _WHY_BEATS),
    )


_G_SHARES = (
    "An agent is given a share of what is left, and what is left unspent makes the shares of later ones larger, who "
    "have the smaller scores: the order of moves counts for more than the utility. "
)
_WHY_CORRELATION = {
    "hatrpo_w": {HOLDS: "The share is a function of the utilities, a straight line where they differ little."},
    "hatrpo_g": {
        PARTLY: _G_SHARES,
        MIXED: _G_SHARES,
        NOT_SEEN: _G_SHARES + "Tried: the shares as they are given, and what was spent of them.",
        CONTRARY: _G_SHARES + "Tried: the shares as they are given, and what was spent of them.",
    },
    "hatrpo_n": {
        HOLDS: "The share grows with the square of the utility, almost a straight line where they differ little."
    },
}


def _over_scenarios(by_scenario: ByScenario, method: str, value) -> dict[str, Estimate]:
    found = {s: value(values[method]) for s, values in by_scenario.items()}
    return {s: study.estimate(each[np.isfinite(each)]) for s, each in found.items() if np.isfinite(each).any()}


def _correlation_row(method: str, by_scenario: ByScenario) -> Row | None:
    given, spent = (
        _over_scenarios(by_scenario, method, lambda values: values[name])
        for name in ("correlation", "correlation_spent")
    )
    if not given:
        return None
    row = _row_of_cases(
        f"{study.LABELS[method]}: an agent's part of the team's utility and its KL share correlate (Shek et al. 2025), "
        "r ≥ 0.5",
        "with its share of what is given: ", given, 0.5, 0.0, _WHY_CORRELATION[method],
    )  # fmt: skip
    of_spent = ", ".join(f"{name} {each.text()}" for name, each in spent.items())
    return row._replace(measured=f"{row.measured}; with its share of the KL spent: {of_spent}")


_LEADING_TRIED = "Tried: all bodies, both kinds of shares that follow utilities and HATRPO-G's. "
_WHY_LEADS = {
    HOLDS: "Some agents have more to gain for most of the training: their joints carry the body.",
    PARTLY: "On some bodies one agent has more to gain for most of the training: see the table.",
    NOT_SEEN: "Nobody leads for most of the training: utilities differ less between agents than between batches. "
    + _LEADING_TRIED,
    CONTRARY: "Leaders change more evenly than chance would have them, by a hair. " + _LEADING_TRIED,
    MIXED: "On some bodies one agent has more to gain for most of the training: see the table.",
}
_BATCH = "which of the leading agents' gradients is largest changes with the batch. "
_WHY_STAYS = {
    HOLDS: "Who has more to gain has it for many updates on end.",
    PARTLY: "On some bodies who has more to gain has it for some updates on end; on others " + _BATCH,
    NOT_SEEN: "Beyond how often it leads at all, an agent does not lead in stretches: " + _BATCH + _LEADING_TRIED,
    MIXED: "On some bodies an agent leads in stretches, on others leaders take turns: who has just moved far has less "
    "to gain in the next update. " + _LEADING_TRIED,
    CONTRARY: "Leaders take turns rather than lead in stretches: who has just moved far has less to gain in the next "
    "update. " + _LEADING_TRIED,
}


def _leads_row(method: str, by_scenario: ByScenario) -> Row | None:
    """Whether some agents lead more often than others, whenever."""
    return _leading_row(
        method, by_scenario,
        "some agents have the largest share more often than others (two updates drawn at random have the same leader "
        "10 points more often than if all led alike)",
        lambda values: values["by_chance"] - 1 / values["share"].shape[1], _WHY_LEADS,
    )  # fmt: skip


def _stays_row(method: str, by_scenario: ByScenario) -> Row | None:
    """Whether leading comes in stretches."""
    return _leading_row(
        method, by_scenario,
        "who has the largest share keeps it for a while (in the next update it has it 10 points more often than in one "
        "drawn at random)",
        lambda values: values["stays"] - values["by_chance"], _WHY_STAYS,
    )  # fmt: skip


def _leading_row(method: str, by_scenario: ByScenario, claim: str, value, reasons: Mapping[str, str]) -> Row | None:
    varies = {s: v for s, v in by_scenario.items() if np.isfinite(v[method]["correlation"]).any()}
    found = _over_scenarios(varies, method, value)
    if not found:
        return None
    label = f"{study.LABELS[method]}: {claim}"
    return _row_of_cases(label, "", found, 0.1, 0.0, reasons, digits=0, percent=True)


# of the results kept here, whose first half was not made again
_MACHINES = (
    "The pieces named without a processor below were run on another machine than those of HATRPO-W, -G and -N, with the "
    "same versions. On one machine a piece comes out the same to the last digit stored (tried: HATRPO-W on walker2d_3x2); "
    "on another one it is another run with the same seeds, because processors round differently and training amplifies it. "
    "On the first machine those three had final returns over HATRPO's of W 1.06, 0.96, 0.59, 1.01, G 1.08, 0.85, 0.75, "
    "0.91, N 1.05, 0.95, 0.64, 0.94 (scenarios in the order of the table). Read differences of that size as chance."
)


def _text(
    by_scenario: ByScenario, began: Mapping[str, float], scores: Mapping[str, Scores], size: Size, is_mixed: bool
) -> str:
    """is_mixed: whether the pieces come from more than one machine."""
    searched = [m for m in size.methods if is_searched(m)]
    found = {m: [values[m]["chosen"].item() for values in by_scenario.values()] for m in searched}
    each = "; ".join(f"{study.LABELS[m]} {', '.join(f'{value:g}' for value in values)}" for m, values in found.items())
    lines = [
        f"Settings: preset `{PRESET}` (chosen with HATRPO and HAPPO on ant_4x2), {size.num_envs} environments x "
        f"{size.rollout_length} steps per update, {size.seeds} seeds, the default backend of each body. Search: three "
        f"trials on every scenario, {len(SEARCH_SEEDS)} other seeds each, half of the env steps. HATRPO searches the "
        f"KL budget per agent among {list(THRESHOLDS)}, for all trust-region methods, because joint budgets must be "
        f"equal; each of the others its actor_lr among {list(LEARNING_RATES)}. Found, scenario by scenario: {each}. "
        + at_the_edge(by_scenario, searched),
        "",
        "Return of the sampling team over the last tenth of the updates, IQM [95 %]; in brackets the deterministic "
        "team at the end, IQM. Untrained: the sampling team, in brackets the deterministic one, means over whole "
        "episodes:",
        "",
        "| scenario (env steps per seed) | untrained | " + " | ".join(study.LABELS[m] for m in scores) + " |",
        "|---|---|" + "---|" * len(scores),
    ]
    for name, values in by_scenario.items():
        cells = [
            f"{study.estimate(values[m]['final']).text(0)} ({interquartile_mean(values[m]['trained']):.0f})"
            for m in scores
        ]
        steps = int(values["hatrpo"]["env_steps"][-1])
        untrained = f"{began[name]:.0f} ({_untrained(values):.0f})"
        lines.append(f"| {name} ({steps:,}) | {untrained} | " + " | ".join(cells) + " |")
    lines.append("| all, normalised | 0 | " + " | ".join(overall(s).text() for s in scores.values()) + " |")
    against = ", ".join(f"{study.LABELS[m]} {_beats(m, 'hatrpo', scores).text()}" for m in scores if m != "hatrpo")
    lines += [
        "",
        not_improved(by_scenario, list(scores)),
        "",
        f"Probability that a run ends above one of HATRPO's [95 %]: {against}.",
        "",
        "Mean over seeds: KL spent (share of the joint budget); largest share of what is given; the agent that has it "
        "most often, how often; who has it has it again in the next update (if updates came in random order):",
        "",
        "| scenario (equal share) | " + " | ".join(study.LABELS[m] for m in scores if is_trust_region(m)) + " |",
        "|---|" + "---|" * sum(map(is_trust_region, scores)),
    ]
    for name, values in by_scenario.items():
        agents = _make(name).spec.agents
        cells = [_shares_cell(values[m], agents) for m in scores if is_trust_region(m)]
        lines.append(f"| {name} ({100 / len(agents):.0f} %) | " + " | ".join(cells) + " |")
    critics = {s: [v[m]["explained_variance"].mean() for m in ("hatrpo", CRITIC)] for s, v in by_scenario.items()}
    explained = ", ".join(f"{name} {few:.2f} → {many:.2f}" for name, (few, many) in critics.items())
    lines += [
        "",
        "Variance of the returns that the critic explains, mean over updates, with 5 → "
        f"{CRITIC_EPOCHS} passes: {explained}.",
    ]
    if is_mixed:
        lines += ["", _MACHINES]
    return "\n".join(lines)


def at_the_edge(by_scenario: ByScenario, searched: Sequence[str]) -> str:
    """Which searches ended at an end of what was tried, so that more or less may be better still."""
    ends: dict[str, list[str]] = {}
    for scenario, values in by_scenario.items():
        for method in searched:
            where = tried(method).index(values[method]["chosen"].item())
            if where in (0, len(tried(method)) - 1):
                side = "lowest" if where == 0 else "highest"
                ends.setdefault(study.LABELS[method], []).append(f"{scenario} ({side})")
    count = sum(map(len, ends.values()))
    listed = "; ".join(f"{label} on {', '.join(places)}" for label, places in ends.items())
    total = len(by_scenario) * len(searched)
    if not count:
        return "No search ended at the edge of its grid."
    return f"{count} of {total} searches ended at the edge of their grid, beyond which we did not look: {listed}."


def _untrained(values: Mapping[str, study.Values]) -> float:
    """Return of deterministic untrained teams, the same for all methods."""
    return float(np.mean([v["untrained"].mean() for v in values.values()]))


def not_improved(by_scenario: ByScenario, methods: Sequence[str]) -> str:
    """On which scenarios whose deterministic teams ended no better than they began."""
    worse = {}
    for scenario, values in by_scenario.items():
        worse[scenario] = [m for m in methods if interquartile_mean(values[m]["trained"]) <= _untrained(values)]
    lists = [
        f"on {scenario} {'all methods' if len(which) == len(methods) else ', '.join(study.LABELS[m] for m in which)}"
        for scenario, which in worse.items()
        if which
    ]
    if not lists:
        return "The deterministic teams of all methods ended above the untrained ones on every scenario."
    return f"Deterministic teams that did not end above the untrained ones: {'; '.join(lists)}."


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


STUDY = study.Study(
    "brax_suite",
    "Multi-agent Brax",
    "Nine algorithms on bodies: does sharing the joint KL budget unequally give larger returns at equal joint budgets, "
    "who is given it, and would a better critic have done the same?",
    pieces,
    report,
    pace,
)


if __name__ == "__main__":
    # the search and the runs with what it found are one program
    jax.config.update("jax_compilation_cache_dir", str(study.WORK / "compiled"))
    study.main(STUDY)
