"""A single agent of a trained team: its policy as a function of its own observation, and its export to a file.

The exported policy is a StableHLO program that includes its parameters (`jax.export`): calling it requires jax and
flatbuffers, not this package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from envs.base import EnvSpec
from marl_kl.config import Config
from marl_kl.core import networks
from marl_kl.core.policies import Team, make_actor
from marl_kl.core.types import Carry

PLATFORMS = ("cpu", "cuda")
"""Platforms of an exported agent."""

Policy = Callable[..., tuple[jax.Array, Carry]]
"""`policy(obs, hidden, action_mask, key=None) -> (action, hidden)`, see `make_policy`."""


def agent_index(spec: EnvSpec, agent: int | str) -> int:
    """The index of an agent on every agent axis, from its name or index; ValueError if it is unknown."""
    if isinstance(agent, str) and agent in spec.agents:
        return spec.agents.index(agent)
    if isinstance(agent, (int, np.integer)) and not isinstance(agent, bool) and 0 <= agent < spec.num_agents:
        return int(agent)
    raise ValueError(
        f"agent={agent!r} is not in env '{spec.name}'; it has {', '.join(spec.agents)}, or 0 to {spec.num_agents - 1}"
    )


def make_policy(spec: EnvSpec, config: Config, team: Team, agent: int) -> Policy:
    """One agent's policy as a pure function at the agent's own sizes, without padding.

    `policy(obs[..., O_i], hidden[..., H], action_mask[..., A_i], key=None) -> (action, hidden)`: the environment's
    action, [..., A_i] float if continuous, [...] or [..., D_i] int32 for one or several choices; the mode without a key.
    `hidden` is `()` if the team is feed-forward, else `initial_carry(...)` at the start of an episode.

    Args:
        spec, config: of the run.
        team: of one seed.
        agent: its index.
    """
    actor = make_actor(spec, config)
    params = jax.tree.map(lambda leaf: leaf[0 if actor.shared else agent], team.actors)
    obs_size, action_size = spec.observation_sizes[agent], spec.action_sizes[agent]

    def policy(obs, hidden, action_mask, key=None):
        batch = obs.shape[:-1]
        # zeros for the other agents, whose observations this agent's inputs and action do not depend on
        all_obs = jnp.zeros((*batch, spec.num_agents, spec.observation_size)).at[..., agent, :obs_size].set(obs)
        mask = jnp.zeros((*batch, spec.action_size), bool).at[..., :action_size].set(action_mask)
        own_inputs = actor.inputs(team.obs_moments, all_obs)[..., agent, :]
        outputs, hidden = networks.step(actor.network, params, own_inputs, hidden)
        distribution = actor.distribution(outputs, mask)
        action = distribution.mode() if key is None else distribution.sample(key)
        actions = jnp.zeros((*batch, *spec.action_shape), action.dtype).at[_action_slice(spec, agent)].set(action)
        return actor.env_action(actions)[_action_slice(spec, agent, action_length(spec, agent))], hidden

    return policy


def initial_carry(spec: EnvSpec, config: Config, batch: tuple[int, ...] = ()) -> Carry:
    """An agent's hidden state at the start of an episode: [*batch, H], or `()` if the team is feed-forward."""
    return make_actor(spec, config).initial_carry(batch)


def action_length(spec: EnvSpec, agent: int) -> int | None:
    """The length of an agent's action without padding: A_i, D_i, or None for a single choice."""
    if spec.sub_actions is not None:
        return len(spec.sub_actions[agent])
    return spec.action_sizes[agent] if spec.action_kind == "continuous" else None


def _action_slice(spec: EnvSpec, agent: int, size: int | None = None) -> tuple:
    """The index of the agent's action (its first `size` entries) in a joint action."""
    return (..., agent) if spec.action_kind == "discrete" else (..., agent, slice(size))


def export(spec: EnvSpec, config: Config, team: Team, agent: int) -> bytes:
    """An agent's deterministic policy as the content of a file for `jax.export.deserialize(content).call`.

    Its arguments are obs [B, O_i] float32, for any B; for choices action_mask [B, A_i] bool; if recurrent, last,
    hidden [B, H] float32 (zeros at the start of an episode), and then it returns (action, hidden).

    Raises:
        ModuleNotFoundError: flatbuffers is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "exporting an agent needs flatbuffers, which is not installed; pip install 'marl_kl[export]'"
        )
    policy = make_policy(spec, config, team, agent)
    hidden = jax.tree.leaves(initial_carry(spec, config))
    has_choices = spec.action_kind != "continuous"
    (batch,) = jax.export.symbolic_shape("b")
    arguments = [jax.ShapeDtypeStruct((batch, spec.observation_sizes[agent]), jnp.float32)]
    if has_choices:
        arguments.append(jax.ShapeDtypeStruct((batch, spec.action_sizes[agent]), jnp.bool_))
    arguments += [jax.ShapeDtypeStruct((batch, *state.shape), state.dtype) for state in hidden]

    def call(obs, *others):
        mask = others[0] if has_choices else jnp.ones((obs.shape[0], spec.action_sizes[agent]), bool)
        if hidden:
            return policy(obs, others[-1], mask)
        return policy(obs, (), mask)[0]

    return bytes(jax.export.export(jax.jit(call), platforms=PLATFORMS)(*arguments).serialize())
