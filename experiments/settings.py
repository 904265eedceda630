"""What the numbers of a piece depend on, as plain values that are stored with them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from marl_kl.config import Config

NO_MATTER = ("chunk_updates", "save_interval", "checkpoints_kept")
"""Config fields that change no number."""


PUBLISHED = {"line_search": "geometric"}
"""Fields of trust-region configs in the studies whose results are about the algorithms as published."""

UNEVALUATED: dict[str, int] = {"eval_episodes": 32, "eval_interval": 0}
"""Fields of configs in the studies that train without evaluations, as they are stored with their results."""


def of_config(config: Config) -> dict[str, Any]:
    """The fields by name, those in `NO_MATTER` left out; infinity, which JSON lacks, as a text."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in NO_MATTER}
    return {name: str(value) if value == math.inf else value for name, value in fields.items()}
