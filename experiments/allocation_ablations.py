"""What do the details of the allocation change: epsilon, utility, noise, leftover budget, and budgets that are large?

python -m experiments.allocation_ablations --quick

The test game pays sum_i w_i [agent i plays its own right action]: agents matter unequally, in the ratio 8 : 4 : 2 : 1,
so here, if anywhere, it should pay to share the budget unequally. What one update does is measured at the first, from
the same untrained policies for all: later, teams that learn faster have less left to gain. What a team earns is
measured over the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import envs
from envs.base import Env
from experiments import stage_games, study
from experiments.study import CONTRARY, HOLDS, MIXED, NOT_SEEN, PARTLY, Estimate, Piece, Report, Results, Row
from marl_kl.config import TrustRegionConfig
from marl_kl.core import algorithms, allocators, schemes
from marl_kl.core.allocators import Allocator

WEIGHTS = np.array([8, 4, 2, 1]) / 15
NUM_ACTIONS = 3
BATCH = 64
BUDGETS = (0.001, 0.01, 0.04, 0.16, 0.64, 2.56)
EPSILONS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
EPSILON_BUDGETS = (0.001, 0.01, 0.16)
"""From budgets that are smaller than N times the largest epsilon to one that is larger."""
NOISES = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Variance of the noise, as a share of the reward's under the untrained team."""
USUAL_BUDGET, USUAL_EPSILON = 0.16, 1e-4
ENOUGH = 0.01
"""A difference in mean payoff (the most is 1) that counts."""
SAME_SHARES, SAME_PAYOFF = 0.05, 0.02
"""What may change with epsilon: part of the budget that changes hands, and mean payoff."""


class Variant(NamedTuple):
    """An algorithm with static settings.

    Attributes:
        fields: of its config.
        leftover: what becomes of budget that line searches leave: "lost" or "handed" on to later agents; "": what the
            algorithm itself does.
        samples: factor of the batch.
    """

    name: str
    algorithm: str
    fields: tuple[tuple[str, str], ...] = ()
    leftover: str = ""
    samples: int = 1


VARIANTS = (
    *(Variant(method, method) for method in study.TRUST_REGION),
    Variant("hatrpo_w-measured", "hatrpo_w", (("utility", "measured"),)),
    Variant("hatrpo_n-measured", "hatrpo_n", (("utility", "measured"),)),
    Variant("hatrpo_g-all", "hatrpo_g", (("greedy_share", "all"),)),
    Variant("hatrpo-handed", "hatrpo", leftover="handed"),
    Variant("hatrpo_w-handed", "hatrpo_w", leftover="handed"),
    Variant("hatrpo_n-handed", "hatrpo_n", leftover="handed"),
    Variant("hatrpo_g-lost", "hatrpo_g", leftover="lost"),
    Variant("hatrpo-x4", "hatrpo", samples=4),
    Variant("hatrpo-x16", "hatrpo", samples=16),
)
OTHER_WAY = {"hatrpo": "handed", "hatrpo_w": "handed", "hatrpo_n": "handed", "hatrpo_g": "lost"}
"""What the algorithms do not do with the leftover."""


class Setting(NamedTuple):
    """kl_budget, allocation_epsilon: config fields. noise: see `NOISES`."""

    kl_budget: float
    allocation_epsilon: float = USUAL_EPSILON
    noise: float = 0.0


def settings_of(variant: Variant) -> list[Setting]:
    """Budgets for all; noise for the plain algorithms; epsilon for the two that have one."""
    is_plain = variant.name == variant.algorithm
    found = [Setting(budget) for budget in BUDGETS]
    if is_plain:
        found += [Setting(USUAL_BUDGET, noise=noise) for noise in NOISES]
    if is_plain and variant.algorithm in ("hatrpo_w", "hatrpo_g"):
        found += [Setting(budget, epsilon) for budget in EPSILON_BUDGETS for epsilon in EPSILONS]
    return list(dict.fromkeys(found))


class Size(NamedTuple):
    variants: tuple[Variant, ...]
    seeds: int
    updates: int


