"""Intervals of shares and of ratios, and estimates as text."""

import numpy as np
import pytest
import scipy.stats

from experiments import intervals


@pytest.mark.parametrize("hits, cases", [(0, 12), (12, 12), (3, 10)])
def test_intervals_of_shares_are_exact(hits, cases):
    """Clopper and Pearson's ends: at each, the observed count or a more extreme one has probability 2.5 %."""
    found = intervals.proportion(np.arange(cases) < hits)
    assert found.value == hits / cases
    if hits > 0:
        np.testing.assert_allclose(scipy.stats.binom.sf(hits - 1, cases, found.low), 0.025)
    if hits < cases:
        np.testing.assert_allclose(scipy.stats.binom.cdf(hits, cases, found.high), 0.025)


def test_intervals_of_two_samples_cover_the_truth():
    """95 % intervals of a ratio of means: of 200 samples most contain 2."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        above, below = rng.normal(2, 0.4, 30), rng.normal(1, 0.1, 40)
        found = intervals.ratio(above, below, np.mean)
        covered += found.low <= 2 <= found.high
    assert 180 <= covered <= 199
    np.testing.assert_allclose(found.value, above.mean() / below.mean())


def test_mean_ratio_of_several_tasks_covers_the_truth_and_is_narrower():
    """Ratios 4 and 1: their geometric mean is 2, known better than either."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        pairs = [(rng.normal(4, 0.8, 30), rng.normal(1, 0.2, 40)), (rng.normal(5, 1.0, 30), rng.normal(5, 1.0, 20))]
        found = intervals.mean_ratio(pairs, np.mean)
        covered += found.low <= 2 <= found.high
    assert 180 <= covered <= 199
    ratios = [above.mean() / below.mean() for above, below in pairs]
    np.testing.assert_allclose(found.value, scipy.stats.gmean(ratios))
    assert np.log(found.high / found.low) < min(
        np.log(own.high / own.low) for own in (intervals.ratio(*p) for p in pairs)
    )


def test_estimates_as_text():
    found = intervals.Estimate(0.1234, -0.00001, 0.5)
    assert found.text() == "0.12 [0.00, 0.50]" and found.text(1, sign="+") == "+0.1 [0.0, 0.5]"
    assert found.text(0, percent=True) == "12 % [0, 50]"
