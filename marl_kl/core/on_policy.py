"""On-policy training: a rollout of the current policies, advantages of one critic, and one update of all networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import Env, EnvSpec, with_declared_dtypes
from marl_kl.config import OnPolicyConfig
from marl_kl.core import advantages, networks, normalizers, sequences
from marl_kl.core import critic as critics
from marl_kl.core.critic import Critic, IndependentCritics, ValueEstimates
from marl_kl.core.policies import Actor, init_actors, init_obs_moments, input_size, make_actor, num_networks
from marl_kl.core.rollout import Trajectory, episode_metrics, init_env_batch, rollout
from marl_kl.core.train_state import Learner, Loop, Train, TrainState, protected, update_moments
from marl_kl.core.types import Algorithm, Batch

Build = Callable[[Actor, Any], Algorithm]
"""`AlgorithmSpec.build` of an on-policy algorithm."""


def make_train(env: Env, build: Build, at_start: OnPolicyConfig) -> Train:
    """See `marl_kl.core.trainer.make_train`; `at_start` is the config at the start of the run."""
    spec, env = env.spec, with_declared_dtypes(env)
    components_at_start = _compose(spec, build, at_start)

    def init(key):
        config, components = at_start, components_at_start
        actor, critic = components.actor, components.critic
        key, key_learner, key_envs = jax.random.split(key, 3)
        learner = _init_learner(key_learner, spec, config, components)
        agents_and_envs = (spec.num_agents, config.num_envs)
        env_batch = init_env_batch(key_envs, env, config.num_envs, actor.initial_carry(agents_and_envs))
        critic_hidden = critic.initial_carry(agents_and_envs[1:] if components.is_central else agents_and_envs)
        counts = jnp.asarray(0, jnp.int32), jnp.asarray(config.num_updates, jnp.float32)
        return TrainState(key, learner, env_batch, jnp.ones((), bool), critic_hidden, *counts)

    def update(state):
        config = at_start.at(state.progress)
        components = _compose(spec, build, config)
        actor, critic = components.actor, components.critic
        key, key_rollout, key_actors, key_critic = jax.random.split(state.key, 4)
        old = state.learner
        env_batch, trajectory = rollout(
            key_rollout, env, actor, old.actors, old.obs_moments, state.env_batch, config.rollout_length
        )
        estimates, advantage = _estimate_values(config, components, state, trajectory, spec.team_reward)
        batch = make_batch(actor, state, trajectory, advantage, spec.num_agents)
        to_rows = sequences.batch_major if config.recurrent_critic else sequences.rows
        value, advantage = to_rows(estimates.value), to_rows(advantage)
        # accelerators multiply float32 matrices in fewer digits by default, which conjugate gradient cannot do without
        with jax.default_matmul_precision("float32"):
            actors, algorithm_state, metrics = components.algorithm.update(key_actors, old.actors, old.algorithm, batch)
            critic_state, value_loss = critic.fit(key_critic, config, old.critic, estimates.inputs, value + advantage)
        new = Learner(actors, critic_state, *update_moments(config, old, trajectory), algorithm_state)

        watched = (
            (trajectory.obs, trajectory.state, new.obs_moments, new.state_moments),
            trajectory.reward,
            value,
            actors,
            critic_state,
        )
        healthy, learner, nonfinite = protected(state.healthy, watched, new, old)
        metrics |= episode_metrics(env_batch.episodes) | {
            "value_loss": value_loss,
            "explained_variance": critics.explained_variance(value, value + advantage),
            "nonfinite": nonfinite,
        }
        counts = state.updates + 1, state.num_updates
        return TrainState(key, learner, env_batch, healthy, estimates.hidden, *counts), metrics

    return Train(init, update)


def init_learner(key: jax.Array, spec: EnvSpec, build: Build, config: OnPolicyConfig) -> Learner:
    """One seed's learner before the first update."""
    return _init_learner(key, spec, config, _compose(spec, build, config))


LOOP = Loop(make_train, init_learner)


class _Components(NamedTuple):
    actor: Actor
    critic: Critic | IndependentCritics
    algorithm: Algorithm

    @property
    def is_central(self) -> bool:
        """Whether the critic's input is the global state."""
        return self.algorithm.critic_input == "state"


