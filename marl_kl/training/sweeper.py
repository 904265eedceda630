"""`sweep`: many settings, many seeds, one compiled program per combination of static fields.

The traced fields of a config (`Config.traced_fields`) and the seeds are one batched axis, settings x seeds, sharded over
the devices as the seeds of a single run are. Settings that change shapes or branches need their own programs.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from envs.base import Env
from envs.validation import check_integer
from marl_kl import devices, processes
from marl_kl.analysis import reporting, sweep_tables
from marl_kl.analysis.decoration import decoration
from marl_kl.config import Config
from marl_kl.core import algorithms
from marl_kl.core.trainer import make_train
from marl_kl.results import SweepResult, Timing
from marl_kl.storage import array_trees, run_folder, run_record, shards, sweep_results
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.storage.shards import Setting, Shard, Trial
from marl_kl.training import cluster
from marl_kl.training.adaptive_search import TPE, Search, make_search
from marl_kl.training.loggers import Logger, chosen_loggers
from marl_kl.training.programs import SHARE_OF_MEMORY, Programs
from marl_kl.training.progress import Progress
from marl_kl.training.runner import check_env, seed_numbers
from marl_kl.training.search import Distribution, make_settings
from marl_kl.training.shard_loop import ShardLoop
from marl_kl.training.sweep_logs import SweepLogs


def sweep(
    env: Env,
    algorithm: str | algorithms.AlgorithmSpec,
    *,
    grid: Mapping[str, Sequence] | None = None,
    random: Mapping[str, Distribution] | None = None,
    samples: int | None = None,
    search: Mapping[str, Distribution] | None = None,
    rounds: int | None = None,
    sampler: str = TPE,
    search_seed: int = 0,
    seeds: int | Sequence[int] = 1,
    out: str | PathLike | None = None,
    resume: bool = False,
    config: Config | None = None,
    runs_at_once: int | None = None,
    slurm: Mapping[str, Any] | None = None,
    progress: str = "auto",
    loggers: Sequence[str | Logger] = (),
    **fields,
) -> SweepResult:
    """Trains every seed at every setting, as many in parallel as the memory holds.

    Up to rounding, a trial is the run that `train` makes of its setting and seed, with the same evaluations.

    Args:
        env: from `envs.make`, or your own.
        algorithm: one of `marl_kl.core.algorithms.names()`, or your own (`marl_kl.core.algorithms.get`).
        grid: config field -> values to try; all combinations.
        random: config field -> `marl_kl.log_uniform`, `marl_kl.uniform` or `marl_kl.choice`; the same `samples` draws
            at every point of the grid.
        samples: how many draws; of a search, settings per round.
        search: traced config field -> its range, as for `random`, instead of `grid` and `random`: in each of `rounds` rounds
            Optuna's sampler chooses `samples` settings by the final evaluation returns of those before (the interquartile mean
            over seeds). All rounds are one program. Needs the extra `search`.
        rounds: how many.
        sampler: "tpe", or the path of one of Optuna's that chooses by results alone ("optuna.samplers:GPSampler").
        search_seed: seed of the draws, or of the sampler.
        seeds: how many per setting (0, 1, ...), or which.
        out: folder for `table.csv` (one row per setting and seed), `curves.csv` and `log.jsonl` (one per setting, seed
            and update), `summary.md` (one per setting), `settings.png` (returns by swept field), `sweep.json` (what was run) and `pieces` (checkpoints of the
            shards, every `save_interval` updates; at the end the last and the best learners of all trials, for
            `marl_kl.load(out, setting=k)`); None stores nothing.
        resume: resume the sweep in `out`: nothing is trained twice, and the results are bit for bit those of a sweep
            that never stopped (same versions, same devices); if there is no sweep yet, start it. Only
            `chunk_updates`, `save_interval` and `checkpoints_kept` may differ from before.
        config: what is not swept; the defaults of the algorithm's config class if None.
        runs_at_once: at most so many trials (settings x seeds) run in parallel; None: as many as the free memory holds.
        slurm: every shard of `runs_at_once` trials (None: all that share a program) is a job of Slurm, or where there is
            none a process here, with these parameters of submitit's `AutoExecutor` ("timeout_min", "gpus_per_node",
            "slurm_partition", ...; extra `cluster`). Jobs save, and resume where they were stopped; this process waits for
            them and writes the tables. Needs `out`, which all jobs must see, and an environment by name or path.
        progress: "auto", "plain" or "none".
        loggers: further destinations of the metrics during the sweep, as for `train`: every setting and seed has its
            own stream, in the group of the sweep; files go to `setting<k>/seed<s>` in `out`. With `out`, its
            `log.jsonl`, one for all trials, is always written.
        **fields: config fields by name; they override `config`.

    Returns:
        Metrics and evaluation episodes of all settings and seeds. A run that meets a non-finite number keeps its last
        finite parameters and is listed in `failures`; the others continue.

    Raises:
        ValueError: bad input, reported in one line before anything is compiled.
        RunFolderError: `out` is taken, holds another sweep, is in use, is damaged or cannot be written; or jobs failed.
        MemoryError: not even the smallest shard fits into the devices' memory.
        ModuleNotFoundError: a search without Optuna.
    """
    check_env(env)
    if processes.are_many():
        raise ValueError("a sweep is not divided among processes; start one alone, or give slurm={...} for jobs")
    spec = algorithms.get(algorithm)
    config = spec.config_class() if config is None else config
    if search is None:
        plan = None
        if rounds is not None:
            raise ValueError(f"rounds={rounds!r}, but there is nothing to search; give search={{field: distribution}}")
        settings = make_settings(config, fields, grid, random, samples, search_seed)
    else:
        if grid or random:
            raise ValueError("search is given, and grid or random as well; a search chooses all swept fields")
        plan = make_search(config, fields, search, samples, rounds, sampler, search_seed)
        settings = plan.next_round((), ())
    for setting in settings:  # refuses what the algorithm or the environment cannot do, before anything is compiled
        make_train(env, spec, setting.config)
        spec.refuse_unused(setting.config)
    seeds = seed_numbers(seeds)
    if runs_at_once is not None:
        check_integer("runs_at_once", runs_at_once, 1, hint=", or None for as many as the memory holds")
    if slurm is not None:
        _refuse_jobs(env, out)
        cluster.check(slurm)
    show, loggers = _Show(progress), chosen_loggers(loggers, out is not None)
    swept = (env, spec, plan, seeds, runs_at_once, show)
    if out is None:
        if resume:
            raise ValueError("resume=True needs out, the folder of the sweep to resume")
        name = f"{env.spec.name}-{spec.name}"
        with SweepLogs(loggers, env.spec, spec.name, name, uuid.uuid4().hex[:16], None) as logs:
            result = _Sweep(*swept, logs, settings).result()
        show.table(result)
        return result
    for setting in settings:
        algorithms.refuse_not_importable(spec, setting.config)
    document = run_record.record(
        env.spec, spec.name, settings[0].config if plan is None else plan.config, seeds, array_trees.digest(env.params),
        grid={name: list(values) for name, values in (grid or {}).items()},
        random={name: distribution.text for name, distribution in (random or {}).items()},
        samples=samples,
        search_seed=search_seed,
        settings=[setting.fields for setting in settings],
        runs_at_once=runs_at_once,
        **({} if plan is None else plan.document),
    )  # fmt: skip
    is_resumed = resume and run_folder.holds_run(out, run_record.SWEEP)
    with run_folder.lock_folder(out, None if is_resumed else document, run_record.SWEEP) as out:
        if is_resumed:
            _resume(out, document)
        if plan is not None:
            settings = tuple(map(plan.setting, document["settings"]))
        run_id = run_folder.stable_id(out, run_record.shard_fingerprint(document, 1), run_record.SWEEP)
        with (
            SweepLogs(loggers, env.spec, spec.name, out.absolute().name, run_id, out) as logs,
            run_folder.status_recorded(out, run_record.SWEEP) as status,
        ):
            result = _Sweep(*swept, logs, settings, out, document, slurm).result()
            status |= {"failures": result.failures, "timing": result.timing}
            sweep_tables.write(result)
            reporting.finish_sweep(result)
    show.table(result)
    return result


def _refuse_jobs(env: Env, out: str | PathLike | None) -> None:
    if out is None:
        raise ValueError("slurm is given, but no out: the folder through which jobs and this process work together")
    if env.spec.options is None:
        raise ValueError(f"slurm is given, but jobs cannot make the environment '{env.spec.name}'; {cluster.OWN_ENV}")


def _resume(out: Path, document: dict[str, Any]) -> None:
    """Refuses a folder with another sweep or without its shards, and records that this one resumes.

    Args:
        out: a folder with a `sweep.json`.
        document: the `run_record.record` of this call; that of a search gets the settings that have been chosen.
    """
    before = run_record.read_record(out, run_record.SWEEP).document
    if "search" in document and "search" in before:
        document["settings"] = before["settings"]
    stored = run_folder.same_record(out, document, run_record.SWEEP)
    if (out / "table.csv").exists() and not (out / shards.FOLDER).exists():
        raise run_folder.RunFolderError(f"there is no folder {shards.FOLDER!r} in {str(out)!r}, only table.csv")
    if stored["status"] != "finished":
        run_folder.record_resume(out, document, None, run_record.SWEEP)


class _Show:
    """What a sweep prints: a progress bar per shard, a line if there are several shards, the table at the end."""

    def __init__(self, mode: str):
        Progress(total_updates=1, env_steps_per_update=1, num_seeds=1, mode=mode)  # refuses an unknown mode
        self.mode = mode

    def line(self, text: str) -> None:
        if self.mode != "none":
            with decoration("line on the terminal"):
                Console(highlight=False).print(text, soft_wrap=True, markup=False)

    def table(self, result: SweepResult) -> None:
        if self.mode != "none":
            with decoration("table on the terminal"):
                sweep_tables.show(result)


class _Sweep:
    """A sweep while it runs: program by program (a search: round by round), shard by shard.

    The number of trials per shard is recorded before the first of them is trained: the free memory may allow another
    one next time, and in another program a trial is the same only up to rounding.
    """

    def __init__(
        self, env, algorithm, search: Search | None, seeds, runs_at_once, show: _Show, logs: SweepLogs,
        settings: tuple[Setting, ...], out: Path | None = None, document: Mapping[str, Any] | None = None,
        slurm: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self.env, self.algorithm, self.search, self.seeds = env, algorithm, search, seeds
        self.runs_at_once, self.show, self.logs = runs_at_once, show, logs
        self.settings, self.out, self.document, self.slurm = settings, out, document, slurm
        self._of_search: dict[int, Programs] = {}
        # group -> trials per shard
        self._sizes = {} if out is None else run_record.read_record(out, run_record.SWEEP).document.get("sizes", {})
        self._compiling = 0.0
        self._timing = Timing(0.0, 0.0, 0.0)

    def result(self) -> SweepResult:
        results: list[tuple[Shard, Snapshot]] = []
        groups = self._groups()
        what, count = ("program", len(groups)) if self.search is None else ("round", self.search.rounds)
        for number in range(1, count + 1):
            if number > len(groups):
                self._choose(self._combined(results))
                groups = self._groups()
            trials = groups[number - 1]
            if count > 1:
                self.show.line(f"{what} {number} of {count}: {len(trials)} runs")
            results += self._trained(number, trials)
        return self._combined(results)

    def _groups(self) -> list[list[Trial]]:
        configs = [setting.config for setting in self.settings]
        return shards.grouped(configs, self.seeds, None if self.search is None else self.search.samples)

    def _combined(self, results: list[tuple[Shard, Snapshot]]) -> SweepResult:
        return sweep_results.combine(
            self.env.spec, self.algorithm.name, self.settings, self.seeds, results, self._timing, self.out
        )

    def _choose(self, so_far: SweepResult) -> None:
        """Adds the settings of the next round of a search, and records them before they are trained."""
        self.settings += self.search.next_round(self.settings, sweep_tables.scores(so_far))
        if self.out is not None:
            fields = [setting.fields for setting in self.settings]
            self.document = {**(self.document or {}), "settings": fields}
            run_record.update_record(self.out, run_record.SWEEP, settings=fields)

    def _trained(self, number: int, trials: list[Trial]) -> list[tuple[Shard, Snapshot]]:
        """The shards of group `number`, at their end."""
        size = self._sizes.get(str(number))
        if size is None and self.slurm is None:
            programs = self._fitting(trials)
        else:
            at_most = self.runs_at_once or len(trials)
            programs = self._programs(trials, size or shard_size(len(trials), at_most, 1))
        if size is None:
            alike = [number] if self.search is None else range(1, self.search.rounds + 1)
            self._sizes |= {str(group): programs.num_runs for group in alike}
            if self.out is not None:
                run_record.update_record(self.out, run_record.SWEEP, sizes=self._sizes)
        identity = {} if self.document is None else run_record.shard_fingerprint(self.document, number)
        of_program = shards.cut(self.out, number, trials, programs.num_runs, identity)
        if self.slurm is not None:
            self._submit(of_program)
        snapshots = [shard.load() for shard in of_program]
        complete = [shard.is_complete(snapshot) for shard, snapshot in zip(of_program, snapshots)]
        if size is not None and not all(complete) and not programs.is_compiled:
            done = sum(len(shard.trials) for shard, is_complete in zip(of_program, complete) if is_complete)
            self.show.line(f"resuming: {done} of {len(trials)} runs are finished")
            self._compiled(programs)
            self._refuse_too_large(programs, _size_as_before(programs))
        return [(shard, self._finished(shard, programs, now)) for shard, now in zip(of_program, snapshots)]

    def _submit(self, of_program: list[Shard]) -> None:
        """Trains the shards that are not finished as jobs."""
        unfinished = [shard for shard in of_program if not shard.is_complete(shard.load())]
        if unfinished:
            jobs = [cluster.ShardJob(self.out.absolute(), shard.folder.name) for shard in unfinished]
            cluster.train(self.slurm, jobs, self.show.line)

    def _finished(self, shard: Shard, programs: Programs, now: Snapshot) -> Snapshot:
        """The shard at its end; the time of compiling counts to the first shard that is trained."""
        with self.logs.follow(shard) as follow:
            follow(now)
            if not shard.is_complete(now):
                now = now._replace(timing=now.timing._replace(compile=now.timing.compile + self._compiling))
                self._compiling = 0.0
                display = Progress.of_shard(shard, now.update, self.show.mode)
                with display, devices.out_of_memory_as_one_line(*_size_of(programs)):
                    now = ShardLoop(shard, programs, now, display, follow).run()
        self._timing = Timing(*map(sum, zip(self._timing, now.timing)))
        return now._replace(state={}, best=None)  # the learners of a sweep are on disk, if anywhere

    def _fitting(self, trials: list[Trial]) -> Programs:
        """Compiled programs for as many of `trials` at once as memory holds, in shards of equal size."""
        programs = self._cut_up(trials, self.runs_at_once or len(trials))
        # by the states alone, before the compiler is asked for a program that cannot fit
        programs = self._cut(trials, programs, programs.state_bytes)
        programs.refuse_large_states(*_size_of(programs))
        programs = self._compiled(programs)
        cut = self._cut(trials, programs, programs.bytes_per_run)
        programs = programs if cut is programs else self._compiled(cut)
        self._refuse_too_large(programs, _size_of(programs))
        if programs.num_runs < len(trials):
            count = math.ceil(len(trials) / programs.num_runs)
            need = f"{programs.bytes_per_run / 2**20:,.1f} MiB a run"
            limit = f"{_free_text(programs)} free" if self.runs_at_once is None else f"runs_at_once={self.runs_at_once}"
            self.show.line(f"{len(trials)} runs in {count} shards of {programs.num_runs} ({need}, {limit})")
        return programs

    def _cut(self, trials: list[Trial], programs: Programs, bytes_per_run: float) -> Programs:
        """Programs for fewer runs, if `programs` needs more memory than there is."""
        free = devices.free_bytes(programs.mesh)
        if free is None or bytes_per_run * programs.num_runs <= SHARE_OF_MEMORY * free:
            return programs
        fitting = self._cut_up(trials, max(1, int(SHARE_OF_MEMORY * free / bytes_per_run)))
        return fitting if fitting.num_runs < programs.num_runs else programs

    def _cut_up(self, trials: list[Trial], at_most: int) -> Programs:
        return self._programs(trials, shard_size(len(trials), at_most, len(jax.local_devices())))

    def _programs(self, trials: list[Trial], size: int) -> Programs:
        """Those of a search are the same in all rounds."""
        programs = self._of_search.get(size) or Programs(self.env, self.algorithm, trials[0].config, size)
        if self.search is not None:
            self._of_search[size] = programs
        return programs

    def _compiled(self, programs: Programs) -> Programs:
        self.show.line(f"compiling {programs.num_runs} runs at once")
        begin = time.perf_counter()
        programs.compile()
        self._compiling += time.perf_counter() - begin
        return programs

    def _refuse_too_large(self, programs: Programs, what_and_advice: tuple[str, str]) -> None:
        """By XLA's account of the compiled programs."""
        devices.refuse_too_large(programs.bytes_per_run * programs.num_runs, programs.mesh, *what_and_advice)


