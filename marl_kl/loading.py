"""Back from a run folder to policies."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.types import EnvSpec
from marl_kl import checkpoints, run_folder
from marl_kl.config import Config
from marl_kl.policies import make_actor
from marl_kl.trainer import Learner, learner_shapes

Policy = Callable[..., jax.Array]
"""`policy(obs[N, O], key=None, action_mask=None) -> actions`, see `Run.policy`."""


class RecurrentPolicy(NamedTuple):
    """A team that remembers: `state` is what it remembers, and each call returns the next one.

        state = policy.initial_state()                  # where an episode begins
        actions, state = policy(obs, state)             # at every step; key= and action_mask= as in `Run.policy`

    Attributes:
        initial_state: `initial_state() -> [N, H]`.
        act: what a call calls.
    """

    initial_state: Callable[[], jax.Array]
    act: Callable[..., tuple[jax.Array, jax.Array]]

    def __call__(self, obs, state, key=None, action_mask=None) -> tuple[jax.Array, jax.Array]:
        return self.act(obs, state, key, action_mask)


class Run(NamedTuple):
    """A stored run.

    Attributes:
        path: its folder.
        spec: the environment's static description.
        algorithm: the algorithm's name. config: the resolved config. seeds: in the order of the seed axis.
        learner: numpy arrays, leaves [seed, ...].
        update: updates made when it was stored.
    """

    path: Path
    spec: EnvSpec
    algorithm: str
    config: Config
    seeds: tuple[int, ...]
    learner: Learner
    update: int

    def learner_of(self, seed: int) -> Learner:
        """What `seed` learned, without the seed axis.

        Raises:
            ValueError: the run has no such seed.
        """
        if seed not in self.seeds:
            raise ValueError(f"seed={seed!r} is not in this run; it has {', '.join(map(str, self.seeds))}")
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[self.seeds.index(seed)]), self.learner)

    def policy(self, seed: int | None = None) -> Policy | RecurrentPolicy:
        """The team that `seed` trained (the run's first seed by default).

        Returns:
            `policy(obs[N, O], key=None, action_mask=None) -> actions`, [N, A] float for continuous actions, [N]
            int32 for discrete ones: deterministic without a typed key, sampled with one. `obs` is padded with zeros
            as the environment pads it; `action_mask` [N, A] is all real entries by default. Of a team with
            `config.recurrent`, a `RecurrentPolicy`, which is also given and returns what it remembers.

        Raises:
            ValueError: the run has no such seed.
        """
        learner = self.learner_of(self.seeds[0] if seed is None else seed)
        actor = make_actor(self.spec, self.config)
        shape = (self.spec.num_agents, self.spec.observation_size)
        real = jnp.asarray(self.spec.action_mask)
        nothing = actor.no_memory((self.spec.num_agents,))

        @jax.jit
        def act(obs, memory, key, mask):
            outputs, memory = actor.team_step(learner.actors, actor.inputs(learner.obs_moments, obs), memory)
            distribution = actor.distribution(outputs, mask)
            return (distribution.mode() if key is None else distribution.sample(key)), memory

        def policy(obs, memory, key, action_mask):
            if np.shape(obs) != shape:
                raise ValueError(f"obs has shape {np.shape(obs)}; env '{self.spec.name}' has [N, O] = {shape}")
            if np.shape(memory) != np.shape(nothing):
                raise ValueError(f"state has shape {np.shape(memory)}; policy.initial_state() has {nothing.shape}")
            mask = real if action_mask is None else jnp.asarray(action_mask)
            return act(jnp.asarray(obs, jnp.float32), memory, key, mask)

        if actor.recurrent:
            return RecurrentPolicy(lambda: nothing, policy)
        return lambda obs, key=None, action_mask=None: policy(obs, (), key, action_mask)[0]


def load(path: str | PathLike) -> Run:
    """What `train(..., out=path)` left: config, description of the environment, learned parameters.

    Raises:
        RunFolderError: no run there, a damaged one, or one of a newer format; the message says which.
    """
    record = run_folder.read_record(path)
    template = learner_shapes(record.spec, record.algorithm, record.config)
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(record.seeds), *leaf.shape), leaf.dtype), template)
    snapshot = checkpoints.load(path, run_folder.identity(record.document))
    if snapshot is None:
        raise run_folder.RunFolderError(f"there is no checkpoint in {str(path)!r}")
    leaves = checkpoints.part(snapshot.state, "learner")
    learner = checkpoints.filled(stacked, leaves, checkpoints.source(path, snapshot.update))
    return Run(Path(path), record.spec, record.algorithm, record.config, record.seeds, learner, snapshot.update)
