"""What an environment says about its actions: shapes, masks, ranges, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

import envs
import marl_kl
from envs.base import EnvSpec, check_timestep
from marl_kl.core.trainer import make_train
from tests.support.kinds_env import kinds_env

TWO = {"name": "two", "agents": ("a", "b"), "observation_sizes": (1, 1), "state_size": 1, "episode_length": 1}


def test_masks_of_multi_discrete_actions_mark_the_choices_that_exist():
    spec = EnvSpec(**TWO, action_sizes=(6, 3), action_kind="multi_discrete", sub_actions=((3, 2), (1,)))
    assert (spec.num_sub_actions, spec.num_choices, spec.action_size, spec.action_shape) == (2, 3, 6, (2, 2))
    np.testing.assert_array_equal(spec.action_mask.astype(int), [[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]])
    assert envs.make("matrix_game").spec.action_shape == (4,)
    assert envs.make("bilinear").spec.action_shape == (2, 1)


def test_ranges_are_padded_with_zeros():
    low, high = kinds_env("squashed").spec.action_range
    np.testing.assert_array_equal(low, [[-1, 0, 0], [-3, 0, 0], [-1, 2, -2]])
    np.testing.assert_array_equal(high, [[1, 0.5, 0], [-1, 0, 0], [1, 3, 2]])
    assert envs.make("bilinear").spec.action_range is None


def test_bodies_know_the_range_of_their_controls():
    """In the order of an agent's joints: what the controls are clipped to, taken through the wiring."""
    env = envs.make("hopper", partition=(("thigh_joint", "foot_joint"), ("leg_joint",)))
    low, high = env.spec.action_range
    np.testing.assert_array_equal(low, [[-1, -1], [-1, 0]])
    ends = np.array(env.drawing.tree.control_range).T
    for end, action in zip(ends, (low, high)):
        np.testing.assert_array_equal(env.wiring.controls(action), end)
        np.testing.assert_array_equal(env.wiring.controls(3 * action), end)


MULTI = {"action_sizes": (4, 2), "action_kind": "multi_discrete"}
CONTINUOUS = {"action_sizes": (2, 1), "action_kind": "continuous"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({**MULTI}, "sub_actions=None; it must be 2 tuples of at least one number of choices"),
        ({**MULTI, "sub_actions": ((2, 2),)}, "it must be 2 tuples"),
        ({**MULTI, "sub_actions": ((2, 2), ())}, "it must be 2 tuples"),
        ({**MULTI, "sub_actions": ((2, 0), (2,))}, "it must be 2 tuples"),
        ({**MULTI, "sub_actions": ((2, 3), (2,))}, r"action_sizes=\(4, 2\); .* padded to 3 choices, .* be \(6, 3\)"),
        ({**CONTINUOUS, "sub_actions": ((1,), (1,))}, "it must be None for continuous actions"),
        ({**CONTINUOUS, "action_low": ((0, 0), (0,))}, r"action_high=None; both need one number .*, \(2, 1\)"),
        ({**CONTINUOUS, "action_low": ((0, 0), (0,)), "action_high": ((1,), (1,))}, "both need one number"),
        ({**CONTINUOUS, "action_low": ((0, 2), (0,)), "action_high": ((1, 2), (1,))}, "each low below its high"),
        ({**CONTINUOUS, "action_low": ((0, 0), (0,)), "action_high": ((1, np.inf), (1,))}, "all must be finite"),
        ({**MULTI, "sub_actions": ((2, 2), (2,)), "action_low": ((0,),)}, "None for multi_discrete actions"),
        ({**CONTINUOUS, "agents": ("a", "a")}, r"agents=\('a', 'a'\); 'a' is there more than once"),
        ({**CONTINUOUS, "agents": ("a", "b\n")}, r"name 'b\\n'; it must be a text of printable characters"),
        ({**CONTINUOUS, "agents": ("a", " ")}, "name ' '; it must be a text"),
        ({**CONTINUOUS, "observation_sizes": (1, 0)}, "a size in observation_sizes=0; it must be an integer >= 1"),
        ({**CONTINUOUS, "action_sizes": (2, -1)}, "a size in action_sizes=-1; it must be an integer >= 1"),
        ({**CONTINUOUS, "state_size": 0}, "state_size=0; it must be an integer >= 1"),
        ({**CONTINUOUS, "episode_length": 0.5}, "episode_length=0.5; it must be an integer >= 1"),
        ({**CONTINUOUS, "action_kind": "hybrid"}, "accepted: 'continuous', 'discrete', 'multi_discrete'"),
    ],
)
def test_contradictory_specs_give_a_one_line_error(fields, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        EnvSpec(**{**TWO, **fields})
    assert str(error.value).startswith("env 'two': ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "wrong", "sentence"),
    [
        ("action_mask", np.ones((3, 8), bool), r"action_mask has shape \(3, 8\); its spec says \(3, 9\)"),
        ("action_mask", np.ones((3, 9)), "action_mask is float64; it must be bool"),
        ("alive", np.ones(3), "alive is float64; it must be bool"),
        ("alive", np.ones((3, 1), bool), r"alive has shape \(3, 1\); its spec says \(3,\)"),
        ("obs", np.zeros((9,)), r"obs has shape \(9,\); its spec says \(3, 3\)"),
    ],
)
def test_an_environment_that_contradicts_its_spec_is_refused(field, wrong, sentence):
    env = kinds_env("multi_discrete")
    shown = env.reset(jax.random.key(0), ())[1]
    check_timestep(env.spec, shown)
    with pytest.raises(ValueError, match=sentence):
        check_timestep(env.spec, shown._replace(**{field: wrong}))


def test_wrong_masks_are_refused_before_anything_is_compiled():
    env = kinds_env("multi_discrete")

    def reset(key, params):
        env_state, shown = env.reset(key, params)
        return env_state, shown._replace(action_mask=shown.action_mask[:, :-1])

    train = make_train(env._replace(reset=reset), "hatrpo", marl_kl.TrustRegionConfig(num_envs=2, rollout_length=2))
    with pytest.raises(ValueError, match="env 'kinds': action_mask has shape"):
        jax.eval_shape(train.init, jax.random.key(0))


def test_records_of_older_versions_still_describe_an_environment():
    stored = dataclasses.asdict(envs.make("bilinear").spec)
    for name in ("sub_actions", "action_low", "action_high"):
        del stored[name]
    assert EnvSpec(**stored) == envs.make("bilinear").spec
