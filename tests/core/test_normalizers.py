"""Running moments against numpy on the whole sample."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from marl_kl.core import normalizers


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_batches_add_up_to_the_whole_sample(batch_sizes, seed):
    samples = np.random.default_rng(seed).normal(5.0, 3.0, (sum(batch_sizes), 3)).astype(np.float32)
    moments = normalizers.init((3,))
    for part in np.split(samples, np.cumsum(batch_sizes)[:-1]):
        moments = normalizers.update(moments, jnp.asarray(part))
    assert moments.count == len(samples)
    np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, samples.var(0), rtol=1e-3, atol=1e-4)


def test_before_the_first_sample_standardising_changes_nothing():
    x = jnp.array([[-3.0, 0.0, 2.5]])
    np.testing.assert_array_equal(normalizers.standardize(normalizers.init((3,)), x), x)


def test_constant_entries_stay_finite_and_padding_stays_zero():
    moments = normalizers.update(normalizers.init((2,)), jnp.tile(jnp.array([0.0, 7.0]), (100, 1)))
    np.testing.assert_array_equal(normalizers.standardize(moments, jnp.array([0.0, 7.0])), [0.0, 0.0])


def test_outliers_are_clipped():
    moments = normalizers.update(normalizers.init((1,)), jnp.linspace(-1, 1, 100)[:, None])
    assert normalizers.standardize(moments, jnp.array([1e9]))[0] == 10.0
