"""Brax's bodies on Brax's backends: the only file that imports brax, and only when a body is built.

The dynamics, observation, reward and termination are Brax's own; its wrappers are not used.

**Backends.** "spring" and "positional" are other tasks, only faster: one control step of theirs is about as far from
MuJoCo as the body moves in that step. The default is the faithful one that is fast enough. Measured with brax 0.14.2,
mujoco 4.0.0 and mujoco-mjx 3.17.0 in float32 on two shared cores: the error of one control step from the same states,
visited under random actions, against C MuJoCo in float64 with 100 solver iterations on the same model (Euclidean norm
of the error in q, median and 99th percentile), and env steps per second of 64 environments (best of 6 timings; read
them as 20 % uncertain).

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

So both bodies default to mjx. The ant keeps Brax's solver options, so that it is Brax's ant. The cheetah keeps its
four Newton iterations but not the line search of 50, which changes no digit and costs most of the time; walker, hopper
and standing-up humanoid have the same 4 and 4 (Brax: 4, 4 and 8 iterations, line search 50). The humanoid keeps
Brax's options: 4 and 4 halve its speed and the error stays (0.026), because Brax switches MuJoCo's implicit
damping off there.
"generalized" always uses the exact inverse of the mass matrix: it is closer to MuJoCo than Brax's approximation on
every body and, on the cheetah, faster. Swimmers are not here: Brax's fluid forces fail with jax 0.10 (they call
`clip(..., a_min=)`). Reacher and pusher are here but not by default, because Brax's are other tasks: its pusher is paid
for the state before the step, a third of its objects start on one circle, and its tip is another point; its reacher
draws targets mostly near the shoulder and shows a velocity of the tip that is not that of the tip.

docs/scenarios.md has the table of all bodies on all backends (`benchmarks/bodies.py`).

**Large batches on two cores.** A jaxlib 0.10.2 program can wait for ever where as many batched Cholesky
factorisations run at once as there are CPU threads: each holds a thread and waits for work queued behind it
(`ParallelBatchMap` in jaxlib's lapack_kernels.cc). The cheetah on mjx has two that are independent: with two threads
it ran with 1,024 environments (seeds included) and hung with 1,200 and more. Compiled with
`xla_cpu_enable_concurrency_optimized_scheduler=False` (`marl_kl.devices` adds it, and threads to spare) it ran with
1,536, 2,048 and 4,096, at the same speed; `xla_cpu_multi_thread_eigen=False` did not help. The ant ran with 2,048
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
from envs.bodies.kinematics import Entry, KinematicTree
from envs.bodies.physics import CPU_OPTIONS, Physics, Seen, driven_coordinates, quiet, tree_of

BACKENDS = ("spring", "positional", "generalized", "mjx")
"""The physics that Brax offers."""

CORRECTED = ("humanoidstandup",)
"""Bodies whose reward `load` corrects."""


@dataclasses.dataclass(frozen=True)
class BraxBody:
    """How Brax defines a body.

    Attributes:
        module, brax_class: where.
        entries: `entries(mujoco_model, brax_system)`, what its observation is made of.
        default_backend: the faithful one, see the module.
        mjx_options: solver options that replace Brax's on "mjx", as (field of `sys.opt`, value) pairs.
        unit_controls: whether Brax itself stretches controls from [-1, 1] to the actuators' range.
    """

    module: str
    brax_class: str
    entries: Callable[[Any, Any], tuple[Entry, ...]]
    default_backend: str = "mjx"
    mjx_options: tuple[tuple[str, int], ...] = ()
    unit_controls: bool = False


def _coordinates(skipped_q: int) -> Callable[[Any, Any], tuple[Entry, ...]]:
    """Entries of q[skipped_q:] followed by qd."""

    def entries(model, system):
        del system
        return kinematics.coordinate_entries(*driven_coordinates(model), model.nq, model.nv, skipped_q)

    return entries


def _humanoid_entries(model: Any, system: Any) -> tuple[Entry, ...]:
    """Coordinates, then inertia [10] and velocity [6] per link, then the actuators' force per degree of freedom."""
    _, qd_index = driven_coordinates(model)
    link = np.asarray(system.dof_link())
    movers = [[a for a, place in enumerate(qd_index) if link[place] == index] for index in range(system.num_links())]
    force = {place: Entry("qfrc_actuator", (a,), False) for a, place in enumerate(qd_index)}
    idle = Entry("qfrc_actuator", (), False)
    return (
        *_coordinates(2)(model, system),
        *kinematics.link_entries("cinert", movers, 10),
        *kinematics.link_entries("cvel", movers, 6),
        *(force.get(place, idle) for place in range(model.nv)),
    )


