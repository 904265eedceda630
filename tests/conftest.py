"""Shared pieces of the tests."""

import jax
import pytest


@pytest.fixture
def float64():
    """Runs a test in double precision, where oracles agree to many digits."""
    with jax.enable_x64(True):
        yield
