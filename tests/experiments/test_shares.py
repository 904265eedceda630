"""How the KL budget is shared among agents, and who has the largest share."""

import itertools

import numpy as np
import pytest

from experiments import matrix_game, shares


@pytest.mark.parametrize("sequence", [(0, 0, 1, 2, 1), (2, 2, 2, 2), (0, 1, 2), (1, 0, 1, 0, 1, 1)])
def test_chance_is_the_mean_over_all_orders(sequence):
    orders = list(itertools.permutations(sequence))
    again = np.mean([[a == b for a, b in itertools.pairwise(order)] for order in orders])
    counts = np.bincount(sequence, minlength=3)
    np.testing.assert_allclose(shares.in_random_order(counts), again)


def test_chance_of_independent_leaders_is_the_sum_of_squares():
    """Without bias, however few updates there are; the squared frequencies are too large by (1 - sum) / U."""
    chances, updates = np.array([0.5, 0.3, 0.2]), 6
    counts = np.random.default_rng(0).multinomial(updates, chances, size=40_000)
    truth = (chances**2).sum()
    assert abs(shares.in_random_order(counts).mean() - truth) < 0.004
    biased = ((counts / updates) ** 2).sum(-1).mean()
    assert abs(biased - truth - (1 - truth) / updates) < 0.004
    assert np.isnan(shares.in_random_order(np.array([1, 0])))


def test_leading_by_hand():
    share = np.eye(3)[[0, 0, 1, 1, 1, 2]]
    all_of_it = shares.leading(share)
    np.testing.assert_array_equal(all_of_it.counts, [2, 3, 1])
    np.testing.assert_allclose(all_of_it.stays, 3 / 5)
    first = shares.leading(share, np.array([True, True, True, False, False, False]))
    np.testing.assert_array_equal(first.counts, [2, 1, 0])
    np.testing.assert_allclose([first.stays, first.by_chance], [1 / 2, 2 / 6])


def test_shares_sum_to_one():
    threshold = np.array([[0.2, 0.6, 0.9], [0.0, 0.0, 0.0], [0.5, 0.25, 0.25]])
    share = shares.normalised(threshold)
    np.testing.assert_allclose(share.sum(-1), [1, 0, 1])
    np.testing.assert_allclose(share, shares.normalised(7 * threshold))
    np.testing.assert_allclose(share[0], threshold[0] / 1.7)


def test_shares_of_a_run():
    """Shares in the ratio of utilities correlate with them fully, whatever the budget; the KL spent need not."""
    rng = np.random.default_rng(1)
    utility = rng.uniform(1, 2, size=(2, 10, 4))
    given = 0.1 * shares.normalised(utility)
    values = shares.of_run(utility, given, given[..., ::-1], np.array([0, 5, 10]))
    np.testing.assert_allclose(values["correlation"], 1.0)
    assert (values["correlation_spent"] < 0.9).all()
    np.testing.assert_allclose(values["share"].sum(-1), 1.0)
    np.testing.assert_allclose(values["led"].sum(), 1.0)
    again = shares.of_run(utility, 3 * given, given, np.array([0, 5, 10]))
    np.testing.assert_allclose(again["largest"], values["largest"])


def test_only_updates_before_99_percent_tell_who_leads():
    """Leaders alternate until the run is over; then the first one always leads, because no agent has anything to gain."""
    over = 7
    leader = np.where(np.arange(50) < over, np.arange(50) % 2, 0)
    threshold = np.broadcast_to(np.eye(2)[leader], (4, 3, 50, 2))
    reached = np.broadcast_to(np.arange(50) >= over - 1, (4, 3, 50))
    values = matrix_game.allocation(threshold, np.zeros((4, 3, 50, 2)), reached)
    np.testing.assert_array_equal(values["stays"], 0)
    np.testing.assert_allclose(values["by_chance"], (4 * 3 + 3 * 2) / (7 * 6))
    np.testing.assert_allclose(values["largest"][:, :over], 1)
    assert np.isnan(values["largest"][:, over:]).all()
    assert values["one_run"].shape == values["one_order"].shape == (matrix_game.DENSE, 2)


def test_early_updates_are_kept_one_by_one():
    shown = matrix_game.shown_updates(160)
    np.testing.assert_array_equal(shown[: matrix_game.DENSE], np.arange(matrix_game.DENSE))
    assert shown[-1] == 159 and len(shown) < 80 and (np.diff(shown) > 0).all()
    np.testing.assert_array_equal(matrix_game.shown_updates(4), np.arange(4))
