"""Jumanji's interface, on an environment of its kind and on Jumanji's own."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from tests.support.grids import rare, slow_unless


class Observation(NamedTuple):
    agents_view: jax.Array
    action_mask: jax.Array
    step_count: jax.Array


class Step(NamedTuple):
    observation: Observation
    reward: jax.Array
    is_last: jax.Array

    def last(self):
        return self.is_last


class Counters:
    """Two agents who count up to the end of the task, 3, by what they choose; choice 2 is never offered, agent 1 has none."""

    time_limit = 4

    def __init__(self, choices=(3, 2), mask=((True, True, False), (False, False, False))):
        self.action_spec = SimpleNamespace(num_values=np.asarray(choices))
        self.mask = jnp.asarray(mask)

    def _after(self, state, reward):
        view = jnp.stack([state["count"], -state["count"]])[:, None] * jnp.arange(1, 4)
        return Step(Observation(view, self.mask, state["t"]), reward, (state["count"] >= 3) | (state["t"] >= 4))

    def reset(self, key):
        state = {"key": key, "count": jnp.zeros((), jnp.int32), "t": jnp.zeros((), jnp.int32)}
        return state, self._after(state, jnp.zeros(()))

    def step(self, state, action):
        state = {"key": state["key"], "count": state["count"] + jnp.sum(action), "t": state["t"] + 1}
        return state, self._after(state, 10.0 * action[0] + action[1])


@jax.jit
def played(actions):
    """The time steps of `Counters` under actions [T, 2]."""
    env = envs.from_jumanji(Counters())
    env_state, first = env.reset(jax.random.key(0), ())
    step = lambda state, action: env.step(jax.random.key(0), state, action, ())  # noqa: E731
    return first, jax.lax.scan(step, env_state, actions)[1]


def test_views_ids_masks_and_a_reward_for_all():
    spec = envs.from_jumanji(Counters()).spec
    assert (spec.name, spec.agents, spec.team_reward) == ("Counters", ("agent_0", "agent_1"), True)
    assert (spec.action_sizes, spec.observation_sizes, spec.state_size) == ((3, 2), (5, 5), 7)
    first, steps = played(jnp.asarray([[1, 0], [0, 1]]))
    np.testing.assert_array_equal(steps.obs[1], [[2, 4, 6, 1, 0], [-2, -4, -6, 0, 1]])
    np.testing.assert_array_equal(steps.state[1], [2, 4, 6, -2, -4, -6, 2])
    np.testing.assert_array_equal(first.action_mask, [[True, True, False], [True, True, False]])
    np.testing.assert_array_equal(steps.reward, [[10, 10], [1, 1]])


@pytest.mark.parametrize(
    "actions, terminated", [([[1, 0], [1, 1], [0, 0]], [False, True, True]), ([[0, 0]] * 4, [False] * 4)]
)
def test_the_end_of_the_task_and_the_limit(actions, terminated):
    steps = played(jnp.asarray(actions))[1]
    np.testing.assert_array_equal(steps.terminated, terminated)
    np.testing.assert_array_equal(steps.truncated, np.arange(1, len(actions) + 1) == 4)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: envs.from_jumanji(Counters(mask=((True,) * 3,) * 4)),
            "its action is 2 choices of one agent; accepted: one",
        ),
        (lambda: envs.from_jumanji(Counters(), episode_length=5), "episode_length=5; it must be at most"),
        (lambda: envs.from_jumanji(SimpleNamespace(unwrapped=Counters())), "SimpleNamespace has no reset of its own"),
    ],
)
def test_what_does_not_fit_is_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*slow_unless((), ["LevelBasedForaging-v0"]), *rare(["RobotWarehouse-v0"])])
def test_plays_as_jumanjis_own_step(name):
    jumanji = pytest.importorskip("jumanji")
    env, other = envs.make(f"jumanji/{name}", episode_length=12), jumanji.make(name)
    envs.check(env, steps=15, num_envs=2)
    actions = jax.random.randint(jax.random.key(1), (10, env.spec.num_agents), 0, min(env.spec.action_sizes))

    @jax.jit
    def both(key):
        ours, theirs = env.reset(key, env.params)[0], other.reset(key)[0]

        def step(states, action):
            ours, after = env.step(key, states[0], action, env.params)
            theirs, expected = other.step(states[1], action)
            return (ours, theirs), (after, expected)

        return jax.lax.scan(step, (ours, theirs), actions)[1]

    after, expected = both(jax.random.key(0))
    views = expected.observation.agents_view
    np.testing.assert_array_equal(after.obs[..., : views.shape[-1]], views)
    np.testing.assert_array_equal(after.action_mask, expected.observation.action_mask)
    np.testing.assert_allclose(after.reward, jnp.broadcast_to(expected.reward.reshape(10, -1), after.reward.shape))


@pytest.mark.slow
def test_names_are_those_of_the_package():
    jumanji = pytest.importorskip("jumanji")
    assert {name.removeprefix("jumanji/") for name in envs.names() if name.startswith("jumanji/")} <= set(
        jumanji.registered_environments()
    )
    with pytest.raises(ValueError, match="env 'jumanji/Chess-v0': Jumanji cannot make it .*; registered: "):
        envs.make("jumanji/Chess-v0")
    assert envs.make("jumanji/levelbasedforaging-v0").spec.name == "jumanji/LevelBasedForaging-v0"
