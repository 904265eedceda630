"""Random orders: permutations, and minibatches that hold every pair of rows equally often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl_kl.core.shuffling import random_order


@settings(deadline=None, max_examples=20)
@given(num_rows=st.integers(1, 300), seed=st.integers(0, 2**31 - 1))
def test_every_row_occurs_once(num_rows, seed):
    order = random_order(jax.random.key(seed), num_rows)
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(num_rows))


@pytest.mark.parametrize("num_rows", [6, 2**16])
def test_minibatches_hold_every_pair_equally_often(num_rows):
    """Also where 2^16 rows leave 16 random bits, so that many are tied."""
    draws = 4000 if num_rows == 6 else 200
    orders = jax.lax.map(lambda key: random_order(key, num_rows), jax.random.split(jax.random.key(0), draws))
    first = np.zeros((draws, num_rows), bool)
    np.put_along_axis(first, np.asarray(orders)[:, : num_rows // 2], True, axis=1)
    # a row is in the first half every second time, two neighbours (num_rows / 2 - 1) / (num_rows - 1) of that together
    together = 0.5 * (num_rows / 2 - 1) / (num_rows - 1)
    for observed, expected in ((first, 0.5), (first[:, :-1] & first[:, 1:], together)):
        error = np.sqrt(expected * (1 - expected) / draws)
        assert np.abs(observed.mean(0) - expected).max() < 5.5 * error
