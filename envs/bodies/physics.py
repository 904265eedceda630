"""The interface of the physics engines, and the kinematic tree of a MuJoCo model.

An engine is a module with `load(...) -> Physics`: `envs.bodies.brax_engine` (Brax's bodies on Brax's backends) and
`envs.bodies.mjx_engine` (MuJoCo's physics with the tasks of Gymnasium's environments). Only they import MuJoCo.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from envs.bodies.kinematics import KinematicTree, ObservationEntry

CPU_OPTIONS = (("xla_cpu_use_fusion_emitters", False),)
"""XLA options for MJX on a CPU: without them XLA repeats a parent's computation in all its descendants, so that a chain
of 20 links takes seconds per step, and the pusher compiles for more than five minutes instead of 10 s."""

State = Any
"""A pytree, opaque outside of its engine."""


class BodyTimeStep(NamedTuple):
    """Observation, reward and termination of a body after a reset or a step.

    Attributes:
        observation: [S] float32, the full observation. reward: [] float32, 0 after a reset.
        terminated: [] bool.
    """

    observation: jax.Array
    reward: jax.Array
    terminated: jax.Array


class Physics(NamedTuple):
    """A body in a physics engine: static facts and pure functions.

    Attributes:
        tree: its kinematic tree.
        reset: `reset(key) -> (state, BodyTimeStep)`, a new random state for every key.
        step: `step(state, control) -> (state, BodyTimeStep)`; `control` [actuators] inside `tree.control_range`.
        pose: `pose(state) -> [nq]`, the generalised positions, for drawing.
        model: the `mujoco.MjModel` that the poses belong to.
        seconds: simulated seconds per control step.
        compiler_options: XLA options to compile the body on a CPU in reasonable time, as (name, value) pairs.
    """

    tree: KinematicTree
    reset: Callable[[jax.Array], tuple[State, BodyTimeStep]]
    step: Callable[[State, jax.Array], tuple[State, BodyTimeStep]]
    pose: Callable[[State], jax.Array]
    model: Any
    seconds: float
    compiler_options: tuple[tuple[str, bool], ...] = ()


DIVERGED = 1e10
"""Where MuJoCo itself gives a simulation up (mjMAXVAL)."""


def stop_on_divergence(physics: Physics) -> Physics:
    """Ends an episode where the simulation diverges, which the bodies of MJX do in float32 now and then.

    A step after which an entry of the observation or the reward is NaN or beyond `DIVERGED` terminates with reward 0 and
    an observation of zeros, and the state stays what it was: a single one would spoil the batch and the moments of the
    observations. (C MuJoCo resets the body in the middle of the episode.)
    """

    def step(state: State, control: jax.Array) -> tuple[State, BodyTimeStep]:
        after, timestep = physics.step(state, control)
        largest = jnp.maximum(jnp.max(jnp.abs(timestep.observation)), jnp.abs(timestep.reward))
        valid = largest <= DIVERGED  # False for NaN
        return jax.tree.map(lambda new, old: jnp.where(valid, new, old), after, state), BodyTimeStep(
            observation=jnp.where(valid, timestep.observation, 0.0),
            reward=jnp.where(valid, timestep.reward, 0.0),
            terminated=timestep.terminated | ~valid,
        )

    return physics._replace(step=step)


def tree_of(
    body: str, model: Any, entries: Sequence[ObservationEntry], control_range: Sequence[tuple[float, float]]
) -> KinematicTree:
    """The tree of a `mujoco.MjModel`. An actuator has the name of its joint.

    Bodies without joints are welded to their parents and form one link with them; the world is link -1.
    """
    joints = model.actuator_trnid[:, 0]
    link = np.asarray(model.body_weldid)
    parents = np.where(link > 0, link[model.body_parentid[link]], 0)
    return KinematicTree(
        body=body,
        actuators=tuple(model.joint(int(joint)).name for joint in joints),
        qd_index=tuple(int(place) for place in model.jnt_dofadr[joints]),
        dof_link=tuple(int(index) - 1 for index in link[model.dof_bodyid]),
        link_parents=tuple(int(index) - 1 for index in parents[1:]),
        control_range=tuple((float(low), float(high)) for low, high in control_range),
        entries=tuple(entries),
    )


class Contacts(NamedTuple):
    """The geoms of a `mujoco.MjModel` that can be in contact, regardless of distance.

    Attributes:
        floor: the geoms that can touch the floor.
        limbs: how many pairs of other geoms can touch each other.
        friction: per geom of `floor`, the sliding friction there.
    """

    floor: tuple[int, ...]
    limbs: int
    friction: tuple[float, ...]


def contacts(model: Any) -> Contacts:
    """By MuJoCo's rules: the masks of the geoms, excluding a body with itself or its parent (unless that is the world).

    The floor is geom 0. Explicit exclusions of a model are ignored; no body here has any.
    """
    mask, affinity = np.asarray(model.geom_contype), np.asarray(model.geom_conaffinity)
    link = np.asarray(model.body_weldid)[model.geom_bodyid]
    parent = np.asarray(model.body_weldid)[np.asarray(model.body_parentid)[link]]
    meets = ((mask[:, None] & affinity) | (mask & affinity[:, None])) != 0
    on_parent = (parent[:, None] == link) & (link != 0)
    meets &= (link[:, None] != link) & ~on_parent & ~on_parent.T
    friction = np.maximum(model.geom_friction[:, 0], model.geom_friction[0, 0])
    floor = np.flatnonzero(meets[0])
    limbs = int(np.count_nonzero(np.triu(meets[1:, 1:])))
    return Contacts(tuple(map(int, floor)), limbs, tuple(round(float(value), 3) for value in friction[floor]))


def driven_coordinates(model: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Per actuator of a `mujoco.MjModel`, the indices of its joint in q and in qd."""
    joints = model.actuator_trnid[:, 0]
    return tuple(map(int, model.jnt_qposadr[joints])), tuple(map(int, model.jnt_dofadr[joints]))


