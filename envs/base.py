"""The environment protocol: a static spec and two pure functions.

Axis legend used in every shape of this package (see also `marl_kl.core.types`):

    N  number of agents
    O  observation size, padded to the largest agent
    A  action size, padded to the largest agent: action dimensions (continuous), choices (discrete), or D * K
    D  sub-actions of the agent that has most of them (multi-discrete)
    K  choices of the sub-action that has most of them (multi-discrete)
    S  size of the global state

The kinds of actions, and the meaning of one agent's entry of `TimeStep.action_mask` [A]:

    continuous      action [N, A] float32; the mask marks the real dimensions.
    discrete        action [N] int32, one of A choices; the mask marks the available ones, at least one.
    multi_discrete  action [N, D] int32, one of K choices in each of D sub-actions, drawn independently; choice k of
                    sub-action d is entry d * K + k of the mask. A sub-action without an available choice (for example a
                    padded one) is always 0. `envs.games.digits` is an example.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.bodies.kinematics import KinematicTree
from envs.validation import check_integer

ActionKind = Literal["continuous", "discrete", "multi_discrete"]


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """The static description of an environment; frozen and hashable, so it may be a static argument of `jit`.

    Attributes:
        name: the name it was made under.
        agents: one name per agent, in the order of every agent axis.
        observation_sizes: true observation size per agent; arrays are padded with zeros to the largest.
        action_sizes: true action size per agent: action dimensions, number of choices, or for d sub-actions d * K.
        action_kind: "continuous", "discrete" or "multi_discrete"; see the module.
        state_size: size S of the global state that a centralised critic sees.
        episode_length: the longest possible episode, in env steps (the time limit).
        team_reward: whether all agents always receive the same reward.
        metadata: further facts that a run records about this environment, as (key, value) pairs.
        cpu_compiler_options: XLA options to compile this environment on a CPU in reasonable time, as (name, value) pairs
            for `compiler_options` of `jax.jit`; `marl_kl` applies them. Ignored by equality.
        options: the options of the call of `envs.make`, as (name, value) pairs of plain values, to make the same
            environment again; None if it was made otherwise. Ignored by equality.
        sub_actions: for multi-discrete actions, per agent the number of choices of each of its sub-actions; else None.
        action_low, action_high: for continuous actions, per agent and real dimension the bounds of the control range, to
            which `step` clips; None if actions are unbounded.
        observation_shape: the shape of every agent's observation before it was flattened, for encoders of images:
            (height, width, channels); None: it is a vector.

    Raises:
        ValueError: fields that contradict each other.
    """

    name: str
    agents: tuple[str, ...]
    observation_sizes: tuple[int, ...]
    action_sizes: tuple[int, ...]
    action_kind: ActionKind
    state_size: int
    episode_length: int
    team_reward: bool = True
    metadata: tuple[tuple[str, str], ...] = ()
    cpu_compiler_options: tuple[tuple[str, bool], ...] = dataclasses.field(default=(), compare=False)
    options: tuple[tuple[str, Any], ...] | None = dataclasses.field(default=None, compare=False)
    sub_actions: tuple[tuple[int, ...], ...] | None = None
    action_low: tuple[tuple[float, ...], ...] | None = None
    action_high: tuple[tuple[float, ...], ...] | None = None
    observation_shape: tuple[int, ...] | None = None

    @property
    def num_agents(self) -> int:
        return len(self.agents)

    @property
    def observation_size(self) -> int:
        """O: the padded observation size."""
        return max(self.observation_sizes)

    @property
    def action_size(self) -> int:
        """A: the padded action size."""
        return max(self.action_sizes)

    @property
    def num_sub_actions(self) -> int:
        """D: the most sub-actions of any agent; 0 unless actions are multi-discrete."""
        return max(map(len, self.sub_actions or ()), default=0)

    @property
    def num_choices(self) -> int:
        """K: the most choices of any sub-action; 0 unless actions are multi-discrete."""
        return _most_choices(self.sub_actions or ())

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of a joint action: (N, A), (N,) or (N, D)."""
        if self.action_kind == "discrete":
            return (self.num_agents,)
        return self.num_agents, self.action_size if self.action_kind == "continuous" else self.num_sub_actions

    @property
    def example_action(self) -> jax.Array:
        """A joint action of zeros."""
        return jnp.zeros(self.action_shape, jnp.float32 if self.action_kind == "continuous" else jnp.int32)

    @property
    def observation_mask(self) -> np.ndarray:
        """[N, O] bool: the entries of the padded observation that are real."""
        return np.arange(self.observation_size) < np.asarray(self.observation_sizes)[:, None]

    @property
    def action_mask(self) -> np.ndarray:
        """[N, A] bool: the entries of the padded action (or choices) that are real."""
        if self.sub_actions is None:
            return np.arange(self.action_size) < np.asarray(self.action_sizes)[:, None]
        absent = (0,) * self.num_sub_actions
        choices = np.asarray([(*own, *absent[len(own) :]) for own in self.sub_actions])
        return (np.arange(self.num_choices) < choices[..., None]).reshape(self.num_agents, -1)

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray] | None:
        """[N, A] float32 lowest and highest action, 0 where padded; None if actions are unbounded."""
        if self.action_low is None or self.action_high is None:
            return None
        ends = np.zeros((2, self.num_agents, self.action_size), np.float32)
        for end, rows in zip(ends, (self.action_low, self.action_high)):
            for agent, row in enumerate(rows):
                end[agent, : len(row)] = row
        return ends[0], ends[1]

    def __post_init__(self):
        counts = {
            "agents": len(self.agents),
            "observation_sizes": len(self.observation_sizes),
            "action_sizes": len(self.action_sizes),
        }
        if len(set(counts.values())) != 1 or not self.agents:
            raise ValueError(f"env '{self.name}': one entry per agent is needed in each of {counts}")
        if self.action_kind not in ("continuous", "discrete", "multi_discrete"):
            raise ValueError(
                f"env '{self.name}': action_kind={self.action_kind!r}; accepted: 'continuous', 'discrete', "
                "'multi_discrete'"
            )
        self._check_names()
        self._check_sizes()
        self._check_sub_actions()
        self._check_range()

    def _check_names(self) -> None:
        """Names are columns of tables and parts of file names."""
        for name in (self.name, *self.agents):
            if not isinstance(name, str) or not name.strip() or not name.isprintable():
                raise ValueError(f"env '{self.name}': name {name!r}; it must be a text of printable characters")
        twice = sorted({name for name in self.agents if self.agents.count(name) > 1})
        if twice:
            raise ValueError(f"env '{self.name}': agents={self.agents!r}; '{twice[0]}' is there more than once")

    def _check_sizes(self) -> None:
        for field in ("observation_sizes", "action_sizes"):
            for size in getattr(self, field):
                check_integer(f"env '{self.name}': a size in {field}", size, 1)
        if self.observation_shape is not None and set(self.observation_sizes) != {math.prod(self.observation_shape)}:
            raise ValueError(
                f"env '{self.name}': observation_shape={self.observation_shape!r}; it must have as many entries as every "
                f"agent's observation, {self.observation_sizes}"
            )
        check_integer(f"env '{self.name}': state_size", self.state_size, 1)
        check_integer(f"env '{self.name}': episode_length", self.episode_length, 1)

    def _check_sub_actions(self) -> None:
        what = f"env '{self.name}': sub_actions={self.sub_actions!r}"
        if self.action_kind != "multi_discrete":
            if self.sub_actions is not None:
                raise ValueError(f"{what}; it must be None for {self.action_kind} actions")
            return
        if (
            self.sub_actions is None
            or len(self.sub_actions) != self.num_agents
            or not all(own and min(own) >= 1 for own in self.sub_actions)
        ):
            raise ValueError(f"{what}; it must be {self.num_agents} tuples of at least one number of choices >= 1 each")
        expected = multi_discrete_sizes(self.sub_actions)
        if tuple(self.action_sizes) != expected:
            raise ValueError(
                f"env '{self.name}': action_sizes={self.action_sizes}; with these sub_actions, padded to "
                f"{self.num_choices} choices, it must be {expected}"
            )

    def _check_range(self) -> None:
        lows, highs, sizes = self.action_low, self.action_high, tuple(self.action_sizes)
        if lows is None and highs is None:
            return
        what = f"env '{self.name}': action_low={lows!r} and action_high={highs!r}"
        if self.action_kind != "continuous":
            raise ValueError(f"{what}; they must be None for {self.action_kind} actions")
        if lows is None or highs is None or not tuple(map(len, lows)) == tuple(map(len, highs)) == sizes:
            raise ValueError(f"{what}; both need one number per agent and dimension, {sizes}")
        ends = zip(itertools.chain(*lows), itertools.chain(*highs))
        if not all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in ends):
            raise ValueError(f"{what}; all must be finite, and each low below its high")


