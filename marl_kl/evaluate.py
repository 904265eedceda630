"""Evaluation: a fixed number of episodes, one per parallel environment, none left out."""

from __future__ import annotations

from typing import Callable

import jax
import jax.numpy as jnp

from envs.types import Env
from marl_kl.config import Config
from marl_kl.policies import make_actor
from marl_kl.results import EpisodeStatistics
from marl_kl.rollout import distributions
from marl_kl.trainer import Learner


def make_evaluate(env: Env, config: Config) -> Callable[[jax.Array, Learner], EpisodeStatistics]:
    """`evaluate(key, learner)`: `config.eval_episodes` whole episodes of the deterministic policies.

    Every environment contributes exactly one episode: stopping at the first so many finished ones would favour
    the short ones.
    """
    actor = make_actor(env.spec, config)
    num_episodes = config.eval_episodes

    def evaluate(key, learner):
        key_reset, key_steps = jax.random.split(key)
        env_state, timestep = jax.vmap(env.reset, (0, None))(jax.random.split(key_reset, num_episodes), env.params)
        nothing = EpisodeStatistics(jnp.zeros(num_episodes), jnp.zeros(num_episodes))

        def anyone_alive(carry):
            # the time limit is the environment's; this one keeps an environment without it from running for ever
            return jnp.any(carry[3]) & (carry[0] < env.spec.episode_length)

        def env_step(carry):
            t, env_state, timestep, alive, totals = carry
            policy = distributions(actor, learner.actors, learner.obs_moments, timestep.obs, timestep.action_mask)
            action = jnp.swapaxes(policy.mode(), 0, 1)
            keys = jax.random.split(jax.random.fold_in(key_steps, t), num_episodes)
            env_state, timestep = jax.vmap(env.step, (0, 0, 0, None))(keys, env_state, action, env.params)
            reward = jnp.where(alive, jnp.mean(timestep.reward, axis=-1), 0.0)
            totals = EpisodeStatistics(totals.episode_return + reward, totals.episode_length + alive)
            return t + 1, env_state, timestep, alive & ~(timestep.terminated | timestep.truncated), totals

        carry = (jnp.zeros((), jnp.int32), env_state, timestep, jnp.ones(num_episodes, bool), nothing)
        return jax.lax.while_loop(anyone_alive, env_step, carry)[4]

    return evaluate
