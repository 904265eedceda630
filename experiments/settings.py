"""What the numbers of a piece depend on, as plain values that are stored with them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from marl_kl.config import Config
from marl_kl.core import algorithms

NO_MATTER = ("chunk_updates", "save_interval", "checkpoints_kept")
"""Config fields that change no number."""


PUBLISHED_UTILITY = {"utility": "first_order", "utility_smoothing": 0.0}
"""Of HATRPO-W and HATRPO-N: the gain predicted on the samples that a direction was fitted to."""

UNEVALUATED: dict[str, int] = {"eval_episodes": 32, "eval_interval": 0}
"""Fields of configs in the studies that train without evaluations, as they are stored with their results."""


def published(algorithm: str | algorithms.AlgorithmSpec) -> dict[str, Any]:
    """Fields of its config in the studies whose results are about the algorithms as published."""
    fields = {"line_search": "geometric", **PUBLISHED_UTILITY}
    return {name: value for name, value in fields.items() if algorithms.get(algorithm).uses(name)}


def of_config(config: Config, algorithm: str | algorithms.AlgorithmSpec) -> dict[str, Any]:
    """The fields that the algorithm uses, by name, those in `NO_MATTER` left out; infinity, which JSON lacks, as a text."""
    uses = algorithms.get(algorithm).uses
    fields = {name: value for name, value in dataclasses.asdict(config).items() if uses(name) and name not in NO_MATTER}
    return {name: str(value) if value == math.inf else value for name, value in fields.items()}
