"""Rollouts: a scan over time with automatic resets and episode statistics."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Env, EnvState, TimeStep, check_timestep
from marl_kl.core import partition, sequences
from marl_kl.core.distributions import Distribution
from marl_kl.core.normalizers import Moments
from marl_kl.core.policies import Actor
from marl_kl.core.types import Carry, Params


class Episodes(NamedTuple):
    """Returns and lengths of the parallel environments' episodes; all [E].

    Attributes:
        running_return, running_length: of the current episode.
        last_return, last_length: of the last finished episode, 0 before it.
        finished: episodes finished since the start of this rollout.
    """

    running_return: jax.Array
    running_length: jax.Array
    last_return: jax.Array
    last_length: jax.Array
    finished: jax.Array


class EnvBatch(NamedTuple):
    """The parallel environments between two rollouts; leaves [E, ...] except `hidden`.

    Attributes:
        hidden: [N, E, H] the agents' hidden state in the current episodes; `()` if they are not recurrent.
    """

    env_state: EnvState
    timestep: TimeStep
    episodes: Episodes
    hidden: Carry = ()


class Trajectory(NamedTuple):
    """The transitions of one rollout.

    Attributes:
        obs: [T, E, N, O] raw. state: [T, E, S] raw. action: [T, E, N, A], [T, E, N] or [T, E, N, D], of the policies
            (`Actor.env_action` maps them to the environment's). action_mask: [T, E, N, A].
        reward: [T, E, N]. terminated, done: [T, E] bool.
        next_obs: [T, E, N, O], next_state: [T, E, S], next_action_mask: [T, E, N, A] the true successor, before any reset.
        alive: [T, E, N] bool, of the step at which the action was chosen; None if the environment does not say it.
    """

    obs: jax.Array
    state: jax.Array
    action: jax.Array
    action_mask: jax.Array
    reward: jax.Array
    terminated: jax.Array
    done: jax.Array
    next_obs: jax.Array
    next_state: jax.Array
    next_action_mask: jax.Array
    alive: jax.Array | None = None

    def critic_reward(self, team_reward: bool) -> jax.Array:
        """[T, E, 1] the mean over the agents if they share their reward, else each agent's [T, E, N]."""
        return jnp.mean(self.reward, axis=-1, keepdims=True) if team_reward else self.reward


def init_env_batch(key: jax.Array, env: Env, num_envs: int, hidden: Carry = ()) -> EnvBatch:
    """`num_envs` environments after a reset; `hidden` is the agents' initial carry.

    Raises:
        ValueError: a timestep does not have the shapes of the spec.
    """
    env_state, timestep = resets(key, env, num_envs)
    check_timestep(env.spec, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), timestep))
    zeros = jnp.zeros(num_envs, jnp.float32)
    return EnvBatch(env_state, timestep, Episodes(zeros, zeros, zeros, zeros, zeros), hidden)


def resets(key: jax.Array, env: Env, num_envs: int) -> tuple[EnvState, TimeStep]:
    """`num_envs` initial states and their first timesteps, leaves [E, ...]."""
    return partition.spread(jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), env.params))


def policy_step(
    actor: Actor, actors: Params, obs_moments: Moments, obs: jax.Array, action_mask: jax.Array, hidden: Carry
) -> tuple[Distribution, Carry]:
    """Every agent's action distribution, axes [N, E], and the new hidden state.

    Args:
        obs: [E, N, O] raw. action_mask: [E, N, A].
        hidden: [N, E, H], or `()`; `actor.initial_carry((N, E))` at the start of episodes.
    """
    inputs = jnp.swapaxes(actor.inputs(obs_moments, obs), 0, 1)
    outputs, hidden = actor.team_step(actors, inputs, hidden)
    return actor.distribution(outputs, jnp.swapaxes(action_mask, 0, 1)), hidden


def sampled(key: jax.Array, policy: Distribution) -> jax.Array:
    """Actions of the stochastic policies."""
    return policy.sample(key)


