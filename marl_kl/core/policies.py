"""Actors: the agents' networks, and the policies that their outputs parametrise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvSpec
from marl_kl.config import Config, OffPolicyConfig, OnPolicyConfig
from marl_kl.core import distributions, networks, normalizers
from marl_kl.core.distributions import Distribution
from marl_kl.core.exploration import explored_family
from marl_kl.core.normalizers import Moments
from marl_kl.core.types import Carry, Params, Sequences


class ActionRange(NamedTuple):
    """A control range; of tuples, so that an actor is hashable.

    Attributes:
        low, high: per agent [N] the ends [A], 0 where padded.
        is_squashed: whether the policies' actions u are still to be squashed into [-1, 1].
    """

    low: tuple[tuple[float, ...], ...]
    high: tuple[tuple[float, ...], ...]
    is_squashed: bool = True

    def squash(self, u: jax.Array) -> jax.Array:
        """low + (tanh(u) + 1) / 2 (high - low), with u [..., N, A]; without the tanh if u is in [-1, 1] already."""
        low, high = jnp.asarray(self.low, u.dtype), jnp.asarray(self.high, u.dtype)
        return low + 0.5 * ((jnp.tanh(u) if self.is_squashed else u) + 1) * (high - low)


class Actor(NamedTuple):
    """The network architecture of all agents and the distribution of its outputs.

    Attributes:
        network: flax module at the padded sizes; `network.apply(params, inputs[..., I]) -> outputs`, or
            `networks.Recurrent`.
        family: `Gaussian`, `Categorical` or `MultiCategorical`; of off-policy algorithms a function that makes an
            `Explored` of the same arguments.
        shared: whether all agents share one network: leaves of the parameters are then [1, ...] instead of [N, ...].
        agent_ids: whether one-hot agent ids are appended to the observation: I = O + N instead of O.
        action_range: the range that actions are squashed or stretched into for the environment; None: neither.
    """

    network: nn.Module
    family: Callable[..., Any]
    shared: bool = False
    agent_ids: bool = False
    action_range: ActionRange | None = None

    def inputs(self, obs_moments: Moments, obs: jax.Array) -> jax.Array:
        """Inputs of the networks: raw observations [..., N, O] -> standardised, with agent ids if enabled, [..., N, I]."""
        standardized = normalizers.standardize(obs_moments, obs)
        if not self.agent_ids:
            return standardized
        num_agents = obs.shape[-2]
        ids = jnp.broadcast_to(jnp.eye(num_agents, dtype=standardized.dtype), (*obs.shape[:-1], num_agents))
        return jnp.concatenate([standardized, ids], axis=-1)

    def outputs(self, params: Params, inputs: jax.Array | Sequences) -> Any:
        """Distribution parameters from one network: inputs [..., I], or `Sequences` -> pytree of [..., A] or [..., D, K]."""
        return networks.apply(self.network, params, inputs)[0]

    def team_outputs(self, actors: Params, inputs: jax.Array | Sequences) -> Any:
        """Distribution parameters of all agents: inputs [N, ..., I], or `Sequences` [N] -> pytree of [N, ..., A] or
        [N, ..., D, K]."""
        return self._map_agents(self.outputs, actors, inputs)

    def team_step(self, actors: Params, inputs: jax.Array, hidden: Carry) -> tuple[Any, Carry]:
        """One time step of all agents: inputs [N, ..., I], hidden [N, ..., H] -> pytree of [N, ..., A], new hidden."""
        return self._map_agents(functools.partial(networks.step, self.network), actors, inputs, hidden)

    @property
    def recurrent(self) -> bool:
        return networks.is_recurrent(self.network)

    def initial_carry(self, axes: tuple[int, ...]) -> Carry:
        """The hidden state at the start of an episode: [*axes, H], or `()`; axes: (N, ...)."""
        return networks.initial_carry(self.network, axes)

    def _map_agents(self, function: Callable, actors: Params, *per_agent: Any) -> Any:
        """`function(params, ...)` of every agent."""
        if self.shared:
            return function(jax.tree.map(lambda leaf: leaf[0], actors), *per_agent)
        return jax.vmap(function)(actors, *per_agent)

    def distribution(self, outputs: Any, action_mask: jax.Array) -> Distribution:
        """`outputs` of the network as a distribution; action_mask: [..., A]."""
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        return self.family(*parts, action_mask)

    def env_action(self, action: jax.Array) -> jax.Array:
        """The environment's action for the policies' action [..., N, A], [..., N] or [..., N, D].

        A squashed policy is a Gaussian of u, and the environment's action is `ActionRange.squash(u)`. Everything else
        (stored samples, densities, ratios, KL, Fisher matrix, entropy) is of u. Ratios and KL are unchanged by the
        squashing, which is one-to-one and the same for all policies; the entropy is that before squashing.
        Off-policy actions are in [-1, 1] and only stretched.
        """
        return action if self.action_range is None else self.action_range.squash(action)


def make_actor(spec: EnvSpec, config: Config) -> Actor:
    """The actor for an environment's action kind.

    Raises:
        ValueError: `squash` with actions that are not continuous or are unbounded, or an off-policy algorithm with
            unbounded ones.
    """
    shared = config.share_parameters
    network = _network(spec, config, input_size(spec, config), spec.action_size)
    family = distributions.FAMILIES[spec.action_kind]
    if isinstance(config, OffPolicyConfig):
        family = explored_family(spec.action_kind, config)
    return Actor(network, family, shared, shared and config.agent_ids, _range(spec, config))


def _range(spec: EnvSpec, config: Config) -> ActionRange | None:
    if not isinstance(config, OnPolicyConfig):
        if spec.action_kind == "continuous" and spec.action_range is None:
            raise ValueError(
                f"env '{spec.name}' has unbounded actions (no action_low and action_high in its EnvSpec); off-policy "
                "algorithms need a control range"
            )
        return None if spec.action_range is None else _action_range(spec.action_range, False)
    if not config.squash:
        return None
    if spec.action_kind != "continuous":
        raise ValueError(f"squash=True; env '{spec.name}' has {spec.action_kind} actions: it must be False")
    if spec.action_range is None:
        raise ValueError(
            f"squash=True; env '{spec.name}' has unbounded actions (no action_low and action_high in its EnvSpec): "
            "it must be False"
        )
    return _action_range(spec.action_range, True)


def _action_range(ends: tuple[np.ndarray, np.ndarray], is_squashed: bool) -> ActionRange:
    low, high = (tuple(map(tuple, end.tolist())) for end in ends)
    return ActionRange(low, high, is_squashed)


def num_networks(spec: EnvSpec, config: Config) -> int:
    """N, or 1 if all agents share one."""
    return 1 if config.share_parameters else spec.num_agents


def input_size(spec: EnvSpec, config: Config) -> int:
    """I: the size of `Actor.inputs`."""
    return spec.observation_size + (spec.num_agents if config.share_parameters and config.agent_ids else 0)


def init_obs_moments(spec: EnvSpec, config: Config) -> Moments:
    """Moments of the observations: [N, O] per agent, or [O] over all agents if they share a network."""
    shape = (spec.observation_size,) if config.share_parameters else (spec.num_agents, spec.observation_size)
    return normalizers.init(shape)


def init_actors(key: jax.Array, spec: EnvSpec, config: Config) -> Params:
    """Parameters of all networks, leaves [N, ...]; agent i does not depend on the other agents' sizes.

    A shared network is one of the padded sizes, leaves [1, ...].
    """
    if config.share_parameters:
        sizes = (input_size(spec, config),), (spec.action_size,)
    else:
        sizes = spec.observation_sizes, spec.action_sizes
    return networks.init_stacked(key, lambda *sizes: _network(spec, config, *sizes), *sizes)


def _network(spec: EnvSpec, config: Config, inputs: int, action_size: int) -> nn.Module:
    encoder = networks.make_encoder(config.actor_encoder, spec, inputs)
    if not isinstance(config, OnPolicyConfig) or not config.recurrent:
        return _feed_forward(spec, config, config.hidden_sizes, action_size, encoder)
    head = _feed_forward(spec, config, (), action_size, None)
    return networks.Recurrent(config.hidden_sizes, config.recurrent_size, config.activation, head, encoder)


def _feed_forward(
    spec: EnvSpec, config: Config, hidden_sizes: tuple[int, ...], action_size: int, encoder: nn.Module | None
) -> nn.Module:
    if spec.action_kind == "continuous" and isinstance(config, OnPolicyConfig):
        return networks.GaussianNetwork(hidden_sizes, action_size, config.activation, config.init_std, encoder)
    if spec.action_kind == "continuous":
        return networks.MLP(hidden_sizes, action_size, networks.ACTOR_OUTPUT_GAIN, config.activation, encoder)
    if spec.action_kind == "multi_discrete":
        return networks.MultiCategoricalNetwork(hidden_sizes, action_size, config.activation, spec.num_choices, encoder)
    return networks.CategoricalNetwork(hidden_sizes, action_size, config.activation, encoder)


class Team(NamedTuple):
    """The part of a `Learner` that is needed to act.

    Attributes:
        actors: leaves [G, ...].
        obs_moments: moments [N, O] of the observations ([O] if the actors share parameters).
    """

    actors: Params
    obs_moments: Moments


def team_shapes(spec: EnvSpec, config: Config) -> Team:
    """The shapes and dtypes of one seed's team."""
    return jax.eval_shape(lambda: Team(init_actors(jax.random.key(0), spec, config), init_obs_moments(spec, config)))
