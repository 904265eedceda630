"""`train`: one setting, its seeds as one shard."""

from __future__ import annotations

import dataclasses
import operator
import time
import uuid
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from envs.base import Env
from marl_kl import processes
from marl_kl.analysis import reporting
from marl_kl.config import Config
from marl_kl.core import algorithms
from marl_kl.core.algorithms import AlgorithmSpec
from marl_kl.core.trainer import make_train
from marl_kl.devices import out_of_memory_as_one_line, placement, refuse_too_large, used
from marl_kl.results import Failure, TrainResult
from marl_kl.storage import array_trees, files, run_folder, run_record
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.storage.interrupts import interrupts_agreed
from marl_kl.storage.run_tables import ABSOLUTE, TableWriter
from marl_kl.storage.shards import Shard, Trial
from marl_kl.training import run_file, warm_start
from marl_kl.training.loggers import STREAM, About, JsonLines, Log, Logger, chosen_loggers, rows
from marl_kl.training.programs import Programs
from marl_kl.training.progress import Progress
from marl_kl.training.shard_loop import ShardLoop

MAX_SEEDS = 2**16
"""The most seeds that one call takes; more are taken for a typing error."""


@processes.loss_as_one_line()
def train(
    env: Env,
    algorithm: str | AlgorithmSpec,
    *,
    seeds: int | Sequence[int] = 1,
    out: str | PathLike | None = None,
    resume: bool = False,
    init_from: str | PathLike | None = None,
    init_which: Literal["last", "best"] = "last",
    config: Config | None = None,
    devices: int | None = None,
    progress: str = "auto",
    loggers: Sequence[str | Logger] = (),
    **fields,
) -> TrainResult:
    """Trains one team per seed, all seeds in one compiled program, spread over the devices of this process.

    Where `jax.distributed` joins several processes, all must make the same call: the run is spread over the devices of
    all of them, and each returns the same result. Process 0 alone writes (but checkpoints, which all write) and shows.
    On a CPU, call `marl_kl.use_all_cpu_cores()` first: otherwise jax sees one device, however many cores there are.

    Args:
        env: from `envs.make`, or your own.
        algorithm: one of `marl_kl.core.algorithms.names()`, or your own (`marl_kl.core.algorithms.get`).
        seeds: how many (0, 1, ...), or which.
        out: folder for metrics, figures, config and checkpoints; None stores nothing.
        resume: resume the run in `out` from its newest checkpoint, with the same bits as if it had never stopped (same
            versions, same devices; others may round differently); if there is no run yet, start it. Everything but
            the schedule (`marl_kl.config.free_schedule`) must be as it was; more `total_env_steps` extend a run, which
            keeps the evaluation at its old end (not with a `..._final_fraction`, whose schedule ends there).
        init_from: folder of a run whose learners this new run starts from (not for sweeps): actors, critic and moments
            of observations and states; the algorithm's own state too if the algorithm is the same. Agents and networks
            must be the same. Each seed starts from the stored seed in its place, or all from the only one. A resumed
            run starts from its own checkpoints, and needs `init_from` neither given nor, once there is one, on disk.
        init_which: "last" or "best", as `which` of `marl_kl.load`.
        config: of the algorithm's config class; its defaults if None.
        devices: at most so many devices: seeds are spread over them first, and where devices are left, each seed's
            environments, whose sums are then taken over devices and round in another order. None: as many as divide
            the seeds, of several processes all.
        progress: "auto", "plain" or "none".
        loggers: further destinations of the metrics during the run: "tensorboard", "wandb", "mlflow", or your own
            functions (`marl_kl.training.loggers`). With `out`, its `log.jsonl` is always written.
        **fields: config fields by name; they override `config`.

    Returns:
        The metrics of every update and the evaluation episodes. A seed that meets a non-finite number keeps its
        last finite parameters and is listed in `failures`; the other seeds continue.

    Raises:
        ValueError: bad input, reported in one line before anything is compiled.
        ModuleNotFoundError: the package of a logger is not installed.
        RunFolderError: `out` holds another run, is in use, has no usable checkpoint to resume or cannot be written; or
            `init_from` cannot be read.
        OSError: another process of the run has ended, or process 0 could not write.
        MemoryError: the run does not fit into the devices' memory; usually reported before the first update.
    """
    check_env(env)
    spec = algorithms.get(algorithm)
    config = (spec.config_class() if config is None else config).replace(**fields)
    make_train(env, spec, config)  # refuses a config of another algorithm's class
    spec.refuse_unused(config)
    seeds = seed_numbers(seeds)
    loggers = chosen_loggers(loggers, has_folder=out is not None)
    asked = {
        "env": run_record.env_identity(dataclasses.asdict(env.spec)), "algorithm": spec.name, "seeds": seeds,
        "config": dataclasses.asdict(config), "devices": devices, "out": out, "resume": resume, "init_from": init_from,
        "init_which": init_which,
    }  # fmt: skip
    processes.refuse_difference(asked, run_record.first_mismatch)
    if not processes.is_first():
        loggers, progress = {}, "none"
    display = Progress(
        total_updates=config.num_updates,
        env_steps_per_update=config.batch_size,
        num_seeds=len(seeds),
        kl_budget=getattr(config, "kl_budget", None),
        mode=progress,
    )
    run = _Run(env, spec, config, seeds, display, loggers, Programs(env, spec, config, len(seeds), devices))
    run.programs.refuse_callbacks()
    display.note(placement(run.programs.mesh, len(seeds)))
    source = warm_start.entries(init_from, init_which)
    if out is None:
        if resume:
            raise ValueError("resume=True needs out, the folder of the run to resume")
        return run.result(run.shard(None, {}), run.start(source))
    algorithms.refuse_not_importable(spec, config)
    is_resumed = processes.from_first(lambda: resume and run_folder.holds_run(out))
    if is_resumed and not source:
        source = warm_start.recorded(out)
    document = run_record.record(
        env.spec, spec.name, config, seeds, array_trees.digest(env.params), used(run.programs.mesh), **source
    )
    start = None if is_resumed else run.start(source)  # refuses a source before anything is written
    if start is not None:
        run.programs.refuse_large_states(*run.size)
    with processes.entered_by_first(lambda: run_folder.lock_folder(out, None if is_resumed else document)):
        shard = run.shard(Path(out), run_record.fingerprint(document))
        return run.result(shard, _resumed(run, shard, document) if start is None else start)


