"""Shared pieces of the tests."""

import jax
import pytest

import marl_kl.devices  # noqa: F401  sets the size of XLA's thread pool before anything uses jax


@pytest.fixture
def float64():
    """Runs a test in double precision, where oracles agree to many digits."""
    with jax.enable_x64(True):
        yield
