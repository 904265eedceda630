"""A tiny environment for every kind of action, with agents of different sizes and varying action masks."""

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Env, EnvSpec, TimeStep, multi_discrete_sizes
from envs.time_limit import with_time_limit

SUB_ACTIONS = ((3, 2), (2,), (1, 3, 2))
_ACTIONS = {
    "continuous": {"action_sizes": (2, 1, 3), "action_kind": "continuous"},
    "discrete": {"action_sizes": (3, 2, 4), "action_kind": "discrete"},
    "multi_discrete": {
        "action_sizes": multi_discrete_sizes(SUB_ACTIONS), "action_kind": "multi_discrete", "sub_actions": SUB_ACTIONS
    },
}  # fmt: skip
_LOW, _HIGH = ((-1.0, 0.0), (-3.0,), (-1.0, 2.0, -2.0)), ((1.0, 0.5), (-1.0,), (1.0, 3.0, 2.0))
KINDS = (*_ACTIONS, "squashed")


def kinds_env(kind, episode_length=3):
    """Each agent observes its own coin; state and observations are drawn independently in every step.

    The reward is the mean of all action entries times the first agent's coin. It is NaN for an action that is not
    available: a choice that the mask forbids, which it does at random with all but one of them, a padded entry other
    than 0, and for "squashed" one outside the control range.
    """
    squashed = {"action_low": _LOW, "action_high": _HIGH} if kind == "squashed" else {}
    kind = "continuous" if squashed else kind
    spec = EnvSpec(
        name="kinds", agents=("a", "b", "c"), observation_sizes=(2, 1, 3), state_size=2, episode_length=episode_length,
        **_ACTIONS[kind], **squashed,
    )  # fmt: skip

    def shown(key, reward):
        key_obs, key_state, key_mask = jax.random.split(key, 3)
        obs = jax.random.bernoulli(key_obs, shape=(3, 3)).astype(jnp.float32) * spec.observation_mask
        mask = jnp.asarray(spec.action_mask)
        if kind != "continuous":
            # the last choice of every one stays: a real one may always be made
            groups = mask.reshape(3, -1, spec.num_choices if kind == "multi_discrete" else spec.action_size)
            last = jnp.cumsum(groups[..., ::-1], -1)[..., ::-1] == 1
            mask = (groups & (last | jax.random.bernoulli(key_mask, shape=groups.shape))).reshape(mask.shape)
        state = jax.random.normal(key_state, (2,))
        falsehood = jnp.zeros((), bool)
        return (obs, mask), TimeStep(obs, state, jnp.full(3, reward), falsehood, falsehood, mask)

    def reset(key, params):
        return shown(key, 0.0)

    def step(key, before, action, params):
        obs, mask = before
        assert action.shape == spec.action_shape
        assert action.dtype == (jnp.float32 if kind == "continuous" else jnp.int32)
        fine = is_available(spec, action, mask)
        return shown(key, jnp.where(fine, jnp.mean(action * 1.0) * obs[0, 0], jnp.nan))

    return with_time_limit(Env(spec, reset, step))


def is_available(spec, action, mask):
    """[] bool: whether a joint action is one that the masks [N, A] (and the control range) leave."""
    if spec.action_kind == "continuous":
        low, high = (-np.inf, np.inf) if spec.action_range is None else spec.action_range
        return jnp.all(jnp.where(mask, (low <= action) & (action <= high), action == 0))
    groups = mask.reshape(*action.shape, -1)
    chosen = jnp.take_along_axis(groups, action[..., None], -1)[..., 0]
    return jnp.all(jnp.where(groups.any(-1), chosen, action == 0))
