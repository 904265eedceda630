"""What do the details of the allocation change: epsilon, utility, noise, and budgets that are large?

python -m experiments.allocation_ablations --quick

The test game pays sum_i w_i [agent i plays its own right action]: agents matter unequally, in the ratio 8 : 4 : 2 : 1,
so here, if anywhere, it should pay to share the budget unequally.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import envs
from envs.types import Env
from experiments import stage_games, study
from experiments.study import HOLDS, NOT_SEEN, PARTLY, Piece, Report, Results, Row

WEIGHTS = np.array([8, 4, 2, 1]) / 15
NUM_ACTIONS = 3
BATCH = 64
BUDGETS = (0.01, 0.04, 0.16, 0.64, 2.56)
EPSILONS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
NOISES = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Variance of the noise, as a share of the reward's under the untrained team."""
USUAL_BUDGET, USUAL_EPSILON = 0.16, 1e-4


class Variant(NamedTuple):
    """An algorithm with static settings."""

    name: str
    algorithm: str
    fields: tuple[tuple[str, str], ...] = ()


VARIANTS = (
    *(Variant(method, method) for method in study.TRUST_REGION),
    Variant("hatrpo_w-measured", "hatrpo_w", (("utility", "measured"),)),
    Variant("hatrpo_n-measured", "hatrpo_n", (("utility", "measured"),)),
    Variant("hatrpo_g-all", "hatrpo_g", (("greedy_share", "all"),)),
)


class Setting(NamedTuple):
    """kl_budget, allocation_epsilon: config fields. noise: see `NOISES`."""

    kl_budget: float
    allocation_epsilon: float
    noise: float


SETTINGS = tuple(
    dict.fromkeys(
        [Setting(budget, USUAL_EPSILON, 0.0) for budget in BUDGETS]
        + [Setting(USUAL_BUDGET, epsilon, 0.0) for epsilon in EPSILONS]
        + [Setting(USUAL_BUDGET, USUAL_EPSILON, noise) for noise in NOISES]
    )
)


class Size(NamedTuple):
    variants: tuple[Variant, ...]
    seeds: int
    updates: int


