"""Factorisations and neighbourhoods against MA-MuJoCo's tables, a tree worked out by hand, and random trees."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import brax_bodies, kinematics
from envs.kinematics import KinematicTree

MA_MUJOCO = json.loads((Path(__file__).parent / "data" / "ma_mujoco_partitions.json").read_text())["scenarios"]
NOT_CONSECUTIVE = ("Ant 2x4d", "HalfCheetah 3x2")


def limb_tree(parents, action_order=None):
    """A tree with a free root (q: 7 with two skipped, qd: 6) and one hinge per further link.

    `parents[i]` is the parent of link i + 1. Joint i, called "j<i>", moves link i + 1; `action_order` lists the joints
    in the order of the actions.
    """
    joints = list(range(len(parents)) if action_order is None else action_order)
    return KinematicTree(
        body="thing",
        actuators=tuple(f"j{joint}" for joint in joints),
        q_index=tuple(7 + joint for joint in joints),
        qd_index=tuple(6 + joint for joint in joints),
        dof_link=(0,) * 6 + tuple(range(1, len(parents) + 1)),
        link_parents=(-1, *parents),
        q_size=7 + len(parents),
        qd_size=6 + len(parents),
        skipped_q=2,
        control_range=((-1.0, 1.0),) * len(parents),
    )


# A torso with one limb of three joints (j0, j1, j2) and one of a single joint (j3); actions in another order.
HAND = limb_tree(parents=(0, 1, 2, 0), action_order=(3, 1, 0, 2))


@pytest.fixture(scope="module")
def trees():
    return {"Ant": brax_bodies.kinematic_tree("ant"), "HalfCheetah": brax_bodies.kinematic_tree("halfcheetah")}


@pytest.mark.parametrize("scenario", MA_MUJOCO)
def test_same_as_ma_mujoco(trees, scenario):
    """Agents, actions, and what everybody sees at 0 and 1 hops.

    Two of its splits are not made of consecutive joints and are read as explicit partitions. It lists the joints of
    the cheetah's 3x2 in alphabetical order, ours are in joint order: compare what belongs together.
    """
    body, factorisation = scenario.split()
    tree, expected = trees[body], MA_MUJOCO[scenario]["agents"]
    listed = [agent["actuators"] for agent in expected]
    partition = kinematics.parse_partition(tree, listed if scenario in NOT_CONSECUTIVE else factorisation)
    for names, indices, agent in zip(partition, kinematics.action_indices(tree, partition), expected, strict=True):
        ours, theirs = dict(zip(names, indices)), dict(zip(agent["actuators"], agent["action_indices"]))
        assert ours == theirs
        assert list(ours) == list(theirs) or scenario in NOT_CONSECUTIVE
    for hops in (0, 1):
        seen = kinematics.observation_indices(tree, partition, hops)
        assert [set(agent) for agent in seen] == [set(agent[f"k{hops}"]) for agent in expected]


def test_halfcheetah_3x2_is_the_one_of_the_published_results(trees):
    """HATRPO's code and HARL ran consecutive pairs, where MA-MuJoCo has (bfoot, bshin), (bthigh, ffoot), ..."""
    published = (("bthigh", "bshin"), ("bfoot", "fthigh"), ("fshin", "ffoot"))
    assert kinematics.factorise(trees["HalfCheetah"], "3x2") == published


def test_ma_mujoco_lists_every_registered_factorisation():
    """So that the comparison above forgets none of them."""
    listed = {scenario.lower().replace(" ", "_") for scenario in MA_MUJOCO}
    assert set(brax_bodies.FACTORIES) <= listed


def test_joint_order_is_not_action_order(trees):
    ant = trees["Ant"]
    assert ant.actuators[0] == "hip_4"
    legs = kinematics.factorise(ant, "4x2")
    assert kinematics.agent_names(legs) == ("hip_1+ankle_1", "hip_2+ankle_2", "hip_3+ankle_3", "hip_4+ankle_4")
    assert kinematics.action_indices(ant, legs) == ((2, 3), (4, 5), (6, 7), (0, 1))


