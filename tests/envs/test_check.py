"""`envs.check`: what keeps the contract passes, and every promise that is broken is named in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.time_limit import with_time_limit
from tests.support.counting_env import counting_env

GOOD = counting_env(episode_length=5)


def changed(after_step=lambda timestep, state: timestep, after_reset=lambda timestep: timestep, env=GOOD, **spec):
    """`env` with other timesteps."""

    def reset(key, params):
        state, timestep = env.reset(key, params)
        return state, after_reset(timestep)

    def step(key, state, action, params):
        state, timestep = env.step(key, state, action, params)
        return state, after_step(timestep, state)

    return env._replace(spec=env.spec.__class__(**{**vars(env.spec), **spec}), reset=reset, step=step)


def with_field(**fields):
    return lambda timestep, *_: timestep._replace(**fields)


def forgetful(env=GOOD):
    """Something outside of the state remembers how often it was traced."""
    traced = []

    def after_step(timestep, state):
        traced.append(None)
        return timestep._replace(reward=timestep.reward + len(traced))

    return changed(after_step, env=env)


def other_dtype(env=GOOD):
    def step(key, state, action, params):
        state, timestep = env.step(key, state, action, params)
        return state._replace(t=state.t.astype(jnp.float32)), timestep

    return env._replace(step=step)


BROKEN = {
    "no environment": (lambda: "ant_4x2", "env='ant_4x2' is no envs.Env"),
    "list in the spec": (lambda: changed(metadata=[("a", "b")]), "its spec is not hashable"),
    "shape": (
        lambda: changed(with_field(obs=jnp.zeros((2, 3)))),
        r"obs after step is float32\[2, 3\]; it must be float32\[2, 2\]",
    ),
    "type": (lambda: changed(after_reset=with_field(reward=jnp.zeros(2, int))), r"reward after reset is int32\[2\]"),
    "state type": (other_dtype, r"env_state.t is int32\[\] after reset and float32\[\] after step"),
    "what is returned": (lambda: GOOD._replace(reset=lambda key, params: jnp.zeros(2)), "reset must return"),
    "NaN": (lambda: changed(lambda ts, s: ts._replace(state=ts.state / (2 - s.t))), "state after a step is not finite"),
    "padding": (lambda: changed(observation_sizes=(2, 1)), "obs after a step is not 0 beyond observation_sizes"),
    "mask": (
        lambda: changed(with_field(action_mask=jnp.zeros((2, 1), bool))),
        "action_mask after a step is not that of action_sizes",
    ),
    "reward at reset": (lambda: changed(after_reset=with_field(reward=jnp.ones(2))), "reward after reset is not 0"),
    "over at reset": (lambda: changed(after_reset=with_field(truncated=jnp.ones((), bool))), "ended at its reset"),
    "both": (lambda: changed(lambda ts, s: ts._replace(terminated=ts.truncated)), "terminated and truncated at once"),
    "too long": (lambda: changed(episode_length=4), "an episode continues after episode_length=4 steps"),
    "too early": (lambda: changed(episode_length=7), "truncated before episode_length=7"),
    "alive": (
        lambda: changed(with_field(alive=jnp.ones(3, bool)), with_field(alive=jnp.ones(2, bool))),
        r"alive after step is bool\[3\]; it must be bool\[2\]",
    ),
    "alive sometimes": (lambda: changed(with_field(alive=jnp.ones(2, bool))), "alive is None after one of reset and step"),
    "rewards": (lambda: changed(env=counting_env(team_reward=False), team_reward=True), "agents receive different rewards"),
    "memory": (forgetful, "the same keys give another reward"),
    "draw at a reset": (
        lambda: GOOD._replace(draw=lambda axes, env_state, action, params: axes.plot(action[0], 0)),
        "draw fails after a reset: TypeError: 'NoneType' object is not subscriptable",
    ),
    "draw after a step": (
        lambda: GOOD._replace(draw=lambda axes, env_state, action, params: action is None or axes.plot(action.no, 0)),
        "draw fails after a step: AttributeError: 'numpy.ndarray' object has no attribute 'no'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_every_contract_violation_gives_a_one_line_error(case):
    make, sentence = BROKEN[case]
    with pytest.raises(ValueError, match=sentence) as raised:
        envs.check(make(), num_envs=2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "env",
    [GOOD, counting_env(5, terminate_at=3, team_reward=False), envs.make("digits", digits_of=(2, 1), steps=3)],
    ids=["limit", "end", "digits"],
)
def test_environments_that_keep_the_contract_pass(env):
    envs.check(env)


def test_compiler_options_of_other_versions_are_left_out():
    envs.check(changed(cpu_compiler_options=(("xla_cpu_no_such_option", True),)))


def test_an_agent_without_a_choice_is_named():
    env = envs.make("matrix_game", steps=3)
    nothing = lambda ts, *_: ts._replace(action_mask=ts.action_mask & False)  # noqa: E731
    with pytest.raises(ValueError, match="an agent has no available choice after a step"):
        envs.check(changed(nothing, env=env))
    too_much = envs.make("matrix_game", payoff=np.ones((2, 3)), steps=3)
    with pytest.raises(ValueError, match="allows more than action_sizes"):
        envs.check(changed(lambda ts, *_: ts._replace(action_mask=ts.action_mask | True), env=too_much))


@pytest.mark.parametrize(
    "terminate_at, limited_inside, terminated", [(5, False, True), (5, True, False), (3, True, True)]
)
def test_a_limit_built_in_is_a_truncation(terminate_at, limited_inside, terminated):
    """An environment that calls its own time limit a termination, and what is said of its last step."""
    # the limit inside counting_env is far away; what it is wrapped in has it at 5
    inside = counting_env(episode_length=50, terminate_at=terminate_at)
    bare = inside._replace(spec=counting_env(episode_length=5).spec)
    env = with_time_limit(bare, limited_inside)
    state, _ = env.reset(jax.random.key(0), ())
    for _ in range(min(terminate_at, 5)):
        state, timestep = env.step(jax.random.key(0), state, jnp.zeros((2, 1)), ())
    assert (bool(timestep.terminated), bool(timestep.truncated)) == (terminated, not terminated)
