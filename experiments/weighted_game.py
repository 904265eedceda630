"""The game whose agents matter 8 : 4 : 2 : 1, and the variants of the allocation that are trained on it.

The reward is sum_i w_i [agent i plays its own right action], so an unequal allocation should pay here if anywhere. What
one update does is measured at the first, from the same untrained policies for all: later, teams that learn faster have
less left to gain. What a team earns is measured over the whole run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import envs
from envs.base import Env
from experiments import stage_games
from experiments.study import Values
from experiments.styles import TRUST_REGION
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
"""Variance of the noise, as a share of the reward's variance under the untrained team."""
USUAL_BUDGET, USUAL_EPSILON = 0.16, 1e-4


class Variant(NamedTuple):
    """An algorithm with static settings.

    Attributes:
        fields: of its config.
        leftover: what happens to budget that line searches leave: "lost", or "carried" over to later agents; "": as in
            the algorithm itself.
        samples: factor of the batch.
    """

    name: str
    algorithm: str
    fields: tuple[tuple[str, str], ...] = ()
    leftover: str = ""
    samples: int = 1


VARIANTS = (
    *(Variant(method, method) for method in TRUST_REGION),
    Variant("hatrpo_w-measured", "hatrpo_w", (("utility", "measured"),)),
    Variant("hatrpo_n-measured", "hatrpo_n", (("utility", "measured"),)),
    Variant("hatrpo_g-all", "hatrpo_g", (("greedy_share", "all"),)),
    Variant("hatrpo-carried", "hatrpo", leftover="carried"),
    Variant("hatrpo_w-carried", "hatrpo_w", leftover="carried"),
    Variant("hatrpo_n-carried", "hatrpo_n", leftover="carried"),
    Variant("hatrpo_g-lost", "hatrpo_g", leftover="lost"),
    Variant("hatrpo-x4", "hatrpo", samples=4),
    Variant("hatrpo-x16", "hatrpo", samples=16),
)
OTHER_WAY = {"hatrpo": "carried", "hatrpo_w": "carried", "hatrpo_n": "carried", "hatrpo_g": "lost"}
"""What the algorithms themselves do not do with leftover budget."""


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


def carrying_over(share: Callable, in_random_order: bool = False) -> Allocator:
    """Thresholds `share(utility, kl_budget)`, increased by what earlier agents left unspent.

    All that is not spent is allocated to the waiting agents in the ratio of their thresholds. If every step spends
    its threshold, this changes nothing. The largest threshold moves first, or the order is random.
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
    """`plain`, as if every agent had spent its whole threshold."""
    return plain._replace(next=lambda plan, now: plain.next(plan, now._replace(remaining=now.unassigned)))


def allocator_of(variant: Variant, config: TrustRegionConfig) -> Allocator:
    """The allocator of a variant whose leftover budget is not treated as in its algorithm."""
    if variant.leftover == "lost":
        return losing(allocators.greedy(config.greedy_share))
    shares = {
        "hatrpo": allocators.uniform,
        "hatrpo_w": lambda utility, budget: allocators.water_filling(utility, budget, config.allocation_epsilon),
        "hatrpo_n": allocators.natural,
    }
    return carrying_over(shares[variant.algorithm], in_random_order=variant.algorithm == "hatrpo")


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


def play(variant: Variant, num_seeds: int, num_updates: int) -> Values:
    """One variant at all its settings.

    Returns:
        [setting, seed] each. area: mean over updates of the exact expected payoff (noise left out). And of the first
        update: predicted, accepted, surrogate, real: its gain in units of payoff, to first order for the whole steps
        and for the accepted fractions of them, on the samples, and exact. off: part of the budget that is not where the
        same rule allocates it from exact utilities. moved: part of the budget allocated to other agents than in the
        same seed at the usual epsilon without noise. largest: largest share. spent: KL as a share of the budget.
        fraction: mean accepted fraction of the steps. Shares are of the sum of thresholds.
    """
    env = with_noisy_reward(envs.make("matrix_game", payoff=weighted_payoff()))
    settings = settings_of(variant)
    payoff = np.asarray(weighted_payoff())
    table = np.repeat(np.array(settings), num_seeds, axis=0)
    seeds = np.tile(np.arange(num_seeds), len(settings))
    runs = {"kl_budget": table[:, 0], "allocation_epsilon": table[:, 1]}
    std = np.sqrt(table[:, 2]) * payoff.std()

    def record(policy, params, metrics):
        names = ("kl_threshold", "kl_total", "utility", "gain", "step_fraction")
        kept = {name: metrics[name] for name in names}
        return kept | {"after": right_of(policy), "before": right_of(metrics["policy_before"])}

    entry = entry_of(variant)
    config = stage_games.game_config(entry, BATCH * variant.samples, **dict(variant.fields))
    params = NoisyParams(np.broadcast_to(payoff, (len(seeds), *payoff.shape)), std)
    kept = stage_games.learn(env, entry, config, runs, seeds, num_updates, record, params=params)
    area = (kept["after"] @ WEIGHTS).mean(1)
    first = {name: values[:, 0] for name, values in kept.items()}
    shape = (len(settings), num_seeds)
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
    """[run, 4] shares by the variant's rule from exact utilities, for right actions' probabilities [run, 4].

    To first order agent i gains w_i sqrt(2 d p (1 - p)) at radius d. From nearly uniform policies all trial steps
    have the same KL, and no agent's gain depends on the others, so that HATRPO-G's scores stay in the ratio of these
    gains; if steps spend their thresholds, shares have that ratio too.
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
    """[...] part of the budget that `left` [..., N] allocates to other agents than `right`: half their distance."""
    return 0.5 * np.abs(left - right).sum(-1)
