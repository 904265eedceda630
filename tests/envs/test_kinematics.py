"""Factorisations and neighbourhoods against MA-MuJoCo's tables, a tree worked out by hand, and random trees."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from gymnasium_robotics.envs.multiagent_mujoco import obsk
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.bodies import brax_engine, kinematics, mjx_engine, scenarios
from envs.bodies.kinematics import KinematicTree
from tests.support.grids import slow_unless
from tests.support.loaded_bodies import bodies_are_loaded_once  # noqa: F401  for all tests here

MA_MUJOCO = json.loads((Path(__file__).parents[1] / "data" / "ma_mujoco_partitions.json").read_text())["scenarios"]
BODY_OF = {
    "Ant": "ant",
    "CoupledHalfCheetah": "coupled_halfcheetah",
    "HalfCheetah": "halfcheetah",
    "Hopper": "hopper",
    "Humanoid": "humanoid",
    "HumanoidStandup": "humanoidstandup",
    "ManyAgentAnt": "manyagent_ant",
    "ManyAgentSwimmer": "manyagent_swimmer",
    "Swimmer": "swimmer",
    "Walker2d": "walker2d",
}
OTHER_AGENTS = ("HalfCheetah 3x2", "Walker2d 3x2")
"""Not shipped by the library, whose rule would pair joints by the alphabet; ours are consecutive, as the published
results ran them."""
HEADLESS = ("Swimmer", "ManyAgentSwimmer")
"""The library shows nobody the heading and its velocity; ours shows the root to everybody, as for all bodies."""
DIFFERING_AGENTS = {"17x1": (2, 13), "9|8": (0, 1)}
"""Of the humanoids, at 0 and at 1 hops: see `test_humanoids_differ_from_ma_mujoco_as_listed`."""
SEGMENTS = {"manyagent_ant": 6, "manyagent_swimmer": 20}
FAST = ("Hopper 3x1", "ManyAgentSwimmer 10x2")


def limb_tree(parents, action_order=None):
    """A tree with a free root (q: 7 with two skipped, qd: 6) and one hinge per further link.

    `parents[i]` is the parent of link i + 1. Joint i, called "j<i>", moves link i + 1; `action_order` lists the joints
    in the order of the actions.
    """
    joints = list(range(len(parents)) if action_order is None else action_order)
    q_index, qd_index = (tuple(first + joint for joint in joints) for first in (7, 6))
    return KinematicTree(
        body="thing",
        actuators=tuple(f"j{joint}" for joint in joints),
        qd_index=qd_index,
        dof_link=(0,) * 6 + tuple(range(1, len(parents) + 1)),
        link_parents=(-1, *parents),
        control_range=((-1.0, 1.0),) * len(parents),
        entries=kinematics.coordinate_entries(q_index, qd_index, 7 + len(parents), 6 + len(parents), skipped_q=2),
    )


# A torso with one limb of three joints (j0, j1, j2) and one of a single joint (j3); actions in another order.
HAND = limb_tree(parents=(0, 1, 2, 0), action_order=(3, 1, 0, 2))


@functools.cache
def tree_of(body):
    if body in brax_engine.BODIES:
        return brax_engine.load(body, "mjx").tree
    return mjx_engine.load(body, SEGMENTS.get(body)).tree


def compared(scenario):
    """The tree, the library's agents and the partition into them."""
    tree, expected = tree_of(BODY_OF[scenario.split()[0]]), MA_MUJOCO[scenario]["agents"]
    return tree, expected, kinematics.parse_partition(tree, [agent["actuators"] for agent in expected])


def test_every_scenario_of_the_library_is_compared():
    with_sets = [name for name, scenario in MA_MUJOCO.items() if "mistake" not in scenario]
    assert len(MA_MUJOCO) == 19 and len(with_sets) == 17
    assert all({"k0", "k1"} <= set(agent) for name in with_sets for agent in MA_MUJOCO[name]["agents"])


