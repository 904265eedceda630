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
"""All tasks are listed under one environment, since marl-eval aggregates over the tasks of one; lower case is required."""

METRIC = "return"
"""One word: marl-eval splits the names of metrics at underscores."""


def as_json(comparison: Comparison) -> str:
    """The measured curves, inside the range that all runs of a task cover.

    marl-eval requires equal numbers of runs per algorithm and of steps per run, and checks this itself.
    `absolute_metrics` are the episodes of the absolute metric if it was measured (`evaluate(..., absolute=True)`), else
    those of the last evaluation (training: the last return).
    """
    tasks: dict[str, Any] = {}
    scales = {scale.name: scale for scale in comparison.tasks}
    for sample in comparison.samples:
        of_task = tasks.setdefault(sample.task.lower(), {})
        of_task.setdefault(_algorithm(sample.method), {})[f"seed_{sample.seed}"] = _run(sample, scales[sample.task])
    return json.dumps({ENVIRONMENT: tasks}, indent=1, allow_nan=False) + "\n"


def _algorithm(method: str) -> str:
    """Without commas, which marl-eval does not accept: `hatrpo kl_budget=0.08 hidden_sizes=64x64`."""
    return method.replace(", ", " ").replace(",", "x")


def _run(sample: Sample, scale: TaskScale) -> dict[str, Any]:
    inside = (scale.env_steps[0] <= sample.env_steps) & (sample.env_steps <= scale.env_steps[-1])
    episodes = sample.episodes[inside] if inside.any() else sample.episodes[:1]
    steps = np.asarray(sample.env_steps)[inside] if inside.any() else sample.env_steps[:1]
    run = {
        f"step_{k}": {"step_count": int(count), METRIC: [float(value) for value in values]}
        for k, (count, values) in enumerate(zip(steps, episodes), start=1)
    }
    # last: marl-eval reads the last entry as the absolute metrics
    absolute = episodes[-1] if sample.absolute is None else sample.absolute
    return run | {"absolute_metrics": {METRIC: [float(value) for value in absolute]}}
