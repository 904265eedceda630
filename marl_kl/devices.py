"""Devices, GPUs or CPU cores: what is spread over them, their memory, and their compiled programs.

The seed axis comes first, which in a sweep holds settings x seeds: devices do not communicate during training. Where devices
are left, `partition.ENV_AXIS` divides the environments of each run. A run in several processes (`marl_kl.processes`) is spread
over the devices of all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from platform import machine
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from envs.compiling import CompilerOptions, known
from marl_kl import processes
from marl_kl.core.partition import ENV_AXIS

SEED_AXIS = "seed"
SEEDS = PartitionSpec(SEED_AXIS)
"""Leading axis: seeds."""
EVERYWHERE = PartitionSpec()
"""The same on every device."""


_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# The size of XLA's CPU thread pool, which all CPU devices share; XLA reads it when jax first looks for devices. A
# batched LAPACK call of jaxlib 0.10 (MJX makes them) holds one of these threads while it waits for parts of itself, so
# as many calls at once as there are threads are a deadlock: with 4 threads on 2 cores (2 devices), 12 runs of 32
# ten-agent swimmers hung in their first update, all 4 threads waiting inside the Cholesky factorisation; with 16 they
# ran. A program has a handful of independent calls per device at most.
os.environ.setdefault("NPROC", str(max(16, 8 * _CORES)))


def use_all_cpu_cores() -> None:
    """Makes every CPU core a device, so that seeds run in parallel; call it before jax is used.

    One program hardly uses a second core for stepping physics; two programs do (measured on 2 cores, Ant 4x2, 4
    seeds: 1.9 times the env steps per second). The command line calls this itself. No effect on accelerators.

    Raises:
        RuntimeError: jax has already looked for its devices.
    """
    jax.config.update("jax_num_cpu_devices", _CORES)


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next process need not compile them again.

    It is `marl_kl` in `$XDG_CACHE_HOME` or `~/.cache`, and in it a folder per kind of CPU, whose programs are of no use to
    others. The command line calls this itself. JAX's own variables have the last word: JAX_COMPILATION_CACHE_DIR names
    another folder, JAX_ENABLE_COMPILATION_CACHE=0 switches it off. Without a folder that can be written there is no cache.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    features = next((line for line in _text(_CPU).splitlines() if line.startswith(("flags", "Features"))), "")
    kind = hashlib.sha256(f"{machine()} {features}".encode()).hexdigest()[:8]
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marl_kl" / f"programs-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))


_CPU = Path("/proc/cpuinfo")


def seed_mesh(num_seeds: int) -> Mesh:
    """As many devices of this process as divide `num_seeds`."""
    return _mesh(jax.local_devices(), *_shape(num_seeds, 1, len(jax.local_devices()), 1))


def run_mesh(num_seeds: int, num_envs: int, count: int | None = None) -> Mesh:
    """At most `count` devices, as many as can be used: seeds are spread first, then each seed's environments.

    Of several processes each gives as many. The mesh has `ENV_AXIS` only if environments are spread.

    Args:
        num_seeds: in a sweep, settings x seeds. num_envs: of each, that can be spread.
        count: None: as many as divide the seeds; of several processes all.

    Raises:
        ValueError: there are fewer devices, or they cannot be divided among the processes.
    """
    if count is None and not processes.are_many():
        return seed_mesh(num_seeds)
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    num_processes, of_each = len(by_process), min(map(len, by_process.values()))
    most = num_processes * of_each
    if count is not None and not num_processes <= count <= most:
        whose = "the processes" if num_processes > 1 else "this process"
        raise ValueError(
            f"devices={count}; it must be from {num_processes} to {most}, the {jax.devices()[0].platform} devices of {whose}"
        )
    shape = _shape(num_seeds, num_envs, most if count is None else count, num_processes)
    used = math.prod(shape) // num_processes
    return _mesh([device for own in by_process.values() for device in own[:used]], *shape)


def _shape(num_seeds: int, num_envs: int, count: int, multiple_of: int) -> tuple[int, int]:
    """Parts of the seeds, and of the environments of each seed: at most `count` devices, a multiple of `multiple_of`."""
    over_envs = [n for n in range(1, count + 1) if num_envs % n == 0]
    over_seeds = [n for n in range(1, count + 1) if num_seeds % n == 0]
    shapes = [(n, m) for n in over_seeds for m in over_envs if n * m <= count and n * m % multiple_of == 0]
    if not shapes:
        raise ValueError(
            f"seeds={num_seeds} cannot be divided among {multiple_of} processes, nor each seed's environments, of which "
            f"{num_envs} can be spread"
        )
    return max(shapes, key=lambda shape: (shape[0] * shape[1], shape[0]))


def _mesh(devices: Sequence[jax.Device], over_seeds: int, over_envs: int) -> Mesh:
    grid = np.asarray(devices[: over_seeds * over_envs]).reshape(over_seeds, over_envs)
    if over_envs == 1:
        return Mesh(grid[:, 0], (SEED_AXIS,))
    return Mesh(grid, (SEED_AXIS, ENV_AXIS))


def used(mesh: Mesh) -> dict[str, int]:
    """used: devices of the mesh. per_seed: how many share the environments of one seed. processes: whose devices."""
    return {"used": mesh.size, "per_seed": mesh.shape.get(ENV_AXIS, 1), "processes": jax.process_count()}


def placement(mesh: Mesh, num_seeds: int) -> str:
    """What is where, in one line; empty if there is only one device."""
    count = jax.device_count()
    if count == 1:
        return ""
    seeds, parts = mesh.shape[SEED_AXIS], used(mesh)["per_seed"]
    each = f"{num_seeds // seeds} seed{'' if num_seeds == seeds else 's'}"
    whose = f" in {jax.process_count()} processes" if processes.are_many() else ""
    share = f"{mesh.size} of {count} devices{whose}: {each}"
    if parts == 1:
        return f"{share}{'' if seeds == 1 else ' on each'}"
    return f"{share} on {'all' if seeds == 1 else f'each {parts}'}, with a part of the environments on each device"


def free_bytes(mesh: Mesh) -> int | None:
    """Memory that the devices of `mesh` still have, all together; None if the backend does not report it.

    Other processes are taken to have as much as this one.
    """
    own = mesh.local_devices
    if own[0].platform == "cpu":
        free = _free_host_bytes()
        return None if free is None else free * (mesh.size // len(own))
    counts = [device.memory_stats() or {} for device in own]
    if not all("bytes_limit" in count for count in counts):
        return None
    return mesh.size * min(count["bytes_limit"] - count.get("bytes_in_use", 0) for count in counts)


_MEMINFO, _STATUS, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/status"), Path("/sys/fs/cgroup")

_LIMIT_AND_USED = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)
"""Where control groups of version 2 and of version 1 tell the limit, what is used, and of what kinds (their prefix)."""


def _free_host_bytes() -> int | None:
    """What Linux calls available, or what the process's control group leaves of it; None elsewhere."""
    available = [
        int(line.split()[1]) * 1024 for line in _text(_MEMINFO).splitlines() if line.startswith("MemAvailable:")
    ]
    for limit, used, kinds, prefix in _LIMIT_AND_USED:
        limit, used = (_text(_GROUPS / name).strip() for name in (limit, used))
        if limit.isdigit() and used.isdigit():
            cache = _reclaimable_bytes(_text(_GROUPS / kinds), prefix)
            available.append(max(int(limit) - max(int(used) - cache, 0), 0))
    return min(available, default=None)


