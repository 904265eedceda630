"""The methods that the long studies compare, how each is configured, and how it is tuned.

All take matched line searches unless they say otherwise, so that equal budgets are equal KL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import envs
import marl_kl
from experiments import settings, styles
from marl_kl.core.algorithms import get
from marl_kl.training import presets


class Method(NamedTuple):
    """label: in tables. algorithm: its name. fields: of its config, in addition to the preset's."""

    label: str
    algorithm: str
    fields: Mapping[str, Any]


_CROSS_FITTED = {"utility": "cross_fitted", "utility_smoothing": 0.98}
METHODS = {
    "hatrpo": Method("HATRPO", "hatrpo", {}),
    "hatrpo_w": Method("W, in-sample utility", "hatrpo_w", {**settings.PUBLISHED_UTILITY, "measure_signal": True}),
    "happo": Method("HAPPO", "happo", {}),
    "hatrpo_w_cross": Method("W, cross-fitted utility", "hatrpo_w", _CROSS_FITTED),
    "hatrpo_n_cross": Method("N, cross-fitted utility", "hatrpo_n", _CROSS_FITTED),
    "hatrpo_geometric": Method("HATRPO, geometric line search", "hatrpo", {"line_search": "geometric"}),
    "hatrpo_w_published": Method("W, as published", "hatrpo_w", settings.published("hatrpo_w")),
    "hatrpo_g": Method("G, in-sample score", "hatrpo_g", {"utility": "first_order"}),
    "hatrpo_g_cross": Method("G, cross-fitted score", "hatrpo_g", {"utility": "cross_fitted"}),
    "mappo": Method("MAPPO", "mappo", {}),
}
"""In the order of the tables."""

SEARCHED = {"kl_budget": (0.005, 0.015, 0.045), "actor_lr": (3e-4, 1e-3, 3e-3)}
"""First trials: KL budget per agent, or Adam's step size."""


def is_trust_region(method: str) -> bool:
    return get(METHODS[method].algorithm).config_class is marl_kl.TrustRegionConfig


def swept_field(method: str) -> str:
    return "kl_budget" if is_trust_region(method) else "actor_lr"


def config_of(
    scenario: str, method: str, env_steps: int, num_envs: int, rollout_length: int, evaluations: int
) -> marl_kl.Config:
    """The preset's of the body, or of the ant if it has none, at these sizes; saved as often as evaluated."""
    body = scenario.split("_")[0]
    known = next((name for name in presets.get("quick").scenarios if name.startswith(f"{body}_")), "ant_4x2")
    interval = max(1, -(-env_steps // (num_envs * rollout_length)) // evaluations)
    return presets.config(
        "quick", known, METHODS[method].algorithm, total_env_steps=env_steps, num_envs=num_envs,
        rollout_length=rollout_length, eval_episodes=min(16, num_envs), save_interval=interval, eval_interval=interval,
        checkpoints_kept=1, **METHODS[method].fields,
    )  # fmt: skip


def train_with(
    env: envs.Env, method: str, values: Sequence[float], seeds: Sequence[int], config: marl_kl.Config, folder: Path
) -> marl_kl.SweepResult:
    """A sweep of budgets per agent, or step sizes; stored in `folder` until the piece is done, and resumed there."""
    scale = env.spec.num_agents if is_trust_region(method) else 1
    return marl_kl.sweep(
        env, METHODS[method].algorithm, grid={swept_field(method): [scale * value for value in values]}, seeds=seeds,
        config=config, out=folder, resume=True, progress="none",
    )  # fmt: skip


_COLOURS = (
    "#333333",
    "#0072B2",
    "#CC79A7",
    "#E69F00",
    "#009E73",
    "#999999",
    "#56B4E9",
    "#D55E00",
    "#882255",
    "#8C510A",
)
METHOD_STYLES = {
    name: styles.Style(method.label, colour, (0, (4, 1.5)) if method.fields.get("line_search") else "-", "o")
    for (name, method), colour in zip(METHODS.items(), _COLOURS)
}