def _resumed(run: _Run, shard: Shard, document: Mapping[str, Any]) -> Snapshot:
    """The newest checkpoint, or the start if there is none; that the run resumes is recorded in its folder.

    Args:
        run, shard: the run.
        document: the `run_record.record` of this call.

    Raises:
        RunFolderError: the folder holds another run, or has no usable checkpoint.
        ValueError: the run is longer already than `total_env_steps`.
    """
    out, config = shard.folder, shard.config
    stored = run_folder.same_record(out, document)
    snapshot = shard.load()
    if not snapshot.update and (out / "metrics.csv").exists():
        raise run_folder.RunFolderError(f"there is no checkpoint in {str(out)!r}, only its metrics.csv")
    if snapshot.update > config.num_updates:
        raise ValueError(
            f"total_env_steps={config.total_env_steps}; it must be at least {snapshot.update * config.batch_size}, "
            f"which the run in {str(out)!r} has taken already"
        )
    if not snapshot.update:
        snapshot = run.start(document)
    is_changed = not shard.is_complete(snapshot) or stored["status"] != "finished"
    if is_changed and processes.is_first():
        run_folder.record_resume(out, document, snapshot.update)
    return snapshot


@dataclasses.dataclass(frozen=True)
class _Run:
    """The arguments of `train`, checked."""

    env: Env
    algorithm: AlgorithmSpec
    config: Config
    seeds: tuple[int, ...]
    display: Progress
    loggers: Mapping[str, Logger]
    programs: Programs

    def shard(self, folder: Path | None, fingerprint: Mapping[str, Any]) -> Shard:
        trials = tuple(Trial(0, seed, self.config) for seed in self.seeds)
        return Shard(trials, (), folder, fingerprint, is_extendable=True)

    def start(self, document: Mapping[str, Any]) -> Snapshot:
        """Before the first update; with the learners of another run if `document` has the entries `WARM_START`."""
        return warm_start.start(document, self.env.spec, self.algorithm, self.config, len(self.seeds))

    def result(self, shard: Shard, snapshot: Snapshot) -> TrainResult:
        """Of the run, trained from `snapshot` to its end."""
        with run_folder.status_recorded(_written(shard)) as status:
            status["failures"] = _failures(snapshot)
            snapshot = self._trained(shard, snapshot, status)
        result = TrainResult(
            spec=self.env.spec,
            algorithm=self.algorithm.name,
            config=self.config,
            seeds=self.seeds,
            # int64: 2^31 env steps are an afternoon on a GPU
            env_steps=np.arange(1, snapshot.update + 1, dtype=np.int64) * self.config.batch_size,
            metrics=snapshot.metrics,
            evaluation=snapshot.evaluation,
            failures=_failures(snapshot),
            timing=snapshot.timing,
            out=shard.folder,
            wall_time_s=snapshot.wall_time_s,
        )
        if processes.is_first():
            reporting.finish(result, quiet=self.display.mode == "none")
        return result

    def _trained(self, shard: Shard, snapshot: Snapshot, status: dict[str, Any]) -> Snapshot:
        agents, batch_size, logged = self.env.spec.agents, self.config.batch_size, (0, 0)

        def follow(now: Snapshot) -> None:
            nonlocal logged
            log.write(rows(self.seeds, agents, batch_size, now.metrics, now.evaluation, logged))
            status["failures"], logged = _failures(now), now.extent

        folder = _written(shard)
        tables = None if folder is None else TableWriter(folder, agents, self.seeds, batch_size)
        if tables is not None:
            # those on disk may hold updates that the checkpoint does not
            tables.write(snapshot.metrics, snapshot.evaluation, snapshot.wall_time_s)
        stream = {} if folder is None else {STREAM: JsonLines}
        with Log({**stream, **self.loggers}, self._about(shard)) as log, out_of_memory_as_one_line(*self.size):
            follow(snapshot)
            if shard.is_complete(snapshot):
                return snapshot
            if folder is not None:
                self._write_config(folder)
                # of learners that may no longer be the best
                (folder / ABSOLUTE).unlink(missing_ok=True)
            self.display.start_at(snapshot.update)
            with interrupts_agreed() as stop_if_interrupted, self.display:
                programs, snapshot = self._compiled(snapshot)
                return ShardLoop(shard, programs, snapshot, self.display, follow, tables, stop_if_interrupted).run()

    def _compiled(self, snapshot: Snapshot) -> tuple[Programs, Snapshot]:
        self.display.phase("compiling")
        begin = time.perf_counter()
        programs = self.programs
        programs.refuse_large_states(*self.size)
        programs.compile()
        refuse_too_large(programs.bytes_per_run * len(self.seeds), programs.mesh, *self.size)
        return programs, snapshot._replace(timing=snapshot.timing.since(begin, "compile"))

    @property
    def size(self) -> tuple[str, str]:
        """For messages about memory: what needs so much, and what would need less."""
        config, count = self.config, len(self.seeds)
        what = f"training seeds={count} at once with num_envs={config.num_envs}, rollout_length={config.rollout_length}"
        return what, "reduce any of the three, or hidden_sizes"

    def _about(self, shard: Shard) -> About:
        """The run, for its loggers."""
        facts = {"env": self.env.spec.name, "algorithm": self.algorithm.name, **dataclasses.asdict(self.config)}
        if shard.folder is None:
            name, run_id = f"{self.env.spec.name}-{self.algorithm.name}", uuid.uuid4().hex[:16]
        else:
            name, run_id = shard.folder.absolute().name, run_folder.stable_id(shard.folder, shard.fingerprint)
        return About(name, name, run_id, self.seeds, shard.folder, facts)

    def _write_config(self, out: Path) -> None:
        text = run_file.text(self.env.spec, self.algorithm.name, self.config, self.seeds)
        if text is not None:
            files.write_file(out / run_file.NAME, text)


def _written(shard: Shard) -> Path | None:
    """The folder in which this process writes."""
    return shard.folder if processes.is_first() else None


def _failures(snapshot: Snapshot) -> tuple[Failure, ...]:
    return tuple(Failure(*failure[1:]) for failure in snapshot.failures)


def check_env(env: Any) -> None:
    """Raises ValueError if `env` is not an environment but, for example, its name."""
    if not isinstance(env, Env):
        raise ValueError(f"env={env!r}; it must be an environment, as envs.make({str(env)!r}) returns")


def seed_numbers(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Distinct seeds in [0, 2^32), or ValueError."""
    wanted = f"it must be a number of seeds from 1 to {MAX_SEEDS} or distinct integers in [0, 2^32)"
    try:
        is_count = isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool)
        numbers = tuple(range(min(seeds, MAX_SEEDS + 1)) if is_count else map(operator.index, seeds))
    except TypeError:
        raise ValueError(f"seeds={seeds!r}; {wanted}") from None
    is_right_number = 0 < len(numbers) <= MAX_SEEDS and len(set(numbers)) == len(numbers)
    if not is_right_number or not all(0 <= seed < 2**32 for seed in numbers):
        raise ValueError(f"seeds={seeds!r}; {wanted}")
    return numbers
