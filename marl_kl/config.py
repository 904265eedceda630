"""The configs of a run: frozen dataclasses, validated when they are built.

Every field is either *static* (it sets a shape or a branch; changing it compiles a new program) or *traced* (a number
that can be swept under `jax.vmap` with one compilation). `Config.traced_fields` returns the latter and `Config.replace`
accepts tracers for them, whose values are not checked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self

import jax
import numpy as np

from envs.validation import is_path, path_of, suggest

_Check = tuple[Callable[[Any], bool], str]

_POSITIVE: _Check = (lambda x: x > 0 and math.isfinite(x), "> 0")
_POSITIVE_OR_INF: _Check = (lambda x: x > 0, "> 0, or inf to switch it off")
_NON_NEGATIVE: _Check = (lambda x: x >= 0 and math.isfinite(x), ">= 0")
_FRACTION: _Check = (lambda x: 0 < x <= 1, "in (0, 1]")
_UNIT: _Check = (lambda x: 0 <= x <= 1, "in [0, 1]")
_OPEN_UNIT: _Check = (lambda x: 0 < x < 1, "in (0, 1)")
_BELOW_ONE: _Check = (lambda x: 0 <= x < 1, "in [0, 1)")
_ANY: _Check = (lambda x: True, "")
_PATH: _Check = (lambda x: not x or is_path(x), "a path 'module:function', or empty for none")


_WIDTHS: _Check = (lambda x: len(x) > 0 and all(w > 0 for w in x), "> 0, at least one")


def _one_of(*options: str) -> _Check:
    return (lambda x: x in options, "one of " + ", ".join(options))


_ACTIVATION = _one_of("tanh", "relu", "elu", "silu")


_INT32, _INT64, _FLOAT32 = 2**31, 2**63, 2.0**128
"""Exclusive upper bounds of integers on the device, integers on the host only, and floats."""


def traced(default: float, text: str, check: _Check = _POSITIVE):
    """A traced field: `default`, its help, and which values it takes (a test of a value, and that in words)."""
    return dataclasses.field(
        default=default, metadata={"help": text, "static": False, "check": check, "below": _FLOAT32}
    )


def static(default, text: str, check: _Check = _POSITIVE, below: int = _INT32):
    """A static field, like `traced`; `below` limits integers."""
    return dataclasses.field(default=default, metadata={"help": text, "static": True, "check": check, "below": below})


SCHEDULED = ("kl_budget", "critic_lr", "actor_lr", "ent_coef", "exploration_noise", "exploration_epsilon")
"""The fields that may change linearly over a run."""


def _final_fraction(name: str):
    return traced(
        1.0, f"{name} at the end of the run, as a fraction of that at its start; linear in between", _NON_NEGATIVE
    )


EVALUATIONS = 20
"""In a run, if its `eval_interval` is not set."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of every algorithm: rollout, networks, evaluation and checkpoints.

    Raises:
        ValueError: a field has a value outside its range; the message names the field, the value and the range.
    """

    total_env_steps: int = static(1_000_000, "env steps per seed (one env step is one joint step)", below=_INT64)
    num_envs: int = static(32, "parallel environments per seed")
    rollout_length: int = static(128, "env steps per environment between two updates")
    gamma: float = traced(0.99, "discount", _UNIT)
    normalize_observations: bool = static(True, "standardise observations and states by running moments", _ANY)

    hidden_sizes: tuple[int, ...] = static((64, 64), "hidden layer widths of actors and critic", _WIDTHS)
    activation: str = static("tanh", "activation of the hidden layers", _ACTIVATION)
    share_parameters: bool = static(
        False, "one actor network for all agents (not for happo, hatrpo_w, hatrpo_g, hatrpo_n, haddpg, hatd3)", _ANY
    )
    agent_ids: bool = static(
        True, "append a one-hot agent id to the inputs of a shared network; no effect without share_parameters", _ANY
    )
    actor_encoder: str = static(
        "", "path of a function spec -> flax module that encodes each actor's inputs before its hidden layers", _PATH
    )
    critic_encoder: str = static(
        "", "the same for the critic's inputs (of off-policy algorithms: for the state in them)", _PATH
    )

    critic_lr: float = traced(1e-3, "Adam step size of the critic")
    critic_lr_final_fraction: float = _final_fraction("critic_lr")

    eval_episodes: int = static(16, "evaluation episodes per seed: parallel environments, one episode each")
    eval_interval: int = static(
        -1,
        f"updates between evaluations; 0: only before the first and after the last; -1: {EVALUATIONS} times",
        (lambda x: x >= -1, ">= -1"),
    )
    save_interval: int = static(50, "updates between saves to the run folder; 0: only at the end", _NON_NEGATIVE)
    checkpoints_kept: int = static(2, "checkpoints kept in the run folder: the newest ones")
    chunk_updates: int = static(10, "updates per compiled chunk, between two host syncs")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _validate(field, getattr(self, field.name)))
        if self.batch_size >= _INT32:
            raise ValueError(
                f"num_envs * rollout_length = {self.num_envs} * {self.rollout_length} = {self.batch_size}; "
                f"it must be below {_INT32}"
            )

    @property
    def batch_size(self) -> int:
        """Env steps per update."""
        return self.num_envs * self.rollout_length

    @property
    def num_updates(self) -> int:
        """Updates until at least `total_env_steps` have been taken."""
        return -(-self.total_env_steps // self.batch_size)

    @property
    def updates_per_evaluation(self) -> int:
        """`eval_interval` as a number of updates; 0: there are no evaluations but the first and the last."""
        return max(1, self.num_updates // EVALUATIONS) if self.eval_interval < 0 else self.eval_interval

    @property
    def traced_fields(self) -> dict[str, float]:
        """The fields that may be traced, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.metadata["static"]}

    def at(self, progress: jax.Array) -> Self:
        """The config at `progress` [] of a run, from 0 to 1: the `SCHEDULED` fields have their values there."""
        fractions = {name: getattr(self, f"{name}_final_fraction", 1.0) for name in SCHEDULED}
        changes = {
            name: getattr(self, name) * (1 + (fraction - 1) * progress)
            for name, fraction in fractions.items()
            if not (isinstance(fraction, float) and fraction == 1)
        }
        return self.replace(**changes)

    def next_stop(self, done: int) -> int:
        """Updates made at the next host sync after `done`: end of a chunk, evaluation, save or end of the run."""
        intervals = (self.updates_per_evaluation, self.save_interval)
        multiples = ((done // every + 1) * every for every in intervals if every)
        return min(done + self.chunk_updates, self.num_updates, *multiples)

    def replace(self, **changes) -> Self:
        """A copy with `changes`; an unknown name raises ValueError with the nearest field."""
        self.refuse_unknown(changes)
        return dataclasses.replace(self, **changes)

    def refuse_unknown(self, names: Iterable[str]) -> None:
        """Raises ValueError, with the nearest field, if one of `names` is not a field."""
        known = {f.name for f in dataclasses.fields(self)}
        for name in names:
            if name not in known:
                raise ValueError(
                    f"unknown config field {name!r} for {type(self).__name__}; {suggest(name, sorted(known))}"
                )


SCHEDULE = ("total_env_steps", "eval_interval", "save_interval", "checkpoints_kept", "chunk_updates", "save_replay")
"""The fields about the run's length, evaluations, saves and host syncs; `free_schedule`: those a resumed run may change."""


def free_schedule(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of `SCHEDULE` that no update depends on, given the other fields.

    With a field that changes over the run, updates depend on `total_env_steps`.
    """
    is_scheduled = any(config.get(f"{name}_final_fraction", 1) != 1 for name in SCHEDULED)
    return tuple(name for name in SCHEDULE if name != "total_env_steps" or not is_scheduled)


def is_due(done: int, every: int) -> bool:
    """Whether `done` updates are a multiple of the interval `every` (0: never)."""
    return every > 0 and done % every == 0


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig(Config):
    """Fields of the on-policy algorithms: stochastic policies, advantages, and a critic of states."""

    gae_lambda: float = traced(0.95, "GAE's lambda", _UNIT)
    init_std: float = traced(0.37, "initial standard deviation of Gaussian policies")
    squash: bool = static(
        False, "squash Gaussian actions into the environment's control range by tanh, instead of clipping them", _ANY
    )
    recurrent: bool = static(False, "recurrent actors: a GRU after their hidden layers, reset with each episode", _ANY)
    recurrent_critic: bool = static(False, "recurrent critic, whether the actors are or not", _ANY)
    recurrent_size: int = static(64, "width of the GRUs")
    critic_epochs: int = static(5, "passes of the critic over each batch")
    critic_minibatches: int = static(
        4, "minibatches per pass; must divide num_envs * rollout_length (num_envs if the critic is recurrent)"
    )
    critic_max_grad_norm: float = traced(10.0, "global gradient norm at which the critic's step is clipped")
    huber_delta: float = traced(10.0, "where the critic's loss turns from quadratic to linear (normalised units)")
    value_clip: float = traced(0.2, "range of a value update per batch (normalised units)", _POSITIVE_OR_INF)

    def __post_init__(self):
        super().__post_init__()
        self._check_divisible("critic_minibatches", self.recurrent_critic)

    def _check_divisible(self, name: str, recurrent: bool) -> None:
        minibatches = getattr(self, name)
        if recurrent and self.num_envs % minibatches:
            raise ValueError(
                f"{name}={minibatches} does not divide num_envs={self.num_envs}; it must if the network is recurrent, "
                "because its minibatches are whole rollouts of environments"
            )
        if self.batch_size % minibatches:
            raise ValueError(
                f"{name}={minibatches} does not divide the batch of "
                f"num_envs * rollout_length = {self.num_envs} * {self.rollout_length} = {self.batch_size}"
            )


@dataclasses.dataclass(frozen=True)
class TrustRegionConfig(OnPolicyConfig):
    """Fields of the trust-region algorithms (HATRPO and its relatives): the joint KL budget and the step inside it.

    A per-agent threshold d, as in HARL or the HATRPO paper, corresponds to `kl_budget = num_agents * d` for continuous
    actions. For discrete ones the authors' code sums the log ratios of all k actions without weighting them by their
    probabilities, which for uniform policies is about k times the true KL: d = 0.06 on a StarCraft map of 12 actions is a
    threshold of about 0.005 here.
    """

    kl_budget: float = traced(0.08, "joint KL budget of one update: the sum over agents of mean KL(old || new)")
    kl_budget_final_fraction: float = _final_fraction("kl_budget")
    cg_iters: int = static(10, "conjugate-gradient iterations, at most")
    cg_damping: float = traced(0.1, "added to the Fisher matrix in conjugate gradient", _NON_NEGATIVE)
    cg_tol: float = traced(
        1e-10, "stop conjugate gradient at this squared residual, relative to the gradient's", _NON_NEGATIVE
    )
    cg_subsample: float = static(
        0.1, "share of the batch (of its environments if recurrent) that Fisher products use; 1: all of it", _FRACTION
    )
    line_search_steps: int = static(10, "step sizes tried before an agent keeps its old parameters")
    line_search: Literal["kl_matched", "geometric"] = static(
        "kl_matched",
        "next step size: the one at which KL should equal the threshold, or backtrack_coef times the last (as published)",
        _one_of("kl_matched", "geometric"),
    )
    backtrack_coef: float = traced(0.8, "factor between two step sizes of the line search", _OPEN_UNIT)
    accept_ratio: float = traced(0.5, "least share of the predicted gain that a step must reach", _UNIT)
    allocation_epsilon: float = traced(1e-4, "epsilon of HATRPO-W's logarithm and of HATRPO-G's score")
    utility: Literal["auto", "cross_fitted", "first_order", "measured"] = static(
        "auto",
        "an agent's utility: the gain of its trial step that the other half of the environments predicts (cross_fitted), "
        "the gain predicted on the samples that it was fitted to (first_order, as published), or measured on them; auto: "
        "cross_fitted, for hatrpo_g first_order",
        _one_of("auto", "cross_fitted", "first_order", "measured"),
    )
    utility_smoothing: float = traced(
        0.98,
        "weight of earlier updates in the exponential average of cross-fitted utilities, whose differences count as far "
        "as they exceed their noise; 0: this update's utilities as they are",
        _BELOW_ONE,
    )
    measure_signal: bool = static(
        False, "report signal_fraction even if utilities are not cross-fitted (costs a trial step per agent)", _ANY
    )
    greedy_share: Literal["proportional", "all"] = static(
        "proportional",
        "share of the remaining budget that HATRPO-G allocates to the next agent: score / sum of scores, or all of it",
        _one_of("proportional", "all"),
    )


@dataclasses.dataclass(frozen=True)
class FirstOrderConfig(OnPolicyConfig):
    """Fields of the first-order algorithms (HAPPO, MAPPO and their relatives): a surrogate maximised by Adam."""

    actor_lr: float = traced(5e-4, "Adam step size of the actors")
    actor_lr_final_fraction: float = _final_fraction("actor_lr")
    actor_epochs: int = static(5, "passes of each actor over each batch")
    actor_minibatches: int = static(
        1, "minibatches per pass; must divide num_envs * rollout_length (num_envs if recurrent)"
    )
    actor_max_grad_norm: float = traced(10.0, "global gradient norm at which an actor's gradient is clipped")
    clip_eps: float = traced(0.2, "epsilon of the surrogate: how far a probability ratio should differ from 1")
    ent_coef: float = traced(0.0, "weight of the policy's entropy in the objective", _NON_NEGATIVE)
    ent_coef_final_fraction: float = _final_fraction("ent_coef")
    target_kl: float = traced(
        math.inf,
        "no further step of an actor on a batch once a minibatch's estimate of KL(old || new) exceeds this",
        _POSITIVE_OR_INF,
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_divisible("actor_minibatches", self.recurrent)


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig(Config):
    """Fields of the off-policy algorithms (MADDPG and its relatives): replay, exploration and targets.

    One update is `rollout_length` env steps in each environment, and then `gradient_steps` steps on minibatches of the
    replay.
    """

    num_envs: int = static(10, "parallel environments per seed")
    rollout_length: int = static(50, "env steps per environment between two updates")
    hidden_sizes: tuple[int, ...] = static((256, 256), "hidden layer widths of actors and critic", _WIDTHS)
    activation: str = static("relu", "activation of the hidden layers", _ACTIVATION)
    save_interval: int = static(200, "updates between saves to the run folder; 0: only at the end", _NON_NEGATIVE)

    actor_lr: float = traced(5e-4, "Adam step size of the actors")
    actor_lr_final_fraction: float = _final_fraction("actor_lr")
    max_grad_norm: float = traced(
        math.inf, "global gradient norm at which each network's gradient is clipped", _POSITIVE_OR_INF
    )
    tau: float = traced(0.005, "how far each target network moves towards its network after a step", _FRACTION)
    n_step: int = static(1, "rewards in a target before it bootstraps, at most; fewer where an episode ends")
    minibatch_size: int = static(1000, "transitions per gradient step")
    updates_per_step: float = static(
        1.0, "gradient steps of the critic per env step of each environment; times rollout_length a whole number"
    )
    warmup_steps: int = static(
        10_000, "env steps of uniformly random actions before the first gradient step", _NON_NEGATIVE
    )
    replay_size: int = static(1_000_000, "transitions in the replay of each seed")
    save_replay: bool = static(
        True, "whether checkpoints have the replay; without it a resumed run first fills an empty one", _ANY
    )
    exploration_noise: float = traced(
        0.1,
        "std of the Gaussian added to continuous actions in training, in half widths of the control range",
        _NON_NEGATIVE,
    )
    exploration_noise_final_fraction: float = _final_fraction("exploration_noise")
    exploration_epsilon: float = traced(0.05, "share of choices made uniformly at random in training", _UNIT)
    exploration_epsilon_final_fraction: float = _final_fraction("exploration_epsilon")
    gumbel_temperature: float = traced(1.0, "temperature of the softmax through which choices are differentiated")
    policy_freq: int = static(
        2, "critic steps per step of actors and targets; must divide the gradient steps of an update"
    )
    target_noise: float = traced(
        0.2, "std of the Gaussian added to target actions, in half widths of the control range", _NON_NEGATIVE
    )
    target_noise_clip: float = traced(0.5, "largest such noise", _NON_NEGATIVE)

    def __post_init__(self):
        super().__post_init__()
        steps = self.rollout_length * self.updates_per_step
        if steps < 1 or abs(steps - round(steps)) > 1e-6:
            raise ValueError(
                f"updates_per_step={self.updates_per_step}; times rollout_length={self.rollout_length} it must be a "
                "whole number of gradient steps, at least 1"
            )
        if self.replay_length <= self.n_step:
            raise ValueError(
                f"replay_size={self.replay_size}; it must hold more than n_step={self.n_step} env steps of each "
                f"environment, and at least num_envs * rollout_length = {self.batch_size} transitions"
            )
        if self.warmup_steps > self.num_envs * self.replay_length:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}; it must be at most replay_size={self.replay_size}, rounded down to "
                f"whole updates: {self.num_envs * self.replay_length}"
            )

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of the critic per update."""
        return round(self.rollout_length * self.updates_per_step)

    @property
    def replay_length(self) -> int:
        """Env steps of each environment in a full replay: `replay_size`, rounded down to whole updates."""
        return self.replay_size // self.batch_size * self.rollout_length

    def refuse_unknown(self, names: Iterable[str]) -> None:
        names = tuple(names)
        recurrent = next((name for name in names if name in ("recurrent", "recurrent_critic", "recurrent_size")), None)
        if recurrent:
            raise ValueError(
                f"{recurrent}; off-policy algorithms have no recurrent networks: their replay holds single env steps, "
                "without the hidden states before them"
            )
        super().refuse_unknown(names)


def _validate(field: dataclasses.Field, value):
    """`value` in the field's type, checked; tracers are returned unchanged."""
    if isinstance(value, jax.core.Tracer) and not field.metadata["static"]:
        return value
    if isinstance(value, (jax.Array, np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    accepts, range_text = field.metadata["check"]
    kind = type(field.default)
    limit = field.metadata["below"]
    try:
        value = _coerce(kind, value)
        is_accepted = accepts(value)
    except (TypeError, ValueError, OverflowError):
        is_accepted = False
    if is_accepted and _is_below(limit, value):
        return value
    expected = f"{_TYPE_NAMES[kind]} {range_text}".strip()
    raise ValueError(f"{field.name}={_short_repr(value)}; it must be {f'below {limit:g}' if is_accepted else expected}")


def _is_below(limit: float, value) -> bool:
    """Whether all numbers in `value` are below `limit`, or infinite."""
    numbers = value if isinstance(value, tuple) else (value,)
    return all(isinstance(x, (bool, str)) or x < limit or x == math.inf for x in numbers)


def _short_repr(value) -> str:
    """`value` in a message, at most 200 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to convert very long integers
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


_TYPE_NAMES = {int: "an integer", float: "a finite number", bool: "a boolean", str: "", tuple: "a tuple of integers"}


def _coerce(kind: type, value):
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise TypeError
    if isinstance(value, bool):
        raise TypeError
    if kind is int:
        if int(value) != value:
            raise ValueError
        return int(value)
    if kind is float:
        # the only accepted strings are numbers that JSON lacks
        if isinstance(value, str) and value not in ("inf", "-inf", "nan"):
            raise TypeError
        return float(value)
    if kind is str:
        if callable(value):
            return path_of(value)
        if isinstance(value, str):
            return value
        raise TypeError
    return tuple(_coerce(int, item) for item in value)
