"""Off-policy training: env steps into a replay, and gradient steps of critics Q(s, a) and deterministic actors from it.

An algorithm is an `OffPolicyAlgorithm`: how its actors follow the critic, and a few numbers. `simultaneous` and
`in_random_order` are the two ways; `marl_kl.core.algorithms.maddpg_family` composes the four algorithms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from envs.base import Env, EnvSpec, with_declared_dtypes
from marl_kl.config import OffPolicyConfig
from marl_kl.core import networks, normalizers, weighted
from marl_kl.core.exploration import Explored
from marl_kl.core.networks import QNetwork
from marl_kl.core.policies import Actor, init_actors, init_obs_moments, make_actor
from marl_kl.core.replay import Replay, ReplayState, Sample, require_flashbax
from marl_kl.core.rollout import episode_metrics, init_env_batch, missing_value, rollout
from marl_kl.core.train_state import Learner, Loop, Train, TrainState, protected, update_moments
from marl_kl.core.types import Metrics, Params

_ADAM_EPSILON = 1e-8

Value = Callable[[jax.Array | int, jax.Array], jax.Array]
"""`value(agent, action [N, B, A] encoded) -> [B]`: Q of the agent's reward in the batch's states."""


class Batch(NamedTuple):
    """What actors are updated on; see `Explored` for encoded actions.

    Attributes:
        obs: [N, B, I] inputs of the actors. action_mask: [N, B, A].
        action: [N, B, A] the stored actions, encoded.
        weight: [N, B] the weight of each sample in an agent's mean: 0 where it was dead; None: all count.
    """

    obs: jax.Array
    action_mask: jax.Array
    action: jax.Array
    weight: jax.Array | None


class ActorUpdate(NamedTuple):
    """A gradient step of all actors.

    Attributes:
        init: `init(actors) -> state`.
        update: `update(key, actors, state, value, batch) -> (actors, state, metrics)`, metrics `actor_loss` and
            `grad_norm` [N].
    """

    init: Callable[[Params], Any]
    update: Callable[[jax.Array, Params, Any, Value, Batch], tuple[Params, Any, Metrics]]


class OffPolicyAlgorithm(NamedTuple):
    """All that the loop knows of an algorithm.

    Attributes:
        actor_update: how the actors follow the critic.
        num_critics: per reward; a target is the least of theirs.
        policy_freq: critic steps per step of actors and targets.
        target_action: `target_action(key, policy) -> [..., A]`: the next actions in a target, encoded; `policy` is that
            of the target actors.
    """

    actor_update: ActorUpdate
    num_critics: int = 1
    policy_freq: int = 1
    target_action: Callable[[jax.Array, Explored], jax.Array] = lambda key, policy: policy.encoded(policy.mode())


Build = Callable[[Actor, Any], OffPolicyAlgorithm]
"""`AlgorithmSpec.build` of an off-policy algorithm."""


# Actors


def simultaneous(actor: Actor, config: OffPolicyConfig) -> ActorUpdate:
    """Every agent's step maximises the mean of Q(s, a) in which its own action is its policy's, and the others' are those of
    the replay (Lowe et al. 2017).

    A shared network follows the mean over its agents.
    """
    optimizer = _optimizer(config)

    def update(key, actors, states, value, batch):
        num_agents, num_networks = batch.obs.shape[0], jax.tree.leaves(actors)[0].shape[0]
        keys = jax.random.split(key, num_agents)

        def improve(params, state, agents):
            def loss(params):
                losses = jax.vmap(lambda agent: _actor_loss(actor, params, keys[agent], value, batch, agent))(agents)
                return jnp.mean(losses), losses

            gradient, losses = jax.grad(loss, has_aux=True)(params)
            params, state = _descended(optimizer, params, state, gradient, config.actor_lr)
            return params, state, losses, jnp.broadcast_to(optax.tree.norm(gradient), losses.shape)

        of_network = jnp.arange(num_agents).reshape(num_networks, -1)
        actors, states, losses, norms = jax.vmap(improve)(actors, states, of_network)
        return actors, states, {"actor_loss": losses.reshape(-1), "grad_norm": norms.reshape(-1)}

    return ActorUpdate(jax.vmap(optimizer.init), update)


def in_random_order(actor: Actor, config: OffPolicyConfig) -> ActorUpdate:
    """One agent after another, in a fresh random order: the others' actions are those of their current policies, which
    for the agents before it are the new ones (Zhong et al. 2024).

    Raises:
        ValueError: the agents share a network, which cannot be new for one of them and old for the next.
    """
    if actor.shared:
        raise ValueError(
            "share_parameters=True; agents that update one after another need a network each: it must be False here "
            "(maddpg and matd3 can share)"
        )
    optimizer = _optimizer(config)

    def update(key, actors, states, value, batch):
        num_agents = batch.obs.shape[0]
        key_order, key_steps = jax.random.split(key)
        keys = jax.random.split(key_steps, num_agents)

        def improve(carry, agent):
            actors, states, action = carry
            params, state = jax.tree.map(lambda leaf: leaf[agent], (actors, states))
            others = batch._replace(action=action)
            loss, gradient = jax.value_and_grad(
                lambda params: _actor_loss(actor, params, keys[agent], value, others, agent)
            )(params)
            new = _descended(optimizer, params, state, gradient, config.actor_lr)
            actors, states = jax.tree.map(lambda leaf, own: leaf.at[agent].set(own), (actors, states), new)
            policy = explored(actor, actor.outputs(new[0], batch.obs[agent]), batch.action_mask[agent])
            action = action.at[agent].set(policy.encoded(policy.mode()))
            return (actors, states, action), (loss, optax.tree.norm(gradient))

        policies = explored(actor, actor.team_outputs(actors, batch.obs), batch.action_mask)
        order = jax.random.permutation(key_order, num_agents)
        begin = (actors, states, policies.encoded(policies.mode()))
        (actors, states, _), by_position = jax.lax.scan(improve, begin, order)
        losses, norms = (jnp.zeros_like(values).at[order].set(values) for values in by_position)
        return actors, states, {"actor_loss": losses, "grad_norm": norms}

    return ActorUpdate(jax.vmap(optimizer.init), update)


def explored(actor: Actor, outputs: Any, action_mask: jax.Array) -> Explored:
    """`actor.distribution` of an off-policy algorithm."""
    return cast(Explored, actor.distribution(outputs, action_mask))


def _actor_loss(
    actor: Actor, params: Params, key: jax.Array, value: Value, batch: Batch, agent: jax.Array
) -> jax.Array:
    """[] minus the mean of Q with the agent's own action, the others' as in the batch."""
    policy = explored(actor, actor.outputs(params, batch.obs[agent]), batch.action_mask[agent])
    q = value(agent, batch.action.at[agent].set(policy.relaxed(key)))
    return -weighted.mean(q, None if batch.weight is None else batch.weight[agent])


# The critic


class CriticState(NamedTuple):
    """The critics and what their targets are made of.

    Attributes:
        params, target: leaves [C, V, ...]: C critics of each of V rewards, and their target networks.
        target_actors: leaves [G, ...].
        opt_state: optax states of the critics, leaves [C, V, ...].
    """

    params: Params
    target: Params
    target_actors: Params
    opt_state: optax.OptState


class Critics(NamedTuple):
    """The architecture of the critics; real: which entries of a joint action [N, A] are not padded."""

    network: QNetwork
    real: np.ndarray

    def values(self, params: Params, state: jax.Array, action: jax.Array) -> jax.Array:
        """Q(s, a) of stacked critics, leaves [..., *network]: state [B, S], action [N, B, A] encoded -> [..., B]."""
        joint = jnp.moveaxis(action, 0, -2)
        joint = joint.reshape(*joint.shape[:-2], -1)[..., np.flatnonzero(self.real)]
        apply: Any = lambda params: self.network.apply(params, state, joint)  # noqa: E731
        for _ in range(jax.tree.leaves(params)[-1].ndim - 2):  # the last leaf is a kernel
            apply = jax.vmap(apply)
        return apply(params)


def td_targets(reward: jax.Array, discount: jax.Array, next_values: jax.Array) -> jax.Array:
    """y = sum_k gamma^k r_k + gamma^m min_c Q'_c(s_m, a'): reward [B, V], discount [B], next_values [C, V, B] -> [V, B]."""
    return reward.T + discount * jnp.min(next_values, axis=0)


# The loop


class _Components(NamedTuple):
    spec: EnvSpec
    config: OffPolicyConfig
    actor: Actor
    critics: Critics
    algorithm: OffPolicyAlgorithm
    replay: Replay


def make_train(env: Env, build: Build, at_start: OffPolicyConfig) -> Train:
    """See `marl_kl.core.trainer.make_train`; `at_start` is the config at the start of the run.

    One update is a rollout into the replay, and then `gradient_steps` of the critic. There are none before the replay holds
    `warmup_steps` transitions, and until so many steps are made in the run the actions are uniformly random.
    """
    require_flashbax()
    spec, env = env.spec, with_declared_dtypes(env)
    components_at_start = _compose(spec, build, at_start)

    def init(key):
        components = components_at_start
        key, key_learner, key_envs = jax.random.split(key, 3)
        env_batch = init_env_batch(key_envs, env, at_start.num_envs)
        return TrainState(
            key,
            _init_learner(key_learner, components),
            env_batch,
            jnp.ones((), bool),
            (),
            jnp.asarray(0, jnp.int32),
            jnp.asarray(at_start.num_updates, jnp.float32),
            components.replay.init(env_batch.timestep),
        )

    def update(state):
        config = at_start.at(state.progress)
        components = _compose(spec, build, config)
        actor, replay, old = components.actor, components.replay, state.learner
        key, key_rollout, key_learn = jax.random.split(state.key, 3)
        is_warm = state.updates >= -(-config.warmup_steps // config.batch_size)

        def choose(key, policy):
            return jnp.where(is_warm, policy.sample(key), policy.uniform(key))

        env_batch, trajectory = rollout(
            key_rollout, env, actor, old.actors, old.obs_moments, state.env_batch, config.rollout_length, choose
        )
        stored = replay.add(state.replay, trajectory)
        num_stored = replay.num_transitions(stored)
        is_ready = (num_stored >= config.warmup_steps) & replay.can_sample(stored)
        obs_moments, state_moments = update_moments(config, old, trajectory)
        begin = old._replace(obs_moments=obs_moments, state_moments=state_moments)
        new, metrics = _learn(key_learn, components, begin, stored, is_ready)
        watched = (
            (trajectory.obs, trajectory.state, new.obs_moments, new.state_moments),
            trajectory.reward,
            metrics["q_loss"],
            (new.actors, new.algorithm),
            new.critic,
        )
        healthy, learner, nonfinite = protected(state.healthy, watched, new, old)
        is_continuous = spec.action_kind == "continuous"
        scale = config.exploration_noise if is_continuous else config.exploration_epsilon
        metrics = {name: jnp.where(is_ready, values, missing_value()) for name, values in metrics.items()}
        metrics |= episode_metrics(env_batch.episodes) | {
            "exploration": jnp.where(is_warm, jnp.asarray(scale, jnp.float32), 1.0),
            "replay_fill": num_stored.astype(jnp.float32) / (config.num_envs * config.replay_length),
            "nonfinite": nonfinite,
        }
        counts = state.updates + 1, state.num_updates
        return TrainState(key, learner, env_batch, healthy, (), *counts, stored), metrics

    return Train(init, update)


def init_learner(key: jax.Array, spec: EnvSpec, build: Build, config: OffPolicyConfig) -> Learner:
    """One seed's learner before the first update."""
    return _init_learner(key, _compose(spec, build, config))


