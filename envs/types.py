"""The environment protocol: a static spec and two pure functions.

Axis legend used in every shape of this package (see also `marl_kl.types`):

    N  number of agents
    O  observation size, padded to the largest agent
    A  action size, padded to the largest agent: action dimensions (continuous) or choices (discrete)
    S  size of the global state
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Literal, NamedTuple

import jax
import numpy as np

from envs.kinematics import KinematicTree


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What never changes about an environment; frozen and hashable, so it may be a static argument of `jit`.

    Attributes:
        name: the name it was made under.
        agents: one name per agent, in the order of every agent axis.
        observation_sizes: true observation size per agent; arrays are padded with zeros to the largest.
        action_sizes: true action size per agent: action dimensions or number of choices.
        action_kind: "continuous" (`action[N, A]`, float) or "discrete" (`action[N]`, int32).
        state_size: size S of the global state that a centralised critic sees.
        episode_length: the longest possible episode, in env steps (the time limit).
        team_reward: whether all agents always receive the same reward.
        metadata: what else a run should record about this environment, as (key, value) pairs.
        cpu_compiler_options: what XLA needs on a CPU to compile this environment in reasonable time, as (name, value)
            pairs for `compiler_options` of `jax.jit`; `marl_kl` applies them itself. No part of equality.
        options: the options that `envs.make` was called with, as (name, value) pairs of plain values, so that the same
            environment can be made again; None if it was not made that way. Two specs are equal whatever it says.
    """

    name: str
    agents: tuple[str, ...]
    observation_sizes: tuple[int, ...]
    action_sizes: tuple[int, ...]
    action_kind: Literal["continuous", "discrete"]
    state_size: int
    episode_length: int
    team_reward: bool = True
    metadata: tuple[tuple[str, str], ...] = ()
    cpu_compiler_options: tuple[tuple[str, bool], ...] = dataclasses.field(default=(), compare=False)
    options: tuple[tuple[str, Any], ...] | None = dataclasses.field(default=None, compare=False)

    @property
    def num_agents(self) -> int:
        return len(self.agents)

    @property
    def observation_size(self) -> int:
        """O: the padded observation size."""
        return max(self.observation_sizes)

    @property
    def action_size(self) -> int:
        """A: the padded action size."""
        return max(self.action_sizes)

    @property
    def observation_mask(self) -> np.ndarray:
        """[N, O] bool: the entries of the padded observation that are real."""
        return np.arange(self.observation_size) < np.asarray(self.observation_sizes)[:, None]

    @property
    def action_mask(self) -> np.ndarray:
        """[N, A] bool: the entries of the padded action (or choices) that are real."""
        return np.arange(self.action_size) < np.asarray(self.action_sizes)[:, None]

    def __post_init__(self):
        counts = {
            "agents": len(self.agents),
            "observation_sizes": len(self.observation_sizes),
            "action_sizes": len(self.action_sizes),
        }
        if len(set(counts.values())) != 1 or not self.agents:
            raise ValueError(f"env '{self.name}': one entry per agent is needed in each of {counts}")
        if self.action_kind not in ("continuous", "discrete"):
            raise ValueError(
                f"env '{self.name}': action_kind={self.action_kind!r}; accepted: 'continuous', 'discrete'"
            )


class TimeStep(NamedTuple):
    """What the agents and the critic receive after a reset or a step.

    Attributes:
        obs: [N, O] float32, zero where padded.
        state: [S] float32, the global state.
        reward: [N] float32, per agent; a team game repeats the team reward. Zero after a reset.
        terminated: [] bool, the task ended: nothing follows, so the value of what follows is 0.
        truncated: [] bool, the time limit cut the episode: `obs` and `state` are its real last ones.
            Never true together with `terminated`.
        action_mask: [N, A] bool: available choices (discrete), real dimensions (continuous).
    """

    obs: jax.Array
    state: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    action_mask: jax.Array


EnvState = Any
"""A pytree that only its own environment reads."""


class Drawing(NamedTuple):
    """What it takes to draw an environment's states, for those that are bodies.

    Attributes:
        model: the `mujoco.MjModel`.
        pose: `pose(env_state) -> [nq]`, generalised positions.
        tree: which actuator drives which joint.
        seconds: simulated seconds per env step.
    """

    model: Any
    pose: Callable[[EnvState], jax.Array]
    tree: KinematicTree
    seconds: float


class Wiring(NamedTuple):
    """How agents are connected to a body: the one copy of these two maps, whatever steps the body.

    Attributes:
        observe: `observe(full[S]) -> [N, O]`, what the agents see of the body's full observation.
        controls: `controls(action[N, A]) -> [actuators]` inside the body's control range, in the order of
            `KinematicTree.actuators`.
    """

    observe: Callable[[jax.Array], jax.Array]
    controls: Callable[[jax.Array], jax.Array]


EnvParams = Any
"""A pytree of numbers that an environment's dynamics depend on (a payoff tensor, say); `()` if none."""


class Env(NamedTuple):
    """A pure, stateless environment with static shapes; it never resets itself.

    Attributes:
        spec: the static description.
        reset: `reset(key, params) -> (env_state, TimeStep)`.
        step: `step(key, env_state, action, params) -> (env_state, TimeStep)`, `action` as `spec.action_kind` says.
            Continuous actions outside the control range are clipped here, not by the policy.
        params: the default `params`.
        drawing: how to draw a state; None if it is no body.
        wiring: how the agents are connected to the body; None if it is no body.
    """

    spec: EnvSpec
    reset: Callable[[jax.Array, EnvParams], tuple[EnvState, TimeStep]]
    step: Callable[[jax.Array, EnvState, jax.Array, EnvParams], tuple[EnvState, TimeStep]]
    params: EnvParams = ()
    drawing: Drawing | None = None
    wiring: Wiring | None = None
