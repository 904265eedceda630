"""Every shared type, and the one axis legend.

    T  rollout_length            N  number of agents
    E  num_envs                  O  observation size, padded to the largest agent
    B  T * E, one batch          A  action size, padded to the largest agent
    S  global state size         V  value heads: 1 for a team reward, N otherwise

Parameters of all agents are one pytree whose leaves carry a leading agent axis [N, ...]; entries that an
agent with a smaller observation or action space does not have are zero and stay zero.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import jax

Params = Any
"""A pytree of arrays."""

Metrics = dict[str, jax.Array]
"""Named arrays that an update reports; the names are listed in `marl_kl.results`."""


class Batch(NamedTuple):
    """What an algorithm's update sees of a rollout; time and environments are flattened.

    Attributes:
        obs: [N, B, O] standardised observations.
        action: [N, B, A] float (continuous) or [N, B] int32 (discrete).
        action_mask: [N, B, A] bool.
        advantage: [N, B] GAE, standardised over the batch.
    """

    obs: jax.Array
    action: jax.Array
    action_mask: jax.Array
    advantage: jax.Array


class Algorithm(NamedTuple):
    """How all actors improve on one batch; the trainer knows nothing else about an algorithm.

    Attributes:
        init: `init(actors) -> algorithm_state`, a pytree (optimiser states; `()` if there are none).
        update: `update(key, actors, algorithm_state, batch) -> (actors, algorithm_state, metrics)`.
    """

    init: Callable[[Params], Any]
    update: Callable[[jax.Array, Params, Any, Batch], tuple[Params, Any, Metrics]]
