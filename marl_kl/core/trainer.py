"""The training loop as two pure functions: `make_train(env, algorithm, config) -> Train(init, update)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import Env, EnvSpec
from marl_kl.config import Config
from marl_kl.core import advantages, algorithms, normalizers, sequences
from marl_kl.core import critic as critics
from marl_kl.core.critic import Critic, CriticState, Estimate, IndependentCritics
from marl_kl.core.normalizers import Moments
from marl_kl.core.policies import Actor, init_actors, init_obs_moments, input_size, make_actor, num_networks
from marl_kl.core.rollout import EnvBatch, Trajectory, rollout, start, summary
from marl_kl.core.types import Algorithm, Batch, Carry, Metrics, Params


class Learner(NamedTuple):
    """All that is learned, and all that using it needs.

    Attributes:
        actors: leaves [G, ...].
        critic: network, optimiser and value units.
        obs_moments: moments [N, O] of the observations ([O] if the actors share parameters).
        state_moments: moments [S] of the global state.
        algorithm: the algorithm's own state.
    """

    actors: Params
    critic: CriticState
    obs_moments: Moments
    state_moments: Moments
    algorithm: Any


class TrainState(NamedTuple):
    """One seed between two updates; one pytree with all that a resumed run needs.

    Attributes:
        key: typed PRNG key.
        learner: what is learned.
        env_batch: the parallel environments.
        healthy: [] bool; once a non-finite number was met the learner stays as it was before.
        critic_memory: what a recurrent critic remembers of the episodes under way: [E, H], of independent critics
            [N, E, H]; `()` for others.
    """

    key: jax.Array
    learner: Learner
    env_batch: EnvBatch
    healthy: jax.Array
    critic_memory: Carry = ()


class Train(NamedTuple):
    """A training run as pure functions, to be jitted, vmapped over keys and scanned by whoever likes.

    Attributes:
        init: `init(key) -> TrainState`, `key` a typed key (`jax.random.key(seed)`).
        update: `update(state) -> (TrainState, Metrics)`: one rollout, one update of everything. Metrics are
            those of `marl_kl.results` and `nonfinite` [len(results.WATCHED)] bool.
    """

    init: Callable[[jax.Array], TrainState]
    update: Callable[[TrainState], tuple[TrainState, Metrics]]


def make_train(env: Env, algorithm: str | algorithms.Entry, config: Config | None = None) -> Train:
    """Composes environment, algorithm and config; compiles nothing.

    The numbers of `config` may be tracers, so that `jax.vmap(lambda d: make_train(env, "hatrpo_w",
    config.replace(kl_budget=d)).update(state))` sweeps them.

    Args:
        env: from `envs.make` or your own.
        algorithm: one of `marl_kl.core.algorithms.names()`, or an `Entry` of your own: another allocator, say.
        config: of the algorithm's `config_class`; its defaults if None.

    Raises:
        ValueError: unknown algorithm, or a config of the wrong class.
    """
    config = algorithms.get(algorithm).config_class() if config is None else config
    spec = env.spec
    parts = _make_parts(spec, algorithm, config)
    actor, critic = parts.actor, parts.critic

    def init(key):
        key, key_learner, key_worlds = jax.random.split(key, 3)
        learner = _init_learner(key_learner, spec, config, parts)
        everyone = (spec.num_agents, config.num_envs)
        env_batch = start(key_worlds, env, config.num_envs, actor.initial_carry(everyone))
        critic_memory = critic.initial_carry(everyone[1:] if parts.is_central else everyone)
        return TrainState(key, learner, env_batch, jnp.ones((), bool), critic_memory)

    def update(state):
        key, key_rollout, key_actors, key_critic = jax.random.split(state.key, 4)
        old = state.learner
        env_batch, trajectory = rollout(
            key_rollout, env, actor, old.actors, old.obs_moments, state.env_batch, config.rollout_length
        )
        estimate, advantage = _estimate(config, parts, state, trajectory, spec.team_reward)
        batch = _batch(actor, state, trajectory, advantage, spec.num_agents)
        actors, algorithm_state, metrics = parts.algorithm.update(key_actors, old.actors, old.algorithm, batch)
        as_rows = sequences.by_environment if config.recurrent_critic else _flat
        value, advantage = as_rows(estimate.value), as_rows(advantage)
        critic_state, value_loss = critic.fit(key_critic, config, old.critic, estimate.seen, value + advantage)
        new = Learner(actors, critic_state, *_observe(config, old, trajectory), algorithm_state)

        nonfinite = ~jnp.stack(
            [
                _finite(x)
                for x in (
                    (trajectory.obs, trajectory.state, new.obs_moments, new.state_moments),
                    trajectory.reward, value, actors, critic_state,
                )
            ]
        )  # fmt: skip
        healthy = state.healthy & ~jnp.any(nonfinite)
        learner = jax.tree.map(lambda after, before: jnp.where(healthy, after, before), new, old)
        metrics |= summary(env_batch.episodes)
        metrics |= {
            "value_loss": value_loss,
            "explained_variance": critics.explained_variance(value, value + advantage),
            "nonfinite": nonfinite,
        }
        return TrainState(key, learner, env_batch, healthy, estimate.hidden), metrics

    return Train(init, update)


def learner_shapes(spec: EnvSpec, algorithm: str, config: Config) -> Learner:
    """The shapes and dtypes of one seed's learner, without an environment."""
    parts = _make_parts(spec, algorithm, config)
    return jax.eval_shape(lambda: _init_learner(jax.random.key(0), spec, config, parts))