def _most_choices(sub_actions: tuple[tuple[int, ...], ...]) -> int:
    return max(map(max, sub_actions), default=0)


def multi_discrete_sizes(sub_actions: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """`EnvSpec.action_sizes` of agents with these sub-actions: d * K for d of them."""
    return tuple(len(own) * _most_choices(sub_actions) for own in sub_actions)


class TimeStep(NamedTuple):
    """What the agents and the critic receive after a reset or a step.

    Attributes:
        obs: [N, O] float32, zero where padded.
        state: [S] float32, the global state.
        reward: [N] float32, per agent; a team game repeats the team reward. Zero after a reset.
        terminated: [] bool, the task ended: the value of the next state is 0.
        truncated: [] bool, the time limit ended the episode: `obs` and `state` are its true last ones.
            Never true together with `terminated`.
        action_mask: [N, A] bool: available choices (discrete, multi-discrete), real dimensions (continuous).
        alive: [N] bool, whether each agent acts in this step; None: always. The samples of agents that do not are left
            out of the updates of the actors. In all time steps of an environment or in none.
    """

    obs: jax.Array
    state: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    action_mask: jax.Array
    alive: jax.Array | None = None


def timestep_shapes(spec: EnvSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and dtype of every field of a `TimeStep`; `alive` may be None instead."""
    n = spec.num_agents
    return {
        "obs": jax.ShapeDtypeStruct((n, spec.observation_size), jnp.float32),
        "state": jax.ShapeDtypeStruct((spec.state_size,), jnp.float32),
        "reward": jax.ShapeDtypeStruct((n,), jnp.float32),
        "terminated": jax.ShapeDtypeStruct((), jnp.bool_),
        "truncated": jax.ShapeDtypeStruct((), jnp.bool_),
        "action_mask": jax.ShapeDtypeStruct((n, spec.action_size), jnp.bool_),
        "alive": jax.ShapeDtypeStruct((n,), jnp.bool_),
    }


def declared_shapes(spec: EnvSpec, timestep: TimeStep) -> dict[str, jax.ShapeDtypeStruct]:
    """`timestep_shapes` without `alive` if `timestep` does not say it."""
    shapes = timestep_shapes(spec)
    if timestep.alive is None:
        del shapes["alive"]
    return shapes


def check_timestep(spec: EnvSpec, timestep: TimeStep) -> None:
    """Raises ValueError if `timestep` (arrays, tracers or shapes) has other shapes than `spec` declares."""
    shapes = declared_shapes(spec, timestep)
    for field, expected in shapes.items():
        shape = tuple(getattr(timestep, field).shape)
        if shape != expected.shape:
            raise ValueError(f"env '{spec.name}': {field} has shape {shape}; its spec says {expected.shape}")
    for field in ("action_mask", "alive"):
        if field in shapes and getattr(timestep, field).dtype != bool:
            raise ValueError(f"env '{spec.name}': {field} is {getattr(timestep, field).dtype}; it must be bool")


EnvState = Any
"""A pytree, opaque outside of its environment."""


class Drawing(NamedTuple):
    """Everything needed to render the states of a body environment.

    Attributes:
        model: the `mujoco.MjModel`.
        pose: `pose(env_state) -> [nq]`, generalised positions.
        tree: the kinematic tree with its actuators.
        seconds: simulated seconds per env step.
    """

    model: Any
    pose: Callable[[EnvState], jax.Array]
    tree: KinematicTree
    seconds: float


class Wiring(NamedTuple):
    """The maps between agents and a body, independent of the physics engine.

    Attributes:
        observe: `observe(full[S]) -> [N, O]`, the agents' observations from the body's full observation.
        controls: `controls(action[N, A]) -> [actuators]` inside the body's control range, in the order of
            `KinematicTree.actuators`.
    """

    observe: Callable[[jax.Array], jax.Array]
    controls: Callable[[jax.Array], jax.Array]


EnvParams = Any
"""A pytree of parameters of an environment's dynamics (for example a payoff tensor); `()` if none."""

Draw = Callable[[Any, EnvState, Any, EnvParams], None]
"""`draw(axes, env_state, action, params)` draws one state, for `marl-kl render`.

    axes: matplotlib's, empty; only these may be drawn on. The title of the picture is not drawn here.
    env_state: of one environment, with numpy arrays as leaves (see `host_ready`).
    action: the joint action that led to it, a numpy array of shape `EnvSpec.action_shape`; None after a reset.
    params: the environment's.
"""


class Env(NamedTuple):
    """A pure, stateless environment with static shapes; it never resets itself.

    Attributes:
        spec: the static description.
        reset: `reset(key, params) -> (env_state, TimeStep)`.
        step: `step(key, env_state, action, params) -> (env_state, TimeStep)`, `action` of kind `spec.action_kind`.
            Continuous actions outside the control range are clipped here, not by the policy.
        params: the default `params`.
        drawing: for body environments, else None.
        wiring: for body environments, else None.
        draw: draws a state, see `Draw`; None: `marl-kl render` cannot show the environment, unless it is a body.
    """

    spec: EnvSpec
    reset: Callable[[jax.Array, EnvParams], tuple[EnvState, TimeStep]]
    step: Callable[[jax.Array, EnvState, jax.Array, EnvParams], tuple[EnvState, TimeStep]]
    params: EnvParams = ()
    drawing: Drawing | None = None
    wiring: Wiring | None = None
    draw: Draw | None = None

    def __repr__(self) -> str:
        """One line, for notebooks: a drawing holds a whole model."""
        spec = self.spec
        return f"Env({spec.name!r}, {spec.num_agents} agents, {spec.action_kind} actions)"


def host_ready(env_state: EnvState) -> EnvState:
    """`env_state` with typed keys as their numbers, which unlike keys can be numpy arrays."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, env_state)


def cast_like(tree: Any, like: Any) -> Any:
    """`tree` as arrays with exactly the dtypes of `like`, so that it can be the carry of `jax.lax.scan`."""
    return jax.tree.map(lambda leaf, other: jax.lax.convert_element_type(jnp.asarray(leaf), other.dtype), tree, like)


def with_declared_dtypes(env: Env) -> Env:
    """`env` whose time steps have the dtypes of the protocol and whose state keeps those of its reset.

    With `jax_enable_x64`, environments compute in float64 unless they say otherwise; policies and critics do not.
    """

    def declared(timestep: TimeStep) -> TimeStep:
        shapes = declared_shapes(env.spec, timestep).items()
        return TimeStep(**{field: jnp.asarray(getattr(timestep, field), shape.dtype) for field, shape in shapes})

    def reset(key, params):
        env_state, timestep = env.reset(key, params)
        return env_state, declared(timestep)

    def step(key, env_state, action, params):
        new_state, timestep = env.step(key, env_state, action, params)
        return cast_like(new_state, env_state), declared(timestep)

    return env._replace(reset=reset, step=step)
