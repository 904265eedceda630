"""Brax's bodies on Brax's backends: the only module that imports brax, and only when a body is built.

The dynamics, observation, reward and termination are Brax's; its wrappers are not used.

**Backends.** "spring" and "positional" are different, faster tasks: the error of one control step against MuJoCo is
about as large as the step. The default is an accurate backend that is fast enough. Measured with brax 0.14.2, mujoco
4.0.0 and mujoco-mjx 3.17.0 in float32 on two shared cores: the error of one control step from the same states, visited
under random actions, against C MuJoCo in float64 with 100 solver iterations on the same model (Euclidean norm of the
error in q, median and 99th percentile), and env steps per second of 64 environments (best of 6 timings, about 20 %
uncertain).

    halfcheetah (moves 0.64 in q)                  median    99 %      steps/s
      mjx, 4 iterations, line search 50 (as Brax)  1.7e-7    2.2e-6     1,460
      mjx, 4 iterations, line search 8             1.7e-7    2.2e-6     5,870
      mjx, 4 iterations, line search 4 (ours)      1.7e-7    2.2e-6     8,200
      mjx, 2 iterations, line search 4             2.1e-7    0.11      12,000
      mjx, 1 iteration, line search 4              6.6e-5    0.13      18,000
      generalized, exact inverse                   5.9e-3    0.19       4,850
      generalized, as Brax                         0.10      0.23       3,500
      spring                                       0.54      3.4       16,800
    ant (moves 0.57 in q)
      mjx, 1 iteration, line search 4 (as Brax)    1.3e-3    0.10      20,900
      mjx, 4 iterations, line search 4             1.5e-7    3.1e-7     9,000

Both bodies therefore default to mjx. The ant keeps Brax's solver options, to be the same task as Brax's. The cheetah
keeps its four Newton iterations but not the line search of 50, which does not change the error and takes most of the
time; walker, hopper and standing-up humanoid have the same 4 and 4 (Brax: 4, 4 and 8 iterations, line search 50). The
humanoid keeps Brax's options: 4 and 4 halve its speed without a smaller error (0.026), because Brax disables MuJoCo's
implicit damping there.
"generalized" always uses the exact inverse of the mass matrix: it is closer to MuJoCo than Brax's approximation on
every body and, on the cheetah, faster. Swimmers are missing: Brax's fluid forces fail with jax 0.10 (they call
`clip(..., a_min=)`). Reacher and pusher exist but are not the default, because Brax's are different tasks: its pusher's
reward is that of the state before the step, a third of its objects start on one circle, and its tip is another point;
its reacher draws targets mostly near the shoulder and observes a velocity that is not that of the tip.

docs/scenarios.md has the table of all bodies on all backends (`benchmarks/bodies.py`).

**Large batches on two cores.** A jaxlib 0.10.2 program can deadlock if as many batched Cholesky factorisations run
concurrently as there are CPU threads: each holds a thread and waits for work queued behind it (`ParallelBatchMap` in
jaxlib's lapack_kernels.cc). The cheetah on mjx has two independent ones: with two threads it ran with 1,024
environments (seeds included) and deadlocked with 1,200 and more. Compiled with
`xla_cpu_enable_concurrency_optimized_scheduler=False` (which `marl_kl.devices` sets, with additional threads) it ran
with 1,536, 2,048 and 4,096, at the same speed; `xla_cpu_multi_thread_eigen=False` did not help. The ant ran with 2,048
either way.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.bodies import kinematics
from envs.bodies.kinematics import KinematicTree, ObservationEntry
from envs.bodies.physics import (
    CPU_OPTIONS,
    BodyTimeStep,
    Physics,
    driven_coordinates,
    on_own_devices,
    quiet,
    traced_once,
    tree_of,
    zeros_of_one,
)

BACKENDS = ("spring", "positional", "generalized", "mjx")
"""Brax's physics backends."""

CORRECTED = ("humanoidstandup",)
"""Bodies whose reward `load` corrects."""