class _Parts(NamedTuple):
    actor: Actor
    critic: Critic | IndependentCritics
    algorithm: Algorithm

    @property
    def is_central(self) -> bool:
        """Whether the critic sees the global state."""
        return self.algorithm.critic_sees == "state"


def _make_parts(spec: EnvSpec, algorithm: str | algorithms.Entry, config: Config) -> _Parts:
    entry = algorithms.get(algorithm)
    if not isinstance(config, entry.config_class):
        raise ValueError(
            f"config is a {type(config).__name__}; algorithm '{entry.name}' needs a {entry.config_class.__name__}"
        )
    actor = make_actor(spec, config)
    built = entry.build(actor, config)
    if built.critic_sees == "observation":
        critic = IndependentCritics(critics.make_critic(config, 1), num_networks(spec, config))
    else:
        critic = critics.make_critic(config, 1 if spec.team_reward else spec.num_agents)
    return _Parts(actor, critic, built)


def _init_learner(key: jax.Array, spec: EnvSpec, config: Config, parts: _Parts) -> Learner:
    key_actors, key_critic = jax.random.split(key)
    actors = init_actors(key_actors, spec, config)
    return Learner(
        actors,
        parts.critic.init(key_critic, spec.state_size if parts.is_central else input_size(spec, config)),
        init_obs_moments(spec, config),
        normalizers.init((spec.state_size,)),
        parts.algorithm.init(actors),
    )


def _views(parts: _Parts, learner: Learner, obs: jax.Array, state: jax.Array) -> jax.Array:
    """What the critic sees: the standardised state [..., S], or what each agent sees [..., N, I]."""
    if not parts.is_central:
        return parts.actor.inputs(learner.obs_moments, obs)
    return normalizers.standardize(learner.state_moments, state)


def _estimate(
    config: Config, parts: _Parts, state: TrainState, trajectory: Trajectory, team_reward: bool
) -> tuple[Estimate, jax.Array]:
    """The rollout in the eyes of the critic, and raw advantages [T, E, V]."""
    learner = state.learner
    views = _views(parts, learner, trajectory.obs, trajectory.state)
    next_views = _views(parts, learner, trajectory.next_obs, trajectory.next_state)
    estimate = parts.critic.estimate(learner.critic, views, next_views, trajectory.done, state.critic_memory)
    reward = jnp.mean(trajectory.reward, axis=-1, keepdims=True) if team_reward else trajectory.reward
    advantage = advantages.gae(
        jnp.broadcast_to(reward, estimate.value.shape),
        estimate.value,
        estimate.next_value,
        trajectory.terminated[..., None],
        trajectory.done[..., None],
        config.gamma,
        config.gae_lambda,
    )
    return estimate, advantage


def _batch(actor: Actor, state: TrainState, trajectory: Trajectory, advantage: jax.Array, num_agents: int) -> Batch:
    """The agents' view of a rollout that began in `state`, agent axis first.

    Advantages are standardised once over what a network learns from: the samples of all agents where they share one,
    else each agent's own (a team reward has one advantage for all, and one critic of the state).
    """
    inputs = actor.inputs(state.learner.obs_moments, trajectory.obs)
    standardized = advantages.standardize(_flat(advantage), pooled=actor.shared)
    if not actor.recurrent:
        return Batch(
            jnp.swapaxes(_flat(inputs), 0, 1),
            jnp.swapaxes(_flat(trajectory.action), 0, 1),
            jnp.swapaxes(_flat(trajectory.action_mask), 0, 1),
            jnp.broadcast_to(standardized.T, (num_agents, standardized.shape[0])),
        )
    # [T, E, N, ...] -> [N, E, T, ...]
    of_agents = lambda x: jnp.moveaxis(sequences.by_environment(x), 2, 0)  # noqa: E731
    advantage = jnp.broadcast_to(standardized.reshape(advantage.shape), (*advantage.shape[:2], num_agents))
    return Batch(
        jax.vmap(sequences.from_rollout, (2, None, 0))(inputs, trajectory.done, state.env_batch.hidden),
        of_agents(trajectory.action),
        of_agents(trajectory.action_mask),
        of_agents(advantage),
    )


def _observe(config: Config, learner: Learner, trajectory: Trajectory) -> tuple[Moments, Moments]:
    """The moments of observations and states, this rollout included."""
    if not config.normalize_observations:
        return learner.obs_moments, learner.state_moments
    return (
        # the observations of all agents are samples of the same moments where these have no agent axis
        normalizers.update(learner.obs_moments, trajectory.obs.reshape(-1, *learner.obs_moments.mean.shape)),
        normalizers.update(learner.state_moments, _flat(trajectory.state)),
    )


def _flat(x: jax.Array) -> jax.Array:
    """[T, E, ...] -> [B, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
