"""Shards of a sweep as jobs of a cluster, by submitit (extra `cluster`): one job per compiled program and its trials."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import marl_kl
from envs.validation import first_line
from marl_kl.analysis.rebuild import rebuild_env
from marl_kl.storage import folder_lock, run_record, shards, stored_sweeps
from marl_kl.storage.files import RunFolderError
from marl_kl.training.programs import Programs
from marl_kl.training.progress import Progress
from marl_kl.training.shard_loop import ShardLoop

FOLDER = "jobs"
"""The folder, in that of the sweep, of what submitit keeps of its jobs: their output among it."""

OWN_ENV = "give it by the path of a function that makes it: envs.make('package.module:function')"


class ShardJob(NamedTuple):
    """Trains a shard to its end, from its newest checkpoint. All that it needs is in the sweep's folder.

    Attributes:
        out: the sweep's folder. name: of the shard's.
    """

    out: Path
    name: str

    def __call__(self) -> None:
        record = run_record.read_record(self.out, run_record.SWEEP)
        # devices as where it was submitted, for the same bits
        if run_record.last_session(record.document)["device"]["count"] > 1:
            marl_kl.use_all_cpu_cores()
        marl_kl.use_compilation_cache()
        shard = next(shard for shard in stored_sweeps.shards_of(self.out, record) if self._folder == shard.folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        with folder_lock.locked(self._folder):
            now = shard.load()
            if shard.is_complete(now):
                return
            programs = Programs(
                rebuild_env(record, self.out, OWN_ENV), record.algorithm, shard.config, len(shard.padded)
            )
            with Progress.of_shard(shard, now.update, "plain") as display:
                display.phase("compiling")
                programs.compile()
                ShardLoop(shard, programs, now, display, lambda snapshot: None).run()

    @property
    def _folder(self) -> Path:
        return self.out / shards.FOLDER / self.name

    def checkpoint(self) -> Any:
        """What submitit queues again when the job's time is up."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check(parameters: Mapping[str, Any]) -> None:
    """Refuses parameters of jobs that submitit does not know.

    Raises:
        ValueError: an unknown parameter or a bad value.
        ModuleNotFoundError: submitit is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        _executor(Path(folder), parameters)


def _executor(folder: Path, parameters: Mapping[str, Any]) -> Any:
    """For jobs of Slurm or, where there is none, processes on this machine."""
    try:
        import submitit
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        message = "slurm needs submitit, which is not installed; pip install 'marl_kl[cluster]'"
        raise ModuleNotFoundError(message) from None
    executor = submitit.AutoExecutor(folder)
    try:
        executor.update_parameters(**{"name": "marl_kl", **parameters})
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"slurm={dict(parameters)!r}; {first_line(error)}") from None
    return executor


def train(parameters: Mapping[str, Any], jobs: Sequence[ShardJob], tell: Callable[[str], None]) -> None:
    """Submits jobs, as one array, and waits for all; those that are not done when the wait ends are cancelled.

    Args:
        parameters: of submitit's `AutoExecutor`: timeout_min, gpus_per_node, slurm_partition, ...
        jobs: not necessarily of shards that have begun.
        tell: is given a line when they are submitted, and when one has ended.

    Raises:
        RunFolderError: some have failed, which are named; the others are finished.
    """
    executor = _executor(jobs[0].out / FOLDER, parameters)
    with executor.batch():
        submitted = {job.name: executor.submit(job) for job in jobs}
    tell(f"{len(jobs)} jobs; their output: {jobs[0].out / FOLDER}")
    failed = {}
    try:
        for name, job in submitted.items():
            reason = _failure(job)
            tell(f"shard {name} (job {job.job_id}): {reason or 'finished'}")
            if reason:
                failed[name] = f"{name} ({reason})"
    finally:
        for job in submitted.values():
            if not job.done():
                job.cancel(check=False)
    if failed:
        raise RunFolderError(
            f"{len(failed)} of {len(jobs)} shards failed: {', '.join(failed.values())}; resume the sweep to go on from "
            "their checkpoints"
        )


def _failure(job: Any) -> str | None:
    """Waits for the job's end; why it failed, in one line, or None."""
    error = job.exception()
    if error is None:
        return None
    if not job.paths.result_pickle.exists():
        return f"it ended without a result, state {job.state}"
    # submitit frames the job's traceback, whose last line says what was wrong
    trace = str(error).split(_FRAME)[1]
    return trace.strip().splitlines()[-1]


_FRAME = "\n----------------------\n"