SIZES = {
    "smoke": Size((*VARIANTS[:2], VARIANTS[8]), 1, 3),
    "quick": Size(VARIANTS, 60, 60),
    "full": Size(VARIANTS, 300, 200),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    found = []
    for variant in chosen.variants:
        settings = settings_of(variant)
        updates = len(settings) * chosen.seeds * chosen.updates
        found.append(
            Piece(
                variant.name, 12 + updates * (1 + variant.samples) / 6000,
                {"settings": [list(s) for s in settings], "seeds": chosen.seeds, "updates": chosen.updates,
                 "batch": BATCH, "variant": list(variant), "weights": WEIGHTS.tolist(), "actions": NUM_ACTIONS},
                lambda variant=variant: play(variant, chosen),
            )
        )  # fmt: skip
    return found


# What is tried


def handing_on(share: Callable, in_random_order: bool = False) -> Allocator:
    """Thresholds `share(utility, kl_budget)`, stretched by what earlier agents left unspent.

    Those that wait share all that is not spent, in the ratio of their thresholds. Where every step spends its
    threshold, this changes nothing. The largest threshold moves first, or the order is random.
    """

    def start(key, utility, kl_budget):
        thresholds = share(utility, kl_budget)
        order = jax.random.permutation(key, len(utility)) if in_random_order else jnp.argsort(-thresholds)
        return order, thresholds

    def next_agent(plan, now):
        order, thresholds = plan
        agent = order[now.position]
        total = jnp.sum(jnp.where(now.waiting, thresholds, 0.0))
        return agent, jnp.where(total > 0, now.remaining * thresholds[agent] / jnp.where(total > 0, total, 1.0), 0.0)

    return Allocator("nothing" if in_random_order else "utility", start, next_agent)


def losing(plain: Allocator) -> Allocator:
    """`plain`, told that every agent spent all it was given."""
    return plain._replace(next=lambda plan, now: plain.next(plan, now._replace(remaining=now.unassigned)))


def allocator_of(variant: Variant, config: TrustRegionConfig) -> Allocator:
    """The allocator of a variant that treats leftover budget unlike its algorithm."""
    if variant.leftover == "lost":
        return losing(allocators.greedy(config.greedy_share))
    shares = {
        "hatrpo": allocators.uniform,
        "hatrpo_w": lambda utility, budget: allocators.water_filling(utility, budget, config.allocation_epsilon),
        "hatrpo_n": allocators.natural,
    }
    return handing_on(shares[variant.algorithm], in_random_order=variant.algorithm == "hatrpo")


def entry_of(variant: Variant) -> algorithms.AlgorithmSpec:
    """What is trained."""
    plain = algorithms.get(variant.algorithm)
    if not variant.leftover:
        return plain
    build = lambda actor, config: schemes.sequential(actor, config, allocator_of(variant, config))  # noqa: E731
    return plain._replace(name=variant.name, build=build)


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
    """One variant at all its settings.

    Returns:
        [setting, seed] each. area: mean over updates of the exact expected payoff (noise left out). And of the first
        update: predicted, accepted, surrogate, real: its gain in units of payoff, to first order for the whole steps
        and for the accepted fractions of them, on the samples, and exact. off: part of the budget that is not where the
        rule's own shares of exact utilities would have it. moved: part of the budget that changed hands against the
        same seed at the usual epsilon without noise. largest: largest share. spent: KL as a share of the budget.
        fraction: mean accepted fraction of the steps. Shares are of what was given, and sum to 1.
    """
    env = with_noisy_reward(envs.make("matrix_game", payoff=weighted_payoff()))
    settings = settings_of(variant)
    payoff = np.asarray(weighted_payoff())
    table = np.repeat(np.array(settings), size.seeds, axis=0)
    seeds = np.tile(np.arange(size.seeds), len(settings))
    runs = {"kl_budget": table[:, 0], "allocation_epsilon": table[:, 1]}
    std = np.sqrt(table[:, 2]) * payoff.std()

    def record(policy, params, metrics):
        names = ("kl_threshold", "kl_total", "utility", "gain", "step_fraction")
        kept = {name: metrics[name] for name in names}
        return kept | {"after": right_of(policy), "before": right_of(metrics["policy_before"])}

    entry = entry_of(variant)
    config = stage_games.game_config(entry, BATCH * variant.samples, **dict(variant.fields))
    params = NoisyParams(np.broadcast_to(payoff, (len(seeds), *payoff.shape)), std)
    kept = stage_games.learn(env, entry, config, runs, seeds, size.updates, record, params=params)
    area = (kept["after"] @ WEIGHTS).mean(1)
    first = {name: values[:, 0] for name, values in kept.items()}
    shape = (len(settings), size.seeds)
    share = first["kl_threshold"] / first["kl_threshold"].sum(-1, keepdims=True)
    plain = [settings.index(Setting(setting.kl_budget)) for setting in settings]
    of_plain = share.reshape(*shape, -1)[plain].reshape(share.shape)
    wanted = own_shares(variant, first["before"], table[:, 0], table[:, 1])
    found = gains(first, table[:, 0], std) | {
        "area": area, "off": apart(share, wanted), "moved": apart(share, of_plain), "largest": share.max(-1),
        "spent": first["kl_total"] / table[:, 0], "fraction": first["step_fraction"].mean(-1),
    }  # fmt: skip
    return {name: values.reshape(shape) for name, values in found.items()}


def right_of(policy) -> jax.Array:
    """[4] the probability of each agent's right action."""
    agents = jnp.arange(len(WEIGHTS))
    return stage_games.probabilities(policy)[agents, (agents + 1) % NUM_ACTIONS]


def gains(first: dict, budget: np.ndarray, noise_std: np.ndarray) -> dict[str, np.ndarray]:
    """The gains of `play` from what was recorded of one update, leaves [run, ...].

    Utilities and surrogate gains are reported in units of the batch's standard deviation, for which the exact one of
    the reward stands here. A utility is a gain at an equal share of the budget and grows with the root of the radius.
    """
    unit = reward_std(first["before"], noise_std)
    relative = np.maximum(first["kl_threshold"], 0) * len(WEIGHTS) / budget[:, None]
    predicted = unit[:, None] * first["utility"] * np.sqrt(relative)
    return {
        "predicted": predicted.sum(-1),
        "accepted": (predicted * first["step_fraction"]).sum(-1),
        "surrogate": unit * first["gain"].sum(-1),
        "real": (first["after"] - first["before"]) @ WEIGHTS,
    }


def reward_std(right: np.ndarray, noise_std: np.ndarray) -> np.ndarray:
    """[run] of a reward whose parts w_i [agent i is right] are independent, and of the noise on it; right [run, 4]."""
    return np.sqrt((WEIGHTS**2 * right * (1 - right)).sum(-1) + noise_std**2)


def own_shares(variant: Variant, right: np.ndarray, budget: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    """[run, 4] what the variant's rule makes of exact utilities, for right actions' probabilities [run, 4].

    To first order agent i gains w_i sqrt(2 d p (1 - p)) at radius d. From nearly uniform policies all trial steps
    have the same KL, and nobody's part depends on the others, so that HATRPO-G's scores are in the ratio of these gains
    throughout; steps that spend what they are given then have shares in that ratio too.
    """
    utility = WEIGHTS * np.sqrt(right * (1 - right))
    if dict(variant.fields).get("greedy_share") == "all":
        return np.eye(len(WEIGHTS))[utility.argmax(-1)]
    rules = {
        "hatrpo": lambda u, b, e: allocators.uniform(u, b),
        "hatrpo_w": allocators.water_filling,
        "hatrpo_g": lambda u, b, e: u / u.sum(),
        "hatrpo_n": lambda u, b, e: allocators.natural(u, b),
    }
    thresholds = np.asarray(jax.vmap(rules[variant.algorithm])(jnp.asarray(utility), budget, epsilon), np.float64)
    return thresholds / thresholds.sum(-1, keepdims=True)


def apart(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[...] part of the budget that is in other hands in `left` [..., N] than in `right`: half their distance."""
    return 0.5 * np.abs(left - right).sum(-1)


# What is shown


def at(results: Results, name: str, key: str, **setting) -> np.ndarray:
    """[seed] of the variant called `name` at a setting; its budget is the usual one if not given."""
    variant = next(v for v in VARIANTS if v.name == name)
    return results.pieces[name][key][settings_of(variant).index(Setting(**{"kl_budget": USUAL_BUDGET} | setting))]


def change(results: Results, name: str, other: str, key: str = "area") -> list[Estimate]:
    """By budget: how much more `name` has than `other`, seed by seed."""
    return [study.estimate(at(results, name, key, kl_budget=b) - at(results, other, key, kl_budget=b)) for b in BUDGETS]


def ratio_of_means(pairs: np.ndarray, axis: int) -> np.ndarray:
    """mean(first) / mean(second) of pairs [..., 2] along `axis`."""
    means = pairs.mean(axis)
    return means[..., 0] / means[..., 1]


def come_true(results: Results, name: str, above: str, below: str) -> list[Estimate]:
    """By budget: mean `above` over mean `below`."""
    pairs = [np.stack([at(results, name, key, kl_budget=b) for key in (above, below)], -1) for b in BUDGETS]
    return [study.estimate(pair, ratio_of_means) for pair in pairs]


def by_budget(found: Sequence[Estimate], digits: int = 3, sign: str = "+") -> str:
    """ "+0.013 at 0.01, ..."."""
    return ", ".join(f"{f.value:{sign}.{digits}f} at {b:g}" for f, b in zip(found, BUDGETS))


def intervals(found: Sequence[Estimate], digits: int = 3) -> str:
    return "; ".join(f.interval(digits) for f in found)


def report(results: Results) -> Report:
    size = SIZES[results.size]
    names = [variant.name for variant in size.variants]
    plain = [name for name in names if name in study.TRUST_REGION]
    adaptive = [name for name in plain if name != "hatrpo"]
    changed = [name for name in ("hatrpo_w-measured", "hatrpo_n-measured", "hatrpo_g-all") if name in names]
    leftover = [name for name in plain if f"{name}-{OTHER_WAY[name]}" in names]
    rows = [_unequal_row(results, size, name) for name in adaptive]
    if "hatrpo-x16" in names:
        rows += [_estimates_row(results, size, name) for name in adaptive]
    rows += [_epsilon_row(results, size, name) for name in adaptive if name in ("hatrpo_w", "hatrpo_g")]
    rows += [_noise_row(results, size, name) for name in adaptive]
    rows += [_variant_row(results, size, name) for name in changed]
    rows += [_leftover_row(results, size, name) for name in leftover]
    rows += [_large_budget_row(results, size, name) for name in plain]
    seeds = f"IQM over {size.seeds} seeds with 95 % intervals"
    figures = {
        "settings": (_settings_figure(results, plain), "The game in which agents matter 8 : 4 : 2 : 1. Mean expected "
                     "payoff over the run (1 is the most); and how much of the first update's budget is not where the "
                     f"rule's own shares of exact utilities would have it: against budget and noise; {seeds}."),
        "epsilon": (_epsilon_figure(results, [n for n in ("hatrpo_w", "hatrpo_g") if n in plain]), "Epsilon against "
                    f"{USUAL_EPSILON:g}, same seeds: change of the mean payoff, and part of the budget that changed "
                    f"hands at the first update; {seeds}. Grey: what counts as no change."),
        "gains": (_gains_figure(results, plain), "The first update from the same untrained policies. What of the "
                  "predicted gain comes true; what the line search leaves of it; what comes true of the gain predicted "
                  "for the steps that it accepts, exactly and on the samples; KL spent. Ratios of means over "
                  "seeds with 95 % intervals."),
        "payoff": (_payoff_figure(results, leftover, adaptive, names), "Mean expected payoff over the run, differences "
                   "seed by seed. Left: leftover budget handed on to later agents, against lost. Right: each against "
                   f"equal shares with {BATCH} samples per update; {seeds}."),
    }  # fmt: skip
    return Report(rows, figures, _text(results, size, names))


def _tried(size: Size) -> str:
    return (
        f" Tried: {len(BUDGETS)} budgets from {BUDGETS[0]:g} to {BUDGETS[-1]:g}, {size.seeds} seeds, {size.updates} "
        f"updates of {BATCH} samples, from nearly uniform policies, this game only."
    )


def _unequal_row(results: Results, size: Size, name: str) -> Row:
    found = change(results, name, "hatrpo")
    verdict = study.counted([study.judged(f, ENOUGH, 0.0) for f in found])
    reasons = {
        CONTRARY: "Starving those that matter little costs more than feeding the others brings.",
        NOT_SEEN: "An agent that matters little still has to learn; starving it costs as much as feeding the others "
        "brings.",
        PARTLY: "Those that matter most move furthest, which pays where the budget is scarce. Where it is far too "
        "large, those that matter little are kept from long steps along the chance of their samples.",
        MIXED: "Those that matter most move furthest, which pays where the budget is scarce. Where it is far too "
        "large, the last to move, who matter least, are handed what others left, and make long steps along the chance "
        "of their samples: see the row on what becomes of it."
        if name == "hatrpo_g"
        else "Those that matter most move furthest, which pays where the budget is scarce; see the numbers.",
    }
    return Row(
        f"Where agents matter unequally, {study.LABELS[name]} learns faster than equal shares (mean payoff over the "
        f"run at least {ENOUGH:g} higher), at every budget",
        by_budget(found),
        intervals(found),
        verdict,
        study.because(verdict, reasons) + _tried(size),
    )  # fmt: skip


def _estimates_row(results: Results, size: Size, name: str) -> Row:
    few, many = (change(results, name, f"hatrpo-x{times}") for times in (4, 16))
    verdict = study.counted([study.judged(f, ENOUGH, 0.0) for f in few])
    scarce = (
        f"Where the budget is small, KL is what is scarce: {BATCH} samples tell the directions well enough, and four "
        "times as many do not make equal steps longer. In between neither matters much, for all are soon at the top"
    )
    reasons = {
        NOT_SEEN: "Better directions are worth as much as better shares here.",
        PARTLY: f"{scarce}. Where the budget is far too large, 16 times the samples do as much: both ways keep agents "
        "that matter little from long steps along chance.",
        MIXED: f"{scarce}. Where the budget is far too large, more samples keep steps from following chance, and "
        f"{study.LABELS[name]} makes long ones.",
        HOLDS: f"{scarce}.",
    }
    return Row(
        f"{study.LABELS[name]}'s shares buy more per update than better advantages do: mean payoff at least {ENOUGH:g} "
        "higher than with equal shares and 4 times the samples (a quarter of the variance), at every budget",
        f"against 4 times the samples {by_budget(few)}; against 16 times {by_budget(many)}",
        f"4 times: {intervals(few)}; 16 times: {intervals(many)}",
        verdict,
        study.because(verdict, reasons) + _tried(size),
    )


def within(found: Sequence[Estimate], tolerance: float) -> str:
    """The verdict on a claim that none of these differs from 0 by more than `tolerance`.

    It holds if all intervals say so, the contrary was seen if one lies wholly outside.
    """
    if all(-tolerance <= f.low and f.high <= tolerance for f in found):
        return HOLDS
    return CONTRARY if any(f.low > tolerance or f.high < -tolerance for f in found) else NOT_SEEN


def epsilon_changes(results: Results, name: str, key: str, budget: float) -> list[Estimate]:
    """By epsilon: `key` against the usual epsilon, seed by seed."""
    usual = at(results, name, key, kl_budget=budget)
    of = lambda e: at(results, name, key, kl_budget=budget, allocation_epsilon=e)  # noqa: E731
    return [study.estimate(of(e) - usual) for e in EPSILONS]


def _epsilon_row(results: Results, size: Size, name: str) -> Row:
    verdicts, parts, ranges = [], [], []
    for budget in EPSILON_BUDGETS:
        payoffs, moved = (epsilon_changes(results, name, key, budget) for key in ("area", "moved"))
        verdicts += [within(payoffs, SAME_PAYOFF), within(moved, SAME_SHARES)]
        payoff, share = (max(found, key=lambda f: abs(f.value)) for found in (payoffs, moved))
        parts.append(f"payoff {payoff.value:+.3f}, shares {share.value:.2f} at {budget:g}")
        ranges.append(f"{payoff.interval(3)}, {share.interval()}")
    verdict = study.counted(verdicts)
    to_one = (
        "Where epsilon is small against an equal share of the budget, shares are in the ratio of the utilities. Where "
        "it is larger, the best agent is given nearly all, and the others learn only when it has done."
    )
    reasons = {
        HOLDS: "All trial steps have the same radius, so about the same KL: epsilon divides all scores alike.",
        MIXED: to_one,
        CONTRARY: to_one,
        NOT_SEEN: "The intervals are too wide to say.",
    }
    tried = f" Tried: epsilons {', '.join(f'{e:g}' for e in EPSILONS)}, {size.seeds} seeds, this game only."
    return Row(
        f"{study.LABELS[name]} does not depend on epsilon over four magnitudes, {EPSILONS[0]:g} to {EPSILONS[-1]:g}, "
        f"at joint budgets {', '.join(f'{b:g}' for b in EPSILON_BUDGETS)} (against {USUAL_EPSILON:g}: mean payoff "
        f"within {SAME_PAYOFF:g}, and at most {SAME_SHARES:g} of the first update's budget in other hands)",
        "largest change: " + "; ".join(parts),
        "; ".join(ranges),
        verdict,
        study.because(verdict, reasons) + tried,
    )


def _noise_row(results: Results, size: Size, name: str) -> Row:
    off = [study.estimate(at(results, name, "off", noise=n)) for n in NOISES]
    worse = [study.estimate(at(results, name, "off", noise=n) - at(results, name, "off")) for n in NOISES[1:]]
    moved = study.estimate(at(results, name, "moved", noise=NOISES[-1]))
    losses = [
        study.estimate(at(results, method, "area", noise=NOISES[-1]) - at(results, method, "area"))
        for method in (name, "hatrpo")
    ]
    verdict = study.judged(worse[-1], 0.05, 0.0)
    tried = f" Tried: noise of {', '.join(f'{n:g}' for n in NOISES[1:])} of the variance, {size.seeds} seeds."
    alike = (
        "A utility is the length of a gradient, and noise has length in every direction: it makes agents look alike. "
        "Half of the variance more lengthens what chance puts into a gradient by a fifth only, and of that there is "
        f"enough without: {BATCH} samples. "
    )
    paid = (
        "What payoff is lost is lost under equal shares as well: to worse steps, not to worse shares. A tenth of the "
        "variance costs most of it: of a team that has learned, any noise is all that the advantages hold."
    )
    reasons = {
        NOT_SEEN: ("What line searches leave is handed on, which moves more of the budget than this noise does. "
                   if name == "hatrpo_g" else alike) + paid,
        PARTLY: alike + paid,
        HOLDS: alike + paid,
    }  # fmt: skip
    return Row(
        f"Noise on the advantages (half of the reward's variance) spoils {study.LABELS[name]}'s shares (0.05 more of "
        f"the budget in the wrong hands), budget {USUAL_BUDGET:g}",
        "of the first update's budget, not where exact utilities would have it: "
        + ", ".join(f"{w.number()} at {n:g}" for w, n in zip(off, NOISES))
        + f" (by the most noise {moved.number()} changes hands); mean payoff by the most noise {losses[0].value:+.3f} "
        f"{losses[0].interval(3)} (HATRPO {losses[1].value:+.3f} {losses[1].interval(3)})",
        f"{worse[-1].value:+.2f} {worse[-1].interval()}",
        verdict,
        study.because(verdict, reasons) + tried,
    )


def _variant_row(results: Results, size: Size, name: str) -> Row:
    base, what = name.split("-")
    text = {"measured": "Measuring the utility", "all": "Giving the best agent all that is left"}[what]
    found = change(results, name, base)
    verdict = study.counted([study.judged(f, ENOUGH, 0.0) for f in found])
    starved = (
        "Who comes after the first gets only what its line search left over, and would have gained more by the same "
        "KL: gains grow with its root."
    )
    reasons = {
        "measured": {
            NOT_SEEN: "The first-order utility costs nothing and says the same.",
            PARTLY: "By very little: the first-order utility is free and as good.",
        },
        "all": {
            NOT_SEEN: starved,
            CONTRARY: starved,
            MIXED: starved + " Where the budget is far too large, it does no harm that they get less.",
            PARTLY: "At some budgets only, see the numbers.",
        },
    }[what]
    return Row(
        f"{text} helps {study.LABELS[base]} (mean payoff at least {ENOUGH:g} higher), at every budget",
        by_budget(found),
        intervals(found),
        verdict,
        study.because(verdict, reasons) + _tried(size),
    )


def handed_and_lost(name: str) -> tuple[str, str]:
    """The variants of an algorithm that hand leftover budget on, and lose it."""
    other = f"{name}-{OTHER_WAY[name]}"
    return (other, name) if OTHER_WAY[name] == "handed" else (name, other)


def _leftover_row(results: Results, size: Size, name: str) -> Row:
    handed, lost = handed_and_lost(name)
    found = change(results, handed, lost)
    spent = [
        ", ".join(f"{100 * at(results, variant, 'spent', kl_budget=b).mean():.0f} %" for b in BUDGETS)
        for variant in (handed, lost)
    ]
    verdict = study.counted([study.judged(f, ENOUGH, 0.0) for f in found])
    larger = "To hand on what is left is to have a larger budget. That pays where the budget is scarce"
    reasons = {
        NOT_SEEN: "A third more budget for the later agents changes little.",
        CONTRARY: "To hand on what is left is to have a larger budget, and steps that are too long already get longer.",
        MIXED: f"{larger}; where it is far too large, steps that are too long already get longer.",
        PARTLY: f"{larger}.",
    }
    usual = "as it does" if handed == name else "which it does not do"
    return Row(
        f"Handing on what line searches leave, {usual}, helps {study.LABELS[name]} (mean payoff at least {ENOUGH:g} "
        "higher than where it is lost), at every budget",
        f"{by_budget(found)}; of the budget the first update spends {spent[0]} handed on and {spent[1]} lost",
        intervals(found),
        verdict,
        study.because(verdict, reasons) + _tried(size),
    )


def _large_budget_row(results: Results, size: Size, name: str) -> Row:
    whole = come_true(results, name, "real", "predicted")
    steps = come_true(results, name, "accepted", "predicted")
    model = come_true(results, name, "real", "accepted")
    verdict = study.judged(Estimate(-whole[-1].value, -whole[-1].high, -whole[-1].low), -0.5, -1.0)
    samples = come_true(results, name, "surrogate", "accepted")
    taken = (
        f"Up to a budget of {BUDGETS[-2]:g} the line search takes a fifth: whole steps are mostly a hair too long in "
        "KL, and the next one that is tried is 0.8 as long. "
    )
    fitted = (
        f"At {BUDGETS[-1]:g} it is not the local model that breaks: on the samples, accepted steps gain about what it "
        f"predicts. But steps that long fit the chance of {BATCH} samples, of which the exact gain keeps only a part"
    )
    weak = "; most of all those of agents that hardly matter, which equal thresholds make as long as any" * (
        name == "hatrpo"
    )
    reasons = dict.fromkeys((HOLDS, PARTLY), f"{taken}{fitted}{weak}.")
    reasons |= {NOT_SEEN: "The prediction is as good at large budgets as at small ones."}
    return Row(
        f"The first-order prediction of {study.LABELS[name]}'s gain breaks at large budgets (less than half of the "
        f"first update's comes true at {BUDGETS[-1]:g})",
        f"exact / predicted gain: {by_budget(whole, 2, '')}; left by the line search of the predicted gain: "
        f"{by_budget(steps, 2, '')}; exact / predicted for the accepted steps: {by_budget(model, 2, '')}; gain on the "
        f"samples / predicted for the accepted steps: {by_budget(samples, 2, '')}",
        f"exact / predicted: {intervals(whole, 2)}; for the accepted steps: {intervals(model, 2)}",
        verdict,
        study.because(verdict, reasons) + _tried(size),
    )


def _points(axes, x, found: Sequence[Estimate], place: int, style: dict) -> None:
    """Estimates with their intervals over `x`, set aside by `place` so that they do not hide each other."""
    x = np.asarray(x)
    is_log = x[0] > 0
    middle = np.array([f.value for f in found])
    around = [middle - [f.low for f in found], [f.high for f in found] - middle]
    x = x * 1.09 ** (place - 1.5) if is_log else x + 0.006 * (place - 1.5)
    axes.errorbar(x, middle, np.maximum(around, 0), **{"linewidth": 1.2, "markersize": 4.5} | style)
    axes.set_xscale("log" if is_log else "linear")


def _legend(figure: Figure, axes, columns: int = 4) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)


def _settings_figure(results: Results, names: list[str]) -> Figure:
    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    panels = figure.subplots(2, 2)
    columns = (("joint KL budget", "kl_budget", BUDGETS), ("variance of the noise / of the reward", "noise", NOISES))
    for column, (title, field, ticks) in enumerate(columns):
        for axes, key in zip(panels[:, column], ("area", "off")):
            for place, name in enumerate(names):
                found = [study.estimate(at(results, name, key, **{field: tick})) for tick in ticks]
                _points(axes, ticks, found, place, study.point_style(name))
            study.strip(axes)
        panels[1, column].set_xlabel(title)
    panels[0, 0].set_ylabel("mean expected payoff")
    panels[1, 0].set_ylabel("part of the budget not where\nexact utilities would have it")
    _legend(figure, panels[0, 0])
    return figure


def _epsilon_figure(results: Results, names: list[str]) -> Figure:
    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    panels = figure.subplots(2, len(EPSILON_BUDGETS), sharex=True, sharey="row")
    for column, budget in enumerate(EPSILON_BUDGETS):
        for axes, key, same in zip(panels[:, column], ("area", "moved"), (SAME_PAYOFF, SAME_SHARES)):
            axes.axhspan(-same if key == "area" else 0, same, color="0.9", linewidth=0)
            for place, name in enumerate(names):
                found = epsilon_changes(results, name, key, budget)
                _points(axes, EPSILONS, found, place + 1, study.point_style(name))
            study.strip(axes)
        panels[0, column].set_title(f"joint KL budget {budget:g}", fontsize=10, loc="left")
        panels[1, column].set_xlabel("epsilon")
    panels[0, 0].set_ylabel("change of the\nmean payoff")
    panels[1, 0].set_ylabel("part of the budget\nin other hands")
    _legend(figure, panels[0, 0])
    return figure


def _gains_figure(results: Results, names: list[str]) -> Figure:
    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    panels[5].set_axis_off()
    panels = panels[:5]
    ratios = (("real", "predicted"), ("accepted", "predicted"), ("real", "accepted"), ("surrogate", "accepted"))
    titles = (
        "exact / predicted gain",
        "predicted for accepted /\nfor whole steps",
        "exact / predicted gain\nof accepted steps",
        "gain on the samples / predicted\ngain of accepted steps",
        "KL spent / budget",
    )
    for place, name in enumerate(names):
        for axes, (above, below) in zip(panels, ratios):
            _points(axes, BUDGETS, come_true(results, name, above, below), place, study.point_style(name))
        spent = [study.estimate(at(results, name, "spent", kl_budget=b), np.mean) for b in BUDGETS]
        _points(panels[-1], BUDGETS, spent, place, study.point_style(name))
    for axes, title in zip(panels, titles):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set_xlabel("joint KL budget")
        study.strip(axes)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="center", bbox_to_anchor=(0.84, 0.26), frameon=False)
    return figure


def _payoff_figure(results: Results, leftover: list[str], adaptive: list[str], names: list[str]) -> Figure:
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, name in enumerate(leftover):
        _points(left, BUDGETS, change(results, *handed_and_lost(name)), place, study.point_style(name))
    for place, name in enumerate(adaptive):
        _points(right, BUDGETS, change(results, name, "hatrpo"), place, study.point_style(name))
    for times, marker in ((4, "x"), (16, "*")):
        if f"hatrpo-x{times}" in names:
            style = {"color": study.COLOURS["hatrpo"], "marker": marker, "label": f"HATRPO, {times} times the samples"}
            style |= {"linestyle": ":", "markersize": 6}
            _points(right, BUDGETS, change(results, f"hatrpo-x{times}", "hatrpo"), 3, style)
    left.set_title("leftover handed on - lost", fontsize=10, loc="left")
    right.set_title("against equal shares", fontsize=10, loc="left")
    left.set_ylabel("difference in mean payoff")
    for axes in (left, right):
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel("joint KL budget")
        study.strip(axes)
    handles = {label: handle for axes in (left, right) for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _text(results: Results, size: Size, names: list[str]) -> str:
    def first(key: str) -> str:
        return ", ".join(f"{name} {at(results, name, key).mean():.2f}" for name in names)

    return (
        f"Settings: 4 agents with {NUM_ACTIONS} actions, batches of {BATCH}, {size.updates} updates, {size.seeds} "
        f"seeds, the same for all; joint budget {USUAL_BUDGET} and epsilon {USUAL_EPSILON:g} where they are not "
        "varied. Differences are taken seed by seed. Nothing is searched.\n\n"
        "Noise is added to the reward, which in a game with one state is noise on the advantages; its variance is "
        "a share of the reward's under the untrained team. A critic cannot better these advantages (its one value "
        "is subtracted from all alike); more samples can.\n\n"
        "All that is said of shares, steps and gains is of the first update, from the same untrained policies. "
        "Shares are of what was given and sum to 1: HATRPO-G gives what earlier agents left over once more. *Not "
        "where exact utilities would have it*: half the distance between a rule's shares and those that the same "
        "rule makes of exact utilities. Gains are in units of payoff; the predicted one is to first order, for "
        "thresholds used in full (HATRPO's at each agent's turn, the others' before anyone moves). Leftover budget "
        "that is handed on is shared among those that wait, in the ratio of their thresholds.\n\n"
        f"At the usual settings, first update: largest share {first('largest')}; KL spent / budget "
        f"{first('spent')}; accepted fraction of the steps {first('fraction')}; gain on the samples over that "
        f"predicted for the accepted steps {first_ratio(results, names)}."
    )


def first_ratio(results: Results, names: list[str]) -> str:
    """Mean surrogate gain over mean predicted one of the accepted steps, at the usual settings."""
    pairs = {n: [at(results, n, key).mean() for key in ("surrogate", "accepted")] for n in names}
    return ", ".join(f"{name} {above / below:.2f}" for name, (above, below) in pairs.items())


STUDY = study.Study(
    "allocation_ablations",
    "Allocation: epsilon, utility, noise, leftover and large budgets",
    "What do the details of the allocation change in a game where agents matter unequally?",
    pieces,
    report,
)


if __name__ == "__main__":
    study.main(STUDY)
