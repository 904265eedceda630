"""A comparison in the JSON layout that marl-eval reads (Gorsane et al. 2022, github.com/instadeepai/marl-eval):

{environment: {task: {algorithm: {run: {step_k: {step_count, metric: [per episode]}, absolute_metrics: {...}}}}}}
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from marl_kl.analysis.comparison.estimates import Comparison, TaskScale
from marl_kl.analysis.comparison.samples import Sample

ENVIRONMENT = "marl_kl"
"""All tasks stand under one environment, since marl-eval aggregates over the tasks of one. It wants lower case."""

METRIC = "return"
"""One word: marl-eval takes the names of metrics apart at their underscores."""


def as_json(comparison: Comparison) -> str:
    """The curves as they were measured, inside the range that the runs of a task have in common.

    marl-eval wants as many runs of every algorithm and as many steps of every run; it says so itself where that is not
    the case. `absolute_metrics` are the episodes of the absolute metric where `marl-kl evaluate RUN --absolute` has
    measured it; elsewhere those of the last evaluation (training: the last return).
    """
    tasks: dict[str, Any] = {}
    scales = {scale.name: scale for scale in comparison.tasks}
    for sample in comparison.samples:
        of_task = tasks.setdefault(sample.task.lower(), {})
        of_task.setdefault(_algorithm(sample.method), {})[f"seed_{sample.seed}"] = _run(sample, scales[sample.task])
    return json.dumps({ENVIRONMENT: tasks}, indent=1, allow_nan=False) + "\n"


def _algorithm(method: str) -> str:
    """marl-eval allows no commas: `hatrpo kl_budget=0.08 hidden_sizes=64x64`."""
    return method.replace(", ", " ").replace(",", "x")


def _run(sample: Sample, scale: TaskScale) -> dict[str, Any]:
    inside = (scale.env_steps[0] <= sample.env_steps) & (sample.env_steps <= scale.env_steps[-1])
    episodes = sample.episodes[inside] if inside.any() else sample.episodes[:1]
    steps = np.asarray(sample.env_steps)[inside] if inside.any() else sample.env_steps[:1]
    run = {
        f"step_{k}": {"step_count": int(count), METRIC: [float(value) for value in values]}
        for k, (count, values) in enumerate(zip(steps, episodes), start=1)
    }
    # last: marl-eval takes the last entry for it
    absolute = episodes[-1] if sample.absolute is None else sample.absolute
    return run | {"absolute_metrics": {METRIC: [float(value) for value in absolute]}}