@dataclasses.dataclass(frozen=True)
class BraxBody:
    """Brax's definition of a body.

    Attributes:
        module, brax_class: of its environment.
        entries: `entries(mujoco_model, brax_system)`, the entries of its observation.
        default_backend: see the module.
        mjx_options: solver options that replace Brax's on "mjx", as (field of `sys.opt`, value) pairs.
        unit_controls: whether Brax scales controls from [-1, 1] to the actuators' range.
    """

    module: str
    brax_class: str
    entries: Callable[[Any, Any], tuple[ObservationEntry, ...]]
    default_backend: str = "mjx"
    mjx_options: tuple[tuple[str, int], ...] = ()
    unit_controls: bool = False


def _coordinates(skipped_q: int) -> Callable[[Any, Any], tuple[ObservationEntry, ...]]:
    """Entries of q[skipped_q:] followed by qd."""

    def entries(model, system):
        del system
        return kinematics.coordinate_entries(*driven_coordinates(model), model.nq, model.nv, skipped_q)

    return entries


def _humanoid_entries(model: Any, system: Any) -> tuple[ObservationEntry, ...]:
    """Coordinates, then inertia [10] and velocity [6] per link, then the actuators' force per degree of freedom."""
    _, qd_index = driven_coordinates(model)
    link = np.asarray(system.dof_link())
    movers = [[a for a, place in enumerate(qd_index) if link[place] == index] for index in range(system.num_links())]
    force = {place: ObservationEntry("qfrc_actuator", (a,), False) for a, place in enumerate(qd_index)}
    idle = ObservationEntry("qfrc_actuator", (), False)
    return (
        *_coordinates(2)(model, system),
        *kinematics.link_entries("cinert", movers, 10),
        *kinematics.link_entries("cvel", movers, 6),
        *(force.get(place, idle) for place in range(model.nv)),
    )


def _reacher_entries(model: Any, system: Any) -> tuple[ObservationEntry, ...]:
    """Cosine and sine of the two angles; shared: target, velocity of the tip, vector from target to tip."""
    del model, system
    angles = tuple(ObservationEntry("qpos", (joint,), False) for joint in (0, 1))
    return (*angles, *angles, *(ObservationEntry("task", (), True),) * 7)


def _pusher_entries(model: Any, system: Any) -> tuple[ObservationEntry, ...]:
    """Positions, then velocities of the seven joints; shared: the positions of tip, object and goal."""
    del model, system
    joints = range(7)
    return (
        *(ObservationEntry("qpos", (joint,), False) for joint in joints),
        *(ObservationEntry("qvel", (joint,), False) for joint in joints),
        *(ObservationEntry("task", (), True),) * 9,
    )


_FOUR_BY_FOUR = (("iterations", 4), ("ls_iterations", 4))

BODIES = {
    "ant": BraxBody("brax.envs.ant", "Ant", _coordinates(2)),
    "halfcheetah": BraxBody("brax.envs.half_cheetah", "Halfcheetah", _coordinates(1), mjx_options=_FOUR_BY_FOUR),
    "walker2d": BraxBody("brax.envs.walker2d", "Walker2d", _coordinates(1), mjx_options=_FOUR_BY_FOUR),
    "hopper": BraxBody("brax.envs.hopper", "Hopper", _coordinates(1), mjx_options=_FOUR_BY_FOUR),
    "humanoid": BraxBody("brax.envs.humanoid", "Humanoid", _humanoid_entries, unit_controls=True),
    "humanoidstandup": BraxBody(
        "brax.envs.humanoidstandup", "HumanoidStandup", _humanoid_entries, mjx_options=_FOUR_BY_FOUR, unit_controls=True
    ),
    "reacher": BraxBody("brax.envs.reacher", "Reacher", _reacher_entries),
    "pusher": BraxBody("brax.envs.pusher", "Pusher", _pusher_entries, unit_controls=True),
}


