"""Stage games with known payoffs, so that every algorithm can be compared with a closed form.

There is nothing to observe: `obs` is [N, 1] of ones and `state` [1] of ones; agent ids are not needed because every
agent has its own network. The reward depends on the current joint action only.

`steps` selects one of two forms of the same game:

- `steps=1`, one-step: every step terminates, so the value of the next state is 0 and an episode is one draw of the joint
  action. The return is the stage reward.
- `steps=k > 1`, repeated: the game never terminates; the time limit truncates it after k steps. Its value is that of
  infinite repetition, r / (1 - gamma) under a constant stage reward r, so the critic has to bootstrap at the truncation.
  The (undiscounted) episode return is the sum of k stage rewards.

The games are deterministic: keys are accepted and ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from envs import pictures
from envs.base import ActionKind, Draw, Env, EnvParams, EnvSpec, TimeStep, multi_discrete_sizes
from envs.time_limit import with_time_limit
from envs.validation import check_integer

MAX_PAYOFF_ENTRIES = 2**24
"""The largest payoff tensor that `matrix_game` builds or accepts: 64 MiB of float32."""

MAX_AGENTS = 2**12
"""The most agents of games without a payoff tensor."""


def matrix_game(
    num_agents: int | None = None,
    num_actions: int | None = None,
    payoff: Any = None,
    steps: int = 1,
    per_agent: bool = False,
) -> Env:
    """A matrix game: the reward is the entry of a payoff tensor at the joint action.

    Without `payoff` the game is sparse: one joint action pays 1, all others 0. Agent i has to choose (i + 1) mod k:
    (1, 2, 0, 1) for 4 agents with 3 actions. Neighbours need different actions, so neither "always the first action"
    nor a policy shared by all agents solves it, and a wrong order of agents is detected.

    The payoff tensor is `Env.params`, float32: `env._replace(params=...)`, or a vmap over `params`, is another game of
    the same shape without a new compilation. An unavailable choice (masked, or outside the padded range) pays NaN, so
    that a policy that ignores `action_mask` is detected.

    Args:
        num_agents: N; 4 unless `payoff` says otherwise.
        num_actions: choices k of every agent; 3 unless `payoff` says otherwise.
        payoff: [k_1, ..., k_N] team reward of every joint action, or [k_1, ..., k_N, N] with `per_agent`.
            Agents may have different numbers of actions; `action_mask` marks the real ones.
        steps: env steps per episode: 1 for the one-step form, more for the repeated one (see the module).
        per_agent: whether the last axis of `payoff` holds one reward per agent (a general-sum game).

    Raises:
        ValueError: sizes below 1, a payoff that contradicts them, is empty, too large or not finite in float32.
    """
    name = "matrix_game"
    if payoff is None and per_agent:
        raise ValueError(f"env '{name}': per_agent=True needs a payoff of shape [k_1, ..., k_N, N]")
    metadata = ()
    if payoff is None:
        payoff, rewarded = _sparse_payoff(name, num_agents, num_actions)
        metadata = (("rewarded_joint_action", " ".join(map(str, rewarded))),)
        action_sizes = payoff.shape
    else:
        payoff, action_sizes = _checked_payoff(name, payoff, per_agent, num_agents, num_actions)
    spec = _spec(name, action_sizes, "discrete", steps, team_reward=not per_agent, metadata=metadata)

    def reward(action, params):
        chex.assert_shape(params, payoff.shape)
        return _looked_up(params, action)

    def draw(axes, env_state, action, params):
        table = np.asarray(params)
        pictures.payoff(axes, table.mean(-1) if per_agent else table, action, spec.agents)
        if per_agent:
            axes.set_title("mean payoff of the agents", fontsize=9)

    return _stage_game(spec, reward, draw, jnp.asarray(payoff))


def digits(
    digits_of: Sequence[int] = (2, 1), num_choices: int | None = None, payoff: Any = None, steps: int = 1
) -> Env:
    """A matrix game whose agents choose several digits each: multi-discrete actions.

    `matrix_game` with one player per digit, of which agent i controls `digits_of[i]` consecutive ones: the payoff
    tensor, its default and `Env.params` are that game's. Digits are chosen independently, which suffices for the best
    return but not for every distribution over an agent's joint choices. An unavailable choice pays NaN, and so does
    anything but 0 for a padded digit.

    Args:
        digits_of: digits d_i >= 1 of each agent.
        num_choices: choices of every digit; 3 unless `payoff` says otherwise.
        payoff: [k_1, ..., k_M] team reward of all M = sum d_i digits; digits may have different numbers of choices.
        steps: env steps per episode: 1 for the one-step form, more for the repeated one (see the module).

    Raises:
        ValueError: sizes below 1, or a payoff that contradicts them, is empty, too large or not finite in float32.
    """
    name = "digits"
    if not isinstance(digits_of, (list, tuple)) or not digits_of:
        raise ValueError(
            f"env '{name}': digits_of={digits_of!r}; it must be a number of digits per agent, such as (2, 1)"
        )
    digits_of = tuple(_at_least_one(name, "digits_of", count) for count in digits_of)
    total = sum(digits_of)
    metadata = ()
    if payoff is None:
        payoff, rewarded = _sparse_payoff(name, total, num_choices, ("sum of digits_of", "num_choices"))
        metadata = (("rewarded_digits", " ".join(map(str, rewarded))),)
    else:
        payoff, sizes = _checked_payoff(name, payoff, False, None, None)
        problem = f"env '{name}': payoff of shape {list(sizes)}"
        if len(sizes) != total:
            raise ValueError(f"{problem}; for digits_of={digits_of} it must have {total} axes, one per digit")
        if num_choices is not None and set(sizes) != {num_choices}:
            raise ValueError(f"{problem} has digits of other sizes than num_choices={num_choices}")
    ends = np.cumsum(digits_of)
    sub_actions = tuple(payoff.shape[end - count : end] for count, end in zip(digits_of, ends))
    sizes = multi_discrete_sizes(sub_actions)
    spec = _spec(name, sizes, "multi_discrete", steps, metadata=metadata, sub_actions=sub_actions)
    exists = np.arange(spec.num_sub_actions) < np.asarray(digits_of)[:, None]

    def reward(action, params):
        chex.assert_shape(params, payoff.shape)
        absent_are_zero = jnp.all(jnp.where(exists, 0, action) == 0)
        return jnp.where(absent_are_zero, _looked_up(params, action[np.nonzero(exists)]), jnp.nan)

    def draw(axes, env_state, action, params):
        players = [f"{spec.agents[agent]}.{digit}" for agent, digit in np.argwhere(exists)]
        pictures.payoff(axes, np.asarray(params), None if action is None else action[exists], players)

    return _stage_game(spec, reward, draw, jnp.asarray(payoff))


class Peak(NamedTuple):
    """`weight` times the normalised density of two independent Gaussians, `mean` and `std` per agent."""

    weight: float
    mean: tuple[float, float]
    std: tuple[float, float]


TWO_PEAKS = (Peak(10.0, (5.0, 5.0), (1.0, 3.0)), Peak(5.3, (1.0, 1.0), (1.0, 1.0)))
TWO_PEAKS_SLOPE = 0.1


def two_peaks(steps: int = 1) -> Env:
    """The two-peak game: a wide peak and a narrower, lower one, two agents with one unbounded action each.

    R(a1, a2) = 10 N(a; (5, 5), (1, 3)) + 0.1 a1 + 5.3 N(a; (1, 1), (1, 1)), where N(a; m, s) is the normalised density
    of two independent Gaussians with means m and standard deviations s (the differential game of Shek, Shi & Tokekar
    2025). `two_peaks_expectation` has its expectation under Gaussian policies in closed form: with unit variance its
    peaks are at means (5.62, 5.00) with value 0.885, and (1.60, 1.02) with value 0.554. The slope 0.1 a1 is unbounded,
    so neither is a global maximum: beyond a1 = 8.86 the slope alone pays more than both.

    Args:
        steps: env steps per episode: 1 for the one-step form, more for the repeated one (see the module).

    Raises:
        ValueError: `steps` below 1.
    """
    spec = _spec("two_peaks", (1, 1), "continuous", steps)
    return _differential_game(spec, lambda action: two_peaks_expectation(action, jnp.zeros(2)), -3.0, 11.0)


def two_peaks_expectation(mean: jax.Array, std: jax.Array | float) -> jax.Array:
    """[] expected reward of `two_peaks` when agent i plays a Gaussian of `mean[i]` and `std[i]`; the reward at std 0.

    Convolving Gaussians adds variances, so each peak keeps its form: w N(mean; m, sqrt(s^2 + std^2)).

    Args:
        mean: [2] means of the two policies.
        std: [2] or a number, their standard deviations.
    """
    mean = jnp.asarray(mean)
    total = TWO_PEAKS_SLOPE * mean[0]
    for peak in TWO_PEAKS:
        scale = jnp.sqrt(jnp.square(jnp.asarray(peak.std)) + jnp.square(std))
        total += peak.weight * jnp.prod(jax.scipy.stats.norm.pdf(mean, jnp.asarray(peak.mean), scale))
    return total


def bilinear(steps: int = 1, bound: float | None = None) -> Env:
    """r(a1, a2) = a1 a2, two agents with one action each, unbounded by default (after Kuba et al. 2022).

    Under Gaussian policies E[r] = mu1 mu2: simultaneous gradient steps of both agents can decrease the reward;
    sequential ones cannot.

    Args:
        steps: env steps per episode: 1 for the one-step form, more for the repeated one (see the module).
        bound: actions are clipped to [-bound, bound], so that the largest reward is bound^2; None: no clipping.

    Raises:
        ValueError: `steps` below 1, or a bound that is not a finite number > 0.
    """
    name = "bilinear"
    if bound is None:
        return _differential_game(_spec(name, (1, 1), "continuous", steps), jnp.prod, -3.0, 3.0)
    if not isinstance(bound, (int, float)) or isinstance(bound, bool) or not 0 < bound < 2.0**128:
        raise ValueError(f"env '{name}': bound={bound!r}; it must be a finite number > 0, or None")
    bound = float(bound)
    low, high = ((-bound,),) * 2, ((bound,),) * 2
    spec = _spec(name, (1, 1), "continuous", steps, action_low=low, action_high=high)
    return _differential_game(spec, lambda action: jnp.prod(jnp.clip(action, -bound, bound)), -bound, bound)


def parameter_sharing(num_agents: int = 4, steps: int = 1) -> Env:
    """Pays 1 when the first half of the agents plays one action and the second half the other, else 0.

    Two actions per agent. The best joint policy earns 1; the best policy shared by all agents earns 2 / 2^N (Kuba et
    al. 2022, Proposition 1).

    Args:
        num_agents: N, even.
        steps: env steps per episode: 1 for the one-step form, more for the repeated one (see the module).

    Raises:
        ValueError: an odd number of agents, or `steps` below 1.
    """
    name = "parameter_sharing"
    num_agents = _at_least_one(name, "num_agents", num_agents)
    if num_agents % 2:
        raise ValueError(f"env '{name}': num_agents={num_agents}; it must be even: the game has two halves")
    if num_agents > MAX_AGENTS:
        raise ValueError(f"env '{name}': num_agents={num_agents}; it must be at most {MAX_AGENTS}")
    half = num_agents // 2

    def reward(action, params):
        first, second = action[:half], action[half:]
        return jnp.all(first == action[0]) & jnp.all(second == 1 - action[0])

    def draw(axes, env_state, action, params):
        pictures.joint_choice(axes, spec.action_sizes, action, spec.agents)

    spec = _spec(name, (2,) * num_agents, "discrete", steps)
    return _stage_game(spec, reward, draw)


def _looked_up(payoff: jax.Array, choices: jax.Array) -> jax.Array:
    """The entry of `payoff` [k_1, ..., k_M, ...] at `choices` [M]; NaN where one of them is out of range."""
    entry = jnp.asarray(payoff).at[tuple(choices)].get(mode="fill", fill_value=jnp.nan)
    # Negative indices count from the end, where they would be valid choices.
    return jnp.where(jnp.all(choices >= 0), entry, jnp.nan)


def _at_least_one(name: str, field: str, value: Any) -> int:
    return check_integer(f"env '{name}': {field}", value, 1, below=2**31)


def _sparse_payoff(
    name: str, players: int | None, choices: int | None, fields: tuple[str, str] = ("num_agents", "num_actions")
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The default payoff [k, ..., k] and its rewarded joint action; `fields`: names of the two numbers in messages."""
    n = _at_least_one(name, fields[0], 4 if players is None else players)
    k = _at_least_one(name, fields[1], 3 if choices is None else choices)
    # Logarithms, because k**n of a mistyped number may take forever.
    if n * math.log(max(k, 2)) > math.log(MAX_PAYOFF_ENTRIES):
        raise ValueError(
            f"env '{name}': {fields[0]}={n} with {fields[1]}={k} is a payoff of {k}^{n} entries; "
            f"at most {MAX_PAYOFF_ENTRIES} are accepted"
        )
    rewarded = tuple((agent + 1) % k for agent in range(n))
    payoff = np.zeros((k,) * n, np.float32)
    payoff[rewarded] = 1.0
    return payoff, rewarded


