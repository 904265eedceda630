"""Every shared type, and the one axis legend.

    T  rollout_length            N  number of agents
    E  num_envs                  O  observation size, padded to the largest agent
    B  T * E, one batch          A  action size, padded to the largest agent
    S  global state size         V  values: 1 for a team reward and a centralised critic, N otherwise
    G  actor networks: N, or 1   I  what an actor network sees: O, or O + N with agent ids
    D  sub-actions, padded       K  choices in each, padded: for multi-discrete actions A = D * K

Parameters of all agents are one pytree whose leaves carry a leading network axis [G, ...]; entries that an
agent with a smaller observation or action space does not have are zero and stay zero. G is N unless all agents
share one network.
"""

from __future__ import annotations

from typing import Any, Callable, Literal, NamedTuple

import jax

Params = Any
"""A pytree of arrays."""

Metrics = dict[str, jax.Array]
"""Named arrays that an update reports; the names are listed in `marl_kl.results`."""


class Batch(NamedTuple):
    """What an algorithm's update sees of a rollout; time and environments are flattened.

    Attributes:
        obs: [N, B, I] what the actors saw: standardised observations, agent ids if they get them.
        action: [N, B, A] float (continuous; before squashing), [N, B] int32 (discrete) or [N, B, D] (multi-discrete).
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
        critic_sees: whether its advantages come from one critic of the global state, or from a critic per agent
            that sees only what the agent sees.
    """

    init: Callable[[Params], Any]
    update: Callable[[jax.Array, Params, Any, Batch], tuple[Params, Any, Metrics]]
    critic_sees: Literal["state", "observation"] = "state"
