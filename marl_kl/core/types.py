"""Every shared type, and the one axis legend.

    T  rollout_length            N  number of agents
    E  num_envs                  O  observation size, padded to the largest agent
    B  E * T, one batch          A  action size, padded to the largest agent
    S  global state size         V  values: 1 for a team reward and a centralised critic, N otherwise
    G  actor networks: N, or 1   I  input size of an actor: O, or O + N with agent ids
    D  sub-actions, padded       K  choices in each, padded: for multi-discrete actions A = D * K
    H  recurrent_size

The parameters of all agents are one pytree whose leaves have a leading network axis [G, ...]; the padded entries of
agents with smaller observation or action spaces are zero and stay zero. G is 1 if all agents share one network, else N.

A batch has *sample axes*. The first of them indexes *rows*, which may be subsampled, shuffled and pooled over agents.
Feed-forward networks: sample axes [B], a row is one sample; those of an environment are together. Recurrent networks:
[E, T], a row is the whole rollout of one environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Params = Any
"""A pytree of arrays."""

Metrics = dict[str, jax.Array]
"""Named arrays that an update reports; `marl_kl.core.metrics` lists the names."""

Carry = Any
"""The hidden state of recurrent networks (of their GRU), [..., H]; `()` for feed-forward networks."""


class Sequences(NamedTuple):
    """Inputs of a recurrent network; `...` are batch axes, for one network [E].

    Attributes:
        inputs: [..., T, I].
        resets: [..., T] bool, true at the first step of an episode: the hidden state is set to zero before it.
        hidden: [..., H] hidden state at the start of the sequence; constant, so that gradients stop at the rollout's
            start (truncated backpropagation through time).
    """

    inputs: jax.Array
    resets: jax.Array
    hidden: jax.Array


class Batch(NamedTuple):
    """The data of one update; [N, B] are [N, E, T] if the actors are recurrent.

    Attributes:
        obs: [N, B, I] inputs of the actors: standardised observations and, if enabled, agent ids; `Sequences` [N, E] if
            recurrent.
        action: [N, B, A] float (continuous; before squashing), [N, B] int32 (discrete) or [N, B, D] (multi-discrete).
        action_mask: [N, B, A] bool.
        advantage: [N, B] GAE, standardised over the batch.
        alive: [N, B] bool, the samples that count; None: all (`marl_kl.core.weighted`).
    """

    obs: jax.Array | Sequences
    action: jax.Array
    action_mask: jax.Array
    advantage: jax.Array
    alive: jax.Array | None = None


class Algorithm(NamedTuple):
    """The update of all actors on one batch: all that the trainer knows of an algorithm.

    Attributes:
        init: `init(actors) -> algorithm_state`, a pytree (optimiser states; `()` if there are none).
        update: `update(key, actors, algorithm_state, batch) -> (actors, algorithm_state, metrics)`.
        critic_input: "state": advantages of one centralised critic of the global state; "observation": of one critic
            per agent, whose inputs are the agent's own.
    """

    init: Callable[[Params], Any]
    update: Callable[[jax.Array, Params, Any, Batch], tuple[Params, Any, Metrics]]
    critic_input: Literal["state", "observation"] = "state"