def _checked_payoff(
    name: str, payoff: Any, per_agent: bool, num_agents: int | None, num_actions: int | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """`payoff` as float32, and the number of actions of each agent."""
    try:
        payoff = np.asarray(payoff, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"env '{name}': payoff is not an array of numbers: {error}") from error
    expected = "[k_1, ..., k_N, N]" if per_agent else "[k_1, ..., k_N]"
    problem = f"env '{name}': payoff of shape {list(payoff.shape)}"
    action_sizes = payoff.shape[:-1] if per_agent else payoff.shape
    n = len(action_sizes)
    if n == 0 or payoff.size == 0:
        raise ValueError(f"{problem}; it must be {expected} with at least one agent and one action each")
    if per_agent and payoff.shape[-1] != n:
        raise ValueError(f"{problem}; with per_agent=True its last axis must be one reward for each of {n} agents")
    if num_agents is not None and num_agents != n:
        hint = "; per_agent=True reads its last axis as agents" if num_agents == n - 1 == payoff.shape[-1] else ""
        raise ValueError(f"{problem} is a game of {n} agents, but num_agents={num_agents}{hint}")
    if num_actions is not None and set(action_sizes) != {num_actions}:
        raise ValueError(f"{problem} has {list(action_sizes)} actions, but num_actions={num_actions}")
    if payoff.size > MAX_PAYOFF_ENTRIES:
        raise ValueError(f"{problem} has {payoff.size} entries; at most {MAX_PAYOFF_ENTRIES} are accepted")
    with np.errstate(over="ignore"):
        payoff = payoff.astype(np.float32)
    bad = np.argwhere(~np.isfinite(payoff))
    if bad.size:
        raise ValueError(f"{problem} is not finite in float32 at {len(bad)} entries, first at {bad[0].tolist()}")
    return payoff, action_sizes


def _spec(name: str, action_sizes: tuple[int, ...], action_kind: ActionKind, steps: int, **other) -> EnvSpec:
    """The spec of a game without observations."""
    return EnvSpec(
        name=name,
        agents=tuple(f"agent_{i}" for i in range(len(action_sizes))),
        observation_sizes=(1,) * len(action_sizes),
        action_sizes=tuple(action_sizes),
        action_kind=action_kind,
        state_size=1,
        episode_length=_at_least_one(name, "steps", steps),
        **other,
    )


def _differential_game(spec: EnvSpec, reward: Callable[[jax.Array], jax.Array], low: float, high: float) -> Env:
    """A stage game of two agents with `reward(action[2])`; drawn from `low` to `high`, if nothing is beyond."""

    def draw(axes, env_state, action, params):
        pictures.landscape(axes, jax.vmap(reward), None if action is None else action[:, 0], low, high, spec.agents)

    return _stage_game(spec, lambda action, params: reward(action[:, 0]), draw)


def _stage_game(
    spec: EnvSpec, reward: Callable[[jax.Array, EnvParams], jax.Array], draw: Draw, params: EnvParams = ()
) -> Env:
    """The environment around a stage reward: `reward(action, params)` is [] (team) or [N]."""
    n = spec.num_agents

    def timestep(reward_n, terminated):
        return TimeStep(
            obs=jnp.ones((n, 1), jnp.float32),
            state=jnp.ones((1,), jnp.float32),
            reward=jnp.broadcast_to(reward_n, (n,)).astype(jnp.float32),
            terminated=jnp.asarray(terminated),
            truncated=jnp.asarray(False),
            action_mask=jnp.asarray(spec.action_mask),
        )

    def reset(key, params):
        return (), timestep(0.0, False)

    def step(key, env_state, action, params):
        chex.assert_shape(action, spec.action_shape)
        return (), timestep(reward(action, params), spec.episode_length == 1)

    return with_time_limit(Env(spec, reset, step, params, draw=draw))


FACTORIES: dict[str, Callable[..., Env]] = {
    "matrix_game": matrix_game,
    "digits": digits,
    "two_peaks": two_peaks,
    "bilinear": bilinear,
    "parameter_sharing": parameter_sharing,
}
