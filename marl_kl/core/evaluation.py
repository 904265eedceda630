"""Evaluation: a fixed number of episodes, one per parallel environment, none left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from envs.base import Env
from marl_kl import devices
from marl_kl.config import Config
from marl_kl.core.policies import make_actor
from marl_kl.core.rollout import policy_step
from marl_kl.core.trainer import Learner
from marl_kl.results import EpisodeStatistics

_STREAM = 0x6576616C
"""Folded into a seed's key: far from the small numbers that splitting folds in."""
_FRESH_STREAM = 0x66726573
"""The same, for episodes that training did not evaluate in."""
_ACTIONS = 2**32 - 1
"""Folded into a key whose other children are time steps."""

ABSOLUTE_FACTOR = 10
"""How many times `eval_episodes` the absolute metric takes (Gorsane et al. 2022)."""


def keys(seeds: Sequence[int], update: int | Sequence[int], fresh: bool = False) -> jax.Array:
    """[seed] typed keys of the evaluation after `update` updates (of all seeds, or one number per seed).

    They are not drawn from the training's own keys, so that evaluating more often does not change the training, and
    a stored team can be evaluated again in the same episodes. With `fresh`, keys of episodes that training did not
    evaluate in: a team that was chosen by its evaluation is judged by others.
    """
    stream = _FRESH_STREAM if fresh else _STREAM
    key_of = jax.vmap(lambda seed, update: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), update))
    return key_of(jnp.asarray(seeds, jnp.uint32), jnp.broadcast_to(jnp.asarray(update, jnp.uint32), (len(seeds),)))


def evaluate_seeds(
    env: Env, config: Config, mesh: Mesh, stochastic: bool = False
) -> Callable[[jax.Array, Learner], EpisodeStatistics]:
    """`make_evaluate` of many seeds at once, jitted and spread over `mesh`: keys [seed], learner leaves [seed, ...]."""
    evaluate = jax.vmap(make_evaluate(env, config, stochastic))
    options = env.spec.cpu_compiler_options
    return devices.over_seeds(evaluate, mesh, (devices.SEEDS, devices.SEEDS), devices.SEEDS, options)


def evaluate_again(
    env: Env,
    config: Config,
    seeds: Sequence[int],
    update: int | Sequence[int],
    learner: Learner,
    *,
    stochastic: bool = False,
    fresh: bool = False,
) -> EpisodeStatistics:
    """Evaluates stored teams [seed, episode], numpy, in the episodes that training evaluated them in after `update`.

    Args:
        env: the environment they were trained in.
        config: of the run; `eval_episodes` episodes each, of which the first are the same whatever their number.
        seeds: in the order of the seed axis.
        update: updates made, by all seeds or by each.
        learner: leaves [seed, ...].
        stochastic: whether actions are sampled, as in training, or the policies' modes.
        fresh: other episodes than those of training, whose returns a best team was chosen by.
    """
    mesh = devices.seed_mesh(len(seeds))
    placed = (devices.shard(tree, mesh) for tree in (keys(seeds, update, fresh), learner))
    return jax.tree.map(np.asarray, evaluate_seeds(env, config, mesh, stochastic)(*placed))


def make_evaluate(
    env: Env, config: Config, stochastic: bool = False
) -> Callable[[jax.Array, Learner], EpisodeStatistics]:
    """`evaluate(key, learner)`: `config.eval_episodes` whole episodes of the deterministic policies, or, if
    `stochastic`, of the sampling ones. The episodes begin alike either way.

    Every environment contributes exactly one episode: stopping at the first so many finished ones would favour
    the short ones.
    """
    actor = make_actor(env.spec, config)
    num_episodes = config.eval_episodes

    def evaluate(key, learner):
        key_reset, key_steps = jax.random.split(key)
        key_actions = jax.random.fold_in(key_steps, _ACTIONS)
        env_state, timestep = jax.vmap(env.reset, (0, None))(jax.random.split(key_reset, num_episodes), env.params)
        nothing = EpisodeStatistics(jnp.zeros(num_episodes), jnp.zeros(num_episodes))

        def anyone_alive(carry):
            # the time limit is the environment's; this one keeps an environment without it from running for ever
            return jnp.any(carry[3]) & (carry[0] < env.spec.episode_length)

        def env_step(carry):
            t, env_state, timestep, alive, totals, hidden = carry
            seen = timestep.obs, timestep.action_mask
            policy, hidden = policy_step(actor, learner.actors, learner.obs_moments, *seen, hidden)
            action = policy.sample(jax.random.fold_in(key_actions, t)) if stochastic else policy.mode()
            action = actor.env_action(jnp.swapaxes(action, 0, 1))
            keys = jax.random.split(jax.random.fold_in(key_steps, t), num_episodes)
            env_state, timestep = jax.vmap(env.step, (0, 0, 0, None))(keys, env_state, action, env.params)
            reward = jnp.where(alive, jnp.mean(timestep.reward, axis=-1), 0.0)
            totals = EpisodeStatistics(totals.episode_return + reward, totals.episode_length + alive)
            return t + 1, env_state, timestep, alive & ~(timestep.terminated | timestep.truncated), totals, hidden

        hidden = actor.initial_carry((env.spec.num_agents, num_episodes))
        carry = (jnp.zeros((), jnp.int32), env_state, timestep, jnp.ones(num_episodes, bool), nothing, hidden)
        return jax.lax.while_loop(anyone_alive, env_step, carry)[4]

    return evaluate
