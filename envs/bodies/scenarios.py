"""Bodies driven by several agents: the table of bodies, their names, and their joints' split among agents.

A *body* ("ant") with a *split* ("4x2") is a scenario ("ant_4x2"), as in Multi-Agent MuJoCo (Peng et al. 2021). The
engines `envs.bodies.brax_engine` and `envs.bodies.mjx_engine` simulate the physics; Brax and MuJoCo are imported only
when a body is built.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

import chex
import jax.numpy as jnp
import numpy as np

from envs.base import Drawing, Env, EnvSpec, TimeStep, Wiring
from envs.bodies import kinematics
from envs.bodies.brax_engine import BACKENDS, CORRECTED
from envs.bodies.kinematics import LOCAL_CATEGORIES, Categories, KinematicTree, Partition
from envs.bodies.physics import BodyTimeStep, Physics, stop_on_divergence
from envs.time_limit import with_time_limit

ENGINES = ("brax", "mjx")


@dataclasses.dataclass(frozen=True)
class Body:
    """One entry of the table of bodies.

    Attributes:
        joints: number of driven joints; per segment if the body has segments.
        splits: the named splits among agents: "<agents>x<joints each>", or a name of `named_splits`.
        named_splits: splits that are not chunks of consecutive joints: (name, agents' joints).
        engines: the engines that have the body, the default first.
        episode_length: the time limit in env steps.
        segmented: whether splits are "<agents>x<segments each>" and determine the number of segments.
    """

    joints: int
    splits: tuple[str, ...]
    named_splits: tuple[tuple[str, str], ...] = ()
    engines: tuple[str, ...] = ENGINES
    episode_length: int = 1000
    segmented: bool = False


_UPPER_AND_LOWER = (
    "abdomen_x+abdomen_y+abdomen_z+right_shoulder1+right_shoulder2+right_elbow+left_shoulder1+left_shoulder2+left_elbow"
    "|right_hip_x+right_hip_y+right_hip_z+right_knee+left_hip_x+left_hip_y+left_hip_z+left_knee"
)
_LEGS_1_4_AND_2_3 = "hip_1+ankle_1+hip_4+ankle_4|hip_2+ankle_2+hip_3+ankle_3"
_ARM = (
    "r_shoulder_pan_joint+r_shoulder_lift_joint+r_upper_arm_roll_joint|r_elbow_flex_joint"
    "|r_forearm_roll_joint+r_wrist_flex_joint+r_wrist_roll_joint"
)
_TWO_CHEETAHS = "|".join(
    "+".join(f"{joint}{cheetah}" for joint in ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"))
    for cheetah in "01"
)

BODIES = {
    "ant": Body(8, ("2x4", "4x2", "8x1", "2x4d"), (("2x4d", _LEGS_1_4_AND_2_3),)),
    "coupled_halfcheetah": Body(12, ("1p1",), (("1p1", _TWO_CHEETAHS),), engines=("mjx",)),
    "halfcheetah": Body(6, ("2x3", "3x2", "6x1")),
    "hopper": Body(3, ("3x1",)),
    "humanoid": Body(17, ("17x1", "9|8"), (("9|8", _UPPER_AND_LOWER),)),
    "humanoidstandup": Body(17, ("17x1", "9|8"), (("9|8", _UPPER_AND_LOWER),)),
    "manyagent_ant": Body(4, ("2x3",), engines=("mjx",), segmented=True),
    "manyagent_swimmer": Body(1, ("10x2",), engines=("mjx",), segmented=True),
    "pusher": Body(7, ("3p",), (("3p", _ARM),), engines=("mjx", "brax"), episode_length=100),
    "reacher": Body(2, ("2x1",), engines=("mjx", "brax"), episode_length=50),
    "swimmer": Body(2, ("2x1",), engines=("mjx",)),
    "walker2d": Body(6, ("2x3", "3x2", "6x1")),
}

_SYNONYMS = {
    "coupled_half_cheetah": "coupled_halfcheetah",
    "coupledhalfcheetah": "coupled_halfcheetah",
    "half_cheetah": "halfcheetah",
    "humanoid_standup": "humanoidstandup",
    "many_agent_ant": "manyagent_ant",
    "many_segment_ant": "manyagent_ant",
    "manyagentant": "manyagent_ant",
    "manysegmentant": "manyagent_ant",
    "many_agent_swimmer": "manyagent_swimmer",
    "manyagentswimmer": "manyagent_swimmer",
    "many_segment_swimmer": "manyagent_swimmer",
    "manysegmentswimmer": "manyagent_swimmer",
    "walker": "walker2d",
    "walker_2d": "walker2d",
}


def body_env(
    body: str,
    split: str | None = None,
    engine: str | None = None,
    backend: str | None = None,
    obs: Literal["full"] | int = "full",
    categories: Sequence[Sequence[str]] | None = None,
    agent_id: bool | None = None,
    episode_length: int | None = None,
    partition: str | Sequence[Sequence[str]] | None = None,
    corrected: bool = True,
) -> Env:
    """A body whose joints are split among agents.

    Observation of agent i, real entries first, then zeros up to the largest agent's size O:

        obs="full":  all S entries of the body's observation. The published HATRPO and HAPPO results used this.
        obs=k:       the `categories` of its own joints and of joints up to k hops away, and the root's coordinates, in
                     the order of the full observation (`envs.bodies.kinematics.observation_indices`).

    followed by a one-hot agent id [N] if `agent_id`. Actions [N, A] are those of an agent's joints in joint order; they
    are clipped to the control range ([-1, 1] for most bodies, see `EnvSpec.action_low`), padded entries are ignored.

    The global state is the full observation, the reward is a team reward. Every `reset(key, params)` draws a new random
    state. `params` is `()`.

    Args:
        body: a key of `BODIES`.
        split: "<agents>x<joints each>", chunks of consecutive joints in joint order; "<agents>x<segments each>" for
            bodies of segments; or a name from the table.
        engine: "brax": Brax's version of the body. "mjx": MuJoCo's physics with the tasks of Gymnasium's v5 environments,
            slower and closest to Multi-Agent MuJoCo. None: the body's default.
        backend: one of `BACKENDS`, for engine "brax"; None: the body's default (`envs.bodies.brax_engine`).
        obs: "full", or the number of hops k >= 0.
        categories: per distance in hops the observed categories of a joint ("qpos", "qvel", and on some bodies "cinert",
            "cvel", "qfrc_actuator", "cfrc_ext"); the last one also beyond. None: `LOCAL_CATEGORIES`.
        agent_id: whether the one-hot id is appended; None: only to full observations, which would otherwise be equal for
            all agents.
        episode_length: the time limit in env steps; None: the body's default.
        partition: replaces the split: "4x2", a named split of the body ("2x4d"), joint names (one sequence per agent) or
            the form "hip_1+ankle_1|hip_2+ankle_2|...".
        corrected: False disables this project's correction of a Brax body: the humanoidstandup's reward.

    Raises:
        ValueError: an option that is not accepted, or an impossible partition.
        ModuleNotFoundError: the engine needs a package that is not installed.
    """
    name = body if split is None else f"{body}_{split}"
    entry = BODIES[body]
    engine = entry.engines[0] if engine is None else engine
    _check(name, "engine", engine, engine in entry.engines, f"accepted: None, {', '.join(entry.engines)}")
    accepted = (
        f"accepted: None, {', '.join(BACKENDS)}" if engine == "brax" else "engine 'mjx' has no other; accepted: None"
    )
    _check(name, "backend", backend, backend is None or (engine == "brax" and backend in BACKENDS), accepted)
    hops = _checked_hops(name, obs)
    _check(name, "categories", categories, categories is None or hops is not None, "with obs='full' accepted: None")
    agent_id = hops is None if agent_id is None else agent_id
    _check(name, "agent_id", agent_id, isinstance(agent_id, bool), "accepted: None, True, False")
    episode_length = entry.episode_length if episode_length is None else episode_length
    _check(name, "episode_length", episode_length, _is_int(episode_length), "it must be an integer number of env steps")
    has_correction = engine == "brax" and body in CORRECTED
    accepted = "accepted: True, False" if has_correction else f"{engine}'s {body} has no correction; accepted: True"
    _check(name, "corrected", corrected, corrected is True or (corrected is False and has_correction), accepted)
    choice = split if partition is None else partition
    if choice is None:
        raise ValueError(f"env '{body}' needs partition=..., or one of {', '.join(_scenarios(body))}")

    segments = _segments(name, split) if entry.segmented else None
    physics, backend_name = _load(name, body, segments and math.prod(segments), engine, backend, corrected)
    if partition is None and segments is not None:
        choice = f"{segments[0]}x{len(physics.tree.actuators) // segments[0]}"
    agents = _partition(name, physics.tree, entry, choice)
    visible = _checked_categories(name, physics.tree, categories)
    layout = _observation_layout(physics.tree, agents, hops, visible, agent_id)
    spec = EnvSpec(
        name=name,
        agents=kinematics.agent_names(agents),
        observation_sizes=layout.sizes,
        action_sizes=tuple(map(len, agents)),
        action_kind="continuous",
        state_size=physics.tree.observation_size,
        episode_length=int(episode_length),
        metadata=(
            ("body", body),
            ("engine", engine),
            ("backend", backend_name),
            ("obs", "full" if hops is None else str(hops)),
            ("categories", "all" if hops is None else " > ".join("+".join(names) for names in visible)),
            ("agent_id", str(agent_id)),
            ("partition", kinematics.partition_text(agents)),
            *(() if corrected else (("corrected", "False"),)),
        ),
        cpu_compiler_options=physics.compiler_options,
        action_low=_range_ends(physics.tree, agents, 0),
        action_high=_range_ends(physics.tree, agents, 1),
    )
    return with_time_limit(
        _bare_env(stop_on_divergence(physics), spec, _wiring(physics.tree, agents, spec, layout.source))
    )


def _scenarios(body: str) -> tuple[str, ...]:
    return tuple(f"{body}_{split}" for split in BODIES[body].splits)


FACTORIES: dict[str, Callable[..., Env]] = {
    f"{body}_{split}": functools.partial(body_env, body, split)
    for body, entry in BODIES.items()
    for split in entry.splits
}
"""From the name to the factory, for `envs.registry`."""


def find(name: str) -> Callable[..., Env] | None:
    """The factory of a scenario in any spelling: "Ant-v2-4x2", "6x1 HalfCheetah", "manyagent_swimmer_3x4", or of a body
    alone, which then needs a partition. None for other names.
    """
    body, split = parse_name(name)
    if body not in BODIES:
        return None
    if split is None or split in BODIES[body].splits or (BODIES[body].segmented and _grid(split)):
        return functools.partial(body_env, body, split)
    return None


def scenario_name(name: str) -> str | None:
    """The standard spelling, "ant_4x2" for "Ant-v2-4x2"; None for other names."""
    body, split = parse_name(name)
    return None if find(name) is None else body if split is None else f"{body}_{split}"


def explain_unknown(name: str) -> str | None:
    """The message for an unknown split of a known body; None for other names.

    Needs no engine: "ant_3x3" -> "env 'ant_3x3': 3 x 3 = 9, but the ant has 8 joints; known splits: 2x4, ...".
    """
    body, split = parse_name(name)
    if body not in BODIES or split is None:
        return None
    entry = BODIES[body]
    known = ", ".join(entry.splits)
    grid = _grid(split)
    if grid is None:
        return f"env {name!r}: the {body} has no split {split!r}; known splits: {known}; or give partition=..."
    num_agents, per_agent = grid
    if num_agents * per_agent != entry.joints:
        return f"env {name!r}: {kinematics.wrong_product(body, num_agents, per_agent, entry.joints, entry.splits)}"
    alone = f"make {body} with partition='{num_agents}x{per_agent}' for this one"
    return f"env {name!r}: known splits: {known}; {alone}"


def _grid(split: str) -> tuple[int, int] | None:
    """(4, 2) for "4x2"; None for other splits."""
    numbers = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", split)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


_VERSION = re.compile(r"_v\d+(?=_|$)")
_A_SPLIT = r"(?:\d+x\d+[a-z]?)|(?:\d+_\d+)|(?:\d+p\d*)"
_SPLIT = re.compile(rf"_?({_A_SPLIT})$")
_SPLIT_FIRST = re.compile(rf"^({_A_SPLIT})_(?:agents?_)?(.+)$")


def parse_name(name: str) -> tuple[str, str | None]:
    """Body and split of a name in any spelling: ("ant", "4x2") for "Ant-v5_4x2" or "4x2-Agent Ant"; the split may be None.

    The papers call the swimmer of many segments "10x2 Swimmer", so a swimmer with more than two joints is that one.
    """
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip()).lower()
    plain = re.sub(r"[\s\-./:|]+", "_", plain.replace("×", "x").replace("*", "x")).strip("_")
    plain = _VERSION.sub("", re.sub(r"^(ma_mu_jo_co|mamujoco|multi_agent|mabrax|ma)_", "", plain))
    plain = _SPLIT_FIRST.sub(r"\2_\1", plain)
    words = _SPLIT.search(plain)
    body = plain[: words.start()] if words else plain
    split = words[1].replace("_", "|") if words else None
    body = _SYNONYMS.get(body, body)
    grid = _grid(split or "")
    is_long = body == "swimmer" and grid is not None and math.prod(grid) > BODIES["swimmer"].joints
    return "manyagent_swimmer" if is_long else body, split


def _segments(name: str, split: str | None) -> tuple[int, int]:
    """(agents, segments each) of a body of segments."""
    grid = _grid(split or "")
    if grid is None or math.prod(grid) < 2:
        raise ValueError(f"env {name!r}: a split such as 10x2 (agents x segments each, 2 segments at least) is needed")
    return grid


def _load(
    name: str, body: str, segments: int | None, engine: str, backend: str | None, corrected: bool
) -> tuple[Physics, str]:
    """The physics, and the name of its backend."""
    module = importlib.import_module(f"envs.bodies.{engine}_engine")
    if engine == "brax":
        backend_name = backend or module.BODIES[body].default_backend
        return module.load(body, backend_name, corrected), backend_name
    try:
        return module.load(body, segments), "mjx"
    except module.MissingModel as error:
        other = "; engine='brax' does not need it, see docs/scenarios.md" if "brax" in BODIES[body].engines else ""
        raise ModuleNotFoundError(f"env {name!r}: {error}{other}") from None


def _partition(name: str, tree: KinematicTree, entry: Body, partition: str | Sequence[Sequence[str]]) -> Partition:
    if isinstance(partition, str):
        partition = dict(entry.named_splits).get(partition, partition)
    try:
        return kinematics.parse_partition(tree, partition)
    except ValueError as error:
        raise ValueError(f"env {name!r}: {error}") from None


class _ObservationLayout(NamedTuple):
    """The agents' observations.

    Attributes:
        sizes: entries per agent, without padding.
        source: [N, O] int, the index of every entry in the vector (full observation, 1, 0).
    """

    sizes: tuple[int, ...]
    source: np.ndarray


def _observation_layout(
    tree: KinematicTree, agents: Partition, hops: int | None, categories: Categories, agent_id: bool
) -> _ObservationLayout:
    size, num_agents = tree.observation_size, len(agents)
    one, zero = size, size + 1
    full = [tuple(range(size))] * num_agents
    rows = full if hops is None else kinematics.observation_indices(tree, agents, hops, categories)
    ids = np.where(np.eye(num_agents, dtype=bool), one, zero) if agent_id else np.empty((num_agents, 0), int)
    rows = [[*row, *ids[agent]] for agent, row in enumerate(rows)]
    sizes = tuple(map(len, rows))
    source = np.full((num_agents, max(sizes)), zero)
    for agent, row in enumerate(rows):
        source[agent, : len(row)] = row
    return _ObservationLayout(sizes, source)


def _wiring(tree: KinematicTree, agents: Partition, spec: EnvSpec, source: np.ndarray) -> Wiring:
    """`source`: of the `_ObservationLayout`."""
    low, high = np.asarray(tree.control_range, np.float32).T
    padded_action = (spec.num_agents, spec.action_size)
    flat_index = np.empty(len(tree.actuators), int)
    for agent, indices in enumerate(kinematics.action_indices(tree, agents)):
        flat_index[list(indices)] = agent * spec.action_size + np.arange(len(indices))

    def observe(full):
        chex.assert_shape(full, (spec.state_size,))
        return jnp.concatenate([full, jnp.array([1.0, 0.0], jnp.float32)])[source]

    def controls(action):
        chex.assert_shape(action, padded_action)
        return jnp.clip(action.reshape(-1)[flat_index].astype(jnp.float32), low, high)

    return Wiring(observe, controls)


def _range_ends(tree: KinematicTree, agents: Partition, end: int) -> tuple[tuple[float, ...], ...]:
    """One end of the control range (0: low, 1: high), per agent and joint."""
    joints = kinematics.action_indices(tree, agents)
    return tuple(tuple(tree.control_range[index][end] for index in own) for own in joints)


def _bare_env(physics: Physics, spec: EnvSpec, wiring: Wiring) -> Env:
    """The environment without a time limit."""

    def timestep(body: BodyTimeStep) -> TimeStep:
        return TimeStep(
            obs=wiring.observe(body.observation),
            state=body.observation,
            reward=jnp.full(spec.num_agents, body.reward, jnp.float32),
            terminated=body.terminated,
            truncated=jnp.zeros((), bool),
            action_mask=jnp.asarray(spec.action_mask),
        )

    def reset(key, params):
        del params
        state, body = physics.reset(key)
        return state, timestep(body)

    def step(key, env_state, action, params):
        del key, params
        state, body = physics.step(env_state, wiring.controls(action))
        return state, timestep(body)

    drawing = Drawing(physics.model, physics.pose, physics.tree, physics.seconds)
    return Env(spec, reset, step, drawing=drawing, wiring=wiring)


def _checked_hops(name: str, obs: Any) -> int | None:
    """The number of hops; None for "full"."""
    if _is_int(obs) and obs >= 0:
        return int(obs)
    _check(name, "obs", obs, isinstance(obs, str) and obs == "full", "accepted: 'full' or a number of hops >= 0")
    return None


def _checked_categories(name: str, tree: KinematicTree, categories: Any) -> Categories:
    if categories is None:
        return LOCAL_CATEGORIES
    known = sorted({entry.category for entry in tree.entries if entry.actuators})
    accepted = f"it must list, per distance, some of {', '.join(known)}"
    is_nested = isinstance(categories, (list, tuple)) and all(isinstance(names, (list, tuple)) for names in categories)
    is_valid = is_nested and len(categories) > 0 and all(c in known for names in categories for c in names)
    _check(name, "categories", categories, is_valid, accepted)
    return tuple(map(tuple, categories))


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check(name: str, field: str, value: Any, is_valid: bool, accepted: str) -> None:
    if not is_valid:
        raise ValueError(f"env {name!r}: {field}={value!r}; {accepted}")
