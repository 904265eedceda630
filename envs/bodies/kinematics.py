"""Factorisation of a body: the joints that each agent drives, and its observation of the kinematic tree.

Everything follows from one description of a body, `KinematicTree`, without tables per split and without a physics
engine. The rules are those of Multi-Agent MuJoCo (Peng et al. 2021, "FACMAC", `agent_obsk`); the index sets are equal
for the bodies where it follows these rules itself (see `tests/envs/test_kinematics.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

Partition = tuple[tuple[str, ...], ...]
"""The actuator names of every agent, each agent's in joint order."""

Categories = tuple[tuple[str, ...], ...]
"""What is observed of a joint: the k-th entry has the categories visible at distance k, the last also beyond."""

LOCAL_CATEGORIES: Categories = (("qpos", "qvel"), ("qpos",))
"""MA-MuJoCo's: position and velocity of an agent's own joints, only the position of others."""

_WORLD = -1


class ObservationEntry(NamedTuple):
    """One number of the full observation.

    Attributes:
        category: "qpos", "qvel", "cinert", "cvel", "qfrc_actuator" or "cfrc_ext" as in MuJoCo, or "task" (a goal).
        actuators: the action indices of the joints that it belongs to; empty for the root and for the task.
        shared: whether all agents observe it at any number of hops.
    """

    category: str
    actuators: tuple[int, ...]
    shared: bool


@dataclasses.dataclass(frozen=True)
class KinematicTree:
    """The description of a body for the factorisation; frozen and hashable.

    Attributes:
        body: the body's name, for error messages.
        actuators: one name per actuator, in the order of the simulator's action vector (the action index).
        qd_index: per actuator, the index of its joint in the generalised velocities qd.
        dof_link: the link that each degree of freedom moves.
        link_parents: the parent of every link, -1 for the world.
        control_range: per actuator, the lowest and the highest control.
        entries: the numbers of the full observation.
    """

    body: str
    actuators: tuple[str, ...]
    qd_index: tuple[int, ...]
    dof_link: tuple[int, ...]
    link_parents: tuple[int, ...]
    control_range: tuple[tuple[float, float], ...]
    entries: tuple[ObservationEntry, ...]

    @property
    def observation_size(self) -> int:
        """S: entries of the full observation."""
        return len(self.entries)

    @property
    def joint_order(self) -> tuple[int, ...]:
        """Action indices sorted by joint, in the order of the model file.

        The order of actions may differ: the ant's actions start with its fourth leg.
        """
        return tuple(sorted(range(len(self.actuators)), key=lambda index: self.qd_index[index]))


def factorise(tree: KinematicTree, factorisation: str) -> Partition:
    """Splits the joints into consecutive chunks: "n x m" is n agents of m joints each, in joint order.

    Args:
        tree: the body.
        factorisation: such as "4x2".

    Raises:
        ValueError: not of that form, or n times m is not the number of joints.
    """
    joints = len(tree.actuators)
    known = ", ".join(factorisations(joints))
    sizes = factorisation.split("x")
    if len(sizes) != 2 or not all(size.isascii() and size.isdigit() for size in sizes):
        raise ValueError(f"partition={factorisation!r}; it must read <agents>x<joints each>; known: {known}")
    num_agents, per_agent = int(sizes[0]), int(sizes[1])
    if num_agents * per_agent != joints:
        raise ValueError(wrong_product(tree.body, num_agents, per_agent, joints, factorisations(joints)))
    names = [tree.actuators[index] for index in tree.joint_order]
    return tuple(tuple(names[first : first + per_agent]) for first in range(0, joints, per_agent))


def factorisations(joints: int) -> tuple[str, ...]:
    """All splits into at least two agents with the same number of joints: ("2x4", "4x2", "8x1") for 8."""
    return tuple(f"{n}x{joints // n}" for n in range(2, joints + 1) if joints % n == 0)


def wrong_product(body: str, num_agents: int, per_agent: int, joints: int, known: Sequence[str]) -> str:
    """The message about an impossible factorisation."""
    return (
        f"{num_agents} x {per_agent} = {num_agents * per_agent}, but the {body} has {joints} joints; "
        f"known splits: {', '.join(known)}"
    )


def explicit_partition(tree: KinematicTree, agents: Sequence[Sequence[str]]) -> Partition:
    """Checks a partition of actuator names and sorts each agent's actuators in joint order.

    Raises:
        ValueError: an unknown actuator, one given twice, one left out, or an agent without any.
    """
    wanted = [name for agent in agents for name in agent]
    unknown = [name for name in wanted if name not in tree.actuators]
    if unknown:
        raise ValueError(
            f"partition: unknown joint {unknown[0]!r}; the {tree.body}'s joints: {', '.join(tree.actuators)}"
        )
    twice = [name for name in tree.actuators if wanted.count(name) > 1]
    if twice:
        raise ValueError(f"partition: joint {twice[0]!r} is given {wanted.count(twice[0])} times; once is needed")
    missing = [name for name in tree.actuators if name not in wanted]
    if missing:
        raise ValueError(f"partition: no agent has {', '.join(missing)}; every joint needs one")
    if not all(len(agent) for agent in agents):
        raise ValueError("partition: an agent without joints; every agent needs at least one")
    in_order = [tree.actuators[index] for index in tree.joint_order]
    return tuple(tuple(name for name in in_order if name in agent) for agent in agents)


