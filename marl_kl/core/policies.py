"""Action distributions in closed form, masks included, and the actors that produce them.

Each distribution is a pytree of its parameters. Masked entries (padded dimensions, padded or unavailable choices) add
exactly 0 to log-probability, KL, entropy and Fisher product. Not distrax, which the tests compare with: its
distributions have neither masks nor the Fisher product in their own parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvSpec
from marl_kl.config import Config, OffPolicyConfig, OnPolicyConfig
from marl_kl.core import networks, normalizers
from marl_kl.core.normalizers import Moments
from marl_kl.core.types import Carry, Params, Sequences

_UNAVAILABLE = -1e9


class Distribution(Protocol):
    """An action distribution; `[...]` are batch axes."""

    def sample(self, key: jax.Array) -> jax.Array: ...

    def mode(self) -> jax.Array: ...

    def log_prob(self, action: jax.Array) -> jax.Array:
        """log pi(action): [...]."""
        ...

    def entropy(self) -> jax.Array:
        """In nats: [...]."""
        ...

    def kl(self, other: Distribution) -> jax.Array:
        """KL(self || other): [...]."""
        ...

    def fisher_product(self, tangent: Any) -> Any:
        """Fisher matrix of the network's outputs times `tangent`, a pytree like those outputs."""
        ...


class Gaussian(NamedTuple):
    """Diagonal Gaussian; the network's outputs are (mean, log_std).

    Attributes:
        mean: [..., A]. log_std: [..., A]. mask: [..., A] bool, the real dimensions.
    """

    mean: jax.Array
    log_std: jax.Array
    mask: jax.Array

    def sample(self, key):
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return jnp.where(self.mask, self.mean + jnp.exp(self.log_std) * noise, 0.0)

    def mode(self):
        return jnp.where(self.mask, self.mean, 0.0)

    def log_prob(self, action):
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return self._sum(-0.5 * jnp.square(z) - self.log_std - 0.5 * math.log(2 * math.pi))

    def entropy(self):
        return self._sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e))

    def kl(self, other):
        log_ratio = other.log_std - self.log_std
        scaled = jnp.square((self.mean - other.mean) * jnp.exp(-other.log_std))
        # expm1 keeps the precision of the small divergences inside a trust region
        return self._sum(0.5 * (jnp.expm1(-2 * log_ratio) + scaled) + log_ratio)

    def fisher_product(self, tangent):
        mean, log_std = tangent
        return (
            jnp.where(self.mask, mean * jnp.exp(-2 * self.log_std), 0.0),
            jnp.where(self.mask, 2 * log_std, 0.0),
        )

    def _sum(self, values):
        return jnp.sum(jnp.where(self.mask, values, 0.0), axis=-1)


class Categorical(NamedTuple):
    """One choice among A; the network's output is the logits.

    Attributes:
        logits: [..., A]. mask: [..., A] bool, the available choices (at least one).
    """

    logits: jax.Array
    mask: jax.Array

    @property
    def log_probs(self) -> jax.Array:
        """[..., A] normalised log-probabilities; about -1e9 where unavailable."""
        return jax.nn.log_softmax(jnp.where(self.mask, self.logits, _UNAVAILABLE), axis=-1)

    def sample(self, key):
        return jax.random.categorical(key, self.log_probs, axis=-1).astype(jnp.int32)

    def mode(self):
        return jnp.argmax(self.log_probs, axis=-1).astype(jnp.int32)

    def log_prob(self, action):
        return jnp.take_along_axis(self.log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self):
        log_p = self.log_probs
        return -jnp.sum(jnp.where(self.mask, jnp.exp(log_p) * log_p, 0.0), axis=-1)

    def kl(self, other):
        log_p, log_q = self.log_probs, other.log_probs
        p, d = jnp.exp(log_p), log_q - log_p
        # sum p (e^d - 1) is 0: with it, every term of a small divergence is small and none cancels another
        is_small = jnp.abs(d) < 1
        small = jnp.where(is_small, d, 0.0)
        terms = jnp.where(is_small, p * (jnp.expm1(small) - small), jnp.exp(log_q) - p - p * d)
        return jnp.sum(jnp.where(self.mask, terms, 0.0), axis=-1)

    def fisher_product(self, tangent):
        p = jnp.exp(self.log_probs)
        return p * (tangent - jnp.sum(p * tangent, axis=-1, keepdims=True))


class MultiCategorical(NamedTuple):
    """One choice among K in each of D sub-actions, drawn independently; the network's output is the logits.

    A sub-action without an available choice is 0 and adds exactly 0 to every sum.

    Attributes:
        logits: [..., D, K]. mask: [..., D * K] bool, the available choices.
    """

    logits: jax.Array
    mask: jax.Array

    def sample(self, key):
        return jnp.where(self._has_choice, self._parts.sample(key), 0)

    def mode(self):
        return jnp.where(self._has_choice, self._parts.mode(), 0)

    def log_prob(self, action):
        return self._sum(self._parts.log_prob(action))

    def entropy(self):
        return self._sum(self._parts.entropy())

    def kl(self, other):
        return self._sum(self._parts.kl(other._parts))

    def fisher_product(self, tangent):
        return jnp.where(self._has_choice[..., None], self._parts.fisher_product(tangent), 0.0)

    @property
    def _parts(self) -> Categorical:
        """The sub-actions, as one more batch axis."""
        return Categorical(self.logits, self.mask.reshape(self.logits.shape))

    @property
    def _has_choice(self) -> jax.Array:
        """[..., D] bool."""
        return jnp.any(self._parts.mask, axis=-1)

    def _sum(self, values):
        return jnp.sum(jnp.where(self._has_choice, values, 0.0), axis=-1)


