"""Does unequal KL pay at ten million env steps, and at which joint budget? Sized for one GPU.

python -m experiments.budgets_at_scale --full --out experiments/results

A piece is one method on one body: all budgets and seeds train in one program, so that there is no search before it, and
every budget is reported. Pieces are stored one by one; the same command resumes, inside a piece too.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import marl_kl
from experiments import settings, study, styles
from experiments.bodies_at_scale import METHOD_STYLES, METHODS, is_trust_region, make_env, swept_field
from experiments.brax_suite import binned, last_tenth, shares
from experiments.intervals import Estimate, estimate, ratio
from experiments.study import Piece, Report, Results
from marl_kl.training import presets

STUDY_NAME = "budgets_at_scale"
SHOWN = 40
"""Points of a training curve, at most."""


class Body(NamedTuple):
    """env_steps: of each run. budgets: per agent (the joint budget is that times the agents). step_sizes: Adam's, of HAPPO and
    MAPPO. methods: in the order in which they run."""

    env_steps: int
    budgets: Sequence[float]
    step_sizes: Sequence[float]
    methods: Sequence[str]


class Size(NamedTuple):
    """bodies: by name. seeds: of every setting. num_envs, rollout_length: of every run. evaluations: of a run."""

    bodies: Mapping[str, Body]
    seeds: int
    num_envs: int
    rollout_length: int
    evaluations: int


_TRUST_REGION = ("hatrpo", "hatrpo_w", "hatrpo_n_cross", "hatrpo_w_cross")
_FULL = {
    "ant_4x2": Body(10_000_000, (0.005, 0.015), (3e-4, 1e-3), (*_TRUST_REGION, "happo")),
    "hopper_3x1": Body(3_000_000, (0.005, 0.015), (3e-4, 1e-3), (*_TRUST_REGION, "happo")),
    "walker2d_3x2": Body(3_000_000, (0.005, 0.015), (3e-4, 1e-3), (*_TRUST_REGION, "happo")),
}
SIZES = {
    "smoke": Size({"bilinear": Body(128, (0.005, 0.015), (1e-3,), ("hatrpo", "hatrpo_w_cross", "happo"))}, 2, 2, 16, 2),
    "quick": Size({"ant_4x2": _FULL["ant_4x2"]._replace(env_steps=300_000)}, 4, 32, 128, 5),
    "full": Size(_FULL, 12, 256, 32, 10),
}


def pieces(size: str) -> list[Piece]:
    return [_piece(size, name, method) for name, body in SIZES[size].bodies.items() for method in body.methods]


def _piece(size: str, scenario: str, method: str) -> Piece:
    chosen, config = SIZES[size], _config(scenario, method, SIZES[size])
    values, seeds = _values(scenario, method, chosen), range(chosen.seeds)
    facts = {
        "scenario": scenario, "method": method, "swept": list(values), "seeds": list(seeds),
        **dict(make_env(scenario).spec.metadata), **settings.of_config(config),
    }  # fmt: skip
    name = _name(scenario, method)
    seconds = 120.0 + len(values) * len(seeds) * config.total_env_steps / 20_000
    return Piece(name, seconds, facts, lambda: play(scenario, method, chosen, study.WORK / f"{STUDY_NAME}-{size}" / name))


def _name(scenario: str, method: str) -> str:
    return f"{scenario}-{method}"


def _values(scenario: str, method: str, size: Size) -> Sequence[float]:
    """What is swept: joint budgets or step sizes."""
    body = size.bodies[scenario]
    if not is_trust_region(method):
        return body.step_sizes
    return [make_env(scenario).spec.num_agents * budget for budget in body.budgets]


def _config(scenario: str, method: str, size: Size) -> marl_kl.Config:
    known = scenario if scenario in presets.get("quick").scenarios else "ant_4x2"  # its env steps are replaced
    env_steps = size.bodies[scenario].env_steps
    updates = -(-env_steps // (size.num_envs * size.rollout_length))
    return presets.config(
        "quick", known, METHODS[method].algorithm, total_env_steps=env_steps, num_envs=size.num_envs,
        rollout_length=size.rollout_length, eval_episodes=min(16, size.num_envs), save_interval=max(1, updates // 4),
        eval_interval=max(1, updates // size.evaluations), checkpoints_kept=1, **METHODS[method].fields,
    )  # fmt: skip


def play(scenario: str, method: str, size: Size, work: Path) -> study.Values:
    """Trains all settings and seeds.

    Returns:
        env_steps: [P]; returns: [setting, seed, P] of the stochastic policy. final: [setting, seed] its mean over the last
        tenth of the updates. eval_env_steps: [V]; evaluated: [setting, seed, V] of the deterministic policy, mean over
        episodes. seconds: of training alone. Trust-region methods also: spent: [setting, seed] share of the budget
        spent, mean over updates. Adaptive ones: share: [setting, bin, agent]; largest: [setting, seed], see `shares`;
        signal: [setting, bin, agent] median `signal_fraction` over seeds, where it was measured.
    """
    values, config = _values(scenario, method, size), _config(scenario, method, size)
    result = marl_kl.sweep(
        make_env(scenario), METHODS[method].algorithm, grid={swept_field(method): list(values)},
        seeds=range(size.seeds), config=config, out=work, resume=True, progress="none",
    )  # fmt: skip
    metrics = result.metrics
    edges = np.unique(np.linspace(0, result.env_steps.shape[1], SHOWN + 1).astype(int))
    found = {
        "env_steps": result.env_steps[0, edges[1:] - 1],
        "returns": np.stack([binned(own, edges) for own in metrics["episode_return"]]),
        "final": last_tenth(metrics["episode_return"]),
        "eval_env_steps": result.evaluations[0].env_steps,
        "evaluated": np.stack([own.episode_return.mean(-1) for own in result.evaluations]),
        "seconds": np.array(result.timing.train),
    }
    if is_trust_region(method):
        found["spent"] = (metrics["kl_total"] / np.reshape(values, (-1, 1, 1))).mean(-1)
    if is_trust_region(method) and METHODS[method].algorithm != "hatrpo":
        allocated = [
            shares(*(metrics[name][setting] for name in ("utility", "kl_threshold", "kl")), edges)
            for setting in range(len(values))
        ]
        found |= {name: np.stack([own[name] for own in allocated]) for name in ("share", "largest")}
        found["signal"] = np.stack([np.nanmedian(binned(own, edges), axis=0) for own in metrics["signal_fraction"]])
    shutil.rmtree(work, ignore_errors=True)
    return found


STUDY = study.Study(STUDY_NAME, "Unequal KL at ten million env steps", pieces, lambda results: Report({}, {}), is_incremental=True)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(study.WORK / "compiled"))
    study.main(STUDY)