def parse_partition(tree: KinematicTree, partition: str | Sequence[Sequence[str]]) -> Partition:
    """A partition from any of its forms.

    Args:
        tree: the body.
        partition: "4x2"; names joined as in "hip_1+ankle_1|hip_2+ankle_2|...", the form that `partition_text` writes;
            or one sequence of names per agent.

    Raises:
        ValueError: see `factorise` and `explicit_partition`.
    """
    if isinstance(partition, str) and ("+" in partition or "|" in partition):
        return explicit_partition(tree, [agent.split("+") for agent in partition.split("|")])
    if isinstance(partition, str):
        return factorise(tree, partition)
    if not _is_sequence(partition) or not all(_is_sequence(agent) for agent in partition):
        raise ValueError(
            f"partition={partition!r}; it must be '<agents>x<joints each>', 'joint+joint|joint+...' "
            "or one sequence of joint names per agent"
        )
    return explicit_partition(tree, partition)


def _is_sequence(value) -> bool:
    return isinstance(value, (list, tuple))


def agent_names(partition: Partition) -> tuple[str, ...]:
    """One name per agent, made of its joints: "hip_1+ankle_1"."""
    return tuple("+".join(agent) for agent in partition)


def partition_text(partition: Partition) -> str:
    """The partition in one line, as `parse_partition` reads it."""
    return "|".join(agent_names(partition))


def action_indices(tree: KinematicTree, partition: Partition) -> tuple[tuple[int, ...], ...]:
    """Per agent, the indices of its actions in the simulator's action vector, in joint order."""
    return tuple(tuple(tree.actuators.index(name) for name in agent) for agent in partition)


def neighbours(tree: KinematicTree, actuator: int) -> frozenset[int]:
    """The actuators that touch a link which this one touches, including itself and excluding the world.

    A joint touches the link that it moves and the parent of that link.
    """
    touched = _touched_links(tree, actuator)
    return frozenset(other for other in range(len(tree.actuators)) if touched & _touched_links(tree, other))


def distances(tree: KinematicTree, actuators: Sequence[int]) -> dict[int, int]:
    """Per reachable actuator its distance from the nearest of `actuators`, in steps along `neighbours`."""
    distance = dict.fromkeys(actuators, 0)
    ring = list(actuators)
    while ring:
        nearest = sorted(frozenset().union(*(neighbours(tree, actuator) for actuator in ring)) - distance.keys())
        distance |= dict.fromkeys(nearest, distance[ring[0]] + 1)
        ring = nearest
    return distance


def observation_indices(
    tree: KinematicTree, partition: Partition, hops: int, categories: Categories = LOCAL_CATEGORIES
) -> tuple[tuple[int, ...], ...]:
    """Per agent, the indices of the full observation visible at `hops` hops, in ascending order.

    Of joints up to `hops` hops away the `categories` of their distance, and all shared entries (such as the coordinates
    of the root).
    """

    def visible(entry: ObservationEntry, distance: dict[int, int]) -> bool:
        nearest = min((distance[index] for index in entry.actuators if index in distance), default=hops + 1)
        return entry.shared or (nearest <= hops and entry.category in categories[min(nearest, len(categories) - 1)])

    reach = [distances(tree, own) for own in action_indices(tree, partition)]
    return tuple(
        tuple(index for index, entry in enumerate(tree.entries) if visible(entry, distance)) for distance in reach
    )


def coordinate_entries(
    q_index: Sequence[int], qd_index: Sequence[int], q_size: int, qd_size: int, skipped_q: int
) -> tuple[ObservationEntry, ...]:
    """The entries of q[skipped_q:] followed by qd.

    Args:
        q_index, qd_index: per actuator, the indices of its joint in q and qd. Coordinates without an actuator are shared.
        q_size, qd_size: lengths of q and qd.
        skipped_q: number of leading entries of q left out (the horizontal position of the root).
    """
    return (
        *_coordinates("qpos", q_index, range(skipped_q, q_size)),
        *_coordinates("qvel", qd_index, range(qd_size)),
    )


def _coordinates(category: str, driven: Sequence[int], places: Sequence[int]) -> tuple[ObservationEntry, ...]:
    actuator = {place: index for index, place in enumerate(driven)}
    return tuple(
        ObservationEntry(category, (actuator[place],), False)
        if place in actuator
        else ObservationEntry(category, (), True)
        for place in places
    )


def link_entries(category: str, actuators_of_link: Sequence[Sequence[int]], size: int) -> tuple[ObservationEntry, ...]:
    """`size` numbers for each link, which belong to the joints that move it; those of the root to none."""
    return tuple(ObservationEntry(category, tuple(owners), False) for owners in actuators_of_link for _ in range(size))


def _touched_links(tree: KinematicTree, actuator: int) -> frozenset[int]:
    link = tree.dof_link[tree.qd_index[actuator]]
    return frozenset((link, tree.link_parents[link])) - {_WORLD}
