"""Each seed's best learner so far, by the returns of its evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Best(NamedTuple):
    """Each seed's learner at its best evaluation; every seed has its own best update.

    Attributes:
        update: [seed] int64, updates made before that evaluation.
        episode_return: [seed] float64, mean team return of its episodes.
        learner: the `Learner`, flat (`array_trees.flatten_tree`): leaves [seed, ...].
    """

    update: np.ndarray
    episode_return: np.ndarray
    learner: dict[str, np.ndarray]


def update_best(
    before: Best | None, update: int, episode_return: np.ndarray, learner: Mapping[str, np.ndarray]
) -> Best:
    """`before`, with the present learner of the seeds whose return is higher now.

    Args:
        before: None before the first evaluation.
        update: updates made.
        episode_return: [seed, episode] team return of the present learners; NaN is worse than any number.
        learner: the present learners, flat: leaves [seed, ...].
    """
    now = np.mean(np.asarray(episode_return, np.float64), axis=-1)
    new = Best(np.full(now.shape, update, np.int64), now, dict(learner))
    if before is None:
        return new
    is_better = (now > before.episode_return) | (np.isnan(before.episode_return) & ~np.isnan(now))
    # a stored tree lacks the leaves without elements
    chosen = {name: _where(is_better, leaf, before.learner.get(name, leaf)) for name, leaf in new.learner.items()}
    return Best(np.where(is_better, new.update, before.update), np.where(is_better, now, before.episode_return), chosen)


def _where(chosen: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Along the leading axis; `chosen` [seed]."""
    return np.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)
