"""One agent of a trained team on its own: a function of what this agent observes, and its export as a file.

The exported function is a StableHLO program with its parameters in it (`jax.export`): to call it takes jax and
flatbuffers, and nothing of this package.
"""

from __future__ import annotations

import importlib.util
from typing import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from envs.types import EnvSpec
from marl_kl import networks
from marl_kl.config import Config
from marl_kl.policies import Actor, Categorical, Gaussian, make_actor
from marl_kl.trainer import Learner

AgentFunction = Callable[..., jax.Array]

PLATFORMS = ("cpu", "cuda")
"""What an exported agent runs on."""

_FEED_FORWARD = (networks.GaussianNetwork, networks.CategoricalNetwork)


def index(spec: EnvSpec, agent: int | str) -> int:
    """Of an agent by its name or its place in the order of every agent axis; ValueError if there is none such."""
    if isinstance(agent, str) and agent in spec.agents:
        return spec.agents.index(agent)
    is_place = isinstance(agent, (int, np.integer)) and not isinstance(agent, bool)
    if is_place and 0 <= agent < spec.num_agents:
        return int(agent)
    raise ValueError(
        f"agent={agent!r} is not in env '{spec.name}'; it has {', '.join(spec.agents)}, or 0 to {spec.num_agents - 1}"
    )


def function(spec: EnvSpec, config: Config, learner: Learner, agent: int) -> AgentFunction:
    """`act(obs[..., O_i], action_mask[..., A_i], key=None) -> action`, pure: [..., A_i] float for continuous actions,
    [...] int32 for discrete ones; the mode without a key. Sizes are the agent's own, without padding.

    Args:
        spec, config: of the run.
        learner: of one seed.
        agent: its index.

    Raises:
        ValueError: a policy that is more than a function of the observation at hand.
    """
    actor = make_actor(spec, config)
    _refuse_others(actor)
    params = jax.tree.map(lambda leaf: leaf[0 if actor.shared else agent], learner.actors)
    observed, acted = spec.observation_sizes[agent], spec.action_sizes[agent]

    def act(obs, action_mask, key=None):
        batch = obs.shape[:-1]
        # the other agents' places stay empty: a standardised observation depends on nobody else's
        team = jnp.zeros((*batch, spec.num_agents, spec.observation_size)).at[..., agent, :observed].set(obs)
        mask = jnp.zeros((*batch, spec.action_size), bool).at[..., :acted].set(action_mask)
        outputs = actor.outputs(params, actor.inputs(learner.obs_moments, team)[..., agent, :])
        distribution = actor.distribution(outputs, mask)
        action = distribution.mode() if key is None else distribution.sample(key)
        return action[..., :acted] if spec.action_kind == "continuous" else action

    return act


def _refuse_others(actor: Actor) -> None:
    # whatever else an actor may have (a memory, a transformation of its actions) would be left out without a word
    is_known = isinstance(actor.network, _FEED_FORWARD) and actor.family in (Gaussian, Categorical)
    if not is_known or actor != Actor(actor.network, actor.family, actor.shared, actor.agent_ids):
        kind = f"{type(actor.network).__name__} with {actor.family.__name__} actions"
        raise ValueError(
            "agents on their own must be feed-forward networks whose Gaussian or categorical actions are used as they "
            f"are; this run has another policy ({kind})"
        )


def export(spec: EnvSpec, config: Config, learner: Learner, agent: int) -> bytes:
    """The deterministic `function` of an agent as a file for `jax.export.deserialize(content).call`.

    Called with obs [B, O_i] float32, and for discrete actions also action_mask [B, A_i] bool; any B.

    Raises:
        ValueError: see `function`.
        ModuleNotFoundError: flatbuffers is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "exporting an agent needs flatbuffers, which is not installed; pip install 'marl_kl[export]'"
        )
    act = function(spec, config, learner, agent)
    (batch,) = jax.export.symbolic_shape("b")
    obs = jax.ShapeDtypeStruct((batch, spec.observation_sizes[agent]), jnp.float32)
    mask = jax.ShapeDtypeStruct((batch, spec.action_sizes[agent]), jnp.bool_)
    if spec.action_kind == "discrete":
        return bytes(jax.export.export(jax.jit(act), platforms=PLATFORMS)(obs, mask).serialize())

    def act_freely(obs):
        return act(obs, jnp.ones((obs.shape[0], spec.action_sizes[agent]), bool))

    return bytes(jax.export.export(jax.jit(act_freely), platforms=PLATFORMS)(obs).serialize())
