"""One agent of a trained team on its own: a function of what this agent observes, and its export as a file.

The exported function is a StableHLO program with its parameters in it (`jax.export`): to call it takes jax and
flatbuffers, and nothing of this package.
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
"""What an exported agent runs on."""

Act = Callable[..., tuple[jax.Array, Carry]]
"""`act(obs, hidden, action_mask, key=None) -> (action, hidden)`, see `function`."""


def index(spec: EnvSpec, agent: int | str) -> int:
    """Of an agent by its name or its place in the order of every agent axis; ValueError if there is none such."""
    if isinstance(agent, str) and agent in spec.agents:
        return spec.agents.index(agent)
    if isinstance(agent, (int, np.integer)) and not isinstance(agent, bool) and 0 <= agent < spec.num_agents:
        return int(agent)
    raise ValueError(
        f"agent={agent!r} is not in env '{spec.name}'; it has {', '.join(spec.agents)}, or 0 to {spec.num_agents - 1}"
    )


def function(spec: EnvSpec, config: Config, team: Team, agent: int) -> Act:
    """One agent's policy as a pure function at the agent's own sizes, without padding.

    `act(obs[..., O_i], hidden[..., H], action_mask[..., A_i], key=None) -> (action, hidden)`: the action as the
    environment takes it, [..., A_i] float for continuous actions, [...] or [..., D_i] int32 for one or several choices;
    the mode without a key. `hidden` is `()` if the team is feed-forward, else `initial_carry(...)` where an episode begins.

    Args:
        spec, config: of the run.
        team: of one seed.
        agent: its index.
    """
    actor = make_actor(spec, config)
    params = jax.tree.map(lambda leaf: leaf[0 if actor.shared else agent], team.actors)
    observed, acted = spec.observation_sizes[agent], spec.action_sizes[agent]

    def act(obs, hidden, action_mask, key=None):
        batch = obs.shape[:-1]
        # the other agents' places stay empty: a standardised observation depends on nobody else's, nor does an action
        everyone = jnp.zeros((*batch, spec.num_agents, spec.observation_size)).at[..., agent, :observed].set(obs)
        mask = jnp.zeros((*batch, spec.action_size), bool).at[..., :acted].set(action_mask)
        own_inputs = actor.inputs(team.obs_moments, everyone)[..., agent, :]
        outputs, hidden = networks.step(actor.network, params, own_inputs, hidden)
        distribution = actor.distribution(outputs, mask)
        action = distribution.mode() if key is None else distribution.sample(key)
        actions = jnp.zeros((*batch, *spec.action_shape), action.dtype).at[_place(spec, agent)].set(action)
        return actor.env_action(actions)[_place(spec, agent, own_size(spec, agent))], hidden

    return act


def initial_carry(spec: EnvSpec, config: Config, batch: tuple[int, ...] = ()) -> Carry:
    """What an agent remembers where an episode begins: [*batch, H], or `()` if the team is feed-forward."""
    return make_actor(spec, config).initial_carry(batch)


def own_size(spec: EnvSpec, agent: int) -> int | None:
    """The length of the agent's own action: A_i, D_i, or None for one choice."""
    lengths = {"continuous": spec.action_sizes, "discrete": None, "multi_discrete": spec.sub_actions}[spec.action_kind]
    if lengths is None:
        return None
    return lengths[agent] if spec.action_kind == "continuous" else len(lengths[agent])


def _place(spec: EnvSpec, agent: int, size: int | None = None) -> tuple:
    """Where the agent's action (the first `size` entries of it) is in a joint action."""
    return (..., agent) if spec.action_kind == "discrete" else (..., agent, slice(size))


def export(spec: EnvSpec, config: Config, team: Team, agent: int) -> bytes:
    """The deterministic `function` of an agent as a file for `jax.export.deserialize(content).call`.

    Called with obs [B, O_i] float32, any B; for choices also with action_mask [B, A_i] bool; if the team remembers,
    last of all with its hidden [B, H] float32 (zeros where an episode begins): it then returns (action, hidden).

    Raises:
        ModuleNotFoundError: flatbuffers is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "exporting an agent needs flatbuffers, which is not installed; pip install 'marl_kl[export]'"
        )
    act = function(spec, config, team, agent)
    has_choices, remembers = spec.action_kind != "continuous", config.recurrent
    (batch,) = jax.export.symbolic_shape("b")
    arguments = [jax.ShapeDtypeStruct((batch, spec.observation_sizes[agent]), jnp.float32)]
    if has_choices:
        arguments.append(jax.ShapeDtypeStruct((batch, spec.action_sizes[agent]), jnp.bool_))
    if remembers:
        arguments.append(jax.ShapeDtypeStruct((batch, config.recurrent_size), jnp.float32))

    def call(obs, *others):
        mask = others[0] if has_choices else jnp.ones((obs.shape[0], spec.action_sizes[agent]), bool)
        if remembers:
            return act(obs, others[-1], mask)
        return act(obs, (), mask)[0]

    return bytes(jax.export.export(jax.jit(call), platforms=PLATFORMS)(*arguments).serialize())