def shard_size(num_runs: int, at_most: int, num_devices: int) -> int:
    """Trials per shard, when `num_runs` are cut into as few equal shards of `at_most` as possible.

    If there is at least one per device, a multiple of the number of devices, so that no device idles (then a shard may
    be padded, `at_most` permitting).
    """
    at_most = min(at_most, num_runs)
    size = math.ceil(num_runs / math.ceil(num_runs / at_most))
    if size < num_devices:
        return size
    upwards, downwards = math.ceil(size / num_devices) * num_devices, size // num_devices * num_devices
    return upwards if upwards <= at_most or at_most == num_runs else downwards


def _size_of(programs: Programs) -> tuple[str, str]:
    """What a program is where it is too large, and what would be smaller."""
    if programs.num_runs == 1:
        return "training a single run", "smaller num_envs, rollout_length or hidden_sizes need less"
    what = f"training {programs.num_runs} runs at once"
    return what, f"give runs_at_once a number below {programs.num_runs}, and the sweep another folder if it has one"


def _size_as_before(programs: Programs) -> tuple[str, str]:
    """The same of a resumed sweep, whose shards must stay as they are, for the same bits."""
    what = f"training {programs.num_runs} runs at once, as this sweep has begun,"
    smaller = f" with runs_at_once below {programs.num_runs}" * (programs.num_runs > 1)
    return what, f"resume it where there is more memory, or start it in another folder{smaller}"


def _free_text(programs: Programs) -> str:
    free = devices.free_bytes(programs.mesh)
    return "an unknown amount" if free is None else f"{free / 2**30:,.1f} GiB"