def _reclaimable_bytes(kinds: str, prefix: str) -> int:
    """What a control group is charged for files in memory that Linux drops as soon as somebody needs the room.

    All but what processes map: that is the code of programs and libraries, without which they crawl. Memory that
    processes have allocated, and files in /dev/shm, are not among them.

    Args:
        kinds: the group's `memory.stat`.
        prefix: of its names, where they also count the groups below.
    """
    lines = (line.split() for line in kinds.splitlines())
    sizes = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
    inactive, active = (sizes.get(f"{prefix}{name}", 0) for name in ("inactive_file", "active_file"))
    mapped = sizes.get("total_mapped_file" if prefix else "file_mapped", active)
    return inactive + max(active - mapped, 0)


class MemoryInUse(NamedTuple):
    """Bytes: the peak of the fullest accelerator, and all that it has; of CPUs this process's, without a limit."""

    used: int
    limit: int | None = None

    def __str__(self) -> str:
        if self.limit is None:
            return _gibibytes(self.used)
        return f"{self.used / 2**30:,.1f} of {_gibibytes(self.limit)}"


def memory_in_use() -> MemoryInUse | None:
    """How much memory the devices of this process use; None if the backend does not report it."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        lines = (line.split() for line in _text(_STATUS).splitlines())
        return next((MemoryInUse(int(line[1]) * 1024) for line in lines if line[:1] == ["VmRSS:"]), None)
    counts = [device.memory_stats() or {} for device in devices]
    used = [
        MemoryInUse(count.get("peak_bytes_in_use", count["bytes_in_use"]), count.get("bytes_limit"))
        for count in counts
        if "bytes_in_use" in count
    ]
    return max(used, key=lambda memory: memory.used, default=None)


def _text(path: Path) -> str:
    """The file's content; nothing where there is no such file."""
    try:
        return path.read_text()
    except OSError:
        return ""


