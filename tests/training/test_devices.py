"""How much memory is free, and where compiled programs are kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marl_kl import devices

V2 = ("memory.max", "memory.current", "memory.stat", "")
V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine({name: content})` writes what Linux would say; of memory 100 KiB are available."""
    monkeypatch.setattr(devices, "_GROUPS", tmp_path)
    monkeypatch.setattr(devices, "_MEMINFO", tmp_path / "meminfo")

    def write(files):
        for name, content in {"meminfo": "MemTotal: 900 kB\nMemAvailable:   100 kB\n", **files}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)

    return write


@pytest.mark.parametrize("limit, used, kinds, prefix", [V2, V1])
@pytest.mark.parametrize(
    "sizes, free",
    [
        ({}, 10_000),
        ({"inactive_file": 20_000}, 30_000),
        ({"inactive_file": 20_000, "active_file": 9_000}, 30_000),  # nobody says what of it is mapped
        ({"inactive_file": 20_000, "active_file": 9_000, "mapped": 4_000}, 35_000),
        ({"inactive_file": 20_000, "active_file": 4_000, "mapped": 9_000, "inactive_anon": 5_000}, 30_000),
        ({"inactive_file": 900_000}, 50_000),
    ],
)
def test_files_that_are_only_cached_count_as_free(machine, limit, used, kinds, prefix, sizes, free):
    mapped = "mapped_file" if prefix else "file_mapped"
    lines = [f"{prefix}{mapped if name == 'mapped' else name} {size}\n" for name, size in sizes.items()]
    machine({limit: "50000\n", used: "40000\n", kinds: "".join(lines)})
    assert devices._free_host_bytes() == free


@pytest.mark.parametrize(
    "files",
    [
        {},
        {V2[0]: "max\n", V2[1]: "40000\n"},
        {V1[0]: "9223372036854771712\n", V1[1]: "40000\n"},
    ],
)
def test_without_a_limit_the_machine_s_memory_counts(machine, files):
    machine(files)
    assert devices._free_host_bytes() == 102_400


def test_free_memory_is_unknown_where_no_source_reports_it(machine):
    machine({"meminfo": ""})
    assert devices._free_host_bytes() is None


class _Device:
    platform = "gpu"

    def __init__(self, **stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats or None


def test_memory_in_use_is_that_of_the_fullest_device(monkeypatch):
    gpus = [_Device(bytes_in_use=2, peak_bytes_in_use=5, bytes_limit=9), _Device(bytes_in_use=3), _Device()]
    monkeypatch.setattr(devices.jax, "local_devices", lambda: gpus)
    assert devices.memory_in_use() == (5, 9)
    monkeypatch.setattr(devices.jax, "local_devices", lambda: gpus[1:])
    assert devices.memory_in_use() == (3, None)
    monkeypatch.setattr(devices.jax, "local_devices", lambda: gpus[2:])
    assert devices.memory_in_use() is None


def test_memory_in_use_of_a_cpu_is_the_process_s(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_STATUS", tmp_path / "status")
    assert devices.memory_in_use() is None
    machine({"status": "Name:\tpython\nVmRSS:\t  2048 kB\n"})
    assert devices.memory_in_use() == (2 * 2**20, None) and str(devices.memory_in_use()) == "0.0 GiB"


@pytest.mark.slow
def test_compiled_programs_are_kept_in_the_cache_folder_unless_told_otherwise(tmp_path):
    """In a separate process, as the command line: here the tests have a cache."""
    lines = "import jax, marl_kl; marl_kl.use_compilation_cache(); print(jax.config.jax_compilation_cache_dir)"

    def folder(**variables):
        known = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_"))}
        command = [sys.executable, "-c", lines]
        return subprocess.run(command, env=known | variables, check=True, capture_output=True, text=True).stdout.strip()

    kept = folder(XDG_CACHE_HOME=str(tmp_path))
    assert kept.startswith(str(tmp_path / "marl_kl" / "programs-")) and Path(kept).is_dir()
    assert folder(HOME=str(tmp_path / "home")).startswith(str(tmp_path / "home" / ".cache" / "marl_kl"))
    assert folder(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR="/elsewhere") == "/elsewhere"
    assert folder(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="0") == "None"
    (tmp_path / "file").touch()
    assert folder(XDG_CACHE_HOME=str(tmp_path / "file")) == "None"


def test_the_level_of_optimisation_is_ours_unless_it_is_chosen(monkeypatch):
    level = "xla_backend_optimization_level"

    def options(flags, most_are_off, own=()):
        monkeypatch.setenv("XLA_FLAGS", flags)
        devices.jax.config.update("jax_disable_most_optimizations", most_are_off)
        return devices.compiler_options("cpu", own)

    before = devices.jax.config.read("jax_disable_most_optimizations")
    try:
        assert options("", False)[level] == 2
        assert options("", False, devices.RUNS_ONCE)[level] == 1
        assert level not in options("", True) and level not in options(f"--{level}=0", False, devices.RUNS_ONCE)
    finally:
        devices.jax.config.update("jax_disable_most_optimizations", before)
    assert devices.compiler_options("cuda") is None