def _reacher_entries(model: Any, system: Any) -> tuple[Entry, ...]:
    """Cosine and sine of the two angles; target, velocity of the tip and its way to the target are everybody's."""
    del model, system
    angles = tuple(Entry("qpos", (joint,), False) for joint in (0, 1))
    return (*angles, *angles, *(Entry("task", (), True),) * 7)


def _pusher_entries(model: Any, system: Any) -> tuple[Entry, ...]:
    """Positions, then velocities of the seven joints; where tip, object and goal are is everybody's."""
    del model, system
    joints = range(7)
    return (
        *(Entry("qpos", (joint,), False) for joint in joints),
        *(Entry("qvel", (joint,), False) for joint in joints),
        *(Entry("task", (), True),) * 9,
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
    """One of `BODIES` on one of `BACKENDS`; those of `CORRECTED` pay as Gymnasium's do, or as Brax's."""
    entry, brax_env = BODIES[body], load_brax(body, backend)
    system = brax_env.sys
    limits = np.asarray(system.actuator.ctrl_range)
    limits = np.broadcast_to([-1.0, 1.0], limits.shape) if entry.unit_controls else limits
    tree = tree_of(body, system.mj_model, entry.entries(system.mj_model, system), limits.tolist())
    empty = jax.eval_shape(brax_env.reset, jax.random.key(0))
    _check_layout(tree, system, empty)
    pack, unpack = _packing(empty, backend)
    reward = _standup_reward(brax_env) if corrected and body in CORRECTED else _brax_reward

    def reset(key):
        state = brax_env.reset(key)
        return pack(state), _seen(state, state.reward)

    def step(state, control):
        after = brax_env.step(unpack(state), control)
        return pack(after), _seen(after, reward(after, control))

    def pose(state):
        return state["qpos"] if backend == "mjx" else state.q

    seconds = float(brax_env.dt)
    return Physics(tree, reset, step, pose, system.mj_model, seconds, CPU_OPTIONS if backend == "mjx" else ())


def _check_layout(tree: KinematicTree, system: Any, empty: Any) -> None:
    """Brax's coordinates are MuJoCo's, and its observation is as long as we think."""
    if tree.qd_index != tuple(np.asarray(system.actuator.qd_id).tolist()) or empty.obs.shape != (len(tree.entries),):
        raise RuntimeError(f"brax's {tree.body} is not laid out as expected: another version of brax?")


def _seen(state: Any, reward: jax.Array) -> Seen:
    return Seen(
        state.obs.astype(jnp.float32),
        jnp.asarray(reward, jnp.float32),
        state.done.astype(jnp.float32) > 0.5,  # never weakly typed: a scan would be traced twice
    )


def _brax_reward(state: Any, control: jax.Array) -> jax.Array:
    del control
    return state.reward


def _standup_reward(brax_env: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """Gymnasium's: height over one simulation step (Brax divides by the control step of 5) and ten times the control
    cost of Brax. The impact cost is left out, as in Brax."""

    def reward(state, control):
        torque = control * jnp.asarray(brax_env.sys.actuator.ctrl_range)[:, 1]
        return state.pipeline_state.q[2] / 0.003 + 1 - 0.1 * jnp.sum(jnp.square(torque))

    return reward


_MJX_CARRIES = ("qpos", "qvel", "qacc_warmstart", "x")
"""What of MJX's data the next step reads (x for Brax's reward); the rest, 3,000 numbers for the ant, is recomputed."""


def _packing(empty: Any, backend: str) -> tuple[Callable, Callable]:
    """Brax's state to what must be carried to the next step, and back; `empty` gives the shapes.

    A rollout selects between carried and fresh states at every step, so what nobody reads is left behind: metrics,
    observation, reward, and on "mjx" all that a step computes anew.
    """

    def blank():
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), empty)

    def pack_mjx(state):
        return {field: getattr(state.pipeline_state, field) for field in _MJX_CARRIES}

    def unpack_mjx(carried):
        state = blank()
        return state.replace(pipeline_state=state.pipeline_state.replace(**carried))

    if backend == "mjx":
        return pack_mjx, unpack_mjx
    return lambda state: state.pipeline_state, lambda carried: blank().replace(pipeline_state=carried)


def load_brax(body: str, backend: str) -> Any:
    """Brax's own environment on `backend`, with the solver options that this project chose (see the module)."""
    entry = BODIES[body]
    with quiet():
        brax_class = getattr(importlib.import_module(entry.module), entry.brax_class)
        brax_env = brax_class(backend=backend)
    if backend == "mjx" and entry.mjx_options:
        options = {f"opt.{field}": value for field, value in entry.mjx_options}
        brax_env.sys = brax_env.sys.tree_replace(options)
    if backend == "generalized":
        brax_env.sys = brax_env.sys.replace(matrix_inv_iterations=0)
    return brax_env
