"""Bodies: spellings of names, partitions, what agents observe, and bad input."""

import numpy as np
import pytest

import envs
from envs.bodies import scenarios
from tests.support.loaded_bodies import bodies_are_loaded_once  # noqa: F401  for all tests here

pytestmark = pytest.mark.physics


@pytest.mark.parametrize(
    "options, sizes",
    [
        ({}, (31,) * 4),
        ({"agent_id": False}, (27,) * 4),
        ({"obs": 0}, (15,) * 4),
        ({"obs": 1}, (18,) * 4),
        ({"obs": np.int64(9)}, (21,) * 4),
        ({"obs": 0, "agent_id": True}, (19,) * 4),
    ],
)
def test_observation_sizes(options, sizes):
    """Full: 27 + id. Local: 11 root coordinates, 4 own ones, then the other hips, then everybody's position."""
    assert envs.make("ant_4x2", **options).spec.observation_sizes == sizes


@pytest.mark.parametrize(
    "written, name",
    [
        ("ant-4x2", "ant_4x2"),
        ("Ant-v2-4x2", "ant_4x2"),
        ("Ant-v5 4x2", "ant_4x2"),
        ("ant4X2", "ant_4x2"),
        ("ant_2x4d", "ant_2x4d"),
        ("half_cheetah_6x1", "halfcheetah_6x1"),
        ("HalfCheetah-6x1", "halfcheetah_6x1"),
        ("Humanoid-v2-9|8", "humanoid_9|8"),
        ("humanoid_9_8", "humanoid_9|8"),
        ("HumanoidStandup-v5_17x1", "humanoidstandup_17x1"),
        ("Walker2d-v4-3x2", "walker2d_3x2"),
        ("manyagent_swimmer_3x2", "manyagent_swimmer_3x2"),
        ("ManySegmentSwimmer-10x2", "manyagent_swimmer_10x2"),
        ("coupled_half_cheetah_1p1", "coupled_halfcheetah_1p1"),
        ("2x4-Agent Ant", "ant_2x4"),
        ("4x2 ant", "ant_4x2"),
        ("17x1-agent humanoid", "humanoid_17x1"),
        ("9|8 Humanoid", "humanoid_9|8"),
        ("MaMuJoCo-Ant-4x2", "ant_4x2"),
        ("10x2 Swimmer", "manyagent_swimmer_10x2"),
        ("swimmer_10x2", "manyagent_swimmer_10x2"),
        ("swimmer_2x1", "swimmer_2x1"),
    ],
)
def test_other_spellings_of_names(written, name):
    """Of the ant the body is made, too."""
    assert scenarios.scenario_name(written) == name
    assert not name.startswith("ant") or envs.make(written).spec.name == name


@pytest.mark.slow
def test_a_body_with_a_partition():
    env = envs.make("hopper", partition=[["thigh_joint", "foot_joint"], ["leg_joint"]], obs=0)
    assert env.spec.agents == ("thigh_joint+foot_joint", "leg_joint") and env.spec.name == "hopper"
    assert env.spec.observation_sizes == (9, 7)
    for body, split in (("ant", "2x4d"), ("humanoid", "9|8"), ("pusher", "3p")):
        assert envs.make(body, partition=split).spec.agents == envs.make(f"{body}_{split}").spec.agents


@pytest.mark.slow
def test_categories():
    """Humanoid: each joint's link inertia, velocity and torque too, at distance 0 alone."""
    seen = [["qpos", "qvel", "cinert", "cvel", "qfrc_actuator"], ["qpos"]]
    near, far = (envs.make("humanoid_17x1", obs=hops, categories=seen).spec.observation_sizes for hops in (0, 1))
    assert set(near) == {11 + 1 + 1 + 10 + 6 + 1} and min(f - n for f, n in zip(far, near)) >= 1


def test_segments_are_split_among_agents():
    assert envs.make("manyagent_swimmer_3x2").spec.action_sizes == (2, 2, 2)
    ant = envs.make("manyagent_ant_2x3").spec
    assert ant.action_sizes == (12, 12) and ant.state_size == 311, "MA-MuJoCo's size"


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("ant_3x3", "env 'ant_3x3': 3 x 3 = 9, but the ant has 8 joints; known splits: 2x4, 4x2, 8x1, 2x4d"),
        ("HalfCheetah-4x2", "4 x 2 = 8, but the halfcheetah has 6 joints; known splits: 2x3, 3x2, 6x1"),
        ("ant", "env 'ant' needs partition=..., or one of ant_2x4, ant_4x2, ant_8x1, ant_2x4d"),
        ("ant_1x8", "known splits: 2x4, 4x2, 8x1, 2x4d; make ant with partition='1x8' for this one"),
        ("ant_2x4e", "the ant has no split '2x4e'; known splits: 2x4"),
        ("manyagent_swimmer_1x1", "2 segments at least"),
        ("nothing like it", "unknown env 'nothing like it'; known: ant_2x4"),
        (4, "env=4; it must be a name such as 'ant_4x2', one of envs.names()"),
    ],
)
def test_unknown_names(name, sentence):
    with pytest.raises(ValueError) as error:
        envs.make(name)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"engine": "isaac"}, "engine='isaac'; accepted: None, brax, mjx"),
        ({"engine": "mjx", "backend": "spring"}, "backend='spring'; engine 'mjx' has no other"),
        ({"categories": [["qpos"]]}, "categories=[['qpos']]; with obs='full' accepted: None"),
        ({"obs": 0, "categories": [["qpos", "cinert"]]}, "it must list, per distance, some of qpos, qvel"),
        ({"backend": "warp"}, "backend='warp'; accepted: None, spring, positional, generalized, mjx"),
        ({"obs": -1}, "obs=-1; accepted: 'full' or a number of hops >= 0"),
        ({"obs": "local"}, "obs='local'; accepted: 'full'"),
        ({"obs": True}, "obs=True; accepted: 'full'"),
        ({"agent_id": 1}, "agent_id=1; accepted: None, True, False"),
        ({"episode_length": 0}, "episode_length=0; it must be an integer >= 1"),
        ({"episode_length": 10.5}, "episode_length=10.5; it must be an integer"),
        ({"partition": "3x3"}, "3 x 3 = 9, but the ant has 8 joints"),
        ({"partition": [["hip_1", "hip_1"]]}, "joint 'hip_1' is given 2 times"),
        ({"corrected": False}, "corrected=False; brax's ant has no correction; accepted: True"),
        ({"legs": 4}, "unknown option 'legs'; accepted: engine, backend, obs, categories, agent_id"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(ValueError) as error:
        envs.make("ant_4x2", **options)
    assert str(error.value).startswith("env 'ant_4x2': ") and sentence in str(error.value)
