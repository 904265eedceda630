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

    def policy(self, seed: int | None = None) -> Policy:
        """The team that `seed` trained (the run's first seed by default).

        Returns:
            `policy(obs[N, O], key=None, action_mask=None) -> actions`, as the environment takes them: [N, A] float for
            continuous actions (squashed where the run says so), int32 [N] for discrete and [N, D] for multi-discrete
            ones; deterministic without a typed key, sampled with one. `obs` is padded with zeros as the environment
            pads it; `action_mask` [N, A] is all real entries by default.

        Raises:
            ValueError: the run has no such seed.
        """
        learner = self.learner_of(self.seeds[0] if seed is None else seed)
        actor = make_actor(self.spec, self.config)
        shape = (self.spec.num_agents, self.spec.observation_size)
        real = jnp.asarray(self.spec.action_mask)

        @jax.jit
        def act(obs, key, mask):
            outputs = actor.team_outputs(learner.actors, actor.inputs(learner.obs_moments, obs))
            distribution = actor.distribution(outputs, mask)
            return actor.env_action(distribution.mode() if key is None else distribution.sample(key))

        def policy(obs, key=None, action_mask=None):
            if np.shape(obs) != shape:
                raise ValueError(f"obs has shape {np.shape(obs)}; env '{self.spec.name}' has [N, O] = {shape}")
            mask = real if action_mask is None else jnp.asarray(action_mask, bool)
            if mask.shape != real.shape:
                raise ValueError(
                    f"action_mask has shape {mask.shape}; env '{self.spec.name}' has [N, A] = {real.shape}"
                )
            return act(jnp.asarray(obs, jnp.float32), key, mask)

        return policy


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
