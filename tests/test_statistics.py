"""Interquartile mean and bootstrap against direct computations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from marl_kl.statistics import bootstrap_interval, interquartile_mean

_FINITE = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 9])
def test_interquartile_mean_is_the_middle_half_of_the_weight(count):
    scores = np.random.default_rng(count).normal(size=count)
    # Every score as four equal parts: then a quarter of the weight is a whole number of parts.
    parts = np.sort(np.repeat(scores, 4))
    np.testing.assert_allclose(interquartile_mean(scores), parts[count:-count].mean(), rtol=1e-12)


@pytest.mark.parametrize("count", [4, 8, 12, 40])
def test_interquartile_mean_agrees_with_scipy_where_whole_scores_are_cut(count):
    scores = np.random.default_rng(count).normal(size=(count, 3))
    np.testing.assert_allclose(interquartile_mean(scores), stats.trim_mean(scores, 0.25, axis=0), rtol=1e-12)


@settings(deadline=None)
@given(st.lists(_FINITE, min_size=1, max_size=20), st.floats(0.1, 10), _FINITE)
def test_interquartile_mean_moves_and_scales_with_the_scores(scores, scale, shift):
    scores = np.array(scores)
    expected = scale * interquartile_mean(scores) + shift
    np.testing.assert_allclose(interquartile_mean(scale * scores + shift), expected, rtol=1e-9, atol=1e-6)
    assert scores.min() - 1e-6 <= interquartile_mean(scores) <= scores.max() + 1e-6


def test_interquartile_mean_ignores_outliers_takes_an_axis_and_spreads_nan():
    scores = np.array([[1.0, 2.0, 3.0, 1e9], [np.nan, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(interquartile_mean(scores, axis=1), [2.5, np.nan])


def test_interquartile_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no scores"):
        interquartile_mean(np.empty((0, 3)))


def test_bootstrap_of_the_mean_is_the_one_of_a_plain_loop():
    scores = np.random.default_rng(0).normal(size=7)
    interval = bootstrap_interval(scores, statistic=np.mean, num_resamples=500, seed=3)
    drawn = np.random.default_rng(3).choice(np.arange(7), size=(500, 7))
    means = [np.mean([scores[i] for i in row]) for row in drawn]
    np.testing.assert_allclose(interval, [np.quantile(means, 0.025), np.quantile(means, 0.975)])


def test_bootstrap_of_the_mean_approaches_the_normal_interval():
    scores = np.random.default_rng(1).normal(size=400)
    interval = bootstrap_interval(scores, statistic=np.mean, num_resamples=4000)
    half_width = 1.96 * scores.std() / np.sqrt(len(scores))
    np.testing.assert_allclose(interval, scores.mean() + np.array([-half_width, half_width]), atol=0.1 * half_width)


def test_strata_are_resampled_apart():
    # One run per stratum: nothing is left to chance.
    scores = np.array([1.0, 5.0, 9.0])
    np.testing.assert_array_equal(bootstrap_interval(scores, strata=["a", "b", "c"], statistic=np.mean), [5.0, 5.0])


def test_curves_keep_their_shape_and_a_seed_repeats_the_interval():
    curves = np.random.default_rng(0).normal(size=(5, 11)).cumsum(axis=1)
    interval = bootstrap_interval(curves, seed=1)
    assert interval.shape == (2, 11)
    assert (interval[0] <= interquartile_mean(curves)).all() and (interquartile_mean(curves) <= interval[1]).all()
    np.testing.assert_array_equal(interval, bootstrap_interval(curves, seed=1))


def test_blocks_do_not_change_the_interval(monkeypatch):
    curves = np.random.default_rng(0).normal(size=(5, 3))
    whole = bootstrap_interval(curves)
    monkeypatch.setattr("marl_kl.statistics._BLOCK", 100)
    np.testing.assert_array_equal(whole, bootstrap_interval(curves))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(scores=[]), "no runs"),
        (dict(scores=[1.0, 2.0], strata=["a"]), r"strata has shape \(1,\)"),
        (dict(scores=[1.0, 2.0], confidence=95), "confidence=95"),
    ],
)
def test_bootstrap_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(arguments.pop("scores"), **arguments)