def refuse_too_large(num_bytes: float, mesh: Mesh, what: str, advice: str) -> None:
    """Raises MemoryError, with a one-line message, if the devices of `mesh` do not have `num_bytes` left.

    On a CPU the process would not even see an error: the operating system kills it.

    Args:
        num_bytes: of all devices together. mesh: where it would run.
        what: needs so much. advice: what would need less.
    """
    free = free_bytes(mesh)
    if free is not None and num_bytes > free:
        raise MemoryError(
            f"{what} needs about {_gibibytes(num_bytes)} of memory, of which {_gibibytes(free)} are free; {advice}"
        )


@contextlib.contextmanager
def out_of_memory_as_one_line(what: str, advice: str) -> Iterator[None]:
    """Turns a device's error that its memory is full into a MemoryError with a one-line message."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{what} does not fit into the device's memory; {advice}") from error


def _gibibytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"


def shard(tree: Any, mesh: Mesh, specs: Any = SEEDS) -> Any:
    """Arrays with a leading seed axis, spread over the mesh; specs: a prefix of the tree.

    Of arrays on the host each process has the whole, and takes its part.
    """
    shardings = _shardings(mesh, specs)
    if mesh.is_multi_process:
        return jax.tree.map(lambda sharding, of_spec: _placed(of_spec, sharding), shardings, tree)
    return jax.device_put(tree, shardings)


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    # device_put would first compare the arrays of all processes
    def placed(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index], dtype=leaf.dtype)

    return jax.tree.map(placed, tree)


def _shardings(mesh: Mesh, specs: Any) -> Any:
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def is_debugging() -> bool:
    """Whether jax runs programs operation by operation (`JAX_DISABLE_JIT`), or does once a NaN is found
    (`JAX_DEBUG_NANS`)."""
    return jax.config.jax_disable_jit or jax.config.jax_debug_nans


def over_seeds(
    function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any, cpu_options: CompilerOptions = (), **jit_options
) -> Callable:
    """`function` of arrays with a seed axis, jitted so that each device works on its own seeds.

    Where the mesh has `ENV_AXIS`, XLA divides the work on a seed among its devices; specs may name that axis too. On
    the first device only while `is_debugging`. `cpu_options` are compiler options for CPUs
    (`EnvSpec.cpu_compiler_options`).
    """
    if is_debugging():
        return jax.jit(function)  # no donation either: jax calls it again with the same arguments
    by_seed = jax.tree.map(_seeds_only, (in_specs, out_specs))
    spread = jax.shard_map(
        function, mesh=mesh, in_specs=by_seed[0], out_specs=by_seed[1], axis_names={SEED_AXIS}, check_vma=False
    )
    options = compiler_options(mesh.devices.flat[0].platform, cpu_options)
    in_and_out = {"in_shardings": _shardings(mesh, in_specs), "out_shardings": _shardings(mesh, out_specs)}
    return jax.jit(spread, **in_and_out, compiler_options=options, **jit_options)


def _seeds_only(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*(axis if axis == SEED_AXIS else None for axis in spec))


_LEVEL = "xla_backend_optimization_level"

RUNS_ONCE: CompilerOptions = ((_LEVEL, 1),)
"""For a program that runs once: a reset of Ant 4x2 compiles in a third of the time, and is as fast."""

_ON_CPUS: CompilerOptions = (
    # keeps a program's batched LAPACK calls from running side by side, see the top; costs no speed
    ("xla_cpu_enable_concurrency_optimized_scheduler", False),
    # not XLA's 3: Ant 4x2 compiles in three quarters of the time, and trains and is evaluated as fast
    (_LEVEL, 2),
)


def compiler_options(platform: str, cpu_options: CompilerOptions = ()) -> dict[str, bool | int] | None:
    """What `jax.jit` is given to compile for `platform`: on CPUs, those of the options that this XLA knows.

    A level of optimisation that the user has chosen, by XLA_FLAGS or by JAX_DISABLE_MOST_OPTIMIZATIONS, stays.
    """
    if platform != "cpu":
        return None
    is_chosen = jax.config.read("jax_disable_most_optimizations") or _LEVEL in os.environ.get("XLA_FLAGS", "")
    options = dict((*_ON_CPUS, *cpu_options))
    if is_chosen:
        del options[_LEVEL]
    return known(tuple(options.items()))