LOOP = Loop(make_train, init_learner)


def _compose(spec: EnvSpec, build: Build, config: OffPolicyConfig) -> _Components:
    actor = make_actor(spec, config)
    algorithm = build(actor, config)
    if config.gradient_steps % algorithm.policy_freq:
        raise ValueError(
            f"policy_freq={algorithm.policy_freq}; it must divide the {config.gradient_steps} gradient steps of an update "
            "(rollout_length * updates_per_step)"
        )
    encoder = networks.make_encoder(config.critic_encoder, spec, spec.state_size)
    critics = Critics(QNetwork(config.hidden_sizes, config.activation, encoder), spec.action_mask)
    return _Components(spec, config, actor, critics, algorithm, Replay(spec, config))


def _init_learner(key: jax.Array, components: _Components) -> Learner:
    spec, config, algorithm = components.spec, components.config, components.algorithm
    key_actors, key_critic = jax.random.split(key)
    actors = init_actors(key_actors, spec, config)
    blank = jnp.zeros(spec.state_size, jnp.float32), jnp.zeros(int(spec.action_mask.sum()), jnp.float32)
    shape = algorithm.num_critics, 1 if spec.team_reward else spec.num_agents
    keys = jax.random.split(key_critic, shape)
    params = jax.vmap(jax.vmap(lambda key: components.critics.network.init(key, *blank)))(keys)
    opt_state = jax.vmap(jax.vmap(_optimizer(config).init))(params)
    return Learner(
        actors,
        CriticState(params, params, actors, opt_state),
        init_obs_moments(spec, config),
        normalizers.init((spec.state_size,)),
        algorithm.actor_update.init(actors),
    )