class Explored(Protocol):
    """The policy of an off-policy algorithm: deterministic, and with exploration where it is sampled."""

    def sample(self, key: jax.Array) -> jax.Array: ...

    def mode(self) -> jax.Array: ...

    def uniform(self, key: jax.Array) -> jax.Array:
        """An action drawn uniformly, whatever the policy."""
        ...

    def encoded(self, action: jax.Array) -> jax.Array:
        """An action as critics see it: [..., A] in [-1, 1], choices one-hot; 0 where masked."""
        ...

    def relaxed(self, key: jax.Array) -> jax.Array:
        """[..., A] an encoded action of the policy that is differentiable in the network's outputs."""
        ...

    def smoothed(self, key: jax.Array, std: float | jax.Array, limit: float | jax.Array) -> jax.Array:
        """[..., A] an encoded action close to the policy's (target smoothing; Fujimoto et al. 2018)."""
        ...


class Deterministic(NamedTuple):
    """A continuous action in units of half the control range, from its middle; its exploration is Gaussian.

    Attributes:
        action: [..., A] in [-1, 1]. mask: [..., A] bool, the real dimensions. noise: std of the exploration.
    """

    action: jax.Array
    mask: jax.Array
    noise: float | jax.Array

    def sample(self, key):
        return self._moved(self.noise * jax.random.normal(key, self.action.shape, self.action.dtype))

    def mode(self):
        return jnp.where(self.mask, self.action, 0.0)

    def uniform(self, key):
        uniform = jax.random.uniform(key, self.action.shape, self.action.dtype, -1.0, 1.0)
        return jnp.where(self.mask, uniform, 0.0)

    def encoded(self, action):
        return jnp.where(self.mask, action, 0.0)

    def relaxed(self, key):
        return self.mode()

    def smoothed(self, key, std, limit):
        noise = std * jax.random.normal(key, self.action.shape, self.action.dtype)
        return self._moved(jnp.clip(noise, -limit, limit))

    def _moved(self, by: jax.Array) -> jax.Array:
        return jnp.where(self.mask, jnp.clip(self.action + by, -1.0, 1.0), 0.0)


class EpsilonGreedy(NamedTuple):
    """One or several choices: the likeliest, and while exploring one drawn from the softmax or, at times, uniformly.

    Attributes:
        choice: `Categorical` or `MultiCategorical`. epsilon: how often a choice is uniform.
        temperature: of the softmax through which `relaxed` is differentiated.
    """

    choice: Categorical | MultiCategorical
    epsilon: float | jax.Array
    temperature: float | jax.Array

    def sample(self, key):
        key_own, key_uniform, key_coin = jax.random.split(key, 3)
        own = self.choice.sample(key_own)
        is_uniform = jax.random.bernoulli(key_coin, self.epsilon, own.shape)
        return jnp.where(is_uniform, self.uniform(key_uniform), own)

    def mode(self):
        return self.choice.mode()

    def uniform(self, key):
        return self.choice._replace(logits=jnp.zeros_like(self.choice.logits)).sample(key)

    def encoded(self, action):
        mask = self._groups(self.choice.mask)
        one_hot = jax.nn.one_hot(action.reshape(mask.shape[:-1]), mask.shape[-1], dtype=self.choice.logits.dtype)
        return self._entries(one_hot)

    def relaxed(self, key):
        """Straight-through Gumbel-softmax (Jang et al. 2017): one-hot, with the gradient of the softmax."""
        logits = self._groups(self.choice.logits)
        noisy = (logits + jax.random.gumbel(key, logits.shape, logits.dtype)) / self.temperature
        noisy = jnp.where(self._groups(self.choice.mask), noisy, _UNAVAILABLE)
        soft = jax.nn.softmax(noisy, axis=-1)
        hard = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), noisy.shape[-1], dtype=soft.dtype)
        return self._entries(hard + (soft - jax.lax.stop_gradient(soft)))

    def smoothed(self, key, std, limit):
        """A draw from the softmax, whatever `std` and `limit`."""
        return self.encoded(self.choice.sample(key))

    def _groups(self, entries: jax.Array) -> jax.Array:
        """[..., D * K] or [..., D, K] -> [..., D, K]; [..., 1, A] for one choice."""
        shape = self.choice.logits.shape
        return entries.reshape(shape if isinstance(self.choice, MultiCategorical) else (*shape[:-1], 1, shape[-1]))

    def _entries(self, one_hot: jax.Array) -> jax.Array:
        """The inverse of `_groups`, 0 in sub-actions without an available choice."""
        has_choice = jnp.any(self._groups(self.choice.mask), axis=-1, keepdims=True)
        return jnp.where(has_choice, one_hot, 0.0).reshape(self.choice.mask.shape)


_FAMILIES = {"continuous": Gaussian, "discrete": Categorical, "multi_discrete": MultiCategorical}
"""By `EnvSpec.action_kind`."""


def _explored_family(action_kind: str, config: OffPolicyConfig) -> Callable[..., Explored]:
    if action_kind == "continuous":
        return lambda output, mask: Deterministic(jnp.tanh(output), mask, config.exploration_noise)
    choice = _FAMILIES[action_kind]
    return lambda logits, mask: EpsilonGreedy(
        choice(logits, mask), config.exploration_epsilon, config.gumbel_temperature
    )


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
    family = _FAMILIES[spec.action_kind]
    if isinstance(config, OffPolicyConfig):
        family = _explored_family(spec.action_kind, config)
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
