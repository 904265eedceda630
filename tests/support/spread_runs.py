"""Runs that are spread over several devices, in processes that have them (`topology`)."""

import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from marl_kl import processes
from marl_kl.core import algorithms
from marl_kl.training.programs import Programs
from tests.support.kinds_env import kinds_env

CONFIG = {
    "num_envs": 8, "rollout_length": 6, "hidden_sizes": (8, 8), "recurrent_size": 4, "critic_minibatches": 2,
    "chunk_updates": 1, "total_env_steps": 480, "eval_episodes": 4,
}  # fmt: skip


def first_update(algorithm, count, num_seeds, start=None, **fields):
    """The actors, the critic and its moments after it; in float64 where jax has it enabled.

    Args:
        start: a file of initial learners: one process writes it, several read it, since the number of seeds on a device
            decides how random weights are rounded.
    """
    config = algorithms.get(algorithm).config_class(**CONFIG, **fields)
    programs = Programs(kinds_env("discrete"), algorithm, config, num_seeds, count)
    traced_fields = programs.traced_fields([config] * num_seeds)
    state = programs._init_program()(traced_fields, programs.keys(range(num_seeds)))
    state = _wide(state) if jax.config.jax_enable_x64 else state
    if start is not None:
        state = state._replace(learner=_kept(state.learner, Path(start)))
    state = programs.shard_state(state)
    state, _ = programs._chunk_program()(traced_fields, state, 1)
    return jax.tree.map(processes.on_host, state.learner[:2])


def _kept(learner, file):
    learner = jax.tree.map(processes.on_host, learner)
    if not processes.are_many():
        file.write_bytes(pickle.dumps(learner))
    return pickle.loads(file.read_bytes())


def _wide(state):
    """Whatever is learned, and hidden states, in float64; environments declare their own types."""
    hidden = jax.tree.map(_to_float64, state.env_batch.hidden)
    learner, critic_hidden = jax.tree.map(_to_float64, (state.learner, state.critic_hidden))
    env_batch = state.env_batch._replace(hidden=hidden)
    return state._replace(learner=learner, critic_hidden=critic_hidden, env_batch=env_batch)


def _to_float64(leaf):
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def print_distances(algorithm, counts, num_seeds=1, **fields):
    """For each number of devices: the largest difference of an array's entries, relative to its largest one."""
    one = first_update(algorithm, 1, num_seeds, **fields)
    for count in counts:
        many = first_update(algorithm, count, num_seeds, **fields)
        print(max(map(_relative, jax.tree.leaves(one), jax.tree.leaves(many))))


def _relative(one, many):
    return float(np.max(np.abs(one - many), initial=0.0) / np.max(np.abs(one), initial=1e-30))
