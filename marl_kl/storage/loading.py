"""Policies from the folder of a run or a sweep; the training code is imported by `Run.learner` alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvSpec
from marl_kl.config import Config
from marl_kl.core import agents
from marl_kl.core.policies import Team, make_actor, team_shapes
from marl_kl.core.types import Carry
from marl_kl.storage import array_trees, checkpoints, run_folder, run_record, stored_sweeps

if TYPE_CHECKING:
    from marl_kl.core.trainer import Learner

Policy = Callable[..., jax.Array]
"""`policy(obs[N, O], key=None, action_mask=None) -> actions`, see `Run.policy`."""


class RecurrentPolicy(NamedTuple):
    """The policy of recurrent actors: `state` is their hidden state, and each call returns the next one.

        state = policy.initial_state()                  # at the start of an episode
        actions, state = policy(obs, state)             # at every step; key= and action_mask= as in `Run.policy`

    Attributes:
        initial_state: `initial_state() -> [N, H]`; [H] of one agent alone.
        act: the function that a call applies.
    """

    initial_state: Callable[[], jax.Array]
    act: Callable[..., tuple[jax.Array, jax.Array]]

    def __call__(self, obs, state, key=None, action_mask=None) -> tuple[jax.Array, jax.Array]:
        return self.act(obs, state, key, action_mask)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A stored run, or one setting of a stored sweep.

    Attributes:
        path: its folder.
        spec: the environment's static description.
        algorithm: the algorithm's name. config: the resolved config. seeds: in the order of the seed axis.
        team: numpy arrays, leaves [seed, ...].
        update: updates made when it was stored.
        best_updates: per seed, the updates made before its best evaluation, if these teams are loaded; None: the last
            teams are.
        leaves: the learner, flat (`array_trees.flatten_tree`). source: its origin, for messages.
    """

    path: Path
    spec: EnvSpec
    algorithm: str
    config: Config
    seeds: tuple[int, ...]
    team: Team
    update: int
    best_updates: tuple[int, ...] | None = None
    leaves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    source: str = ""

    def __repr__(self) -> str:
        """One line, for notebooks: the parameters themselves are attributes."""
        which = "last" if self.best_updates is None else "best"
        return (
            f"Run({self.algorithm} on {self.spec.name}, {len(self.seeds)} seeds, {which} policies of {self.update:,} updates, "
            f"path={str(self.path)!r})"
        )

    @functools.cached_property
    def learner(self) -> Learner:
        """The learner, critic and optimisers included: numpy arrays, leaves [seed, ...].

        Raises:
            ValueError: the algorithm is not known here.
            RunFolderError: it is stored in a form that this version does not have.
        """
        from marl_kl.core.trainer import learner_shapes

        template = learner_shapes(self.spec, self.algorithm, self.config)
        return of_seeds(template, len(self.seeds), self.leaves, self.source)

    def update_of(self, seed: int) -> int:
        """Updates made before the loaded team of `seed` was stored; ValueError if the run has no such seed."""
        index = self._index(seed)
        return self.update if self.best_updates is None else self.best_updates[index]

    def team_of(self, seed: int | None = None) -> Team:
        """The team of `seed` (the run's first one by default), without the seed axis.

        Raises:
            ValueError: the run has no such seed.
        """
        return self._of(self.team, self.seeds[0] if seed is None else seed)

    def learner_of(self, seed: int) -> Learner:
        """The learner of `seed`, without the seed axis.

        Raises:
            ValueError: the run has no such seed.
        """
        return self._of(self.learner, seed)

    def policy(self, seed: int | None = None) -> Policy | RecurrentPolicy:
        """The team that `seed` trained (the run's first seed by default).

        Returns:
            `policy(obs[N, O], key=None, action_mask=None) -> actions`, as the environment takes them: [N, A] float for
            continuous actions (squashed where the run says so), int32 [N] for discrete and [N, D] for multi-discrete
            ones; deterministic without a typed key, stochastic with one. `obs` is padded with zeros as the environment
            pads it; `action_mask` [N, A] is all real entries by default. With `config.recurrent`, a
            `RecurrentPolicy`, which also takes and returns the hidden state.

        Raises:
            ValueError: the run has no such seed.
        """
        team = self.team_of(seed)
        actor = make_actor(self.spec, self.config)
        shape = (self.spec.num_agents, self.spec.observation_size)
        real = jnp.asarray(self.spec.action_mask)
        nothing = actor.initial_carry((self.spec.num_agents,))

        @jax.jit
        def act(obs, hidden, key, mask):
            outputs, hidden = actor.team_step(team.actors, actor.inputs(team.obs_moments, obs), hidden)
            distribution = actor.distribution(outputs, mask)
            action = distribution.mode() if key is None else distribution.sample(key)
            return actor.env_action(action), hidden

        def policy(obs, hidden, key, action_mask):
            if np.shape(obs) != shape:
                raise ValueError(f"obs has shape {np.shape(obs)}; env '{self.spec.name}' has [N, O] = {shape}")
            if np.shape(hidden) != np.shape(nothing):
                raise ValueError(f"state has shape {np.shape(hidden)}; policy.initial_state() has {nothing.shape}")
            mask = real if action_mask is None else jnp.asarray(action_mask, bool)
            if mask.shape != real.shape:
                raise ValueError(
                    f"action_mask has shape {mask.shape}; env '{self.spec.name}' has [N, A] = {real.shape}"
                )
            return act(jnp.asarray(obs, jnp.float32), hidden, key, mask)

        return _public_policy(policy, nothing)

    def agent_policy(self, agent: int | str, seed: int | None = None) -> Policy | RecurrentPolicy:
        """One agent of the team of `seed`, which needs its own observation only.

        Args:
            agent: its name or its index.
            seed: the run's first seed by default.

        Returns:
            `policy(obs[..., O_i], key=None, action_mask=None) -> action`, as `policy` acts for this agent, but at the
            agent's true sizes: `[..., A_i]`, or `[...]` for one choice, `[..., D_i]` for several. With
            `config.recurrent`, a `RecurrentPolicy` with states [..., H].

        Raises:
            ValueError: no such agent or seed.
        """
        chosen = agents.agent_index(self.spec, agent)
        act = jax.jit(agents.make_policy(self.spec, self.config, self.team_of(seed), chosen))
        size, actions = self.spec.observation_sizes[chosen], self.spec.action_sizes[chosen]
        real = self.spec.action_mask[chosen, :actions]
        nothing = agents.initial_carry(self.spec, self.config)

        def policy(obs, hidden, key, action_mask):
            if np.shape(obs)[-1:] != (size,):
                raise ValueError(f"obs has shape {np.shape(obs)}; agent {agent!r} observes [..., {size}]")
            batch = np.shape(obs)[:-1]
            mask = np.broadcast_to(real, (*batch, actions)) if action_mask is None else action_mask
            hidden = jax.tree.map(lambda state: jnp.broadcast_to(state, (*batch, *nothing.shape)), hidden)
            return act(jnp.asarray(obs, jnp.float32), hidden, jnp.asarray(mask), key)

        return _public_policy(policy, nothing)

    def export(self, agent: int | str, seed: int | None = None) -> bytes:
        """One agent's deterministic policy as a file that needs nothing of this package (`marl_kl.core.agents.export`).

            files.write_file("leg.jax", run.export("hip_1+ankle_1"))
            jax.export.deserialize(bytearray(open("leg.jax", "rb").read())).call(obs)   # [B, O_i] -> [B, A_i]

        Args and errors are those of `agent_policy`.
        """
        chosen = agents.agent_index(self.spec, agent)
        return agents.export(self.spec, self.config, self.team_of(seed), chosen)

    def _of(self, tree, seed: int):
        index = self._index(seed)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), tree)

    def _index(self, seed: int) -> int:
        if seed not in self.seeds:
            raise ValueError(f"seed={seed!r} is not in this run; it has {', '.join(map(str, self.seeds))}")
        return self.seeds.index(seed)


