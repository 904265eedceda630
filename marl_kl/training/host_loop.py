"""`train`: the only part that runs on the host. Compiles one chunk, runs it again and again, looks in between."""

from __future__ import annotations

import dataclasses
import functools
import operator
import time
import uuid
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import jax
import numpy as np

from envs.base import Env
from marl_kl import devices
from marl_kl.analysis import reporting
from marl_kl.config import Config, is_due
from marl_kl.core import algorithms
from marl_kl.core.trainer import TrainState, make_train
from marl_kl.results import Failure, Timing, TrainResult, appended, evaluated, first_nonfinite
from marl_kl.storage import checkpoints, files, run_folder, run_tables
from marl_kl.storage.best import update_best
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.storage.interrupts import interrupts_wait
from marl_kl.training import run_file
from marl_kl.training.loggers import STREAM, About, JsonLines, Log, Logger, chosen_loggers, rows
from marl_kl.training.programs import Programs, TracedFields
from marl_kl.training.progress import Progress

MAX_SEEDS = 2**16
"""The most seeds that one call takes: more are a slip of the keyboard."""

_OF_OTHER_SEEDS = (
    "; each seed is a run of its own, so train new ones into another folder: marl-kl compare pools the seeds of both"
)


def train(
    env: Env,
    algorithm: str,
    *,
    seeds: int | Sequence[int] = 1,
    out: str | PathLike | None = None,
    resume: bool = False,
    config: Config | None = None,
    progress: str = "auto",
    loggers: Sequence[str | Logger] = (),
    **fields,
) -> TrainResult:
    """Trains one team per seed, all seeds in one compiled program, spread over as many devices as divide them.

    On a CPU, call `marl_kl.use_all_cpu_cores()` first: otherwise jax sees one device, whatever the cores.

    Args:
        env: from `envs.make`, or your own.
        algorithm: one of `marl_kl.core.algorithms.names()`.
        seeds: how many (0, 1, ...), or which.
        out: folder for metrics, pictures, config and checkpoints; None keeps nothing on disk.
        resume: go on with the run in `out` from its newest checkpoint, bit for bit as if it had never stopped (same
            versions, same devices; on others it rounds otherwise); if there is no run yet, begin it. Everything but the
            schedule (`marl_kl.config.free_schedule`) must be as it was; more `total_env_steps` extend a run, which
            keeps the evaluation at its old end (not with `anneal_lr`, whose learning rate is 0 there).
        config: of the algorithm's config class; its defaults if None.
        progress: "auto", "plain" or "none".
        loggers: where the numbers go besides, while the run runs: "tensorboard", "wandb", "mlflow", or functions of
            your own (`marl_kl.training.loggers`). With `out`, its `log.jsonl` is always written.
        **fields: config fields by name; they override `config`.

    Returns:
        The metrics of every update and the evaluation episodes. A seed that meets a non-finite number keeps its
        last finite parameters and is named in `failures`; the other seeds go on.

    Raises:
        ValueError: bad input, named in one sentence, before anything is compiled.
        ModuleNotFoundError: the package of a logger is not installed.
        RunFolderError: `out` holds another run, is in use, has no usable checkpoint to resume or cannot be written.
        MemoryError: the run does not fit into the devices' memory; mostly said before the first update.
    """
    check_env(env)
    entry = algorithms.get(algorithm)
    config = (entry.config_class() if config is None else config).replace(**fields)
    make_train(env, algorithm, config)  # refuses a config of another algorithm's class
    seeds = seed_numbers(seeds)
    loggers = chosen_loggers(loggers, has_folder=out is not None)
    if out is not None:
        loggers = {STREAM: JsonLines, **loggers}
    kl_budget = getattr(config, "kl_budget", None)
    display = Progress(
        total_updates=config.num_updates,
        env_steps_per_update=config.batch_size,
        num_seeds=len(seeds),
        kl_budget=kl_budget,
        mode=progress,
    )
    if out is None:
        if resume:
            raise ValueError("resume=True needs out, the folder of the run that is to go on")
        return _completed(_Run(env, algorithm, config, seeds, display, loggers))
    document = run_folder.record(env.spec, algorithm, config, seeds, checkpoints.digest(env.params))
    is_known = resume and run_folder.holds_run(out)
    with run_folder.lock_folder(out, None if is_known else document) as out:
        run = _Run(env, algorithm, config, seeds, display, loggers, out, run_folder.fingerprint(document))
        if is_known:
            run.restore(document)
        return _completed(run)


def _completed(run: _Run) -> TrainResult:
    """The result of the run, which is carried to its end."""
    status = "failed"
    try:
        with run.display:
            run.loop()
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if run.out is not None:
            _close(run, status)
    result = run.result()
    reporting.finish(result, quiet=run.display.mode == "none")
    return result


