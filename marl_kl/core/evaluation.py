"""Evaluation: a fixed number of whole episodes, one per parallel environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from envs.base import Env, with_declared_dtypes
from marl_kl import devices
from marl_kl.config import Config
from marl_kl.core.metrics import EpisodeStatistics
from marl_kl.core.policies import make_actor
from marl_kl.core.rollout import policy_step, resets
from marl_kl.core.trainer import Learner

_STREAM = 0x6576616C
"""Folded into a seed's key; large, to differ from the small numbers folded in elsewhere."""
_FRESH_STREAM = 0x66726573
"""The same for episodes not used by training's evaluations."""
_ACTIONS = 2**32 - 1
"""Folded into a key, into which otherwise time steps are folded."""

ABSOLUTE_FACTOR = 10
"""Episodes of the absolute metric (Gorsane et al. 2022), as a multiple of `eval_episodes`."""


def keys(seeds: Sequence[int], update: int | Sequence[int], fresh: bool = False) -> jax.Array:
    """[seed] typed keys of the evaluation after `update` updates (of all seeds, or one number per seed).

    They are independent of the training's keys, so that the evaluation interval does not affect training, and stored
    teams can be evaluated again in the same episodes. `fresh` gives keys of other episodes, for an unbiased evaluation
    of a team that was selected by its evaluation in training.
    """
    stream = _FRESH_STREAM if fresh else _STREAM
    key_of = jax.vmap(lambda seed, update: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), update))
    return key_of(jnp.asarray(seeds, jnp.uint32), jnp.broadcast_to(jnp.asarray(update, jnp.uint32), (len(seeds),)))


def evaluate_seeds(
    env: Env, config: Config, mesh: Mesh, stochastic: bool = False
) -> Callable[[jax.Array, Learner], EpisodeStatistics]:
    """`make_evaluate` of many seeds, jitted and sharded over `mesh`: keys [seed], learner leaves [seed, ...]."""
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
    """Evaluates stored teams in the episodes of training's evaluation after `update`; numpy [seed, episode].

    Args:
        env: the environment they were trained in.
        config: of the run; `eval_episodes` episodes each, the first of which do not depend on their number.
        seeds: in the order of the seed axis.
        update: updates made, one number for all seeds or one per seed.
        learner: leaves [seed, ...].
        stochastic: whether actions are sampled, as in training, or the modes of the policies.
        fresh: use other episodes than training's evaluations.
    """
    mesh = devices.seed_mesh(len(seeds))
    placed = (devices.shard(tree, mesh) for tree in (keys(seeds, update, fresh), learner))
    return jax.tree.map(np.asarray, evaluate_seeds(env, config, mesh, stochastic)(*placed))


def make_evaluate(
    env: Env, config: Config, stochastic: bool = False
) -> Callable[[jax.Array, Learner], EpisodeStatistics]:
    """`evaluate(key, learner)`: `config.eval_episodes` whole episodes of the deterministic or the stochastic policies,
    with the same initial states.

    Every environment contributes exactly one episode; taking the first episodes to finish would be biased to short ones.
    """
    actor, env = make_actor(env.spec, config), with_declared_dtypes(env)
    num_episodes = config.eval_episodes

    def evaluate(key, learner):
        key_reset, key_steps = jax.random.split(key)
        key_actions = jax.random.fold_in(key_steps, _ACTIONS)
        env_state, timestep = resets(key_reset, env, num_episodes)
        zeros = EpisodeStatistics(*jnp.zeros((2, num_episodes), jnp.float32))

        def any_running(carry):
            # bounds the loop even if the environment does not enforce its time limit
            return jnp.any(carry[3]) & (carry[0] < env.spec.episode_length)

        def env_step(carry):
            t, env_state, timestep, running, totals, hidden = carry
            policy, hidden = policy_step(
                actor, learner.actors, learner.obs_moments, timestep.obs, timestep.action_mask, hidden
            )
            action = policy.sample(jax.random.fold_in(key_actions, t)) if stochastic else policy.mode()
            action = actor.env_action(jnp.swapaxes(action, 0, 1))
            keys = jax.random.split(jax.random.fold_in(key_steps, t), num_episodes)
            env_state, timestep = jax.vmap(env.step, (0, 0, 0, None))(keys, env_state, action, env.params)
            reward = jnp.where(running, jnp.mean(timestep.reward, axis=-1), 0.0)
            totals = EpisodeStatistics(totals.episode_return + reward, totals.episode_length + running)
            return t + 1, env_state, timestep, running & ~(timestep.terminated | timestep.truncated), totals, hidden

        hidden = actor.initial_carry((env.spec.num_agents, num_episodes))
        carry = (jnp.zeros((), jnp.int32), env_state, timestep, jnp.ones(num_episodes, bool), zeros, hidden)
        return jax.lax.while_loop(any_running, env_step, carry)[4]

    return evaluate
