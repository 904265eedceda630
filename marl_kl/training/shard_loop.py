"""The training loop of one shard, the only part that runs on the host: chunks of updates on the devices, and between
them evaluations, logging and checkpoints."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import jax
import numpy as np

from marl_kl import processes
from marl_kl.config import is_due
from marl_kl.core.trainer import TrainState
from marl_kl.results import appended, evaluated
from marl_kl.storage import array_trees, checkpoints, shards
from marl_kl.storage.best import update_best
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.storage.interrupts import interrupts_wait
from marl_kl.storage.run_folder import RunWarning
from marl_kl.storage.run_tables import TableWriter
from marl_kl.storage.shards import Shard
from marl_kl.training.programs import Programs
from marl_kl.training.progress import Progress


class ShardLoop:
    """Trains a shard to its end.

    Args:
        shard: what is trained.
        programs: compiled for its padded trials.
        snapshot: where it starts, as `Shard.load` returns it.
        display: shows the progress.
        follow: called with every new snapshot (without train state).
        tables: of the folder, brought up to date after each checkpoint and after the first evaluation; None: there are
            none.
        stop_if_interrupted: called between steps (`interrupts.interrupts_agreed`).

    Attributes:
        now: all results so far, without the train state.
        state: the train states on the devices, as of `now`; None before the start and while a chunk owns their memory.
    """

    def __init__(
        self,
        shard: Shard,
        programs: Programs,
        snapshot: Snapshot,
        display: Progress,
        follow: Callable[[Snapshot], None],
        tables: TableWriter | None = None,
        stop_if_interrupted: Callable[[], None] = lambda: None,
    ):
        self.shard, self.programs, self.display = shard, programs, display
        self.now = snapshot
        self.state: TrainState | None = None
        self._follow, self._tables, self._stop_if_interrupted = follow, tables, stop_if_interrupted
        self._saved = snapshot.extent
        self._seeds = [trial.seed for trial in shard.padded]

    def run(self) -> Snapshot:
        """Trains, evaluates and saves; whatever ends it, the last consistent state is saved.

        An error within a chunk loses the state, which the chunk owns: the last checkpoint is then the newest one. So does
        any error in one of several processes, which can save it only together.
        """
        # here processes wait for each other without a limit; gloo's first connections within a program give up after 30 s
        self._stop_if_interrupted()
        try:
            self._start()
            while not self.shard.is_complete(self.now):
                self._stop_if_interrupted()
                if self.shard.evaluation_is_due(self.now):
                    self._evaluate()
                else:
                    self._advance()
                self._follow(self.now)
                is_scheduled = is_due(self.now.update, self.shard.config.save_interval)
                if is_scheduled and not self.shard.evaluation_is_due(self.now):
                    self._save()
        except Exception:
            if processes.are_many():
                self.state = None
            raise
        finally:
            self._save()
        return self.now

    def _start(self) -> None:
        begin = time.perf_counter()
        programs, now = self.programs, self.now
        self._traced_fields = programs.traced_fields([trial.config for trial in self.shard.padded])
        if now.update:
            state = programs.shard_state(self._restored(now))
        else:
            state = jax.block_until_ready(programs.init(self._traced_fields, programs.keys(self._seeds)))
            if now.state:  # the learners of a warm start
                leaves = array_trees.flatten_tree(state) | now.state
                state = programs.shard_state(array_trees.restore_tree(programs.shapes, leaves, "init_from"))
        # known here: older checkpoints lack the one, and the other may be larger than when the run began
        counts = {"updates": np.int32(now.update), "num_updates": np.float32(self.shard.config.num_updates)}
        counts = {name: np.repeat(count, len(self._seeds)) for name, count in counts.items()}
        self.now = now._replace(state={}, timing=now.timing.since(begin, "compile"))
        self.state = state._replace(**programs.shard(counts))

    def _restored(self, now: Snapshot) -> TrainState:
        """The train states of a checkpoint; a replay that it lacks begins empty."""
        source, shapes = checkpoints.source(self.shard.folder, now.update), self.programs.shapes
        has_all = any(name.startswith("replay.") for name in now.state) or not jax.tree.leaves(shapes.replay)
        if has_all:
            return array_trees.restore_tree(shapes, now.state, source)
        state = array_trees.restore_tree(shapes._replace(replay=()), now.state, source)
        warnings.warn(f"{source} has no replay (save_replay=False): it begins empty", RunWarning, stacklevel=2)
        return state._replace(replay=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.replay))

    def _advance(self) -> None:
        self.display.phase("training")
        begin, now = time.perf_counter(), self.now
        n = self.shard.config.next_stop(now.update) - now.update
        # interrupted here, the new state would be lost after its memory was taken from the old one
        with interrupts_wait():
            state, self.state = self.state, None
            state, chunk = self.programs.chunk(self._traced_fields, state, n)
            chunk = {name: values[: len(self.shard.trials)] for name, values in chunk.items()}
            failures = shards.failures(self.shard.trials, chunk.pop("nonfinite"), now.update, now.failures)
            timing = now.timing.since(begin, "train")
            # the host sees the end of a chunk only: its updates take equal parts of it
            wall_time_s = np.linspace(sum(now.timing), sum(timing), n + 1, dtype=np.float32)[1:]
            self.now = now._replace(
                update=now.update + n,
                metrics=appended(now.metrics, chunk),
                failures=failures,
                timing=timing,
                wall_time_s=np.append(now.wall_time_s, wall_time_s),
            )
            self.state = state
        self.display.advance(n, chunk)

    def _evaluate(self) -> None:
        self.display.phase("evaluating")
        begin, now = time.perf_counter(), self.now
        keys = self.programs.evaluation_keys(self._seeds, now.update)
        episodes = self.programs.evaluate(keys, self.state.learner)
        episodes = jax.tree.map(lambda leaf: leaf[: len(self.shard.trials)], episodes)
        learners = self.shard.learners(self.state.learner)
        self.now = now._replace(
            evaluation=evaluated(now.evaluation, now.update, self.shard.config.batch_size, episodes),
            timing=now.timing.since(begin, "evaluate"),
            best=update_best(now.best, now.update, episodes.episode_return, learners),
        )

    def _save(self) -> None:
        is_stored = self.shard.folder is None or self._saved == self.now.extent
        if is_stored or self.state is None:
            return
        self.display.phase("saving")
        with interrupts_wait():
            self.shard.save(self.now, self.state)
            if self._tables is not None:
                self._tables.write(self.now.metrics, self.now.evaluation, self.now.wall_time_s)
            self._saved = self.now.extent
