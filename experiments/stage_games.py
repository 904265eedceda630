"""Many runs of a one-step game in one program, with the exact value of the policies after every update.

A one-step game has nothing to observe, so a team is a handful of probabilities (or means and standard deviations), and
what it is worth is known without playing. The trainer itself learns from samples as always.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import marl_kl
from envs.base import Env
from experiments import settings
from marl_kl import devices
from marl_kl.config import Config
from marl_kl.core import algorithms
from marl_kl.core.policies import make_actor
from marl_kl.core.rollout import policy_step

GAME = {
    "rollout_length": 1, "hidden_sizes": (8,), "normalize_observations": False, "critic_epochs": 1,
    "critic_minibatches": 1,
}  # fmt: skip
"""Config fields of all one-step games. A critic cannot matter: its one value is subtracted from every reward alike."""


def game_config(algorithm: str | algorithms.AlgorithmSpec, batch_size: int, **fields) -> Config:
    """A config of `batch_size` env steps per update, Fisher products on all of them."""
    config_class = algorithms.get(algorithm).config_class
    known = {field.name for field in dataclasses.fields(config_class)}
    own = settings.published(algorithm) | ({"cg_subsample": 1.0} if "cg_subsample" in known else {})
    return config_class(**GAME, num_envs=batch_size, **settings.UNEVALUATED, **own | fields)


def learn(
    env: Env,
    algorithm: str | algorithms.AlgorithmSpec,
    config: Config,
    runs: Mapping[str, np.ndarray],
    seeds: np.ndarray,
    num_updates: int,
    record: Callable[[Any, Any, dict], dict],
    params: Any = None,
    start_means: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Trains R teams in parallel, sharded over the devices.

    Args:
        env: a one-step game. algorithm: its name or entry. config: what all runs share.
        runs: config numbers by name, [R] each. seeds: [R].
        num_updates: U, of every run.
        record: `record(policy, params, metrics)` -> arrays to keep after each update; `policy` is the distribution of
            the team's actions, axes [N]. Metrics are the update's own and `policy_before` it.
        params: leaves [R, ...], the games' parameters; those of `env` if None.
        start_means: [R, N] where Gaussian policies begin; None: where the networks do, near 0.

    Returns:
        name -> [R, U, ...].
    """
    num_runs = len(seeds)
    shared = params is None
    given = {name: np.asarray(values, np.float32) for name, values in runs.items()}
    given = {"numbers": given, "seed": np.asarray(seeds, np.uint32)}
    given |= {} if shared else {"params": jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)}
    given |= {} if start_means is None else {"start": np.asarray(start_means, np.float32)}

    def one_run(given):
        game = env if shared else env._replace(params=given["params"])
        its_config = config.replace(**given["numbers"])
        train = marl_kl.make_train(game, algorithm, its_config)
        actor = make_actor(env.spec, its_config)
        first = train.init(jax.random.key(given["seed"]))
        if start_means is not None:
            first = _started_at(first, given["start"])

        def update(state, _):
            before = _policy(env, actor, state.learner)
            state, metrics = train.update(state)
            return state, record(_policy(env, actor, state.learner), game.params, metrics | {"policy_before": before})

        return jax.lax.scan(update, first, None, num_updates)[1]

    mesh = devices.seed_mesh(num_runs)
    program = devices.over_seeds(jax.vmap(one_run), mesh, (devices.SEEDS,), devices.SEEDS)
    return jax.tree.map(np.asarray, program(devices.shard(given, mesh)))


def _policy(env: Env, actor, learner):
    """The team's distribution, axes [N]."""
    n = env.spec.num_agents
    mask = jnp.asarray(env.spec.action_mask)[None]
    batched, _ = policy_step(actor, learner.actors, learner.obs_moments, jnp.ones((1, n, 1)), mask, ())
    return jax.tree.map(lambda leaf: leaf[:, 0], batched)


def _started_at(state, means: jax.Array):
    """The same start with Gaussian policies around `means` [N]."""
    params = state.learner.actors["params"]
    output = params["mean"]["output"]
    output = {
        **output,
        "kernel": jnp.zeros_like(output["kernel"]),
        "bias": jnp.broadcast_to(means[:, None], output["bias"].shape),
    }
    actors = {"params": {**params, "mean": {**params["mean"], "output": output}}}
    return state._replace(learner=state.learner._replace(actors=actors))


def probabilities(policy) -> jax.Array:
    """[N, A] of a categorical team."""
    return jnp.exp(policy.log_probs)


def expected_payoff(probability: jax.Array, payoff: jax.Array) -> jax.Array:
    """Mean of `payoff` [k_1, ..., k_N, ...] when agent i plays `probability[i, :k_i]`: the axes after the N-th are
    left."""
    total = payoff
    for agent in reversed(range(len(probability))):
        total = jnp.tensordot(probability[agent, : payoff.shape[agent]], jnp.moveaxis(total, agent, 0), axes=1)
    return total


def combinations(**axes) -> dict[str, np.ndarray]:
    """Every combination of the values of `axes`, flattened: name -> [product]; the last axis changes fastest."""
    grids = np.meshgrid(*map(np.asarray, axes.values()), indexing="ij")
    return {name: grid.ravel() for name, grid in zip(axes, grids)}
