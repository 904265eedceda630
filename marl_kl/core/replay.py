"""The replay of an off-policy algorithm: flashbax's trajectory buffers, inside the compiled loop.

Every environment has a row of consecutive env steps, in which each observation is stored once: the successor of a step
is the next one. Only where a time limit cut an episode is the successor not there, but the reset; these final
observations are in a second, small buffer, into which each rollout adds as many as it can have, so that both
turn over together. Flashbax samples the windows; what is read of observations afterwards are the two ends alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvSpec, TimeStep
from marl_kl.config import OffPolicyConfig
from marl_kl.core.rollout import Trajectory

RUNNING, TERMINATED, LOST = -1, -2, -3
"""`Transition.end` within an episode, at its end, and where it was cut but the final observation is not known."""


class Transition(NamedTuple):
    """What is stored of an env step, without padding; `...` are batch axes.

    Attributes:
        obs: [..., sum of the observation sizes] raw. state: [..., S] raw.
        action: of the policies: [..., sum of the action sizes] float if continuous; [..., N] or [..., N, D] in the smallest integer type.
        action_mask: [..., N, A] bool of choices; None if continuous.
        alive: [..., N] bool; None if the environment does not report it.
        reward: [..., V].
        end: [...] int32: `RUNNING`, `TERMINATED`, `LOST`, or the index of the final observation where a time limit cut.
    """

    obs: jax.Array
    state: jax.Array
    action: jax.Array
    action_mask: jax.Array | None
    alive: jax.Array | None
    reward: jax.Array
    end: jax.Array


class Final(NamedTuple):
    """Successors of truncated steps: as in `Transition`."""

    obs: jax.Array
    state: jax.Array
    action_mask: jax.Array | None


class ReplayState(NamedTuple):
    """transitions, finals: flashbax states of `Transition` [E, L] and `Final` [E, F]."""

    transitions: Any
    finals: Any


class Sample(NamedTuple):
    """n-step transitions, raw and padded.

    Attributes:
        obs: [B, N, O]. state: [B, S]. action: [B, N, A], [B, N] or [B, N, D]. action_mask: [B, N, A].
        alive: [B, N] bool, or None.
        reward: [B, V] sum of gamma^k r_k over the m <= n_step steps until the episode's end.
        discount: [B] gamma^m; 0 if the task ended.
        next_obs, next_state, next_action_mask: after m steps; of a truncated episode its true last ones.
        known: [B] bool; whether they are: see `LOST`.
    """

    obs: jax.Array
    state: jax.Array
    action: jax.Array
    action_mask: jax.Array
    alive: jax.Array | None
    reward: jax.Array
    discount: jax.Array
    next_obs: jax.Array
    next_state: jax.Array
    next_action_mask: jax.Array
    known: jax.Array


class Replay(NamedTuple):
    """Pure functions of a replay; spec, config: of the run."""

    spec: EnvSpec
    config: OffPolicyConfig

    def init(self, timestep: TimeStep) -> ReplayState:
        """An empty replay; timestep: of the environments, leaves [E, ...].

        Raises:
            ModuleNotFoundError: flashbax is not installed.
        """
        first = jax.tree.map(lambda leaf: leaf[0], timestep)
        choices = None if self._is_continuous else first.action_mask
        action = self._packed_action(self.spec.example_action)
        reward = jnp.zeros(1 if self.spec.team_reward else self.spec.num_agents, jnp.float32)
        obs = self._packed_obs(first.obs)
        transition = Transition(obs, first.state, action, choices, first.alive, reward, jnp.zeros((), jnp.int32))
        transitions, finals = self._buffers
        return ReplayState(transitions.init(transition), finals.init(Final(obs, first.state, choices)))

    def add(self, state: ReplayState, trajectory: Trajectory) -> ReplayState:
        """Adds a rollout."""
        cut = trajectory.done & ~trajectory.terminated
        number = jnp.cumsum(cut, axis=0) - 1
        first_slot, finals_length = state.finals.current_index, state.finals.experience.obs.shape[1]
        # a rollout's slots are consecutive: the length is a multiple of their number
        slot = jnp.arange(cut.shape[1]) * finals_length + first_slot + number
        end = jnp.where(cut, jnp.where(number < self._finals_per_rollout, slot, LOST), RUNNING)
        end = jnp.where(trajectory.terminated, TERMINATED, end).astype(jnp.int32)
        transition = Transition(
            self._packed_obs(trajectory.obs),
            trajectory.state,
            self._packed_action(trajectory.action),
            None if self._is_continuous else trajectory.action_mask,
            trajectory.alive,
            trajectory.critic_reward(self.spec.team_reward),
            end,
        )
        # [K, E] the steps at which the rollout's k-th cut is, anything where there is none
        step = jnp.stack([jnp.argmax(cut & (number == k), axis=0) for k in range(self._finals_per_rollout)])
        env = jnp.arange(cut.shape[1])
        masks = None if self._is_continuous else trajectory.next_action_mask[step, env]
        final = Final(self._packed_obs(trajectory.next_obs[step, env]), trajectory.next_state[step, env], masks)
        transitions, finals = self._buffers
        return ReplayState(
            transitions.add(state.transitions, _env_major(transition)), finals.add(state.finals, _env_major(final))
        )

    def num_transitions(self, state: ReplayState) -> jax.Array:
        """[] int32 transitions in the replay."""
        buffer = state.transitions
        length = jnp.where(buffer.is_full, self.config.replay_length, buffer.current_index)
        return length.astype(jnp.int32) * self.config.num_envs

    def can_sample(self, state: ReplayState) -> jax.Array:
        """[] bool: whether a window of `n_step` and its successor are there."""
        return self._buffers[0].can_sample(state.transitions)

    def sample(self, key: jax.Array, state: ReplayState, gamma: float | jax.Array) -> Sample:
        """`minibatch_size` transitions drawn uniformly, with replacement, from those whose window is complete."""
        stored, finals = (jax.tree.map(_flat, buffer.experience) for buffer in state)
        row = jnp.arange(stored.end.shape[0], dtype=jnp.int32).reshape(state.transitions.experience.end.shape)
        # of whole windows only what a return needs
        windows = (state.transitions.experience.reward, state.transitions.experience.end, row)
        reward, end, row = self._buffers[0].sample(state.transitions.replace(experience=windows), key).experience
        returns = n_step_return(reward[:, :-1], end[:, :-1], gamma)
        start = jax.tree.map(lambda leaf: leaf[row[:, 0]], stored)
        later = jnp.take_along_axis(row, returns.length[:, None], axis=1)[:, 0]
        is_cut, final = returns.end >= 0, jnp.maximum(returns.end, 0)

        def successor(of_stored, of_finals):
            choose = is_cut.reshape(-1, *(1,) * (of_stored.ndim - 1))
            return jnp.where(choose, of_finals[final], of_stored[later])

        after = jax.tree.map(successor, Final(stored.obs, stored.state, stored.action_mask), finals)
        real = jnp.broadcast_to(self.spec.action_mask, (row.shape[0], *self.spec.action_mask.shape))
        return Sample(
            self._padded_obs(start.obs),
            start.state,
            self._padded_action(start.action),
            real if start.action_mask is None else start.action_mask,
            start.alive,
            returns.reward,
            returns.discount,
            self._padded_obs(after.obs),
            after.state,
            real if after.action_mask is None else after.action_mask,
            returns.end != LOST,
        )

    @property
    def _is_continuous(self) -> bool:
        return self.spec.action_kind == "continuous"

    @property
    def _finals_per_rollout(self) -> int:
        """The most episodes of an environment that its time limit can end in a rollout."""
        return -(-self.config.rollout_length // self.spec.episode_length)

    @property
    def _buffers(self) -> tuple[Any, Any]:
        flashbax = require_flashbax()
        config = self.config
        window = config.n_step + 1
        transitions = flashbax.make_trajectory_buffer(
            config.num_envs, config.minibatch_size, window, 1, window, max_length_time_axis=config.replay_length
        )
        length = config.replay_length // config.rollout_length * self._finals_per_rollout
        return transitions, flashbax.make_trajectory_buffer(config.num_envs, 1, 1, 1, 1, max_length_time_axis=length)

    def _packed_obs(self, obs: jax.Array) -> jax.Array:
        return _packed(obs, self.spec.observation_mask)

    def _padded_obs(self, packed: jax.Array) -> jax.Array:
        return _padded(packed, self.spec.observation_mask)

    def _packed_action(self, action: jax.Array) -> jax.Array:
        if self._is_continuous:
            return _packed(action, self.spec.action_mask)
        choices = self.spec.num_choices or self.spec.action_size
        return action.astype(np.min_scalar_type(choices - 1))

    def _padded_action(self, stored: jax.Array) -> jax.Array:
        return _padded(stored, self.spec.action_mask) if self._is_continuous else stored.astype(jnp.int32)


class NStepReturn(NamedTuple):
    """Sums of rewards [B, V] over `length` [B] steps, the discount [B] of what follows, and the `end` [B] of the last."""

    reward: jax.Array
    length: jax.Array
    discount: jax.Array
    end: jax.Array


def n_step_return(reward: jax.Array, end: jax.Array, gamma: float | jax.Array) -> NStepReturn:
    """sum_{k<m} gamma^k r_k with m <= n, cut at the first end of an episode; reward: [B, n, V], end: [B, n]."""
    has_ended = end != RUNNING
    counts = jnp.cumsum(has_ended, axis=1) - has_ended == 0
    length = jnp.sum(counts, axis=1)
    powers = gamma ** jnp.arange(end.shape[1], dtype=reward.dtype)
    # not times 0: what follows the end may be NaN
    total = jnp.sum(jnp.where(counts[..., None], reward * powers[:, None], 0.0), axis=1)
    last = jnp.take_along_axis(end, length[:, None] - 1, axis=1)[:, 0]
    discount = jnp.where(last == TERMINATED, 0.0, gamma ** length.astype(reward.dtype))
    return NStepReturn(total, length, discount, last)


def require_flashbax() -> Any:
    """The package, or a ModuleNotFoundError that says how to install it."""
    try:
        import flashbax
    except ModuleNotFoundError as error:
        if error.name != "flashbax":
            raise
        raise ModuleNotFoundError(
            "off-policy algorithms need flashbax, which is not installed; pip install 'marl_kl[off-policy]'"
        ) from None
    return flashbax


def _env_major(tree: Any) -> Any:
    """[T, E, ...] -> [E, T, ...]."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


def _flat(leaf: jax.Array) -> jax.Array:
    """[E, L, ...] -> [E * L, ...]."""
    return leaf.reshape(-1, *leaf.shape[2:])


def _packed(x: jax.Array, real: np.ndarray) -> jax.Array:
    """[..., N, X] -> its real entries [..., sum]."""
    return x.reshape(*x.shape[:-2], -1)[..., np.flatnonzero(real)]


def _padded(packed: jax.Array, real: np.ndarray) -> jax.Array:
    """The inverse of `_packed`, with zeros."""
    flat = jnp.zeros((*packed.shape[:-1], real.size), packed.dtype)
    return flat.at[..., np.flatnonzero(real)].set(packed).reshape(*packed.shape[:-1], *real.shape)
