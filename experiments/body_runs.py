"""What bodies_at_scale runs: which methods on which bodies, how long, how each is tuned, and what is kept of a run.

All methods take matched line searches, so that equal budgets are equal KL. Every method is tuned with the same number of
trials, the trust-region methods by HATRPO's search: one joint budget for all, chosen for the baseline. The trials of
first-order methods are as long as the runs, because a step size that leads after a third of a run need not hold until its end.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import envs
import marl_kl
from experiments import settings, shares, study
from experiments.curves import bin_edges, binned, last_tenth
from experiments.methods import METHODS, SEARCHED, config_of, is_trust_region, swept_field, train_with
from experiments.study import Piece
from marl_kl.training import presets

STUDY_NAME = "bodies_at_scale"

EXTENSION = 3.0
"""The grid is extended by this factor while its best value is at an end."""
TRIALS = 6
"""Trials at most."""
SEARCH_SEEDS = (100, 101)
EVALUATIONS = 20


class Size(NamedTuple):
    """A study's size.

    Attributes:
        env_steps: per seed, by scenario. search_env_steps: the same in trials of KL budgets; trials of step sizes are as
            long as the runs.
        seeds: per piece. groups: pieces per scenario and method, so that one does not take hours.
        blocks: scenario and methods, in the order in which they run.
    """

    env_steps: Mapping[str, int]
    search_env_steps: int
    seeds: int
    groups: int
    num_envs: int
    rollout_length: int
    blocks: Sequence[tuple[str, Sequence[str]]]


REQUIRED = ("hatrpo", "hatrpo_w", "hatrpo_w_cross", "hatrpo_n_cross", "happo")
_OPTIONAL = ("hatrpo_g", "hatrpo_g_cross", "hatrpo_w_published", "hatrpo_geometric", "mappo")
_BODIES = {"ant_4x2": 3_000_000, "hopper_3x1": 3_000_000, "walker2d_3x2": 3_000_000}
_UNLIKE_AGENTS = dict.fromkeys(("ant_3|1", "walker2d_2|4", "humanoid_9|8"), 1_500_000)
SIZES = {
    "smoke": Size({"bilinear": 128}, 32, 2, 2, 2, 16, [("bilinear", ["hatrpo_w_cross"])]),
    "quick": Size(
        _BODIES | _UNLIKE_AGENTS, 1_000_000, 4, 2, 32, 128,
        [
            ("ant_4x2", ["hatrpo", "hatrpo_w_cross"]),
            ("ant_4x2", ["hatrpo_w"]),
            ("ant_3|1", REQUIRED[:4]),
            ("ant_4x2", REQUIRED),
            ("hopper_3x1", REQUIRED),
            ("walker2d_3x2", REQUIRED),
            ("walker2d_2|4", REQUIRED[:4]),
            ("humanoid_9|8", REQUIRED[:4]),
            *((body, _OPTIONAL) for body in _BODIES),
        ],
    ),
    "full": Size(
        dict.fromkeys(presets.get("quick").scenarios, 10_000_000), 2_000_000, 10, 1, 256, 32,
        [(scenario, [*REQUIRED, "mappo"]) for scenario in presets.get("quick").scenarios],
    ),
}  # fmt: skip

_PARTITIONS = {
    "ant_3|1": [[f"{joint}_{leg}" for leg in (1, 2, 3) for joint in ("hip", "ankle")], ["hip_4", "ankle_4"]],
    "walker2d_2|4": [
        ["thigh_joint", "thigh_left_joint"],
        [f"{joint}{side}_joint" for side in ("", "_left") for joint in ("leg", "foot")],
    ],
}
"""Teams of unlike agents that no scenario of Multi-Agent MuJoCo has: legs of the ant; hips, and knees and ankles, of the walker."""


@functools.cache
def make_env(scenario: str):
    if scenario in _PARTITIONS:
        return envs.make(scenario.split("_")[0], partition=_PARTITIONS[scenario])
    return envs.make(scenario)


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    found = {}
    for scenario, methods in chosen.blocks:
        for group in range(chosen.groups):
            for method in methods:
                name = piece_name(scenario, "search", _search_of(method))
                found.setdefault(name, _search_piece(name, size, scenario, _search_of(method)))
                found[piece_name(scenario, method, group)] = _run_piece(size, scenario, method, group, needs=(name,))
    return list(found.values())


def piece_name(scenario: str, *parts: str | int) -> str:
    """Of a piece and its file: "humanoid_9_8-hatrpo-0"."""
    return "-".join(map(str, (scenario.replace("|", "_"), *parts)))


def _search_piece(name: str, size: str, scenario: str, method: str) -> Piece:
    chosen, config = SIZES[size], _search_config(scenario, method, SIZES[size])
    first_values = SEARCHED[swept_field(method)]
    facts = {"searched": list(first_values), "search_seeds": list(SEARCH_SEEDS), **_facts(scenario, method, config)}
    seconds = 300.0 + len(first_values) * len(SEARCH_SEEDS) * config.total_env_steps / 20_000
    return Piece(name, seconds, facts, lambda: search(scenario, method, chosen, _work(size, name)))


def _run_piece(size: str, scenario: str, method: str, group: int, needs: tuple[str, ...]) -> Piece:
    chosen, config = SIZES[size], _config(scenario, method, SIZES[size])
    name = piece_name(scenario, method, group)
    seeds = range(group * chosen.seeds, (group + 1) * chosen.seeds)
    facts = {"seeds": list(seeds), **_facts(scenario, method, config)}
    seconds = 120.0 + len(seeds) * config.total_env_steps / 20_000
    return Piece(
        name, seconds, facts, lambda found: play(scenario, method, seeds, chosen, _work(size, name), found), needs
    )


def _facts(scenario: str, method: str, config: marl_kl.Config) -> dict[str, Any]:
    """What the numbers of a piece depend on."""
    spec = make_env(scenario).spec
    shrinkage = (
        {"shrinkage": "beyond chance, equal shares in random order"}
        if METHODS[method].fields.get("utility_smoothing")
        else {}
    )
    return {
        "scenario": scenario,
        "method": method,
        **dict(spec.metadata),
        **settings.of_config(config, METHODS[method].algorithm),
        **shrinkage,
    }


def _work(size: str, name: str) -> Path:
    """Where a piece that was interrupted is resumed."""
    return study.WORK / f"{STUDY_NAME}-{size}" / name


def _search_of(method: str) -> str:
    """The method whose search serves this one."""
    return "hatrpo" if is_trust_region(method) else method


def _config(scenario: str, method: str, size: Size) -> marl_kl.Config:
    return config_of(scenario, method, size.env_steps[scenario], size.num_envs, size.rollout_length, EVALUATIONS)


# Training


def _search_config(scenario: str, method: str, size: Size) -> marl_kl.Config:
    config = _config(scenario, method, size).replace(eval_interval=0)
    return config.replace(total_env_steps=size.search_env_steps) if is_trust_region(method) else config


def search(scenario: str, method: str, size: Size, work: Path) -> study.Values:
    """Tries values until the best one is not at an end of those tried.

    Returns:
        tried: [trial] values in increasing order. trials: [trial, seed] return of the stochastic policy at the end.
        chosen: the best value.
    """
    config = _search_config(scenario, method, size)
    found: dict[float, np.ndarray] = {}
    wanted: Sequence[float] = SEARCHED[swept_field(method)]
    while wanted:
        folder = work / f"search-{len(found)}"
        result = train_with(make_env(scenario), method, wanted, SEARCH_SEEDS, config, folder)
        found |= dict(zip(wanted, last_tenth(result.metrics["episode_return"])))
        tried = sorted(found)
        best = max(tried, key=lambda value: found[value].mean())
        beyond = {tried[0]: tried[0] / EXTENSION, tried[-1]: tried[-1] * EXTENSION}
        wanted = [beyond[best]] if best in beyond and len(found) < TRIALS else []
    shutil.rmtree(work, ignore_errors=True)
    return {"tried": np.array(tried), "trials": np.array([found[value] for value in tried]), "chosen": np.array(best)}


def play(
    scenario: str, method: str, seeds: Sequence[int], size: Size, work: Path, searched: study.Values
) -> study.Values:
    """Trains with the value that the search chose, on other seeds.

    Returns:
        env_steps: [P]; returns: [seed, P] of the stochastic policy. final: [seed] its mean over the last tenth of the
        updates. eval_env_steps: [V]; evaluated: [seed, V] of the deterministic policy, mean over episodes.
        Trust-region methods also: spent: [seed] share of the budget spent, mean over updates; `shares.of_run` (of the adaptive
        ones); signal: [P, agent] median `signal_fraction` over seeds, where it was measured.
    """
    chosen = float(searched["chosen"])
    config = _config(scenario, method, size)
    result = train_with(make_env(scenario), method, [chosen], seeds, config, work / "runs")
    metrics = {name: values[0] for name, values in result.metrics.items()}
    edges = bin_edges(result.env_steps.shape[1])
    values = {
        "env_steps": result.env_steps[0, edges[1:] - 1],
        "returns": binned(metrics["episode_return"], edges),
        "final": last_tenth(metrics["episode_return"]),
        "eval_env_steps": result.evaluations[0].env_steps,
        "evaluated": result.evaluations[0].episode_return.mean(-1),
    }
    if is_trust_region(method):
        budget = chosen * make_env(scenario).spec.num_agents
        values["spent"] = (metrics["kl_total"] / budget).mean(1)
        if METHODS[method].algorithm != "hatrpo":
            values |= shares.of_run(metrics["utility"], metrics["kl_threshold"], metrics["kl"], edges)
        if "signal_fraction" in metrics:
            values["signal"] = np.nanmedian(binned(metrics["signal_fraction"], edges), axis=0)
    shutil.rmtree(work, ignore_errors=True)
    return values
