"""Every shared type, and the one axis legend.

    T  rollout_length            N  number of agents
    E  num_envs                  O  observation size, padded to the largest agent
    B  T * E, one batch          A  action size, padded to the largest agent
    S  global state size         V  values: 1 for a team reward and a centralised critic, N otherwise
    G  actor networks: N, or 1   I  what an actor network sees: O, or O + N with agent ids
    D  sub-actions, padded       K  choices in each, padded: for multi-discrete actions A = D * K
    H  recurrent_size

Parameters of all agents are one pytree whose leaves carry a leading network axis [G, ...]; entries that an
agent with a smaller observation or action space does not have are zero and stay zero. G is N unless all agents
share one network.

A batch has *sample axes*. The first of them are its *rows*: what may be subsampled, shuffled and pooled over agents.
For feed-forward networks the axes are [B], a row is a sample; for recurrent ones [E, T], a row is the whole rollout of
an environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Params = Any
"""A pytree of arrays."""

Metrics = dict[str, jax.Array]
"""Named arrays that an update reports; the names are listed in `marl_kl.results`."""


Carry = Any
"""What recurrent networks remember: the state of their GRU, [..., H]; `()` for feed-forward networks."""


class Sequences(NamedTuple):
    """What a recurrent network sees; `...` are axes of sequences, [E] of one network, say.

    Attributes:
        inputs: [..., T, I].
        resets: [..., T] bool, where an episode begins: before this step the hidden is zero.
        hidden: [..., H] at the start of the sequence; data, through which no gradient flows into an earlier rollout.
    """

    inputs: jax.Array
    resets: jax.Array
    hidden: jax.Array


class Batch(NamedTuple):
    """What an algorithm's update sees of a rollout; [N, B] are [N, E, T] if the actors are recurrent.

    Attributes:
        obs: [N, B, I] what the actors saw: standardised observations, agent ids if they get them; `Sequences` [N, E] if
            they are recurrent.
        action: [N, B, A] float (continuous; before squashing), [N, B] int32 (discrete) or [N, B, D] (multi-discrete).
        action_mask: [N, B, A] bool.
        advantage: [N, B] GAE, standardised over the batch.
    """

    obs: jax.Array | Sequences
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
