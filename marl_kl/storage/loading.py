"""Back from the folder of a run or a sweep to policies; of what trains them nothing is imported before `Run.learner`
is asked for, or a setting of a sweep."""

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
from marl_kl.storage import checkpoints, run_folder

if TYPE_CHECKING:
    from marl_kl.core.trainer import Learner

Policy = Callable[..., jax.Array]
"""`policy(obs[N, O], key=None, action_mask=None) -> actions`, see `Run.policy`."""


class RecurrentPolicy(NamedTuple):
    """A team that remembers: `state` is what it remembers, and each call returns the next one.

        state = policy.initial_state()                  # where an episode begins
        actions, state = policy(obs, state)             # at every step; key= and action_mask= as in `Run.policy`

    Attributes:
        initial_state: `initial_state() -> [N, H]`; [H] of one agent alone.
        act: what a call calls.
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
        best_updates: per seed, the updates after which its team was evaluated best, if it is that team which is here;
            None: the last one.
        leaves: the learner, flat (`checkpoints.flatten_tree`). source: what messages call its origin.
    """

    path: Path
    spec: EnvSpec
    algorithm: str
    config: Config
    seeds: tuple[int, ...]
    team: Team
    update: int
    best_updates: tuple[int, ...] | None = None
    leaves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    source: str = ""

    @functools.cached_property
    def learner(self) -> Learner:
        """All that was learned, critic and optimisers included: numpy arrays, leaves [seed, ...].

        Raises:
            ValueError: the algorithm is not known here.
            RunFolderError: it is stored otherwise than this version has it.
        """
        from marl_kl.core.trainer import learner_shapes

        template = learner_shapes(self.spec, self.algorithm, self.config)
        return _of_seeds(template, len(self.seeds), self.leaves, self.source)

    def update_of(self, seed: int) -> int:
        """Updates made when the team of `seed` that is here played; ValueError if the run has no such seed."""
        index = self._index(seed)
        return self.update if self.best_updates is None else self.best_updates[index]

    def team_of(self, seed: int | None = None) -> Team:
        """What `seed` (the run's first one by default) plays with, without the seed axis.

        Raises:
            ValueError: the run has no such seed.
        """
        return self._of(self.team, self.seeds[0] if seed is None else seed)

    def learner_of(self, seed: int) -> Learner:
        """What `seed` learned, without the seed axis.

        Raises:
            ValueError: the run has no such seed.
        """
        return self._of(self.learner, seed)

    def policy(self, seed: int | None = None) -> Policy | RecurrentPolicy:
        """The team that `seed` trained (the run's first seed by default).

        Returns:
            `policy(obs[N, O], key=None, action_mask=None) -> actions`, as the environment takes them: [N, A] float for
            continuous actions (squashed where the run says so), int32 [N] for discrete and [N, D] for multi-discrete
            ones; deterministic without a typed key, sampled with one. `obs` is padded with zeros as the environment
            pads it; `action_mask` [N, A] is all real entries by default. Of a team with `config.recurrent`, a
            `RecurrentPolicy`, which is also given and returns what it remembers.

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

        return _with_or_without_memory(policy, nothing)

    def agent_policy(self, agent: int | str, seed: int | None = None) -> Policy | RecurrentPolicy:
        """One agent of the team that `seed` trained, to be run where only its own observation is known.

        Args:
            agent: its name or its index.
            seed: the run's first seed by default.

        Returns:
            `policy(obs[..., O_i], key=None, action_mask=None) -> action`, as `policy` acts for this agent, but at the
            agent's true sizes: `[..., A_i]`, or `[...]` for one choice, `[..., D_i]` for several. Of a team with
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

        return _with_or_without_memory(policy, nothing)

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


def _with_or_without_memory(policy: Callable, nothing: Carry) -> Policy | RecurrentPolicy:
    """What users call, of `policy(obs, hidden, key, action_mask) -> (action, hidden)`."""
    if not isinstance(nothing, tuple):
        return RecurrentPolicy(lambda: nothing, policy)
    return lambda obs, key=None, action_mask=None: policy(obs, (), key, action_mask)[0]


def load(path: str | PathLike, which: Literal["last", "best"] = "last", setting: int | None = None) -> Run:
    """What `train(..., out=path)` left: config, description of the environment, learned parameters.

    Args:
        path: the run folder, or that of a sweep.
        which: the teams of the newest checkpoint, or, up to it, each seed's team as it was evaluated best.
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
    record = run_folder.read_record(path)
    snapshot = checkpoints.load(path, run_folder.fingerprint(record.document))
    if snapshot is None:
        raise run_folder.RunFolderError(f"there is no checkpoint in {str(path)!r}")
    if which == "best" and snapshot.best is None:
        raise run_folder.RunFolderError(f"the run in {str(path)!r} has kept no best teams; load the last ones")
    leaves = checkpoints.subtree(snapshot.state, "learner") if which == "last" else snapshot.best.learner
    best_updates = None if which == "last" else tuple(map(int, snapshot.best.update))
    source = checkpoints.source(path, snapshot.update)
    return _made_again(path, record, leaves, snapshot.update, best_updates, source)


def _of_setting(path: str | PathLike, which: str, setting: int | None) -> Run:
    from marl_kl.training import stored_sweeps as sweep_folders

    record = sweep_folders.record_of(path, setting)
    teams = sweep_folders.teams(path, setting, which)
    best_updates = None if which == "last" else teams.updates
    return _made_again(path, record, teams.learner, record.config.num_updates, best_updates, teams.source)


def _made_again(
    path: str | PathLike, record: run_folder.RunRecord, leaves: Mapping[str, np.ndarray], update: int,
    best_updates: tuple[int, ...] | None, source: str,
) -> Run:  # fmt: skip
    """Of the learner's flat `leaves`."""
    own = {name: leaf for name, leaf in leaves.items() if name.split(".")[0] in Team._fields}
    team = _of_seeds(team_shapes(record.spec, record.config), len(record.seeds), own, source)
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


def _of_seeds(template, num_seeds: int, leaves: Mapping[str, np.ndarray], source: str):
    """`template`, the shapes of one seed, filled with the leaves [seed, ...]."""
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_seeds, *leaf.shape), leaf.dtype), template)
    return checkpoints.restore_tree(stacked, leaves, source)