def test_by_hand():
    """j0 touches the torso as j3 does; the chain is j0 - j1 - j2."""
    by_name = {name: index for index, name in enumerate(HAND.actuators)}

    def names_within(name, hops):
        return {HAND.actuators[index] for index in kinematics.within_hops(HAND, [by_name[name]], hops)}

    assert names_within("j2", 0) == {"j2"}
    assert names_within("j2", 1) == {"j2", "j1"}
    assert names_within("j2", 2) == {"j2", "j1", "j0"}
    assert names_within("j2", 3) == {"j2", "j1", "j0", "j3"}
    assert names_within("j3", 1) == {"j3", "j0"}

    partition = kinematics.factorise(HAND, "2x2")
    assert partition == (("j0", "j1"), ("j2", "j3"))
    assert kinematics.action_indices(HAND, partition) == ((2, 1), (3, 0))
    # Observation: root q 0-4, joints' q 5-8, root qd 9-14, joints' qd 15-18.
    root = {*range(5), *range(9, 15)}
    local, one_hop = (kinematics.observation_indices(HAND, partition, hops) for hops in (0, 1))
    assert [set(agent) - root for agent in local] == [{5, 6, 15, 16}, {7, 8, 17, 18}]
    assert [set(agent) - root for agent in one_hop] == [{5, 6, 7, 8, 15, 16}, {5, 6, 7, 8, 17, 18}]


def test_two_limbs_on_the_world_are_not_neighbours():
    """Joints that share only the world touch no common body."""
    fixed = dataclasses.replace(HAND, link_parents=(-1, -1, 1, 2, -1))
    assert kinematics.within_hops(fixed, [0], 9) == {0}


@pytest.mark.parametrize(
    "partition",
    ["4x1", "1x4", "j2+j0|j3+j1", [["j0"], ["j3", "j2", "j1"]], (("j2", "j0", "j1", "j3"),)],
)
def test_partition_text_reads_back(partition):
    parsed = kinematics.parse_partition(HAND, partition)
    assert all(list(agent) == sorted(agent) for agent in parsed), "an agent's joints are in joint order"
    if any(len(agent) > 1 for agent in parsed) or len(parsed) > 1:
        assert kinematics.parse_partition(HAND, kinematics.partition_text(parsed)) == parsed


@pytest.mark.parametrize(
    "partition, sentence",
    [
        ("3x3", "3 x 3 = 9, but the thing has 4 joints; known factorisations: 2x2, 4x1"),
        ("0x4", "0 x 4 = 0, but the thing has 4 joints"),
        ("2x-2", "partition='2x-2'; it must read <agents>x<joints each>; known: 2x2, 4x1"),
        ("legs", "partition='legs'; it must read"),
        ("j0+j1|j1+j2+j3", "joint 'j1' is given 2 times"),
        ([["j0", "j0"], ["j1", "j2", "j3"]], "joint 'j0' is given 2 times"),
        ([["j0"], ["j2", "j3"]], "no agent has j1; every joint needs one"),
        ([["j0", "j1"], ["j2", "j4"]], "unknown joint 'j4'; the thing's joints: j3, j1, j0, j2"),
        ([["j0", "j1", "j2", "j3"], []], "an agent without joints"),
        ([], "no agent has j3, j1, j0, j2"),
        (4, "partition=4; it must be"),
        (["j0", "j1"], "partition=\\['j0', 'j1'\\]; it must be"),
    ],
)
def test_impossible_partitions(partition, sentence):
    with pytest.raises(ValueError, match=sentence):
        kinematics.parse_partition(HAND, partition)


@st.composite
def random_trees(draw):
    parents = [draw(st.integers(0, link)) for link in range(draw(st.integers(1, 8)))]
    return limb_tree(parents, draw(st.permutations(range(len(parents)))))


@settings(max_examples=50, deadline=None)
@given(random_trees(), st.randoms(use_true_random=False))
def test_random_trees(tree, random):
    """Everybody sees itself and the root, more with every hop, all positions in the end, and nobody else's velocity."""
    joints = len(tree.actuators)
    num_agents = random.choice([n for n in range(1, joints + 1) if joints % n == 0])
    partition = kinematics.factorise(tree, f"{num_agents}x{joints // num_agents}")
    own = kinematics.action_indices(tree, partition)
    assert sorted(np.concatenate(own)) == list(range(joints))

    root = set(range(5)) | set(range(5 + joints, 11 + joints))
    first_qd = 5 + joints
    before = [set() for _ in own]
    for hops in range(joints + 1):
        seen = [set(agent) for agent in kinematics.observation_indices(tree, partition, hops)]
        for agent, now, then in zip(own, seen, before, strict=True):
            velocities = {first_qd + tree.qd_index[index] for index in agent}
            assert now >= then | root | velocities
            assert {index for index in now if index >= first_qd} == {first_qd + dof for dof in range(6)} | velocities
        before = seen
    assert all(seen >= set(range(first_qd)) for seen in before)
