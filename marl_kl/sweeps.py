"""`sweep`: many settings, many seeds, one compiled program per combination of static settings.

The numbers of a config (`Config.numbers`) and the seeds are one batched axis, settings x seeds, spread over the devices
as the seeds of a single run are. Settings that change shapes or branches make programs of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import uuid
from os import PathLike
from pathlib import Path
from typing import Mapping, NamedTuple, Sequence

import jax
import numpy as np
from rich.console import Console

from envs.types import Env
from marl_kl import algorithms, checkpoints, devices, run_folder, sweep_tables
from marl_kl.config import Config
from marl_kl.host_loop import check_env, seed_numbers
from marl_kl.loggers import About, Log, Logger, chosen_loggers, rows
from marl_kl.programs import Programs
from marl_kl.progress import Progress
from marl_kl.results import EpisodeStatistics, Evaluation, SweepFailure, SweepResult, Timing, first_nonfinite
from marl_kl.search import Distribution, Setting, make_settings
from marl_kl.trainer import make_train

_SHARE_OF_MEMORY = 0.8
"""What part of the free memory the runs may take; the rest is for what XLA's account leaves out."""


class _Run(NamedTuple):
    """setting: index of the setting. seed: the seed's own number. config: the setting's."""

    setting: int
    seed: int
    config: Config


class _Outcome(NamedTuple):
    """What R runs leave; leaves [R, ...], metrics [R, update, ...] with `nonfinite` among them."""

    metrics: dict[str, np.ndarray]
    untrained: EpisodeStatistics
    final: EpisodeStatistics


def sweep(
    env: Env,
    algorithm: str,
    *,
    grid: Mapping[str, Sequence] | None = None,
    random: Mapping[str, Distribution] | None = None,
    samples: int | None = None,
    search_seed: int = 0,
    seeds: int | Sequence[int] = 1,
    out: str | PathLike | None = None,
    config: Config | None = None,
    runs_at_once: int | None = None,
    progress: str = "auto",
    loggers: Sequence[str | Logger] = (),
    **fields,
) -> SweepResult:
    """Trains every seed at every setting, side by side, as far as memory holds them.

    A run of a sweep is the run that `train` makes of its setting and seed, up to rounding. The evaluations are those
    before the first and after the last update. Nothing is stored while a sweep runs: it cannot be resumed.

    Args:
        env: from `envs.make`, or your own.
        algorithm: one of `marl_kl.algorithms.names()`.
        grid: config field -> values to try; all combinations.
        random: config field -> `marl_kl.log_uniform`, `marl_kl.uniform` or `marl_kl.choice`; the same `samples` draws
            at every point of the grid.
        samples: how many draws.
        search_seed: seed of the draws.
        seeds: how many per setting (0, 1, ...), or which.
        out: new folder for `table.csv` (one row per setting and seed), `summary.md` (one per setting) and `sweep.json`
            (what was run); None keeps nothing on disk.
        config: what is not swept; the defaults of the algorithm's config class if None.
        runs_at_once: settings x seeds that run side by side, at most; None: as many as the free memory holds.
        progress: "auto", "plain" or "none".
        loggers: where the numbers go while it runs, as for `train`: every setting and seed is a stream of its own, in
            the group of the sweep. What they write to a folder goes to `setting<k>` in `out`.
        **fields: config fields by name; they override `config`.

    Returns:
        Metrics and evaluation episodes of all settings and seeds. A run that meets a non-finite number keeps its last
        finite parameters and is named in `failures`; the others go on.

    Raises:
        ValueError: bad input, named in one sentence, before anything is compiled.
        RunFolderError: `out` is taken or cannot be written.
    """
    check_env(env)
    entry = algorithms.get(algorithm)
    config = entry.config_class() if config is None else config
    settings = _settings(config, fields, grid, random, samples, search_seed)
    make_train(env, algorithm, settings[0].config)  # refuses a config of another algorithm's class
    seeds = seed_numbers(seeds)
    _check_runs_at_once(runs_at_once)
    show = _Show(progress)
    logs = _Logs(chosen_loggers(loggers, out is not None), env, algorithm, settings, out)
    sweeper = _Sweep(env, algorithm, settings, seeds, runs_at_once, show, logs)
    if out is None:
        result = sweeper.result(None)
        show.table(result)
        return result
    document = run_folder.record(env.spec, algorithm, settings[0].config, seeds, checkpoints.digest(env.params))
    searched = {
        "grid": {name: list(values) for name, values in (grid or {}).items()},
        "random": {name: distribution.text for name, distribution in (random or {}).items()},
        "samples": samples,
        "search_seed": search_seed,
        "settings": [setting.fields for setting in settings],
    }
    with run_folder.claim(out, document | searched, run_folder.SWEEP) as out:
        return _completed(sweeper, out, show)