def _compose(spec: EnvSpec, build: Build, config: OnPolicyConfig) -> _Components:
    actor = make_actor(spec, config)
    built = build(actor, config)
    is_central = built.critic_input == "state"
    encoder = networks.make_encoder(config.critic_encoder, spec, _critic_input_size(spec, config, is_central))
    if is_central:
        critic = critics.make_critic(config, 1 if spec.team_reward else spec.num_agents, encoder)
    else:
        critic = IndependentCritics(critics.make_critic(config, 1, encoder), num_networks(spec, config))
    return _Components(actor, critic, built)


def _init_learner(key: jax.Array, spec: EnvSpec, config: OnPolicyConfig, components: _Components) -> Learner:
    key_actors, key_critic = jax.random.split(key)
    actors = init_actors(key_actors, spec, config)
    return Learner(
        actors,
        components.critic.init(key_critic, _critic_input_size(spec, config, components.is_central)),
        init_obs_moments(spec, config),
        normalizers.init((spec.state_size,)),
        components.algorithm.init(actors),
    )


def _critic_input_size(spec: EnvSpec, config: OnPolicyConfig, is_central: bool) -> int:
    return spec.state_size if is_central else input_size(spec, config)


def _critic_inputs(components: _Components, learner: Learner, obs: jax.Array, state: jax.Array) -> jax.Array:
    """The standardised state [..., S], or the inputs of each agent [..., N, I]."""
    if not components.is_central:
        return components.actor.inputs(learner.obs_moments, obs)
    return normalizers.standardize(learner.state_moments, state)


def _estimate_values(
    config: OnPolicyConfig, components: _Components, state: TrainState, trajectory: Trajectory, team_reward: bool
) -> tuple[ValueEstimates, jax.Array]:
    """The critic's values of the rollout, and raw advantages [T, E, V]."""
    learner = state.learner
    inputs = _critic_inputs(components, learner, trajectory.obs, trajectory.state)
    next_inputs = _critic_inputs(components, learner, trajectory.next_obs, trajectory.next_state)
    estimates = components.critic.estimate(learner.critic, inputs, next_inputs, trajectory.done, state.critic_hidden)
    reward = trajectory.critic_reward(team_reward)
    advantage = advantages.gae(
        jnp.broadcast_to(reward, estimates.value.shape),
        estimates.value,
        estimates.next_value,
        trajectory.terminated[..., None],
        trajectory.done[..., None],
        config.gamma,
        config.gae_lambda,
    )
    return estimates, advantage


def make_batch(actor: Actor, state: TrainState, trajectory: Trajectory, advantage: jax.Array, num_agents: int) -> Batch:
    """The batch of a rollout that began in `state`, agent axis first.

    Advantages [T, E, V] are standardised over the samples that a network is updated on: those of all agents if they
    share it, else each agent's own (a team reward with a critic of the state has one advantage for all agents).

    Samples of dead agents (`envs.TimeStep.alive`) count only for the critic, whichever it is: what the team earns after
    an agent's death is part of the return of the agent's actions before it.
    """
    inputs = actor.inputs(state.learner.obs_moments, trajectory.obs)
    alive = trajectory.alive
    flat_alive = None if alive is None else sequences.rows(alive)
    standardized = advantages.standardize(sequences.rows(advantage), actor.shared, flat_alive)
    if not actor.recurrent:
        return Batch(
            jnp.swapaxes(sequences.rows(inputs), 0, 1),
            jnp.swapaxes(sequences.rows(trajectory.action), 0, 1),
            jnp.swapaxes(sequences.rows(trajectory.action_mask), 0, 1),
            jnp.broadcast_to(standardized.T, (num_agents, standardized.shape[0])),
            None if flat_alive is None else flat_alive.T,
        )

    # [T, E, N, ...] -> [N, E, T, ...]
    def agent_major(x):
        return jnp.moveaxis(sequences.batch_major(x), 2, 0)

    num_steps, num_envs, num_values = advantage.shape
    standardized = standardized.reshape(num_envs, num_steps, num_values)
    return Batch(
        jax.vmap(sequences.from_rollout, (2, None, 0))(inputs, trajectory.done, state.env_batch.hidden),
        agent_major(trajectory.action),
        agent_major(trajectory.action_mask),
        jnp.broadcast_to(jnp.moveaxis(standardized, 2, 0), (num_agents, num_envs, num_steps)),
        None if alive is None else agent_major(alive),
    )
