"""Initialisation: orthogonal to rounding, of the right scale, uniformly distributed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl_kl.core.networks import orthogonal


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (31, 128), (128, 2), (3, 400)])
def test_orthogonal_matrices_are_orthogonal(shape):
    for seed in range(5):
        x = np.asarray(orthogonal(2.0)(jax.random.key(seed), shape), np.float64)
        x = x if shape[0] >= shape[1] else x.T
        np.testing.assert_allclose(x.T @ x, 4 * np.eye(x.shape[1]), atol=2e-4)


def test_orthogonal_matrices_are_uniformly_distributed():
    """First and second moments of a Haar-distributed 3 x 3 matrix: mean 0, variance 1 / 3, either determinant."""
    draws = np.asarray(jax.vmap(lambda k: orthogonal(1.0)(k, (3, 3)))(jax.random.split(jax.random.key(0), 20_000)))
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(np.square(draws).mean(0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(np.mean(np.linalg.det(draws) > 0), 0.5, atol=0.02)


def test_batched_matrices():
    """One per agent and seed, all layers side by side: this hung with batched LAPACK on two cores."""

    def layers(key):
        return [orthogonal(1.0)(k, (64, 64)) for k in jax.random.split(key, 6)]

    out = jax.jit(jax.vmap(layers))(jax.random.split(jax.random.key(0), 8))
    assert all(jnp.all(jnp.isfinite(x)) for x in out)