def _completed(sweeper: "_Sweep", out, show: "_Show") -> SweepResult:
    """The result, on disk as well, with a true status beside it."""
    status, failures, timing = "failed", (), None
    try:
        result = sweeper.result(out)
        failures, timing = result.failures, result.timing
        sweep_tables.write(result)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        run_folder.set_status(out, status, failures, run_folder.SWEEP, timing)
    show.table(result)
    return result


def _settings(config, fields, grid, random, samples, search_seed) -> tuple[Setting, ...]:
    settings = make_settings(config, fields, grid, random, samples, search_seed)
    if settings[0].config.eval_interval:
        raise ValueError(
            f"eval_interval={settings[0].config.eval_interval}; a sweep evaluates before the first and after the last "
            "update only, so it must be 0"
        )
    return settings


def _check_runs_at_once(runs_at_once: int | None) -> None:
    is_count = isinstance(runs_at_once, (int, np.integer)) and not isinstance(runs_at_once, bool) and runs_at_once >= 1
    if runs_at_once is not None and not is_count:
        raise ValueError(f"runs_at_once={runs_at_once!r}; it must be an integer >= 1, or None for what memory holds")


class _Show:
    """What a sweep says: a bar per piece, a line where runs are cut into pieces, the table at the end."""

    def __init__(self, mode: str):
        Progress(total_updates=1, env_steps_per_update=1, num_seeds=1, mode=mode)  # refuses an unknown mode
        self.mode = mode

    def line(self, text: str) -> None:
        if self.mode != "none":
            Console(highlight=False).print(text, soft_wrap=True, markup=False)

    def progress(self, configs: Sequence[Config]) -> Progress:
        budgets = {getattr(config, "kl_budget", None) for config in configs}
        return Progress(
            total_updates=configs[0].num_updates,
            env_steps_per_update=configs[0].batch_size,
            num_seeds=len(configs),
            kl_budget=budgets.pop() if len(budgets) == 1 else None,
            mode=self.mode,
        )

    def table(self, result: SweepResult) -> None:
        if self.mode != "none":
            sweep_tables.show(result)