def _close(run: _Run, status: str):
    """Leaves a true status behind even when the last save fails, or is interrupted."""
    try:
        run.save()
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except BaseException:
        status = "failed"
        raise
    finally:
        run_folder.set_status(run.out, status, run.now.failures)


class _Run:
    """One training run: the train state on the device, and what has come back from it.

    Attributes:
        now: the run after its last chunk or evaluation, on the host; replaced whole, so that an interruption at any
            moment leaves a consistent one.
        state: the train state on the devices; while a chunk runs its memory is the chunk's.
    """

    def __init__(self, env, algorithm, config, seeds, display, loggers, out=None, fingerprint=None):
        self.env, self.algorithm, self.config = env, algorithm, config
        self.seeds, self.display, self.out, self.fingerprint = seeds, display, out, fingerprint
        self.programs = Programs(env, algorithm, config, len(seeds))
        self.now = Snapshot(0, {}, {}, None, (), Timing(0.0, 0.0, 0.0))
        self._saved: tuple[int, int] | None = None
        self._loggers = loggers
        self._log: Log | None = None
        self._logged = (0, 0)
        self.state: TrainState | None = None

    @property
    def done(self) -> int:
        """Updates made."""
        return self.now.update

    def restore(self, document: Mapping[str, Any]):
        """Goes back to the newest checkpoint, and notes so in the run folder.

        Args:
            document: the `run_folder.record` of this call.

        Raises:
            RunFolderError: the folder's run is another one, or has no usable checkpoint.
            ValueError: the run is longer already than `total_env_steps`.
        """
        stored = run_folder.read_record(self.out).document
        self._refuse_other_end(stored["config"])
        other = run_folder.first_mismatch(run_folder.fingerprint(stored), self.fingerprint)
        if other:
            advice = _OF_OTHER_SEEDS if other.startswith("seeds ") else ""
            raise run_folder.RunFolderError(f"out={str(self.out)!r} holds another run: {other}{advice}")
        snapshot = checkpoints.load(self.out, self.fingerprint)
        if snapshot is not None:
            self._go_to(snapshot)
        elif (self.out / "metrics.csv").exists():
            raise run_folder.RunFolderError(f"there is no checkpoint in {str(self.out)!r}, only its metrics.csv")
        if not self._is_complete or stored["status"] != "finished":
            run_folder.warn_of_other_hardware(stored, document)
            run_folder.record_resume(self.out, document, self.done)
        # those on disk may be of updates that the checkpoint does not have
        self._write_tables()

    def _refuse_other_end(self, stored: Mapping[str, Any]):
        """An annealed run cannot be made longer or shorter: what it has learned so far was meant for its old end."""
        before, now = stored["total_env_steps"], self.config.total_env_steps
        is_annealed = stored.get("anneal_lr") and getattr(self.config, "anneal_lr", False)
        if is_annealed and before != now:
            raise ValueError(
                f"total_env_steps={now}; with anneal_lr it must stay {before}, as the run in {str(self.out)!r} has it, "
                "because the learning rate falls to 0 at that end: train a new run of the length wanted"
            )

    def _go_to(self, snapshot: Snapshot):
        if snapshot.update > self.config.num_updates:
            raise ValueError(
                f"total_env_steps={self.config.total_env_steps}; it must be at least "
                f"{snapshot.update * self.config.batch_size}, which the run in {str(self.out)!r} has taken already"
            )
        source = checkpoints.source(self.out, snapshot.update)
        self.state = self.programs.shard(checkpoints.restore_tree(self.programs.shapes, snapshot.state, source))
        self.now, self._saved = snapshot, snapshot.extent
        self.display.start_at(snapshot.update)

    def compile(self):
        """Traces and compiles everything, and makes the initial state if there is none."""
        self.display.phase("compiling")
        begin = time.perf_counter()
        self.programs.compile()
        devices.refuse_too_large(self.programs.bytes_per_run * len(self.seeds), self.programs.mesh, *self._size)
        if self.state is None:
            self.state = jax.block_until_ready(self.programs.init(self.traced_fields, self.programs.keys(self.seeds)))
        self.now = self.now._replace(timing=self.now.timing.since(begin, "compile"))

    def loop(self):
        """Updates, evaluates, logs and saves until the end."""
        with Log(self._loggers, self._about()) as self._log, devices.out_of_memory_as_one_line(*self._size):
            self._follow()
            self._loop()

    def _loop(self):
        if self._is_complete:
            return
        if self.out is not None:
            self._write_config()
            (self.out / run_tables.ABSOLUTE).unlink(missing_ok=True)  # of teams that may not be the best for long
        self.compile()
        while not self._is_complete:
            if self._evaluation_is_due:
                self._evaluate()
            if self.out is not None and is_due(self.done, self.config.save_interval):
                self.display.phase("saving")
                self.save()
            if self.done < self.config.num_updates:
                self._advance(self.config.next_stop(self.done) - self.done)

    def save(self):
        """Stores what there is, unless that is stored: a checkpoint, then its metrics and evaluations as tables."""
        if self._saved == self.now.extent:
            return
        with interrupts_wait():
            if self.done:
                checkpoints.save(self.out, self.now, self.fingerprint, self.config.checkpoints_kept)
            self._write_tables()
            self._saved = self.now.extent

    @property
    def _size(self) -> tuple[str, str]:
        """What the run is where it is too large, and what would be smaller."""
        config, count = self.config, len(self.seeds)
        what = f"training seeds={count} at once with num_envs={config.num_envs}, rollout_length={config.rollout_length}"
        return what, "fewer of any of the three, or smaller hidden_sizes, need less"

    def _about(self) -> About:
        """The run, for its loggers."""
        facts = {"env": self.env.spec.name, "algorithm": self.algorithm, **dataclasses.asdict(self.config)}
        if self.out is None:
            name, own = f"{self.env.spec.name}-{self.algorithm}", uuid.uuid4().hex[:16]
        else:
            name, own = self.out.absolute().name, run_folder.stable_id(self.out, self.fingerprint)
        return About(name, name, own, self.seeds, self.out, facts)

    def _follow(self):
        """Hands to the loggers what they have not had yet."""
        now = self.now
        new = rows(self.seeds, self.env.spec.agents, self.config.batch_size, now.metrics, now.evaluation, self._logged)
        self._log.write(new)
        self._logged = now.extent

    def _write_config(self):
        text = run_file.text(self.env.spec, self.algorithm, self.config, self.seeds)
        if text is not None:
            files.write_file(self.out / run_file.NAME, text)

    def _write_tables(self):
        if self.done:
            run_tables.write_metrics(self.out, self.env.spec.agents, self.seeds, self._env_steps(), self.now.metrics)
        if self.now.evaluation is not None:
            run_tables.write_evaluation(self.out, self.seeds, self.now.evaluation)

    def result(self) -> TrainResult:
        return TrainResult(
            self.env.spec,
            self.algorithm,
            self.config,
            self.seeds,
            self._env_steps(),
            self.now.metrics,
            self.now.evaluation,
            self.now.failures,
            self.now.timing,
            self.out,
        )

    @functools.cached_property
    def traced_fields(self) -> TracedFields:
        """A run is a sweep of one setting: every seed has the same numbers."""
        return self.programs.traced_fields([self.config] * len(self.seeds))

    @property
    def _evaluation_is_due(self) -> bool:
        is_scheduled = self.done in (0, self.config.num_updates) or is_due(self.done, self.config.eval_interval)
        return is_scheduled and (self.now.evaluation is None or self.now.evaluation.update[-1] != self.done)

    @property
    def _is_complete(self) -> bool:
        return self.done == self.config.num_updates and not self._evaluation_is_due

    def _advance(self, n: int):
        self.display.phase("training")
        begin = time.perf_counter()
        self.state, chunk = self.programs.chunk(self.traced_fields, self.state, n)
        # a host copy, because the next chunk takes the state's own memory and may be interrupted
        state = checkpoints.flatten_tree(self.state)
        timing = self.now.timing.since(begin, "train")
        failures = self.now.failures + self._new_failures(chunk.pop("nonfinite"))
        metrics = appended(self.now.metrics, chunk)
        self.now = self.now._replace(
            update=self.done + n, state=state, metrics=metrics, failures=failures, timing=timing
        )
        self.display.advance(n, chunk)
        self._follow()

    def _evaluate(self):
        self.display.phase("evaluating")
        begin = time.perf_counter()
        keys = self.programs.evaluation_keys(self.seeds, self.done)
        statistics = self.programs.evaluate(keys, self.state.learner)
        best = update_best(
            self.now.best, self.done, statistics.episode_return, checkpoints.flatten_tree(self.state.learner)
        )
        timing = self.now.timing.since(begin, "evaluate")
        evaluation = evaluated(self.now.evaluation, self.done, self.config.batch_size, statistics)
        self.now = self.now._replace(evaluation=evaluation, timing=timing, best=best)
        self._follow()

    def _new_failures(self, nonfinite: np.ndarray) -> tuple[Failure, ...]:
        """The first non-finite quantity of each seed that had none so far; nonfinite: [seed, n, len(WATCHED)]."""
        known = {failure.seed for failure in self.now.failures}
        found = []
        for index, seed in enumerate(self.seeds):
            first = first_nonfinite(nonfinite[index])
            if first is not None and seed not in known:
                found.append(Failure(seed, self.done + first[0], first[1]))
        return tuple(found)

    def _env_steps(self) -> np.ndarray:
        # int64 from Python ints: 2^31 env steps are an afternoon on a GPU
        return (np.arange(self.done, dtype=np.int64) + 1) * self.config.batch_size


def check_env(env: Any) -> None:
    """Raises ValueError if `env` is no environment, but its name, say."""
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
