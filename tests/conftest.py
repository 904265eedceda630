"""Shared pieces of the tests.

Most of the suite's time is compilation, and most programs are compiled more than once (by several tests, by both
workers). All workers of one run therefore share a persistent compilation cache that is thrown away at the end
(JAX_COMPILATION_CACHE_DIR names one that is kept), and programs are compiled with few optimisations and by XLA's older
emitters, which are twice as fast. JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= runs all tests as users run; the
test whose promise is about the bits that users get does so in a process of its own (`tests.support.chunks`).

Every compiled program holds memory maps of its process, of which Linux allows 65,530; a worker that reaches them dies of
a segmentation fault somewhere in jaxlib. Where many are held after a file of tests, the programs are forgotten.
"""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest

import marl_kl.devices  # noqa: F401  sets the size of XLA's thread pool before anything uses jax

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_CHEAP = "JAX_DISABLE_MOST_OPTIMIZATIONS"
_FLAGS = "XLA_FLAGS"
_FAST_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
_MANY_MAPS = 20_000


def pytest_configure(config):
    """In the controller, which starts the workers with its own environment."""
    if _CACHE not in os.environ:
        os.environ[_CACHE] = config.marl_kl_cache = tempfile.mkdtemp(prefix="marl_kl-tests-")
    if _FLAGS not in os.environ:
        os.environ[_FLAGS] = _FAST_TO_COMPILE if _xla_knows(_FAST_TO_COMPILE) else ""
    os.environ.setdefault(_CHEAP, "1")
    jax.config.update(_CHEAP.lower(), os.environ[_CHEAP] not in ("", "0", "false"))
    jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C


def _xla_knows(flags):
    """Whether this XLA has the flags; it ends the process that gives it an unknown one."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env={**os.environ, _FLAGS: flags}, capture_output=True).returncode == 0


def pytest_unconfigure(config):
    """The one that made the cache removes it."""
    if hasattr(config, "marl_kl_cache"):
        shutil.rmtree(config.marl_kl_cache, ignore_errors=True)


@pytest.fixture
def float64():
    """Runs a test in double precision, where oracles agree to many digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder and the result of a small run, which no test may change."""
    from tests.support import small_run

    out = tmp_path_factory.mktemp("runs") / "counting"
    return out, small_run.finished(out)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """After each file; see above."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > _MANY_MAPS:
        jax.clear_caches()
        gc.collect()