class _Logs:
    """What a sweep's loggers get: the runs of a piece while it is trained, each a stream of its own."""

    def __init__(self, loggers, env, algorithm, settings, out):
        self._loggers, self._env, self._algorithm, self._settings = loggers, env, algorithm, settings
        self._folder = None if out is None else Path(out)
        self._name = f"{env.spec.name}-{algorithm}" if out is None else self._folder.absolute().name
        self._id = uuid.uuid4().hex[:16]  # a sweep is never gone on with
        self._open: list[tuple[int, _Run, Log]] = []

    @contextlib.contextmanager
    def of(self, runs: Sequence[_Run]):
        """Open while these runs are trained, the first ones of a piece."""
        with contextlib.ExitStack() as stack:
            if self._loggers:
                self._open = [
                    (index, run, stack.enter_context(Log(self._loggers, self._about(run))))
                    for index, run in enumerate(runs)
                ]
            yield
        self._open = []

    def chunk(self, done: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Metrics [run, n, ...] of the updates after the first `done`."""
        for index, run, log in self._open:
            own = {name: values[index : index + 1] for name, values in metrics.items()}
            log.write(rows((run.seed,), self._env.spec.agents, run.config.batch_size, own, None, start=done))

    def evaluation(self, update: int, statistics: EpisodeStatistics) -> None:
        """Episodes [run, episode] after `update` updates."""
        for index, run, log in self._open:
            returns, lengths = (values[index][None, None] for values in statistics)
            evaluation = Evaluation(np.array([update]), np.array([update * run.config.batch_size]), returns, lengths)
            log.write(rows((run.seed,), self._env.spec.agents, run.config.batch_size, {}, evaluation))

    def _about(self, run: _Run) -> About:
        own = f"setting{run.setting}"
        facts = {"env": self._env.spec.name, "algorithm": self._algorithm, **dataclasses.asdict(run.config)}
        return About(
            self._name, f"{self._name}-{own}", f"{self._id}-{run.setting}", (run.seed,),
            self._folder and self._folder / own, {**facts, "setting": run.setting},
        )  # fmt: skip


class _Sweep:
    """A sweep while it runs: group by group of settings with the same program, piece by piece of what fits."""

    def __init__(self, env, algorithm, settings, seeds, runs_at_once, show, logs):
        self.env, self.algorithm, self.settings, self.seeds = env, algorithm, settings, seeds
        self.runs_at_once, self.show, self.logs = runs_at_once, show, logs
        self.timing = Timing(0.0, 0.0, 0.0)

    def result(self, out) -> SweepResult:
        runs: list[_Run] = []
        outcomes: list[_Outcome] = []
        groups = self._groups()
        for number, group in enumerate(groups, 1):
            if len(groups) > 1:
                self.show.line(f"program {number} of {len(groups)}: {len(group)} runs")
            runs += group
            outcomes += self._outcomes(group)
        order = sorted(range(len(runs)), key=lambda i: (runs[i].setting, self.seeds.index(runs[i].seed)))
        runs, outcomes = [runs[i] for i in order], [outcomes[i] for i in order]
        return SweepResult(
            spec=self.env.spec,
            algorithm=self.algorithm,
            config=self.settings[0].config,
            settings=tuple(setting.fields for setting in self.settings),
            seeds=self.seeds,
            env_steps=_env_steps([setting.config for setting in self.settings]),
            metrics=_laid_together([outcome.metrics for outcome in outcomes], len(self.seeds)),
            untrained=self._episodes([outcome.untrained for outcome in outcomes]),
            final=self._episodes([outcome.final for outcome in outcomes]),
            failures=_failures(runs, outcomes),
            timing=self.timing,
            out=out,
        )

    def _groups(self) -> list[list[_Run]]:
        """Runs by the program that they need: settings that differ in numbers alone share one."""
        groups: dict[Config, list[_Run]] = {}
        for index, setting in enumerate(self.settings):
            statics = setting.config.replace(**type(setting.config)().numbers)
            groups.setdefault(statics, []).extend(_Run(index, seed, setting.config) for seed in self.seeds)
        return list(groups.values())

    def _outcomes(self, runs: list[_Run]) -> list[_Outcome]:
        """One per run."""
        programs = self._fitting(runs)
        size, outcomes = programs.num_runs, []
        for start in range(0, len(runs), size):
            piece = runs[start : start + size]
            # the last piece is filled up: all of one size are one program
            trained = self._trained(programs, (piece + runs)[:size], len(piece))
            outcomes += [jax.tree.map(lambda leaf: leaf[i], trained) for i in range(len(piece))]  # noqa: B023
        return outcomes

    def _fitting(self, runs: list[_Run]) -> Programs:
        """Compiled programs for as many of `runs` at once as memory holds, in pieces of equal size."""
        programs = self._programs(runs, self.runs_at_once or len(runs))
        # by the states alone, before the compiler is asked for a program that cannot fit
        programs = self._cut(runs, programs, programs.state_bytes)
        programs = self._compiled(programs)
        cut = self._cut(runs, programs, programs.bytes_per_run)
        programs = programs if cut is programs else self._compiled(cut)
        if programs.num_runs < len(runs):
            pieces = math.ceil(len(runs) / programs.num_runs)
            need = f"{programs.bytes_per_run / 2**20:,.1f} MiB a run"
            limit = f"{_free_text(programs)} free" if self.runs_at_once is None else f"runs_at_once={self.runs_at_once}"
            self.show.line(f"{len(runs)} runs in {pieces} pieces of {programs.num_runs} ({need}, {limit})")
        return programs

    def _cut(self, runs: list[_Run], programs: Programs, bytes_per_run: float) -> Programs:
        """Programs for fewer runs, if `programs` needs more memory than there is."""
        free = devices.free_bytes(programs.mesh)
        if free is None or bytes_per_run * programs.num_runs <= _SHARE_OF_MEMORY * free:
            return programs
        fitting = self._programs(runs, max(1, int(_SHARE_OF_MEMORY * free / bytes_per_run)))
        return fitting if fitting.num_runs < programs.num_runs else programs

    def _programs(self, runs: list[_Run], at_most: int) -> Programs:
        size = piece_size(len(runs), at_most, len(jax.local_devices()))
        return Programs(self.env, self.algorithm, runs[0].config, size)

    def _compiled(self, programs: Programs) -> Programs:
        self.show.line(f"compiling {programs.num_runs} runs at once")
        begin = time.perf_counter()
        programs.compile()
        self._count("compile", begin)
        return programs

    def _trained(self, programs: Programs, runs: list[_Run], num_wanted: int) -> _Outcome:
        """Trains runs that fill `programs`; the first `num_wanted` of them count."""
        config, seeds = runs[0].config, [run.seed for run in runs]
        wanted = runs[:num_wanted]
        with self.logs.of(wanted), self.show.progress([run.config for run in wanted]) as display:
            display.phase("compiling")
            begin = time.perf_counter()
            numbers = programs.numbers([run.config for run in runs])
            state = jax.block_until_ready(programs.init(numbers, programs.keys(seeds)))
            begin = self._count("compile", begin)
            display.phase("evaluating")
            untrained = programs.evaluate(programs.evaluation_keys(seeds, 0), state.learner)
            self.logs.evaluation(0, untrained)
            begin = self._count("evaluate", begin)
            display.phase("training")
            chunks = []
            for done in range(0, config.num_updates, config.chunk_updates):
                n = min(config.chunk_updates, config.num_updates - done)
                state, metrics = programs.chunk(numbers, state, n)
                chunks.append({name: values[:num_wanted] for name, values in metrics.items()})
                reported = {name: values for name, values in chunks[-1].items() if name != "nonfinite"}
                display.advance(n, reported)
                self.logs.chunk(done, reported)
            begin = self._count("train", begin)
            display.phase("evaluating")
            final = programs.evaluate(programs.evaluation_keys(seeds, config.num_updates), state.learner)
            self.logs.evaluation(config.num_updates, final)
            self._count("evaluate", begin)
        metrics = {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]}
        return _Outcome(metrics, untrained, final)

    def _episodes(self, of_runs: list[EpisodeStatistics]) -> EpisodeStatistics:
        """[setting, seed, episode]."""
        shape = (len(self.settings), len(self.seeds))
        return jax.tree.map(lambda *leaves: np.stack(leaves).reshape(*shape, *leaves[0].shape), *of_runs)

    def _count(self, field: str, begin: float) -> float:
        """Adds the seconds since `begin` to the timing; returns the time now."""
        now = time.perf_counter()
        self.timing = self.timing._replace(**{field: getattr(self.timing, field) + now - begin})
        return now


def piece_size(num_runs: int, at_most: int, num_devices: int) -> int:
    """Runs per piece when `num_runs` are cut into as few equal pieces of `at_most` as will do.

    From one run per device on, a whole number per device, so that no device idles (a piece may then be filled up with
    runs that do not count, `at_most` permitting).
    """
    at_most = min(at_most, num_runs)
    size = math.ceil(num_runs / math.ceil(num_runs / at_most))
    if size < num_devices:
        return size
    upwards, downwards = math.ceil(size / num_devices) * num_devices, size // num_devices * num_devices
    return upwards if upwards <= at_most or at_most == num_runs else downwards


def _laid_together(of_runs: list[dict[str, np.ndarray]], num_seeds: int) -> dict[str, np.ndarray]:
    """name -> [setting, seed, update, ...] from one dict of [update, ...] per run; shorter runs end in NaN.

    `nonfinite` is left out: `failures` say it.
    """
    longest = max(len(values) for metrics in of_runs for values in metrics.values())
    together = {}
    for name in (name for name in of_runs[0] if name != "nonfinite"):
        columns = [_lengthened(metrics[name], longest) for metrics in of_runs]
        stacked = np.stack(columns)
        together[name] = stacked.reshape(-1, num_seeds, *stacked.shape[1:])
    return together


def _lengthened(values: np.ndarray, length: int) -> np.ndarray:
    missing = length - len(values)
    if not missing:
        return values
    return np.concatenate([values, np.full((missing, *values.shape[1:]), np.nan, np.float32)])


def _env_steps(configs: Sequence[Config]) -> np.ndarray:
    """[setting, update] int64; where a setting has no more updates, its last count."""
    longest = max(config.num_updates for config in configs)
    made = [np.minimum(np.arange(longest, dtype=np.int64) + 1, config.num_updates) for config in configs]
    return np.stack([updates * config.batch_size for updates, config in zip(made, configs)])


def _failures(runs: Sequence[_Run], outcomes: Sequence[_Outcome]) -> tuple[SweepFailure, ...]:
    found = ((run, first_nonfinite(outcome.metrics["nonfinite"])) for run, outcome in zip(runs, outcomes))
    return tuple(SweepFailure(run.setting, run.seed, *first) for run, first in found if first is not None)


def _free_text(programs: Programs) -> str:
    free = devices.free_bytes(programs.mesh)
    return "an unknown amount" if free is None else f"{free / 2**30:,.1f} GiB"
