"""`train`: the only part that runs on the host. Compiles one chunk, runs it again and again, looks in between."""

from __future__ import annotations

import operator
import time
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from envs.types import Env
from marl_kl import algorithms, devices, reporting, run_folder
from marl_kl.config import Config
from marl_kl.evaluate import EpisodeStatistics, make_evaluate
from marl_kl.progress import Progress
from marl_kl.results import WATCHED, Evaluation, Failure, Timing, TrainResult
from marl_kl.trainer import Learner, TrainState, make_train


def train(
    env: Env,
    algorithm: str,
    *,
    seeds: int | Sequence[int] = 1,
    out: str | PathLike | None = None,
    config: Config | None = None,
    progress: str = "auto",
    **fields,
) -> TrainResult:
    """Trains one team per seed, all seeds in one compiled program, spread over as many devices as divide them.

    On a CPU, call `marl_kl.use_all_cpu_cores()` first: otherwise jax sees one device, whatever the cores.

    Args:
        env: from `envs.make`, or your own.
        algorithm: one of `marl_kl.algorithms.names()`.
        seeds: how many (0, 1, ...), or which.
        out: folder for metrics, pictures, config and the learned parameters; None keeps nothing on disk.
        config: of the algorithm's config class; its defaults if None.
        progress: "auto", "plain" or "none".
        **fields: config fields by name; they override `config`.

    Returns:
        The metrics of every update and the evaluation episodes. A seed that meets a non-finite number keeps its
        last finite parameters and is named in `failures`; the other seeds go on.

    Raises:
        ValueError: bad input, named in one sentence, before anything is compiled.
        RunFolderError: `out` holds another run or cannot be written.
    """
    if not isinstance(env, Env):
        raise ValueError(f"env={env!r}; it must be an environment, as envs.make({str(env)!r}) returns")
    entry = algorithms.get(algorithm)
    config = (entry.config_class() if config is None else config).replace(**fields)
    make_train(env, algorithm, config)  # refuses a config of another algorithm's class
    seeds = _seed_numbers(seeds)
    kl_budget = getattr(config, "kl_budget", None)
    display = Progress(
        total_updates=config.num_updates,
        env_steps_per_update=config.batch_size,
        num_seeds=len(seeds),
        kl_budget=kl_budget,
        mode=progress,
    )
    if out is not None:
        out = run_folder.create(out, run_folder.record(env.spec, algorithm, config, seeds))
    run = _Run(env, algorithm, config, seeds, out, display)
    status = "failed"
    try:
        with display:
            run.compile()
            run.loop()
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if out is not None:
            _close(run, out, status)
    result = run.result()
    reporting.finish(result, quiet=progress == "none")
    return result


def _close(run: _Run, out: Path, status: str):
    """Leaves a true status behind even when the last save fails."""
    try:
        run.save_progress()
    except BaseException:
        status = "failed"
        raise
    finally:
        run_folder.set_status(out, status, run.failures)


_EVALUATION = 0x6576616C
"""Folded into a seed's key for evaluation: far from the small numbers that splitting folds in."""


class _Programs(NamedTuple):
    """The compiled parts; every leading axis is the seed's.

    Attributes:
        chunk: `(numbers, state, n) -> (state, metrics)`, metrics [chunk_updates, seed, ...] of which n are filled.
        evaluate: `(keys, learner) -> EpisodeStatistics` [seed, episode].
    """

    chunk: Callable[[dict, TrainState, int], tuple[TrainState, dict]]
    evaluate: Callable[[jax.Array, Learner], EpisodeStatistics]


