"""Brax bodies driven by several agents: the only file that imports brax, and only when a body is built.

The dynamics, observation, reward and termination are Brax's own, and so is the control step (5 frames of 0.01 s);
its wrappers are not used. The global state is Brax's full observation and the reward is the team's.

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
four Newton iterations but not the line search of 50, which changes no digit and costs most of the time. "generalized"
always uses the exact inverse of the mass matrix: it is closer to MuJoCo than Brax's approximation on every body and,
on the cheetah, faster.

**Large batches on two cores.** A jaxlib 0.10.2 program can wait for ever where as many batched Cholesky
factorisations run at once as there are CPU threads: each holds a thread and waits for work queued behind it
(`ParallelBatchMap` in jaxlib's lapack_kernels.cc). The cheetah on mjx has two that are independent: with two threads
it ran with 1,024 environments (seeds included) and hung with 1,200 and more. Compiled with
`xla_cpu_enable_concurrency_optimized_scheduler=False` (an entry of `compiler_options`, or of XLA_FLAGS) it ran with
1,536, 2,048 and 4,096, at the same speed; `xla_cpu_multi_thread_eigen=False` did not help. The ant ran with 2,048
either way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import operator
import re
import warnings
from typing import Any, Callable, Literal, NamedTuple, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from envs import kinematics
from envs.kinematics import KinematicTree, Partition
from envs.time_limit import with_time_limit
from envs.types import Env, EnvSpec, TimeStep

BACKENDS = ("spring", "positional", "generalized", "mjx")
"""The physics that Brax offers."""


@dataclasses.dataclass(frozen=True)
class Body:
    """One entry of the table of bodies.

    Attributes:
        module, brax_class: where Brax defines the environment.
        joints: how many joints are driven.
        skipped_q: leading entries of q that Brax's observation leaves out.
        default_backend: the faithful one, see the module.
        mjx_options: solver options that replace Brax's on "mjx", as (field of `sys.opt`, value) pairs.
    """

    module: str
    brax_class: str
    joints: int
    skipped_q: int
    default_backend: str
    mjx_options: tuple[tuple[str, int], ...] = ()

    @property
    def factorisations(self) -> tuple[str, ...]:
        return kinematics.factorisations(self.joints)


BODIES = {
    "ant": Body("brax.envs.ant", "Ant", joints=8, skipped_q=2, default_backend="mjx"),
    "halfcheetah": Body(
        "brax.envs.half_cheetah",
        "Halfcheetah",
        joints=6,
        skipped_q=1,
        default_backend="mjx",
        mjx_options=(("iterations", 4), ("ls_iterations", 4)),
    ),
}


def body_env(
    body: str,
    factorisation: str,
    backend: str | None = None,
    obs: Literal["full"] | int = "full",
    agent_id: bool | None = None,
    episode_length: int = 1000,
    partition: str | Sequence[Sequence[str]] | None = None,
) -> Env:
    """A Brax body whose joints are shared out among agents.

    Observation of agent i, real entries first, then zeros up to the largest agent's size O:

        obs="full":  all S entries of Brax's observation. The published HATRPO and HAPPO results used this.
        obs=k:       position and velocity of its own joints, the position of joints up to k hops away, and the root's
                     coordinates, in the order of Brax's observation (`envs.kinematics.observation_indices`).

    followed by a one-hot agent id [N] if `agent_id`. Actions [N, A] are an agent's joints in joint order; they are
    clipped to the control range ([-1, 1] for all bodies here) and their padded entries are ignored.

    Every `reset(key, params)` draws a new random state, and `terminated` is Brax's `done`. `params` is `()`.

    Args:
        body: a key of `BODIES`.
        factorisation: "<agents>x<joints each>", chunks of consecutive joints in joint order. MA-MuJoCo's Ant 2x4d and
            HalfCheetah 3x2 are not of that kind; make them with `partition`.
        backend: one of `BACKENDS`; None for the faithful default of the body (see the module).
        obs: "full", or the number of hops k >= 0.
        agent_id: whether the one-hot id is appended; None appends it to full observations only, which would else
            be the same for all agents.
        episode_length: the time limit in env steps (of 0.05 s).
        partition: replaces the factorisation of the name by another one, by joint names (one sequence per agent) or in
            the form "hip_1+ankle_1|hip_2+ankle_2|...".

    Raises:
        ValueError: an option that is not accepted, or a partition that is impossible.
    """
    name = f"{body}_{factorisation}"
    entry = BODIES[body]
    backend = entry.default_backend if backend is None else backend
    hops = _checked_hops(name, obs)
    agent_id = hops is None if agent_id is None else agent_id
    _check(name, "backend", backend, backend in BACKENDS, f"accepted: None, {', '.join(BACKENDS)}")
    _check(name, "agent_id", agent_id, isinstance(agent_id, bool), "accepted: None, True, False")
    _check(name, "episode_length", episode_length, _is_int(episode_length), "it must be a whole number of env steps")

    brax_env = load_brax(body, backend)
    tree = _describe(body, brax_env.sys)
    try:
        agents = kinematics.parse_partition(tree, factorisation if partition is None else partition)
    except ValueError as error:
        raise ValueError(f"env '{name}': {error}") from None

    view = _view(tree, agents, hops, agent_id)
    spec = EnvSpec(
        name=name,
        agents=kinematics.agent_names(agents),
        observation_sizes=view.sizes,
        action_sizes=tuple(map(len, agents)),
        action_kind="continuous",
        state_size=tree.observation_size,
        episode_length=int(episode_length),
        metadata=(
            ("body", body),
            ("backend", backend),
            ("obs", "full" if hops is None else str(hops)),
            ("agent_id", str(agent_id)),
            ("partition", kinematics.partition_text(agents)),
        ),
    )
    return with_time_limit(_bare_env(brax_env, backend, tree, agents, spec, view.source))


FACTORIES: dict[str, Callable[..., Env]] = {
    f"{body}_{factorisation}": functools.partial(body_env, body, factorisation)
    for body, entry in BODIES.items()
    for factorisation in entry.factorisations
}
"""From the name to the factory, for `envs.registry`."""


def explain_unknown(name: str) -> str | None:
    """Why `name` is not one of these environments, if it looks as if it was meant to be; None if it does not.

    Needs no brax: "ant_3x3" -> "env 'ant_3x3': 3 x 3 = 9, but the ant has 8 joints; known factorisations: 2x4, ...".
    """
    words = re.fullmatch(r"([a-z_\- ]*[a-z])[^a-z0-9]*(?:(\d+)\s*[x×*]\s*(\d+))?[^a-z0-9]*", name.lower())
    body = re.sub(r"[^a-z]", "", words[1]) if words else None
    if body not in BODIES:
        return None
    known = BODIES[body].factorisations
    if words[2] is None:
        return f"unknown env '{name}'; known: {', '.join(f'{body}_{factorisation}' for factorisation in known)}"
    num_agents, per_agent = int(words[2]), int(words[3])
    if f"{num_agents}x{per_agent}" in known:
        return f"unknown env '{name}'; did you mean {body}_{num_agents}x{per_agent}?"
    if num_agents * per_agent == BODIES[body].joints:
        alone = f"for a single agent make {body}_{known[0]} with partition='{num_agents}x{per_agent}'"
        return f"env '{name}': known factorisations: {', '.join(known)}; {alone}"
    return f"env '{name}': {kinematics.wrong_product(body, num_agents, per_agent, BODIES[body].joints, known)}"


class _View(NamedTuple):
    """What the agents observe.

    Attributes:
        sizes: entries per agent, padding not counted.
        source: [N, O] int, for every entry its place in the vector (full observation, 1, 0).
    """

    sizes: tuple[int, ...]
    source: np.ndarray


def _view(tree: KinematicTree, agents: Partition, hops: int | None, agent_id: bool) -> _View:
    size, num_agents = tree.observation_size, len(agents)
    one, zero = size, size + 1
    rows = [tuple(range(size))] * num_agents if hops is None else kinematics.observation_indices(tree, agents, hops)
    ids = np.where(np.eye(num_agents, dtype=bool), one, zero) if agent_id else np.empty((num_agents, 0), int)
    rows = [[*row, *ids[agent]] for agent, row in enumerate(rows)]
    sizes = tuple(map(len, rows))
    source = np.full((num_agents, max(sizes)), zero)
    for agent, row in enumerate(rows):
        source[agent, : len(row)] = row
    return _View(sizes, source)


def _bare_env(
    brax_env: Any, backend: str, tree: KinematicTree, agents: Partition, spec: EnvSpec, source: np.ndarray
) -> Env:
    """The environment without a time limit."""
    empty = jax.eval_shape(brax_env.reset, jax.random.key(0))
    chex.assert_shape(empty.obs, (tree.observation_size,))
    pack, unpack = _packing(empty, backend)
    low, high = np.asarray(tree.control_range, np.float32).T
    padded_action = (spec.num_agents, spec.action_size)
    flat_place = np.empty(len(tree.actuators), int)
    for agent, indices in enumerate(kinematics.action_indices(tree, agents)):
        flat_place[list(indices)] = agent * spec.action_size + np.arange(len(indices))

    def timestep(state) -> TimeStep:
        full = state.obs.astype(jnp.float32)
        return TimeStep(
            obs=jnp.concatenate([full, jnp.array([1.0, 0.0], jnp.float32)])[source],
            state=full,
            reward=jnp.full(spec.num_agents, state.reward, jnp.float32),
            terminated=state.done.astype(jnp.float32) > 0.5,  # never weakly typed: a scan would be traced twice
            truncated=jnp.zeros((), bool),
            action_mask=jnp.asarray(spec.action_mask),
        )

    def reset(key, params):
        del params
        state = brax_env.reset(key)
        return pack(state), timestep(state)

    def step(key, env_state, action, params):
        del key, params
        chex.assert_shape(action, padded_action)
        control = jnp.clip(action.reshape(-1)[flat_place].astype(jnp.float32), low, high)
        state = brax_env.step(unpack(env_state), control)
        return pack(state), timestep(state)

    return Env(spec, reset, step)


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
    with _quiet():
        brax_class = getattr(importlib.import_module(entry.module), entry.brax_class)
        brax_env = brax_class(backend=backend)
    if backend == "mjx" and entry.mjx_options:
        options = {f"opt.{field}": value for field, value in entry.mjx_options}
        brax_env.sys = brax_env.sys.tree_replace(options)
    if backend == "generalized":
        brax_env.sys = brax_env.sys.replace(matrix_inv_iterations=0)
    return brax_env


@contextlib.contextmanager
def _quiet():
    """Silences what loading a body says about things that no user of this package can change.

    MJX prints that the optional warp is missing, Brax warns that it is no longer developed, and MuJoCo warns about
    an attribute in Brax's model files, on the terminal and in a MUJOCO_LOG.TXT in the working directory.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Brax System", category=UserWarning)
        import mujoco

        previous = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(previous)