def _learn(
    key: jax.Array, components: _Components, learner: Learner, replay: ReplayState, is_ready: jax.Array
) -> tuple[Learner, Metrics]:
    """The gradient steps of an update, none unless `is_ready`, and the means of their metrics."""
    config, policy_freq = components.config, components.algorithm.policy_freq
    num_policy_steps = config.gradient_steps // policy_freq

    def policy_step(step, learner):
        key_critics, key_actors = jax.random.split(jax.random.fold_in(key, step))

        def critic_step(critic, key):
            key_sample, key_target = jax.random.split(key)
            sample = components.replay.sample(key_sample, replay, config.gamma)
            critic, metrics = _critic_step(key_target, components, learner._replace(critic=critic), sample)
            return critic, (metrics, sample)

        critic, (metrics, samples) = jax.lax.scan(
            critic_step, learner.critic, jax.random.split(key_critics, policy_freq)
        )
        last = jax.tree.map(lambda leaf: leaf[-1], samples)
        learner, actor_metrics = _actor_step(key_actors, components, learner._replace(critic=critic), last)
        return learner, jax.tree.map(functools.partial(jnp.mean, axis=0), metrics) | actor_metrics

    def body(step, carry):
        learner, sums = carry
        learner, metrics = policy_step(step, learner)
        return learner, jax.tree.map(jnp.add, sums, metrics)

    shapes = jax.eval_shape(policy_step, 0, learner)[1]
    sums = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    # a loop and no `cond`, which under vmap takes both branches: none of the steps is computed while no seed is ready
    learner, sums = jax.lax.fori_loop(0, jnp.where(is_ready, num_policy_steps, 0), body, (learner, sums))
    return learner, jax.tree.map(lambda total: total / num_policy_steps, sums)