SIZES = {
    "smoke": Size(VARIANTS[:2], 1, 3),
    "quick": Size(VARIANTS[:5], 30, 60),
    "full": Size(VARIANTS, 300, 200),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    work = max(0.3, chosen.seeds * chosen.updates / 1800)
    return [
        Piece(
            variant.name, 12 * work,
            {"settings": [list(s) for s in SETTINGS], "seeds": chosen.seeds, "updates": chosen.updates, "batch": BATCH,
             "variant": list(variant)},
            lambda variant=variant: play(variant, chosen),
        )
        for variant in chosen.variants
    ]  # fmt: skip


def weighted_payoff() -> np.ndarray:
    """[3, 3, 3, 3]: agent i's right action is (i + 1) mod 3, worth w_i."""
    payoff = np.zeros((NUM_ACTIONS,) * len(WEIGHTS), np.float32)
    for agent, weight in enumerate(WEIGHTS):
        right = [slice(None)] * len(WEIGHTS)
        right[agent] = (agent + 1) % NUM_ACTIONS
        payoff[tuple(right)] += weight
    return payoff


class NoisyParams(NamedTuple):
    """payoff: of the game inside. std: of the noise on the reward."""

    payoff: jax.Array
    std: jax.Array


def with_noisy_reward(env: Env) -> Env:
    """`env`, its team reward with Gaussian noise; where a state has one value, that is noise on the advantages."""

    def reset(key, params):
        return env.reset(key, params.payoff)

    def step(key, env_state, action, params):
        key_env, key_noise = jax.random.split(key)
        env_state, timestep = env.step(key_env, env_state, action, params.payoff)
        return env_state, timestep._replace(reward=timestep.reward + params.std * jax.random.normal(key_noise))

    return env._replace(reset=reset, step=step, params=NoisyParams(env.params, jnp.zeros(())))


def play(variant: Variant, size: Size) -> study.Values:
    """One variant at all settings.

    Returns:
        value: [setting, seed, update] exact expected payoff (noise left out) after each update. misplaced: [setting,
        seed] half the distance between the shares given and the exact KKT optimum of TRPO's local model, mean over the
        first ten updates after the first (0: the optimum, 1: all to the wrong agents). largest, spent, accepted:
        [setting] means over seeds and updates of the largest share, the KL spent as a share of the budget, and the
        accepted fraction of the steps. predicted, surrogate, real: [setting, seed] standardised gains of the first ten
        updates: to first order, on the samples, and exact.
    """
    env = with_noisy_reward(envs.make("matrix_game", payoff=weighted_payoff()))
    payoff = np.asarray(weighted_payoff())
    table = np.repeat(np.array(SETTINGS), size.seeds, axis=0)
    seeds = np.tile(np.arange(size.seeds), len(SETTINGS))
    runs = {"kl_budget": table[:, 0], "allocation_epsilon": table[:, 1], "noise": table[:, 2]}
    std = np.sqrt(runs.pop("noise")) * payoff.std()

    def record(policy, params, metrics):
        names = ("kl_threshold", "kl_total", "utility", "gain", "step_fraction")
        return {name: metrics[name] for name in names} | {"probability": stage_games.probabilities(policy)}

    config = stage_games.game_config(variant.algorithm, BATCH, **dict(variant.fields))
    params = NoisyParams(np.broadcast_to(payoff, (len(seeds), *payoff.shape)), std)
    kept = stage_games.learn(env, variant.algorithm, config, runs, seeds, size.updates, record, params=params)
    return summarised(kept, runs["kl_budget"], std, (len(SETTINGS), size.seeds))


def summarised(kept: dict, budget: np.ndarray, noise_std: np.ndarray, shape: tuple[int, int]) -> study.Values:
    """The returns of `play` from what was recorded, leaves [run, update, ...]."""
    right = np.arange(1, len(WEIGHTS) + 1) % NUM_ACTIONS
    hit = kept["probability"][..., np.arange(len(WEIGHTS)), right]
    before = np.concatenate([np.full_like(hit[:, :1], 1 / NUM_ACTIONS), hit[:, :-1]], axis=1)
    value, value_before = hit @ WEIGHTS, before @ WEIGHTS
    # the payoff is a sum of independent parts: agent i's own advantage has the variance w_i^2 p (1 - p)
    curvature = WEIGHTS**2 * before * (1 - before)
    best = curvature / np.maximum(curvature.sum(-1, keepdims=True), 1e-12)
    share = kept["kl_threshold"] / budget[:, None, None]
    wrong = 0.5 * np.abs(share - best).sum(-1)
    deviation = np.sqrt(curvature.sum(-1) + noise_std[:, None] ** 2)
    predicted = (kept["utility"] * np.sqrt(np.maximum(share, 0) * len(WEIGHTS))).sum(-1)
    real = (value - value_before) / np.maximum(deviation, 1e-6)
    first = slice(0, 10)
    per_run = {
        "misplaced": wrong[:, 1:11].mean(1), "predicted": predicted[:, first].sum(1),
        "surrogate": kept["gain"].sum(-1)[:, first].sum(1), "real": real[:, first].sum(1),
        "largest": share.max(-1).mean(1), "spent": (kept["kl_total"] / budget[:, None]).mean(1),
        "accepted": kept["step_fraction"].mean((1, 2)),
    }  # fmt: skip
    found = {name: values.reshape(shape) for name, values in per_run.items()}
    found |= {name: found[name].mean(1) for name in ("largest", "spent", "accepted")}
    return found | {"area": value.mean(1).reshape(shape), "value": value.reshape(*shape, -1).mean(1)}


# What is shown


def index_of(kl_budget=USUAL_BUDGET, allocation_epsilon=USUAL_EPSILON, noise=0.0) -> int:
    return SETTINGS.index(Setting(kl_budget, allocation_epsilon, noise))


def report(results: Results) -> Report:
    size = SIZES[results.size]
    names = [variant.name for variant in size.variants]
    plain = [variant.name for variant in size.variants if not variant.fields]
    adaptive = [name for name in plain if name != "hatrpo"]
    rows = [_unequal_row(results, name) for name in adaptive]
    rows += [_epsilon_row(results, name) for name in adaptive if name in ("hatrpo_w", "hatrpo_g")]
    rows += [_noise_row(results, name) for name in adaptive]
    rows += [_variant_row(results, name) for name in names if "-" in name]
    rows += [_large_budget_row(results, name) for name in plain]
    figures = {
        "settings": (_settings_figure(results, plain), "The game in which agents matter 8 : 4 : 2 : 1. Mean expected "
                     "payoff over the run (1 is the most), and how far the shares are from the optimum: against "
                     "budget, epsilon and noise; IQM over seeds with 95 % intervals."),
        "gains": (_gains_figure(results, plain), "Gain of the first ten updates: exact over predicted to first order, "
                  "and KL spent as a share of the budget."),
    }  # fmt: skip
    return Report(rows, figures, _text(results, size, names))


def _unequal_row(results: Results, name: str) -> Row:
    own, equal = results.pieces[name]["area"], results.pieces["hatrpo"]["area"]
    found = [study.difference(own[i], equal[i]) for i in (index_of(b) for b in BUDGETS)]
    verdict = study.counted([study.judged(f, 0.01, 0.0) for f in found])
    reasons = {
        NOT_SEEN: "An agent that matters little still has to learn; starving it costs as much as feeding the others "
        "brings.",
        PARTLY: "Those that matter most move first and furthest, which pays where the budget is scarce. Where it is "
        "far too large, it is what is not spent that pays: see KL spent in the second picture.",
    }
    best = max(range(len(found)), key=lambda b: found[b].low)
    return Row(
        f"Where agents matter unequally, {study.LABELS[name]} learns faster than equal shares (mean payoff over the "
        "run at least 0.01 higher), at every budget",
        ", ".join(f"{f.value:+.3f} at {b:g}" for f, b in zip(found, BUDGETS)),
        f"{found[best].interval(3)} at {BUDGETS[best]:g}, the most favourable",
        verdict,
        study.because(verdict, reasons),
    )


def _epsilon_row(results: Results, name: str) -> Row:
    values = results.pieces[name]
    areas = [study.estimate(values["area"][index_of(allocation_epsilon=e)]) for e in EPSILONS]
    usual = values["area"][index_of()]
    changes = [study.difference(values["area"][index_of(allocation_epsilon=e)], usual) for e in EPSILONS]
    worst = max(changes, key=lambda f: max(abs(f.low), abs(f.high)))
    within = max(abs(worst.low), abs(worst.high))
    verdict = HOLDS if within < 0.02 else PARTLY if abs(worst.value) < 0.05 else NOT_SEEN
    shares = ", ".join(f"{values['largest'][index_of(allocation_epsilon=e)]:.2f}" for e in EPSILONS)
    why = {
        "hatrpo_w": "Even the largest is a quarter of an equal share of the budget (0.04): shares stay about "
        "proportional to the utilities.",
        "hatrpo_g": "The trial steps of all agents have about the same KL, so that the score's epsilon changes little in "
        "their ranks.",
    }
    return Row(
        f"{study.LABELS[name]} does not depend on epsilon over four magnitudes (mean payoff within 0.02)",
        "mean payoff "
        + ", ".join(f"{a.number(3)} at {e:g}" for a, e in zip(areas, EPSILONS))
        + f"; largest share {shares}",
        f"largest change {worst.value:+.3f} {worst.interval(3)}",
        verdict,
        study.because(verdict, {HOLDS: why[name]}),
    )


def _noise_row(results: Results, name: str) -> Row:
    values = results.pieces[name]
    wrong = [study.estimate(values["misplaced"][index_of(noise=n)]) for n in NOISES]
    worse = study.difference(values["misplaced"][index_of(noise=NOISES[-1])], values["misplaced"][index_of()])
    loss = study.difference(values["area"][index_of(noise=NOISES[-1])], values["area"][index_of()])
    equal = [results.pieces["hatrpo"]["area"][index_of(noise=n)] for n in (NOISES[-1], 0.0)]
    loss_equal = study.difference(*equal)
    verdict = study.judged(worse, 0.05, 0.0)
    reasons = {
        NOT_SEEN: "The chance of 64 samples alone misplaces a third of the budget or more. Against that the added "
        "noise is little, and it slows the team, so that the agents' parts stay distinct for longer.",
        PARTLY: "A little: the chance of 64 samples alone misplaces much of the budget.",
        HOLDS: "A utility is the length of a gradient, and noise has length in every direction: it makes agents look "
        "alike.",
    }
    return Row(
        f"Noise on the advantages (half of their first variance) spoils {study.LABELS[name]}'s shares (by 0.05 of the "
        "budget)",
        "budget in the wrong hands: " + ", ".join(f"{w.number()} at {n:g}" for w, n in zip(wrong, NOISES))
        + f"; mean payoff {loss.value:+.3f} by the most noise (HATRPO {loss_equal.value:+.3f})",
        f"{worse.interval()} more",
        verdict,
        study.because(verdict, reasons),
    )  # fmt: skip


def _variant_row(results: Results, name: str) -> Row:
    base, what = name.split("-")
    text = {"measured": "Measuring the utility", "all": "Giving the best agent all that is left"}[what]
    found = [
        study.difference(results.pieces[name]["area"][i], results.pieces[base]["area"][i])
        for i in (index_of(b) for b in BUDGETS)
    ]
    verdict = study.counted([study.judged(f, 0.01, 0.0) for f in found])
    reasons = {
        NOT_SEEN: "The first-order utility costs nothing and says the same." if what == "measured" else
        "Who comes after the first gets only what its line search left over.",
        PARTLY: "At some budgets only, and by very little: the first-order utility is free and as good."
        if what == "measured"
        else "At some budgets only, see the numbers.",
    }  # fmt: skip
    return Row(
        f"{text} helps {study.LABELS[base]} (mean payoff at least 0.01 higher, at every budget)",
        ", ".join(f"{f.value:+.3f} at {b:g}" for f, b in zip(found, BUDGETS)),
        "; ".join(f.interval(3) for f in found),
        verdict,
        study.because(verdict, reasons),
    )


def _large_budget_row(results: Results, name: str) -> Row:
    values = results.pieces[name]
    found = [study.ratio(values["real"][i], values["predicted"][i]) for i in (index_of(b) for b in BUDGETS)]
    spent = [values["spent"][index_of(b)] for b in BUDGETS]
    verdict = study.judged(study.Estimate(-found[-1].value, -found[-1].high, -found[-1].low), -0.5, -found[0].value)
    reasons = {
        HOLDS: "Gains are bounded and the prediction grows with the root of the budget; in ten updates there is no "
        "more to gain than 1 - p, and steps that long may overshoot.",
        PARTLY: "Gains are bounded and the prediction grows with the root of the budget.",
    }
    return Row(
        f"The first-order prediction of {study.LABELS[name]}'s gain breaks at large budgets (less than half comes "
        "true)",
        "exact / predicted gain of ten updates: " + ", ".join(f"{f.number()} at {b:g}" for f, b in zip(found, BUDGETS))
        + "; KL spent: " + ", ".join(f"{100 * s:.0f} %" for s in spent),
        f"{found[-1].interval()} at {BUDGETS[-1]:g}",
        verdict,
        study.because(verdict, reasons),
    )  # fmt: skip


def _settings_figure(results: Results, names: list[str]) -> Figure:
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    panels = figure.subplots(2, 3, sharey="row")
    columns = (
        ("joint KL budget", BUDGETS, [index_of(b) for b in BUDGETS]),
        ("epsilon", EPSILONS, [index_of(allocation_epsilon=e) for e in EPSILONS]),
        ("variance of the noise / of the reward", NOISES, [index_of(noise=n) for n in NOISES]),
    )
    for column, (title, ticks, indices) in enumerate(columns):
        is_log = ticks[0] > 0
        for line, key in enumerate(("area", "misplaced")):
            axes = panels[line, column]
            for place, name in enumerate(names):
                found = [study.estimate(results.pieces[name][key][i]) for i in indices]
                middle = np.array([f.value for f in found])
                around = [middle - [f.low for f in found], [f.high for f in found] - middle]
                x = np.asarray(ticks) * 1.1 ** (place - 1.5) if is_log else np.asarray(ticks) + 0.006 * (place - 1.5)
                axes.errorbar(
                    x, middle, np.maximum(around, 0), linewidth=1.2, markersize=4.5, **study.point_style(name)
                )
            axes.set_xscale("log" if is_log else "linear")
            axes.set_xlabel(title if line else "")
            study.strip(axes)
    panels[0, 0].set_ylabel("mean expected payoff")
    panels[1, 0].set_ylabel("share of the budget\nin the wrong hands")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _gains_figure(results: Results, names: list[str]) -> Figure:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    indices = [index_of(b) for b in BUDGETS]
    for place, name in enumerate(names):
        values = results.pieces[name]
        x = np.asarray(BUDGETS) * 1.1 ** (place - 1.5)
        found = [study.ratio(values["real"][i], values["predicted"][i]) for i in indices]
        middle = np.array([f.value for f in found])
        around = [middle - [f.low for f in found], [f.high for f in found] - middle]
        left.errorbar(x, middle, np.maximum(around, 0), linewidth=1.2, markersize=4.5, **study.point_style(name))
        right.plot(x, values["spent"][indices], linewidth=1.2, markersize=4.5, **study.point_style(name))
    left.set_ylabel("exact / predicted gain")
    right.set_ylabel("KL spent / budget")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel("joint KL budget")
        study.strip(axes)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _text(results: Results, size: Size, names: list[str]) -> str:
    lines = [
        f"Settings: 4 agents with {NUM_ACTIONS} actions, batches of {BATCH}, {size.updates} updates, {size.seeds} "
        f"seeds; joint budget {USUAL_BUDGET} and epsilon {USUAL_EPSILON:g} where they are not varied. Noise is added "
        "to the reward, which in a game with one state is noise on the advantages; its variance is a share of the "
        "reward's under the untrained team, so its part grows as the team learns. *In the wrong hands*: half the "
        "distance between the shares given and the exact KKT optimum, updates 2 to 11. Nothing is searched.",
        "",
        "At the usual settings, means over the run: largest share "
        + ", ".join(f"{name} {results.pieces[name]['largest'][index_of()]:.2f}" for name in names)
        + "; accepted fraction of the steps "
        + ", ".join(f"{name} {results.pieces[name]['accepted'][index_of()]:.2f}" for name in names)
        + ".",
    ]  # fmt: skip
    return "\n".join(lines)


STUDY = study.Study(
    "allocation_ablations",
    "Allocation: epsilon, utility, noise, large budgets",
    "What do the details of the allocation change in a game where agents matter unequally?",
    pieces,
    report,
)


if __name__ == "__main__":
    study.main(STUDY)