class _Run:
    """One training run: the train state on the device, and what has come back from it."""

    def __init__(self, env, algorithm, config, seeds, out, display):
        self.env, self.algorithm, self.config = env, algorithm, config
        self.seeds, self.out, self.display = seeds, out, display
        self.mesh = devices.seed_mesh(len(seeds))
        self.metrics: list[dict[str, np.ndarray]] = []
        self.evaluations: list[tuple[int, EpisodeStatistics]] = []
        self.failures: tuple[Failure, ...] = ()
        self.seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self.state: TrainState | None = None
        self.learner: Learner | None = None

    @property
    def done(self) -> int:
        """Updates made."""
        return sum(chunk["value_loss"].shape[1] for chunk in self.metrics)

    def compile(self):
        """Traces and compiles everything, and makes the initial state."""
        self.display.phase("compiling")
        begin = time.perf_counter()
        numbers = self.config.numbers
        keys = devices.place(jax.vmap(jax.random.key)(jnp.asarray(self.seeds, jnp.uint32)), self.mesh)
        train = make_train(self.env, self.algorithm, self.config)
        init = devices.over_seeds(jax.vmap(train.init), self.mesh, (devices.SEEDS,), devices.SEEDS)
        with ThreadPoolExecutor(1) as background:
            # the two programs that step environments are compiled side by side
            # (lowered here: settings such as jax.enable_x64 do not reach another thread)
            shapes = jax.eval_shape(init, keys)
            evaluate = background.submit(self._lowered_evaluation(keys, shapes.learner).compile)
            self.state = jax.block_until_ready(init(keys))
            chunk = self._compiled_chunk(numbers, self.state)
            self.programs = _Programs(lambda state, n: chunk(numbers, state, n), evaluate.result())
        self.seconds["compile"] = time.perf_counter() - begin

    def loop(self):
        """Updates and evaluates until the end."""
        config = self.config
        self._evaluate()
        while self.done < config.num_updates:
            stops = [self.done + config.chunk_updates, config.num_updates]
            intervals = (config.eval_interval, config.save_interval)
            stops += [_next_multiple(self.done, every) for every in intervals if every]
            self._advance(min(stops) - self.done)
            is_last = self.done == config.num_updates
            if is_last or _is_multiple(self.done, config.eval_interval):
                self._evaluate()
            if self.out is not None and not is_last and _is_multiple(self.done, config.save_interval):
                self.save_progress()

    def save_progress(self):
        """Writes what there is: metrics, evaluations, parameters."""
        if self.metrics:
            run_folder.write_metrics(
                self.out, self.env.spec.agents, self.seeds, self._env_steps(), self._reported_metrics()
            )
        if self.evaluations:
            run_folder.write_evaluation(self.out, self.seeds, self._evaluation())
        if self.learner is not None:
            run_folder.save_learner(self.out, self.learner, self.done)

    def result(self) -> TrainResult:
        return TrainResult(
            self.env.spec,
            self.algorithm,
            self.config,
            self.seeds,
            self._env_steps(),
            self._reported_metrics(),
            self._evaluation(),
            self.failures,
            Timing(**self.seconds),
            self.out,
        )

    def _compiled_chunk(self, numbers, state):
        def chunk(numbers, state, n):
            update = jax.vmap(make_train(self.env, self.algorithm, self.config.replace(**numbers)).update)
            shapes = jax.eval_shape(update, state)[1]
            buffers = jax.tree.map(lambda s: jnp.zeros((self.config.chunk_updates, *s.shape), s.dtype), shapes)

            def body(i, carry):
                state, buffers = carry
                state, metrics = update(state)
                return state, jax.tree.map(lambda buffer, value: buffer.at[i].set(value), buffers, metrics)

            # n is traced: chunks of any length run the same program, bit for bit
            return jax.lax.fori_loop(0, n, body, (state, buffers))

        in_specs = (devices.EVERYWHERE, devices.SEEDS, devices.EVERYWHERE)
        out_specs = (devices.SEEDS, PartitionSpec(None, devices.SEED_AXIS))
        program = devices.over_seeds(chunk, self.mesh, in_specs, out_specs, donate_argnums=1)
        return program.lower(numbers, state, 0).compile()

    def _lowered_evaluation(self, keys, learner):
        evaluate = jax.vmap(make_evaluate(self.env, self.config))
        in_specs = (devices.SEEDS, devices.SEEDS)
        return devices.over_seeds(evaluate, self.mesh, in_specs, devices.SEEDS).lower(keys, learner)

    def _advance(self, n: int):
        self.display.phase("training")
        begin = time.perf_counter()
        self.state, chunk = self.programs.chunk(self.state, n)
        chunk = {name: np.swapaxes(np.asarray(values)[:n], 0, 1) for name, values in chunk.items()}
        # a host copy, because the next chunk takes the state's own memory and may be interrupted
        learner = jax.tree.map(np.array, self.state.learner)
        self.seconds["train"] += time.perf_counter() - begin
        self.failures += self._new_failures(chunk.pop("nonfinite"))
        self.learner = learner
        self.metrics.append(chunk)
        self.display.advance(n, chunk)

    def _evaluate(self):
        self.display.phase("evaluating")
        begin = time.perf_counter()
        # keys of their own, so that evaluating more often does not change the training
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _EVALUATION), self.done))(
            jnp.asarray(self.seeds, jnp.uint32)
        )
        keys = devices.place(keys, self.mesh)
        statistics = jax.tree.map(np.asarray, self.programs.evaluate(keys, self.state.learner))
        self.evaluations.append((self.done, statistics))
        self.seconds["evaluate"] += time.perf_counter() - begin

    def _new_failures(self, nonfinite: np.ndarray) -> tuple[Failure, ...]:
        """The first non-finite quantity of each seed that had none so far; nonfinite: [seed, n, len(WATCHED)]."""
        known = {failure.seed for failure in self.failures}
        found = []
        for index, seed in enumerate(self.seeds):
            updates, quantities = np.nonzero(nonfinite[index])
            if len(updates) and seed not in known:
                found.append(Failure(seed, self.done + int(updates[0]), WATCHED[quantities[0]]))
        return tuple(found)

    def _reported_metrics(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([chunk[name] for chunk in self.metrics], axis=1) for name in self.metrics[0]}

    def _env_steps(self) -> np.ndarray:
        # int64 from Python ints: 2^31 env steps are an afternoon on a GPU
        return (np.arange(self.done, dtype=np.int64) + 1) * self.config.batch_size

    def _evaluation(self) -> Evaluation:
        updates = np.asarray([update for update, _ in self.evaluations], np.int64)
        stacked = [np.stack(parts, axis=1) for parts in zip(*(statistics for _, statistics in self.evaluations))]
        return Evaluation(updates, updates * self.config.batch_size, *stacked)


def _seed_numbers(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Distinct seeds in [0, 2^32), or ValueError."""
    wanted = "it must be a number of seeds >= 1 or distinct integers in [0, 2^32)"
    try:
        is_count = isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool)
        numbers = tuple(range(seeds)) if is_count else tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        raise ValueError(f"seeds={seeds!r}; {wanted}") from None
    if not numbers or len(set(numbers)) != len(numbers) or not all(0 <= seed < 2**32 for seed in numbers):
        raise ValueError(f"seeds={seeds!r}; {wanted}")
    return numbers


def _is_multiple(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _next_multiple(done: int, every: int) -> int:
    return (done // every + 1) * every