def _critic_step(
    key: jax.Array, components: _Components, learner: Learner, sample: Sample
) -> tuple[CriticState, Metrics]:
    """A gradient step of every critic on the mean squared error to the common targets."""
    config, algorithm, critics = components.config, components.algorithm, components.critics
    critic = learner.critic
    next_policy = _policies(components, learner, critic.target_actors, sample.next_obs, sample.next_action_mask)[1]
    next_action = algorithm.target_action(key, next_policy)
    next_values = critics.values(critic.target, _state(learner, sample.next_state), next_action)
    target = jax.lax.stop_gradient(td_targets(sample.reward, sample.discount, next_values))
    policy = _policies(components, learner, learner.actors, sample.obs, sample.action_mask)[1]
    action, state = policy.encoded(_agent_major(sample.action)), _state(learner, sample.state)

    def loss(params):
        q = critics.values(params, state, action)
        losses = weighted.mean(jnp.moveaxis(jnp.square(q - target), -1, 0), sample.known, axis=0)
        return jnp.sum(losses), (jnp.mean(losses), jnp.mean(q[0]))

    gradient, (q_loss, q_mean) = jax.grad(loss, has_aux=True)(critic.params)
    descend = functools.partial(_descended, _optimizer(config), rate=config.critic_lr)
    params, opt_state = jax.vmap(jax.vmap(descend))(critic.params, critic.opt_state, gradient)
    return critic._replace(params=params, opt_state=opt_state), {"q_loss": q_loss, "q_mean": q_mean}


def _actor_step(key: jax.Array, components: _Components, learner: Learner, sample: Sample) -> tuple[Learner, Metrics]:
    """A step of all actors, then of all target networks."""
    config, critics = components.config, components.critics
    obs, policy = _policies(components, learner, learner.actors, sample.obs, sample.action_mask)
    state, first = _state(learner, sample.state), jax.tree.map(lambda leaf: leaf[0], learner.critic.params)

    def value(agent, action):
        own = jax.tree.map(lambda leaf: leaf[0 if components.spec.team_reward else agent], first)
        return critics.values(own, state, action)

    weight = None if sample.alive is None else sample.alive.T
    batch = Batch(obs, _agent_major(sample.action_mask), policy.encoded(_agent_major(sample.action)), weight)
    actors, algorithm_state, metrics = components.algorithm.actor_update.update(
        key, learner.actors, learner.algorithm, value, batch
    )
    move = functools.partial(optax.incremental_update, step_size=config.tau)
    critic = learner.critic._replace(
        target=move(learner.critic.params, learner.critic.target),
        target_actors=move(actors, learner.critic.target_actors),
    )
    return learner._replace(actors=actors, critic=critic, algorithm=algorithm_state), metrics


def _policies(
    components: _Components, learner: Learner, actors: Params, obs: jax.Array, action_mask: jax.Array
) -> tuple[jax.Array, Explored]:
    """Inputs [N, B, I] and policies [N, B] of all agents; obs: [B, N, O], action_mask: [B, N, A]."""
    actor = components.actor
    inputs = _agent_major(actor.inputs(learner.obs_moments, obs))
    return inputs, explored(actor, actor.team_outputs(actors, inputs), _agent_major(action_mask))


def _state(learner: Learner, state: jax.Array) -> jax.Array:
    return normalizers.standardize(learner.state_moments, state)


def _agent_major(x: jax.Array) -> jax.Array:
    """[B, N, ...] -> [N, B, ...]."""
    return jnp.swapaxes(x, 0, 1)


def _optimizer(config: OffPolicyConfig) -> optax.GradientTransformation:
    """Adam without its rate, which `_descended` applies."""
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=_ADAM_EPSILON))


def _descended(optimizer, params: Params, state: Any, gradient: Params, rate: float | jax.Array) -> tuple[Params, Any]:
    """One network after a gradient step down its loss, and its optimiser's state."""
    steps, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, jax.tree.map(lambda step: -rate * step, steps)), state
