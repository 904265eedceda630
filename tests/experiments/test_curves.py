"""Bins and ends of learning curves, and how soon a return is reached."""

import numpy as np

from experiments.curves import bin_edges, binned, first_reached, last_fifth, last_tenth, pace


def test_bins_and_ends_leave_out_what_is_missing():
    """Updates in which no episode ended have no return."""
    returns = np.array([[1.0, np.nan, 3.0, 5.0, np.nan, np.nan]])
    np.testing.assert_array_equal(binned(returns, np.array([0, 2, 4, 6])), [[1, 4, np.nan]])
    by_agent = np.stack([returns, 2 * returns], axis=-1)
    np.testing.assert_array_equal(binned(by_agent, np.array([0, 2, 4])), [[[1, 2], [4, 8]]])
    twenty = np.arange(20.0)[None]
    np.testing.assert_array_equal(last_tenth(twenty), [18.5])
    np.testing.assert_array_equal(last_tenth(np.where(twenty == 19, np.nan, twenty)), [18])
    np.testing.assert_array_equal(last_fifth(twenty), [17.5])


def test_a_level_is_reached_between_two_points():
    x = np.array([10.0, 20.0, 30.0, 40.0])
    curves = np.array([[0, 2, 1, 4], [5, 5, 5, 5], [0, 0, 0, 1], [np.nan, 4, 0, 0]])
    np.testing.assert_allclose(first_reached(x, curves, 3.0), [30 + 10 * 2 / 3, 10, 40, 20])


def test_pace_is_the_ratio_of_env_steps_to_the_same_return():
    """A method that learns along the same line twice as fast takes half of the env steps."""
    env_steps = np.linspace(1, 100, 100)
    shift = np.arange(4.0)[:, None]
    slow = {"env_steps": env_steps, "returns": env_steps + shift, "final": 100 + shift[:, 0]}
    fast = {"returns": 2 * env_steps + shift}
    found = pace(fast, slow)
    level = 0.9 * 101.5
    np.testing.assert_allclose(found.value, (level - 1.5) / ((level - 1.5) / 2), rtol=1e-6)
    assert found.low <= found.value <= found.high


def test_bins_hold_every_update_once():
    np.testing.assert_array_equal(bin_edges(3), [0, 1, 2, 3])
    edges = bin_edges(733)
    assert edges[0] == 0 and edges[-1] == 733 and set(np.diff(edges)) == {18, 19}