def load(body: str, backend: str, corrected: bool = True) -> Physics:
    """One of `BODIES` on one of `BACKENDS`; for those of `CORRECTED` with Gymnasium's reward, or Brax's."""
    entry, brax_env = BODIES[body], load_brax(body, backend)
    system = brax_env.sys
    limits = np.asarray(system.actuator.ctrl_range)
    limits = np.broadcast_to([-1.0, 1.0], limits.shape) if entry.unit_controls else limits
    tree = tree_of(body, system.mj_model, entry.entries(system.mj_model, system), limits.tolist())
    brax_reset, brax_step = traced_once(brax_env.reset), traced_once(brax_env.step)
    empty = jax.eval_shape(brax_reset, jax.random.key(0))
    _check_layout(tree, system, empty)
    pack, unpack = _packing(empty, backend)
    reward = standup_reward(brax_env) if corrected and body in CORRECTED else brax_reward

    def reset(key):
        state = brax_reset(key)
        return pack(state), _body_timestep(state, state.reward)

    def step(state, control):
        after = brax_step(unpack(state), control)
        return pack(after), _body_timestep(after, reward(after, control))

    def pose(state):
        return state["qpos"] if backend == "mjx" else state.q

    seconds = float(brax_env.dt)
    return Physics(tree, reset, step, pose, system.mj_model, seconds, CPU_OPTIONS if backend == "mjx" else ())


def _check_layout(tree: KinematicTree, system: Any, empty: Any) -> None:
    """Raises RuntimeError unless Brax's coordinates are MuJoCo's and its observation has the expected size."""
    if tree.qd_index != tuple(np.asarray(system.actuator.qd_id).tolist()) or empty.obs.shape != (len(tree.entries),):
        raise RuntimeError(f"brax's {tree.body} is not laid out as expected: another version of brax?")


def _body_timestep(state: Any, reward: jax.Array) -> BodyTimeStep:
    return BodyTimeStep(
        state.obs.astype(jnp.float32),
        jnp.asarray(reward, jnp.float32),
        state.done.astype(jnp.float32) > 0.5,  # never weakly typed, which would make scan trace twice
    )


def brax_reward(state: Any, control: jax.Array) -> jax.Array:
    del control
    return state.reward


def standup_reward(brax_env: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """Gymnasium's: height divided by the simulation step (Brax: by the control step, 5 times as long) and ten times
    Brax's control cost, without the impact cost, as in Brax."""

    def reward(state, control):
        torque = control * jnp.asarray(brax_env.sys.actuator.ctrl_range)[:, 1]
        return state.pipeline_state.q[2] / 0.003 + 1 - 0.1 * jnp.sum(jnp.square(torque))

    return reward


_MJX_CARRIES = ("qpos", "qvel", "qacc_warmstart", "x")
"""The fields of MJX's data that the next step reads (x for Brax's reward); the rest, 3,000 numbers for the ant, is
recomputed."""


def _packing(empty: Any, backend: str) -> tuple[Callable, Callable]:
    """Functions from Brax's state to the part that the next step needs, and back; `empty` gives the shapes.

    A rollout selects between current and reset states in every step, so everything else is dropped: metrics,
    observation, reward, and on "mjx" all that a step recomputes.
    """

    def pack_mjx(state):
        return {field: getattr(state.pipeline_state, field) for field in _MJX_CARRIES}

    def unpack_mjx(carried):
        state = zeros_of_one(carried["qpos"], empty)
        return state.replace(pipeline_state=state.pipeline_state.replace(**carried))

    def unpack(carried):
        return zeros_of_one(carried.q, empty).replace(pipeline_state=carried)

    if backend == "mjx":
        return pack_mjx, unpack_mjx
    return lambda state: state.pipeline_state, unpack


def load_brax(body: str, backend: str) -> Any:
    """Brax's environment on `backend`, with this project's solver options (see the module)."""
    entry = BODIES[body]
    with quiet(), on_own_devices():
        brax_class = getattr(importlib.import_module(entry.module), entry.brax_class)
        brax_env = brax_class(backend=backend)
    if backend == "mjx" and entry.mjx_options:
        options = {f"opt.{field}": value for field, value in entry.mjx_options}
        brax_env.sys = brax_env.sys.tree_replace(options)
    if backend == "generalized":
        brax_env.sys = brax_env.sys.replace(matrix_inv_iterations=0)
    return brax_env