def _public_policy(policy: Callable, nothing: Carry) -> Policy | RecurrentPolicy:
    """The policy for users, from `policy(obs, hidden, key, action_mask) -> (action, hidden)`."""
    if not isinstance(nothing, tuple):
        return RecurrentPolicy(lambda: nothing, policy)
    return lambda obs, key=None, action_mask=None: policy(obs, (), key, action_mask)[0]


def load(path: str | PathLike, which: Literal["last", "best"] = "last", setting: int | None = None) -> Run:
    """A stored run: config, description of the environment, learned parameters.

    Args:
        path: the run folder, or that of a sweep.
        which: "last": the teams of the newest checkpoint; "best": each seed's team at its best evaluation up to there.
        setting: of a sweep, the index of the setting that is loaded, as a run.

    Raises:
        ValueError: another `which`, or no such setting.
        RunFolderError: no run there, a damaged one, or one of a newer format; the message says which.
    """
    if which not in ("last", "best"):
        raise ValueError(f"which={which!r}; it must be 'last' or 'best'")
    is_run = setting is None and not run_folder.is_sweep(path)
    return _of_run(path, which) if is_run else _of_setting(path, which, setting)


def _of_run(path: str | PathLike, which: str) -> Run:
    record = run_record.read_record(path)
    snapshot = checkpoints.load(path, run_record.fingerprint(record.document))
    if snapshot is None:
        raise run_folder.RunFolderError(f"there is no checkpoint in {str(path)!r}")
    if which == "best" and snapshot.best is None:
        raise run_folder.RunFolderError(f"the run in {str(path)!r} has kept no best teams; load the last ones")
    leaves = array_trees.subtree(snapshot.state, "learner") if which == "last" else snapshot.best.learner
    best_updates = None if which == "last" else tuple(map(int, snapshot.best.update))
    source = checkpoints.source(path, snapshot.update)
    return _restored(path, record, leaves, snapshot.update, best_updates, source)


def _of_setting(path: str | PathLike, which: str, setting: int | None) -> Run:
    record = stored_sweeps.record_of(path, setting)
    stored = stored_sweeps.learners(path, setting, which)
    best_updates = None if which == "last" else stored.updates
    return _restored(path, record, stored.learner, record.config.num_updates, best_updates, stored.source)


def _restored(
    path: str | PathLike, record: run_record.RunRecord, leaves: Mapping[str, np.ndarray], update: int,
    best_updates: tuple[int, ...] | None, source: str,
) -> Run:  # fmt: skip
    """Of the learner's flat `leaves`."""
    own = {name: leaf for name, leaf in leaves.items() if name.split(".")[0] in Team._fields}
    team = of_seeds(team_shapes(record.spec, record.config), len(record.seeds), own, source)
    return Run(
        Path(path),
        record.spec,
        record.algorithm,
        record.config,
        record.seeds,
        team,
        update,
        best_updates,
        leaves,
        source,
    )


def of_seeds(template, num_seeds: int, leaves: Mapping[str, np.ndarray], source: str):
    """`template`, the shapes of one seed, filled with the leaves [seed, ...]."""
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_seeds, *leaf.shape), leaf.dtype), template)
    return array_trees.restore_tree(stacked, leaves, source)