def rollout(
    key: jax.Array,
    env: Env,
    actor: Actor,
    actors: Params,
    obs_moments: Moments,
    env_batch: EnvBatch,
    length: int,
    choose: Callable[[jax.Array, Any], jax.Array] = sampled,
) -> tuple[EnvBatch, Trajectory]:
    """`length` env steps in each parallel environment, with actions `choose(key, policy)`.

    Environments restart from E initial states, drawn once per rollout: this avoids an expensive reset in every step. See
    `_Pool` for which of them.
    """
    num_envs = env_batch.episodes.finished.shape[0]
    key_resets, key_steps = jax.random.split(key)
    pool = _Pool.of(resets(key_resets, env, num_envs), num_envs)

    def env_step(env_batch, inputs):
        key, offset = inputs
        before = env_batch.timestep
        key_action, key_env = jax.random.split(key)
        policy, hidden = policy_step(actor, actors, obs_moments, before.obs, before.action_mask, env_batch.hidden)
        action = jnp.swapaxes(choose(key_action, policy), 0, 1)
        env_keys = jax.random.split(key_env, num_envs)
        env_action = actor.env_action(action)
        env_state, after = jax.vmap(env.step, (0, 0, 0, None))(env_keys, env_batch.env_state, env_action, env.params)
        done = after.terminated | after.truncated
        transition = Trajectory(
            before.obs,
            before.state,
            action,
            before.action_mask,
            after.reward,
            after.terminated,
            done,
            after.obs,
            after.state,
            after.action_mask,
            before.alive,
        )
        env_state, timestep = jax.tree.map(functools.partial(_select, done), pool.at(offset), (env_state, after))
        episodes = _update_episodes(env_batch.episodes, after, done)
        return EnvBatch(env_state, timestep, episodes, sequences.reset_carry(hidden, done)), transition

    env_batch = env_batch._replace(episodes=env_batch.episodes._replace(finished=jnp.zeros(num_envs, jnp.float32)))
    return jax.lax.scan(env_step, env_batch, (jax.random.split(key_steps, length), pool.offsets(length)))


class _Pool(NamedTuple):
    """E initial states; which of them an environment would restart from changes in every step.

    An environment that always restarted from the same one would, where that leads to an early end, restart from it again
    and again: batches would be full of the states that end early. And indices of the ended environments, one after another,
    would gather whole physics states in every step, from other devices too. So environments take turns within groups of
    neighbours, by an offset that is the same for all and for all seeds, which is a slice.

    Attributes:
        states: leaves [E / G, 2 G, ...], each group twice. size: G.
    """

    states: tuple[EnvState, TimeStep]
    size: int

    @classmethod
    def of(cls, initial: tuple[EnvState, TimeStep], num_envs: int) -> _Pool:
        """Of leaves [E, ...], in groups of the largest divisor of E up to 16."""
        size = max(size for size in range(1, 17) if num_envs % size == 0)

        def twice(leaf):
            groups = leaf.reshape(-1, size, *leaf.shape[1:])
            return jnp.concatenate([groups, groups], axis=1)

        return cls(jax.tree.map(twice, initial), size)

    def offsets(self, length: int) -> jax.Array:
        """[T] the same in every rollout, and as good as random to the lengths of episodes."""
        return jnp.asarray(np.random.default_rng(0).integers(self.size, size=length))

    def at(self, offset: jax.Array) -> tuple[EnvState, TimeStep]:
        """Leaves [E, ...]."""

        def turned(leaf):
            groups = jax.lax.dynamic_slice_in_dim(leaf, offset, self.size, axis=1)
            return groups.reshape(-1, *leaf.shape[2:])

        return jax.tree.map(turned, self.states)


def missing_value() -> float:
    """What a metric is before there is one: NaN, or 0 while jax searches for NaNs (`JAX_DEBUG_NANS`)."""
    return 0.0 if getattr(jax.config, "jax_debug_nans", False) else jnp.nan


def episode_metrics(episodes: Episodes) -> dict[str, jax.Array]:
    """Means over the environments that have finished an episode; `missing_value` before the first one."""
    has_finished = episodes.last_length > 0
    missing = missing_value()

    def mean(values):
        known = has_finished & ~jnp.isnan(values)
        total = jnp.sum(jnp.where(known, values, 0.0))
        return jnp.where(jnp.any(known), total / jnp.maximum(jnp.sum(known), 1), missing)

    return {
        "episode_return": mean(episodes.last_return),
        "episode_length": mean(episodes.last_length),
        "episodes_finished": jnp.sum(episodes.finished),
    }


def _update_episodes(episodes: Episodes, timestep: TimeStep, done: jax.Array) -> Episodes:
    team_return = episodes.running_return + jnp.mean(timestep.reward, axis=-1)
    length = episodes.running_length + 1
    return Episodes(
        jnp.where(done, 0.0, team_return),
        jnp.where(done, 0.0, length),
        jnp.where(done, team_return, episodes.last_return),
        jnp.where(done, length, episodes.last_length),
        episodes.finished + done,
    )


def _select(done: jax.Array, reset: jax.Array, current: jax.Array) -> jax.Array:
    """`reset` if done [E], else `current`, both [E, ...]."""
    return jnp.where(jnp.reshape(done, done.shape + (1,) * (current.ndim - 1)), reset, current)
