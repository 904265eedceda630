"""A training run between two updates, and what every kind of training has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import Env, EnvSpec
from marl_kl.config import Config
from marl_kl.core import normalizers, sequences
from marl_kl.core.normalizers import Moments
from marl_kl.core.rollout import EnvBatch, Trajectory
from marl_kl.core.types import Carry, Metrics, Params


class Learner(NamedTuple):
    """Everything that is learned, with the statistics needed to apply it.

    Attributes:
        actors: leaves [G, ...].
        critic: network, optimiser and moments of its targets (`critic.CriticState`); off-policy also the target networks
            (`off_policy.CriticState`).
        obs_moments: moments [N, O] of the observations ([O] if the actors share parameters).
        state_moments: moments [S] of the global state.
        algorithm: the algorithm's own state.
    """

    actors: Params
    critic: Any
    obs_moments: Moments
    state_moments: Moments
    algorithm: Any


class TrainState(NamedTuple):
    """One seed between two updates: a pytree with everything that a resumed run needs.

    Attributes:
        key: typed PRNG key.
        learner: what is learned.
        env_batch: the parallel environments.
        healthy: [] bool; after the first non-finite number the learner keeps its last finite values.
        critic_hidden: hidden state of a recurrent critic in the current episodes: [E, H], of independent critics
            [N, E, H]; `()` for feed-forward critics.
        updates: [] int32 updates made. num_updates: [] float32 those of the whole run, at whose end schedules end.
        replay: of off-policy algorithms, `replay.ReplayState`; else `()`.
    """

    key: jax.Array
    learner: Learner
    env_batch: EnvBatch
    healthy: jax.Array
    critic_hidden: Carry = ()
    updates: jax.Array | int = 0
    num_updates: jax.Array | int = 1
    replay: Any = ()

    @property
    def progress(self) -> jax.Array:
        """[] float32 share of the run's updates that are made."""
        return jnp.minimum(self.updates / self.num_updates, 1.0).astype(jnp.float32)


class Train(NamedTuple):
    """A training run as pure functions, to be jitted, vmapped over keys and scanned.

    Attributes:
        init: `init(key) -> TrainState`, `key` a typed key (`jax.random.key(seed)`).
        update: `update(state) -> (TrainState, Metrics)`: one rollout and one update. Metrics are those of
            `marl_kl.core.metrics` and `nonfinite` [len(WATCHED)] bool.
    """

    init: Callable[[jax.Array], TrainState]
    update: Callable[[TrainState], tuple[TrainState, Metrics]]


class Loop(NamedTuple):
    """A kind of training: how its algorithms collect and learn.

    Attributes:
        make_train: `make_train(env, build, config) -> Train`, `build` an `AlgorithmSpec.build`.
        init_learner: `init_learner(key, spec, build, config) -> Learner`.
    """

    make_train: Callable[[Env, Callable, Any], Train]
    init_learner: Callable[[jax.Array, EnvSpec, Callable, Any], Learner]


def protected(
    healthy: jax.Array, watched: tuple[Any, ...], new: Learner, old: Learner
) -> tuple[jax.Array, Learner, jax.Array]:
    """Keeps the last finite learner of a seed.

    Args:
        healthy: [] bool before this update.
        watched: the quantities `metrics.WATCHED`.
        new, old: the learner after and before it.

    Returns:
        healthy [] bool, the learner, and the metric `nonfinite` [len(WATCHED)] bool.
    """
    nonfinite = ~jnp.stack([_all_finite(quantity) for quantity in watched])
    healthy = healthy & ~jnp.any(nonfinite)
    return healthy, jax.tree.map(lambda after, before: jnp.where(healthy, after, before), new, old), nonfinite


def update_moments(config: Config, learner: Learner, trajectory: Trajectory) -> tuple[Moments, Moments]:
    """The moments of observations and states, this rollout included."""
    if not config.normalize_observations:
        return learner.obs_moments, learner.state_moments
    # without an agent axis, the moments are those of all agents' observations
    shape = learner.obs_moments.mean.shape
    alive = None if trajectory.alive is None else sequences.rows(trajectory.alive).reshape(-1, *shape[:-1])
    return (
        normalizers.update(learner.obs_moments, sequences.rows(trajectory.obs).reshape(-1, *shape), alive),
        normalizers.update(learner.state_moments, sequences.rows(trajectory.state)),
    )


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