@pytest.mark.parametrize("scenario", slow_unless(FAST, MA_MUJOCO))
def test_same_as_ma_mujoco(scenario):
    """Agents, actions, and what everybody sees at 0 and 1 hops, where the library's own tables are not mistaken."""
    family, _ = scenario.split()
    tree, expected, partition = compared(scenario)
    for names, indices, agent in zip(partition, kinematics.action_indices(tree, partition), expected, strict=True):
        assert dict(zip(names, indices)) == dict(zip(agent["actuators"], agent["action_indices"]))
    if "mistake" in MA_MUJOCO[scenario] or family.startswith("Humanoid"):
        return
    root = {index for index, entry in enumerate(tree.entries) if entry.shared}
    for hops in (0, 1):
        seen = [set(agent) for agent in kinematics.observation_indices(tree, partition, hops)]
        theirs = [set(agent[f"k{hops}"]) for agent in expected]
        if family in HEADLESS:
            assert [ours - root for ours in seen] == [agent - root for agent in theirs]
        else:
            assert seen == theirs


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [name for name in MA_MUJOCO if name.startswith("Humanoid")])
def test_humanoids_differ_from_ma_mujoco_as_listed(scenario):
    """In docs/scenarios.md: the library swaps the coordinates of abdomen_y and abdomen_z, and in its graph all three
    joints of the abdomen touch shoulders and hips, and left and right do not touch."""
    tree, expected, partition = compared(scenario)
    q_of = {5 + joint: tree.actuators[action] for joint, action in enumerate(tree.joint_order)}
    for hops, differing in zip((0, 1), DIFFERING_AGENTS[scenario.split()[1]]):
        seen = kinematics.observation_indices(tree, partition, hops)
        pairs = [(set(ours), set(agent[f"k{hops}"])) for ours, agent in zip(seen, expected, strict=True)]
        positions = [(ours & set(q_of), theirs & set(q_of)) for ours, theirs in pairs]
        assert sum(ours != theirs for ours, theirs in positions) == differing
        for agent, (ours, theirs) in zip(partition, positions):
            more, less = ({q_of[index] for index in side} for side in (ours - theirs, theirs - ours))
            if hops == 0:
                assert more | less in (set(), {"abdomen_y", "abdomen_z"})
            else:
                other_side = {"left": "right", "right": "left"}.get(agent[0].split("_")[0], "neither")
                assert all(name.startswith(other_side) for name in more)
                assert all("abdomen" in name for name in less) or all("abdomen" in name for name in agent)


@pytest.mark.parametrize("scenario", slow_unless(FAST, MA_MUJOCO))
def test_our_splits_are_ma_mujocos(scenario):
    """The same teams, whatever the order of agents and of an agent's joints; the exceptions are deliberate."""
    family, split = scenario.split()
    entry, tree = scenarios.BODIES[BODY_OF[family]], tree_of(BODY_OF[family])
    assert split in entry.splits
    num_agents = split.split("x")[0]
    chunks = f"{num_agents}x{len(tree.actuators) // int(num_agents)}" if entry.segmented else split
    ours = kinematics.parse_partition(tree, dict(entry.named_splits).get(split, chunks))
    theirs = [frozenset(agent["actuators"]) for agent in MA_MUJOCO[scenario]["agents"]]
    assert (set(map(frozenset, ours)) == set(theirs)) != (scenario in OTHER_AGENTS)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "split"), [("Reacher", "2x1"), ("Pusher", "3p")])
def test_arms_are_split_as_in_ma_mujoco(family, split):
    """Not in the tables: their observations are made of other things than q and qd."""
    parts, _, _ = obsk.get_parts_and_edges(family, split)
    tree = tree_of(family.lower())
    ours = kinematics.parse_partition(tree, dict(scenarios.BODIES[family.lower()].named_splits).get(split, split))
    theirs = tuple(tuple(node.act_ids for node in part) for part in parts)
    assert kinematics.action_indices(tree, ours) == theirs


@pytest.mark.parametrize("body", ["halfcheetah", "walker2d"])
def test_3x2_is_the_one_of_the_published_results(body):
    """HATRPO's code and HARL gave agents consecutive pairs of actuators."""
    tree = tree_of(body)
    assert sum(kinematics.factorise(tree, "3x2"), ()) == tree.actuators


def test_joint_order_is_not_action_order():
    ant = tree_of("ant")
    assert ant.actuators[0] == "hip_4"
    legs = kinematics.factorise(ant, "4x2")
    assert kinematics.agent_names(legs) == ("hip_1+ankle_1", "hip_2+ankle_2", "hip_3+ankle_3", "hip_4+ankle_4")
    assert kinematics.action_indices(ant, legs) == ((2, 3), (4, 5), (6, 7), (0, 1))


def test_by_hand():
    """j0 touches the torso as j3 does; the chain is j0 - j1 - j2."""
    by_name = {name: index for index, name in enumerate(HAND.actuators)}

    def names_within(name, hops):
        return {
            HAND.actuators[i] for i, distance in kinematics.distances(HAND, [by_name[name]]).items() if distance <= hops
        }

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
    assert kinematics.distances(fixed, [0]) == {0: 0}


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
        ("3x3", "3 x 3 = 9, but the thing has 4 joints; known splits: 2x2, 4x1"),
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