def kinematic_tree(body: str) -> KinematicTree:
    """The tree that `body` is factorised by; it is the same on every backend."""
    return _describe(body, load_brax(body, BODIES[body].default_backend).sys)


def _describe(body: str, sys: Any) -> KinematicTree:
    """The description of Brax's `sys`. An actuator is called after the joint that it drives."""
    entry, model = BODIES[body], sys.mj_model
    tree = KinematicTree(
        body=body,
        actuators=tuple(model.joint(int(joint)).name for joint in model.actuator_trnid[:, 0]),
        q_index=tuple(np.asarray(sys.actuator.q_id).tolist()),
        qd_index=tuple(np.asarray(sys.actuator.qd_id).tolist()),
        dof_link=tuple(np.asarray(sys.dof_link()).tolist()),
        link_parents=tuple(map(int, sys.link_parents)),
        q_size=sys.q_size(),
        qd_size=sys.qd_size(),
        skipped_q=entry.skipped_q,
        control_range=tuple(map(tuple, np.asarray(sys.actuator.ctrl_range).tolist())),
    )
    if len(tree.actuators) != entry.joints:
        raise RuntimeError(f"brax's {body} has {len(tree.actuators)} actuators, not {entry.joints}: another version?")
    return tree


def _checked_hops(name: str, obs: Any) -> int | None:
    """The number of hops; None for "full"."""
    is_full = isinstance(obs, str) and obs == "full"
    _check(name, "obs", obs, is_full or (_is_int(obs) and obs >= 0), "accepted: 'full' or a number of hops >= 0")
    return None if is_full else operator.index(obs)


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check(name: str, field: str, value: Any, is_fine: bool, accepted: str) -> None:
    if not is_fine:
        raise ValueError(f"env '{name}': {field}={value!r}; {accepted}")
