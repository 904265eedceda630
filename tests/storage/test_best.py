"""Which team of a seed is its best: chosen seed by seed, parameters with returns."""

import numpy as np

from marl_kl.storage.best import update_best


def _teams(value):
    return {"actors.w": np.full((3, 2), value), "steps": np.full(3, int(value)), "empty": np.zeros((3, 0))}


def test_each_seed_keeps_its_own_best_team():
    first = update_best(None, 0, np.array([[1.0, 3.0], [0.0, 0.0], [np.nan, 1.0]]), _teams(0.0))
    assert first.update.tolist() == [0, 0, 0] and first.episode_return[:2].tolist() == [2.0, 0.0]
    second = update_best(first, 5, np.array([[2.0, 1.0], [1.0, 1.0], [-9.0, -7.0]]), _teams(5.0))
    assert second.update.tolist() == [0, 5, 5] and second.episode_return.tolist() == [2.0, 1.0, -8.0]
    assert second.learner["actors.w"].tolist() == [[0.0, 0.0], [5.0, 5.0], [5.0, 5.0]]
    assert second.learner["steps"].tolist() == [0, 5, 5] and second.learner["empty"].shape == (3, 0)


def test_the_first_of_equals_and_any_number_before_none():
    first = update_best(None, 0, np.ones((3, 1)), _teams(0.0))
    second = update_best(first, 5, np.array([[1.0], [np.nan], [1.0 + 1e-12]]), _teams(5.0))
    assert second.update.tolist() == [0, 0, 5]


def test_leaves_without_elements_may_be_missing_as_after_a_resume():
    first = update_best(None, 0, np.ones((3, 1)), _teams(0.0))
    first.learner.pop("empty")
    assert update_best(first, 5, 2 * np.ones((3, 1)), _teams(5.0)).learner["empty"].shape == (3, 0)