def actuators_of_bodies(model: Any) -> tuple[tuple[int, ...], ...]:
    """Per body of a `mujoco.MjModel`, the world included, the actuators of the joints that move it directly."""
    link, moved = np.asarray(model.body_weldid), np.asarray(model.body_weldid)[_actuated_bodies(model)]
    return tuple(
        tuple(int(index) for index in np.flatnonzero(moved == link[body])) if link[body] else ()
        for body in range(model.nbody)
    )


def _actuated_bodies(model: Any) -> np.ndarray:
    return np.asarray(model.jnt_bodyid)[model.actuator_trnid[:, 0]]


def import_mujoco() -> Any:
    """MuJoCo, imported on first use; `Any`, because its extension module has no type stubs."""
    import mujoco

    return mujoco


@contextlib.contextmanager
def on_own_devices():
    """MJX puts its arrays on the first of `jax.devices()`, which in a run of several processes belongs to one of them only."""
    if jax.process_count() == 1:
        yield
        return
    with mock.patch.object(jax, "devices", lambda backend=None: jax.local_devices(backend=backend)):
        yield


def traced_once(function: Callable) -> Callable:
    """For a function of the physics: all programs of a process share its trace, which for MJX takes seconds."""
    return jax.jit(on_own_devices()(function), inline=True)


def zeros_of_one(own: jax.Array, shapes: Any) -> Any:
    """Zeros of `shapes` that `jax.vmap` takes for one environment's, as it does `own`, an array of its state.

    In the carry of a loop, constants that the loop replaces by batched values make vmap trace the whole loop again. XLA
    removes the dependence.
    """
    zero = jnp.where(own.ravel()[0] > 0, 0, 0)
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, zero, leaf.dtype), shapes)


@contextlib.contextmanager
def quiet():
    """Suppresses warnings while a body is loaded that users of this package cannot act on.

    MJX prints that the optional warp is missing, Brax warns that it is no longer developed, and MuJoCo warns about an
    attribute in Brax's model files, on the terminal and in MUJOCO_LOG.TXT in the working directory.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Brax System", category=UserWarning)
        mujoco = import_mujoco()
        previous = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(previous)
