"""The compiled programs of a shard: one trial per seed, or, in a sweep, per setting and seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from envs.base import Env
from envs.compiling import CompilerOptions
from marl_kl import devices, processes
from marl_kl.config import Config, OffPolicyConfig
from marl_kl.core import evaluation
from marl_kl.core.algorithms import AlgorithmSpec
from marl_kl.core.partition import ENV_AXIS
from marl_kl.core.rollout import EnvBatch
from marl_kl.core.trainer import Learner, Train, TrainState, make_train
from marl_kl.results import EpisodeStatistics

SHARE_OF_MEMORY = 0.8
"""The fraction of the free memory that the train states may take; the rest is for what XLA's account leaves out."""

TracedFields = dict[str, jax.Array]
"""The fields of `Config.traced_fields`, one entry per run: name -> [R] float32."""


class Programs:
    """The programs of R trials with the same static fields, each with its own seed and traced fields.

    Every leading axis is the trial's, sharded over the devices of `mesh`, as are the environments of a trial if the mesh
    has an axis for them. Nothing is traced before it is needed, and each program is traced once, whatever the traced
    fields. While `devices.is_debugging` none is compiled ahead, so that jax can run it operation by operation.

    Args:
        env: the environment of all runs.
        algorithm: its name or description.
        config: of one trial; its traced fields are not used.
        num_runs: R.
        count: at most so many devices, over which the environments are spread too where trials leave some (not those
            of off-policy algorithms, which draw from one replay); None: as many as divide R, of several processes all.

    Raises:
        ValueError: there are not as many devices, or they cannot be divided among the processes.
    """

    def __init__(
        self, env: Env, algorithm: str | AlgorithmSpec, config: Config, num_runs: int, count: int | None = None
    ):
        self._env, self._algorithm, self._config = env, algorithm, config
        self.num_runs = num_runs
        num_envs = 1 if isinstance(config, OffPolicyConfig) else config.num_envs
        self.mesh = devices.run_mesh(num_runs, num_envs, count)

    def shard(self, tree: Any) -> Any:
        """Arrays with a leading trial axis, sharded over the mesh."""
        return devices.shard(tree, self.mesh)

    def shard_state(self, state: TrainState) -> TrainState:
        """Train states, sharded as `chunk` takes them."""
        return devices.shard(state, self.mesh, self._state_specs)

    @property
    def _state_specs(self) -> Any:
        """How train states are sharded: a prefix of their tree."""
        if ENV_AXIS not in self.mesh.axis_names:
            return devices.SEEDS
        envs = PartitionSpec(devices.SEED_AXIS, ENV_AXIS)
        hidden = PartitionSpec(devices.SEED_AXIS, None, ENV_AXIS)  # [R, N, E, H]
        critic_hidden = jax.tree.map(lambda leaf: hidden if leaf.ndim == 4 else envs, self.shapes.critic_hidden)
        every = TrainState(*[devices.SEEDS] * len(TrainState._fields))
        return every._replace(env_batch=EnvBatch(envs, envs, envs, hidden), critic_hidden=critic_hidden)

    def traced_fields(self, configs: Sequence[Config]) -> TracedFields:
        """The traced fields of R configs that differ in nothing else.

        float32 also with `jax_enable_x64`: a wider number would widen the parameters that it is combined with.
        """
        rows = [config.traced_fields for config in configs]
        return self.shard({name: np.asarray([row[name] for row in rows], np.float32) for name in rows[0]})

    def keys(self, seeds: Sequence[int]) -> jax.Array:
        """[R] the initial keys of these seeds."""
        return self.shard(jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)))

    def evaluation_keys(self, seeds: Sequence[int], update: int) -> jax.Array:
        """[R] separate keys, so that evaluating more often does not change the training."""
        return self.shard(evaluation.keys(seeds, update))

    @functools.cached_property
    def shapes(self) -> TrainState:
        """Of all train states."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._traced_init.out_info)

    @property
    def is_compiled(self) -> bool:
        """Whether `compile` has been called."""
        return hasattr(self, "_init")

    def compile(self) -> None:
        """Traces `init`, `chunk` and `evaluate`, and compiles each in the background while the next one is traced."""
        evaluate = evaluation.evaluate_seeds(self._env, self._config, self.mesh)
        if devices.is_debugging():
            self._init, self._chunk, self._evaluate = self._init_program(), self._chunk_program(), evaluate
            return
        with ThreadPoolExecutor() as background:
            # lowered here: settings such as jax.enable_x64 do not reach another thread
            init = background.submit(self._traced_init.lower().compile)
            # from the shapes, not from a state: a resumed run compiles the very same program
            chunk = background.submit(self._chunk_program().lower(self._traced_shapes, self.shapes, 0).compile)
            lowered = evaluate.lower(self.shapes.key, self.shapes.learner)
            self._evaluate, self._chunk, self._init = lowered.compile(), chunk.result(), init.result()

    def init(self, traced_fields: TracedFields, keys: jax.Array) -> TrainState:
        """The initial train states."""
        return self.shard_state(self._init(traced_fields, keys))

    def chunk(self, traced_fields: TracedFields, state: TrainState, n: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        """n <= `chunk_updates` updates of every trial.

        Args:
            traced_fields: see `traced_fields`.
            state: the train states; their memory is donated.
            n: how many.

        Returns:
            The new states, and the metrics on the host: name -> [R, n, ...].
        """
        state, metrics = self._chunk(traced_fields, state, n)
        return state, {name: np.swapaxes(processes.on_host(values)[:n], 0, 1) for name, values in metrics.items()}

    def evaluate(self, keys: jax.Array, learner: Learner) -> EpisodeStatistics:
        """Evaluation episodes [R, episode], on the host."""
        return jax.tree.map(processes.on_host, self._evaluate(keys, learner))

    @property
    def update_hlo(self) -> str:
        """The compiled updates as XLA's text."""
        return self._chunk.as_text()

    @property
    def state_bytes(self) -> float:
        """Bytes of one run's train state: known before anything is compiled."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.shapes)) / self.num_runs

    def refuse_callbacks(self) -> None:
        """Raises ValueError, before anything is compiled, if environments that call Python would be spread over devices."""
        if ENV_AXIS in self.mesh.axis_names and "callback" in str(self._traced_init.jaxpr):
            raise ValueError(
                f"devices={self.mesh.size} would spread the environments of {self._env.spec.name} over devices, but they run "
                f"in Python on the host; it must divide the seeds, {self.num_runs}"
            )

    def refuse_large_states(self, what: str, advice: str) -> None:
        """Raises MemoryError, before anything is compiled, if not even the train states fit into the memory.

        Args are those of `devices.refuse_too_large`.
        """
        devices.refuse_too_large(self.state_bytes * self.num_runs, self.mesh, what, self._fitting_replay or advice)

    @property
    def _fitting_replay(self) -> str:
        """Advice: the largest `replay_size` whose train states fit; empty if there is no replay."""
        replay = jax.tree.leaves(self.shapes.replay)
        free = devices.free_bytes(self.mesh)
        if not replay or free is None:
            return ""
        of_replay = sum(leaf.size * leaf.dtype.itemsize for leaf in replay) / self.num_runs
        left = SHARE_OF_MEMORY * free / self.num_runs - (self.state_bytes - of_replay)
        per_update = self._config.batch_size
        fitting = int(left / of_replay * self._config.replay_length * self._config.num_envs) // per_update * per_update
        return f"replay_size={fitting} would fit" if fitting > 0 else "not even a replay of one update would fit"

    @property
    def bytes_per_run(self) -> float:
        """Bytes that one run takes on its device: by XLA's account of the compiled programs, where it gives one."""
        if devices.is_debugging():
            return self.state_bytes
        runs_per_device = self.num_runs / self.mesh.size
        chunk, episodes = (program_bytes(program) / runs_per_device for program in (self._chunk, self._evaluate))
        # the train state stays where it is while the episodes are run
        return max(chunk, self.state_bytes + episodes)

    def _train(self, traced_fields: TracedFields) -> Train:
        return make_train(self._env, self._algorithm, self._config.replace(**traced_fields))

    @functools.cached_property
    def _traced_init(self) -> jax.stages.Traced:
        keys = jax.eval_shape(jax.vmap(jax.random.key), jax.ShapeDtypeStruct((self.num_runs,), jnp.uint32))
        return self._init_program().trace(self._traced_shapes, keys)

    def _init_program(self) -> Callable:
        init = jax.vmap(lambda traced_fields, key: self._train(traced_fields).init(key))
        return self._over_runs(init, (devices.SEEDS, devices.SEEDS), devices.SEEDS, devices.RUNS_ONCE)

    @property
    def _traced_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct((self.num_runs,), jnp.float32) for name in self._config.traced_fields}

    def _over_runs(
        self, function: Callable, in_specs: Any, out_specs: Any, options: CompilerOptions = (), **jit_options
    ) -> Callable:
        cpu_options = (*self._env.spec.cpu_compiler_options, *options)
        return devices.over_seeds(function, self.mesh, in_specs, out_specs, cpu_options, **jit_options)

    def _chunk_program(self) -> Callable:
        length = self._config.chunk_updates
        one_update = jax.vmap(lambda traced_fields, state: self._train(traced_fields).update(state))

        def chunk(traced_fields, state, n):
            update = jax.jit(one_update, inline=True)  # traced once for the shapes and the loop
            shapes = jax.eval_shape(update, traced_fields, state)[1]
            buffers = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)

            def body(i, carry):
                state, buffers = carry
                state, metrics = update(traced_fields, state)
                return state, jax.tree.map(lambda buffer, value: buffer.at[i].set(value), buffers, metrics)

            # n is traced: chunks of any length run the same program, bit for bit
            return jax.lax.fori_loop(0, n, body, (state, buffers))

        state_specs = self._state_specs
        in_specs = (devices.SEEDS, state_specs, devices.EVERYWHERE)
        out_specs = (state_specs, PartitionSpec(None, devices.SEED_AXIS))
        return self._over_runs(chunk, in_specs, out_specs, donate_argnums=1)


def program_bytes(program: jax.stages.Compiled) -> int:
    """Bytes on one device while the program runs; 0 where XLA gives no account."""
    account = program.memory_analysis()
    if account is None:
        return 0
    in_and_out = account.argument_size_in_bytes + account.output_size_in_bytes - account.alias_size_in_bytes
    return in_and_out + account.temp_size_in_bytes
