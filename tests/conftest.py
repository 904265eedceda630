"""Shared pieces of the tests.

Most of the suite's time is compilation, and most programs are compiled more than once (by several tests, by both
workers). All workers of one run therefore share a persistent compilation cache that is thrown away at the end
(JAX_COMPILATION_CACHE_DIR names one that is kept), and programs are compiled with few optimisations, except in tests
marked `optimized`, whose promise is about the bits that users get. JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs all tests as
users run.

Every compiled program holds memory maps of its process, of which Linux allows 65,530; a worker that reaches them dies of
a segmentation fault somewhere in jaxlib. The programs of a file are therefore forgotten when it has been run.
"""

import gc
import os
import shutil
import tempfile

import jax
import pytest

import marl_kl.devices  # noqa: F401  sets the size of XLA's thread pool before anything uses jax

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_CHEAP = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def pytest_configure(config):
    """In the controller, which starts the workers with its own environment."""
    if _CACHE not in os.environ:
        os.environ[_CACHE] = config.marl_kl_cache = tempfile.mkdtemp(prefix="marl_kl-tests-")
    jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])
    # small programs are not worth a file
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compile_cheaply(True)


def compile_cheaply(cheaply):
    """Unless the environment has already said which."""
    if _CHEAP not in os.environ:
        jax.config.update(_CHEAP.lower(), cheaply)


def pytest_unconfigure(config):
    """The one that made the cache removes it."""
    if hasattr(config, "marl_kl_cache"):
        shutil.rmtree(config.marl_kl_cache, ignore_errors=True)


@pytest.fixture
def float64():
    """Runs a test in double precision, where oracles agree to many digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _as_users_compile(request):
    """Full optimisation for the tests marked `optimized`."""
    compile_cheaply(request.node.get_closest_marker("optimized") is None)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """After each file; see above."""
    yield
    jax.clear_caches()
    gc.collect()
