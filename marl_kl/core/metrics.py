"""Names and meanings of the metrics that an update reports, and the statistics of evaluation episodes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

TEAM_METRICS = {
    "episode_return": "team return of each environment's last finished episode, averaged; NaN before the first one",
    "episode_length": "length of the same episodes, in env steps",
    "episodes_finished": "episodes that ended in this update",
    "kl_total": "KL spent by the team: the sum of `kl` over agents; never above kl_budget, where there is one (at the "
    "observation moments that the batch was collected with)",
    "factor_mean": "mean of the compound factor, the product of all agents' ratios after the update; 1 without an update",
    "factor_max": "largest compound factor in the batch",
    "value_loss": "Huber loss of the critic, normalised units, mean over its minibatches",
    "explained_variance": "share of the variance of the returns that the critic explained before this update",
    "q_loss": "mean squared error of the critics to their targets, mean over the gradient steps; NaN before the first one",
    "q_mean": "mean Q of the first critic on the same minibatches",
    "exploration": "std of the noise on continuous actions, in half widths of the control range, or share of uniform "
    "choices; 1 in the warm-up, whose actions are all uniform",
    "replay_fill": "share of the replay that is filled",
}
"""[seed, update]: each algorithm reports those of its kind, `ON_POLICY_TEAM_METRICS` or `OFF_POLICY_TEAM_METRICS`."""

_EPISODES = ("episode_return", "episode_length", "episodes_finished")

OFF_POLICY_TEAM_METRICS = (*_EPISODES, "q_loss", "q_mean", "exploration", "replay_fill")
"""The team metrics of algorithms with an `OffPolicyConfig`."""

ON_POLICY_TEAM_METRICS = (*_EPISODES, *(name for name in TEAM_METRICS if name not in OFF_POLICY_TEAM_METRICS))
"""The team metrics of algorithms with an `OnPolicyConfig`."""

AGENT_METRICS = {
    "utility": "expected gain of the agent's trial step at an equal share of the budget, before any update "
    "(hatrpo, which does not need it: before its own update; sharing parameters: of the one step of all)",
    "signal_fraction": "part of the gain predicted on one half of the environments that the other half confirms: 1 without "
    "sampling noise, about 0 if the batch is too small to show a direction (reported with cross-fitted utilities, and with measure_signal)",
    "kl_threshold": "the agent's share of the KL budget (sharing parameters: equal parts, of which only the sum binds)",
    "kl": "mean KL(old || new) that the agent spent",
    "gain": "surrogate gain E[(r - 1) M] of the step made, M the advantage times the compound factor of the agents "
    "updated before",
    "step_fraction": "accepted fraction of the full trust-region step; 0 if none was accepted, above 1 only with "
    "line_search=kl_matched",
    "position": "position of the agent in this update's order, from 0; 0 for simultaneous updates",
    "entropy": "mean policy entropy after the update, nats",
    "clip_fraction": "share of the samples whose final ratio differs from 1 by more than clip_eps",
    "grad_norm": "mean global gradient norm of the steps made, before clipping (of the network, if it is shared)",
    "epochs": "passes over the batch made before target_kl stopped them",
    "actor_loss": "minus the mean Q of the agent's own actions, mean over the gradient steps; NaN before the first one",
}
"""[seed, update, agent]: each algorithm reports those of its kind: `TRUST_REGION_METRICS`, `FIRST_ORDER_METRICS` or
`OFF_POLICY_METRICS`."""

_COMMON = ("kl", "gain", "position", "entropy")

TRUST_REGION_METRICS = (*_COMMON, "utility", "kl_threshold", "step_fraction")
"""The agent metrics of algorithms with a `TrustRegionConfig`."""

FIRST_ORDER_METRICS = (*_COMMON, "clip_fraction", "grad_norm", "epochs")
"""The agent metrics of algorithms with a `FirstOrderConfig`."""

OFF_POLICY_METRICS = ("actor_loss", "grad_norm")
"""The agent metrics of algorithms with an `OffPolicyConfig`."""

WATCHED = ("observation", "reward", "value", "actor", "critic")
"""The quantities checked for finiteness in every update, in the order of the metric `nonfinite`."""


class EpisodeStatistics(NamedTuple):
    """episode_return: [..., episode] team return. episode_length: [..., episode] env steps."""

    episode_return: jax.Array | np.ndarray
    episode_length: jax.Array | np.ndarray
