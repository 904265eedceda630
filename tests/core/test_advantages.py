"""GAE against a plain loop over one trajectory at a time."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl_kl.core.advantages import gae, standardize


def loop_gae(reward, value, next_value, terminated, done, gamma, gae_lambda):
    """Sums discounted TD errors until the episode is cut, step by step."""
    advantage = np.zeros_like(reward)
    for t in range(len(reward)):
        weight = 1.0
        for k in range(t, len(reward)):
            bootstrap = 0.0 if terminated[k] else next_value[k]
            advantage[t] += weight * (reward[k] + gamma * bootstrap - value[k])
            if done[k]:
                break
            weight *= gamma * gae_lambda
    return advantage


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gamma=st.floats(0, 1), gae_lambda=st.floats(0, 1))
def test_equals_a_plain_loop(seed, gamma, gae_lambda):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, 12, 4)).astype(np.float32)
    terminated = rng.random((12, 4)) < 0.2
    done = terminated | (rng.random((12, 4)) < 0.2)
    got = gae(reward, value, next_value, terminated, done, gamma, gae_lambda)
    for env in range(4):
        columns = (x[:, env] for x in (reward, value, next_value, terminated, done))
        np.testing.assert_allclose(got[:, env], loop_gae(*columns, gamma, gae_lambda), atol=2e-5)


def test_termination_bootstraps_with_zero_and_truncation_with_the_last_state():
    reward, value, next_value = jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.full((1, 2), 10.0)
    terminated, done = jnp.array([[True, False]]), jnp.array([[True, True]])
    np.testing.assert_allclose(gae(reward, value, next_value, terminated, done, 0.9, 0.95), [[0.0, 9.0]])


def test_the_sum_is_cut_at_both():
    reward = jnp.array([0.0, 1.0])
    zeros = jnp.zeros(2)
    cut = gae(reward, zeros, zeros, jnp.array([False, False]), jnp.array([True, False]), 1.0, 1.0)
    whole = gae(reward, zeros, zeros, jnp.array([False, False]), jnp.array([False, False]), 1.0, 1.0)
    np.testing.assert_allclose(cut, [0.0, 1.0])
    np.testing.assert_allclose(whole, [1.0, 1.0])


def test_value_heads_are_independent(float64):
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 7, 2, 3))
    terminated = rng.random((7, 2, 1)) < 0.3
    together = gae(reward, value, next_value, terminated, terminated, 0.9, 0.8)
    for head in range(3):
        numbers = (x[..., head] for x in (reward, value, next_value))
        alone = gae(*numbers, terminated[..., 0], terminated[..., 0], 0.9, 0.8)
        np.testing.assert_array_equal(together[..., head], alone)


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        gae(jnp.zeros((3, 2)), jnp.zeros((3, 1)), jnp.zeros((3, 2)), False, False, 0.9, 0.9)


def test_standardized_advantages_have_mean_zero_and_std_one():
    advantage = np.random.default_rng(1).normal(3.0, 7.0, (500, 2)).astype(np.float32)
    got = np.asarray(standardize(jnp.asarray(advantage)))
    np.testing.assert_allclose(got.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(0), 1, atol=1e-5)


def test_pooled_advantages_keep_the_proportions_between_agents():
    advantage = np.random.default_rng(1).normal([3.0, 0.0], [7.0, 0.7], (500, 2)).astype(np.float32)
    got = np.asarray(standardize(jnp.asarray(advantage), pooled=True))
    np.testing.assert_allclose(got, (advantage - advantage.mean()) / advantage.std(), atol=1e-5)
    assert got[:, 0].std() > 5 * got[:, 1].std()
    np.testing.assert_array_equal(standardize(jnp.full((50, 2), 0.3), pooled=True), 0.0)


@pytest.mark.parametrize("constant", [0.0, -0.3, 1234.567])
def test_a_constant_advantage_becomes_exactly_zero(constant):
    np.testing.assert_array_equal(standardize(jnp.full((1000, 1), constant)), 0.0)
