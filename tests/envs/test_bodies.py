"""Bodies: the protocol's contract on the default backends, Brax itself as the oracle, every other backend, names."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.bodies import brax_engine, kinematics, scenarios
from envs.bodies.physics import CPU_OPTIONS
from envs.compiling import known
from tests.envs.test_names import PLAYED
from tests.support import c_world
from tests.support.grids import rare, slow_unless
from tests.support.loaded_bodies import bodies_are_loaded_once  # noqa: F401  for all tests here

pytestmark = pytest.mark.physics

SHORT_CHAIN = {"manyagent_swimmer": "manyagent_swimmer_2x2"}
"""It compiles in a fraction of the time of the papers', whose model is compared in test_mjx_engine.py."""
PLAYED_BODIES = ("ant", "hopper", "manyagent_swimmer")
"""On Brax the default of the README and those whose first steps are closest to C MuJoCo's; of MJX a fluid and contacts. What
an engine does is the same for the other bodies, whose rules are compared in test_mjx_engine.py and whose steps are traced
below."""
CONTRACT_NAMES = tuple(SHORT_CHAIN.get(body, PLAYED[body]) for body in PLAYED_BODIES)
OTHER_NAMES = tuple(PLAYED[body] for body in scenarios.BODIES if body not in PLAYED_BODIES)
"""Played by `pytest -m rare`, after a change of `envs.bodies` or of a physics package."""
STEPS, NUM_ENVS, EPISODE_LENGTH = 30, 3, 20


def keys_from(seed):
    return jax.random.split(jax.random.key(seed), NUM_ENVS)


def random_actions(env, seed, scale=1.0, steps=STEPS):
    """[T, E, N, A]"""
    shape = (steps, NUM_ENVS, env.spec.num_agents, env.spec.action_size)
    return np.random.default_rng(seed).uniform(-scale, scale, shape).astype(np.float32)


class Compiled(NamedTuple):
    """`start(keys [E]) -> (env_state, first TimeStep [E, ...])`; `play(env_state, actions [T, E, N, A]) -> TimeSteps
    [T, E, ...]`, no resets."""

    start: Callable
    play: Callable

    def rollout(self, keys, actions):
        env_state, first = self.start(keys)
        return first, self.play(env_state, actions)


def compiled(env):
    """With the compiler options that the environment asks for."""
    options = known(env.spec.cpu_compiler_options)
    start = jax.jit(lambda keys: jax.vmap(env.reset, (0, None))(keys, env.params), compiler_options=options)

    @functools.partial(jax.jit, compiler_options=options)
    def play(env_state, actions):
        def step(env_state, action):
            return jax.vmap(env.step, (0, 0, 0, None))(keys_from(0), env_state, action, env.params)

        return jax.lax.scan(step, env_state, actions)[1]

    return Compiled(*(lambda *arguments, f=f: jax.device_get(f(*arguments)) for f in (start, play)))


class Ran(NamedTuple):
    """An environment, its compiled functions and one run of it."""

    env: Any
    compiled: Compiled
    actions: np.ndarray
    env_state: Any
    first: envs.TimeStep
    steps: envs.TimeStep

    def rollout(self, keys, actions):
        return self.compiled.rollout(keys, actions)

    @property
    def body(self):
        return dict(self.env.spec.metadata)["body"]


@pytest.fixture(scope="module", params=[*slow_unless((), CONTRACT_NAMES), *rare(OTHER_NAMES)])
def ran(request):
    env = envs.make(request.param, episode_length=EPISODE_LENGTH)
    functions, actions = compiled(env), random_actions(env, seed=0)
    env_state, first = functions.start(keys_from(0))
    return Ran(env, functions, actions, env_state, first, functions.play(env_state, actions))


def check_timesteps(spec, timestep, batch):
    """Shapes, dtypes, masks, padding, one reward for all."""
    n, o, a = spec.num_agents, spec.observation_size, spec.action_size
    expected = {
        "obs": ((n, o), np.float32),
        "state": ((spec.state_size,), np.float32),
        "reward": ((n,), np.float32),
        "terminated": ((), np.bool_),
        "truncated": ((), np.bool_),
        "action_mask": ((n, a), np.bool_),
    }
    for field, (shape, dtype) in expected.items():
        value = getattr(timestep, field)
        assert value.shape == batch + shape and value.dtype == dtype, field
    for field in ("obs", "state", "reward"):
        assert np.isfinite(getattr(timestep, field)).all(), field
    assert (timestep.obs[..., ~spec.observation_mask] == 0).all()
    assert (timestep.action_mask == spec.action_mask).all()
    assert (timestep.reward == timestep.reward[..., :1]).all()
    assert not (timestep.terminated & timestep.truncated).any()


# The contract on the default backends


def test_contract(ran):
    check_timesteps(ran.env.spec, ran.first, (NUM_ENVS,))
    check_timesteps(ran.env.spec, ran.steps, (STEPS, NUM_ENVS))
    assert not ran.first.reward.any() and not ran.first.terminated.any() and not ran.first.truncated.any()
    assert ran.env.spec.team_reward
    assert hash(ran.env.spec) == hash(envs.make(ran.env.spec.name, episode_length=EPISODE_LENGTH).spec)


def test_full_observation_is_the_state_and_an_id(ran):
    spec = ran.env.spec
    assert spec.observation_sizes == (spec.state_size + spec.num_agents,) * spec.num_agents
    for timestep in (ran.first, ran.steps):
        state, ids = np.split(timestep.obs, [spec.state_size], axis=-1)
        np.testing.assert_allclose(
            state, np.broadcast_to(timestep.state[..., None, :], state.shape), rtol=1e-5, atol=1e-6
        )
        assert (ids == np.eye(spec.num_agents)).all()


def test_time_limit(ran):
    over = np.arange(1, STEPS + 1)[:, None] >= EPISODE_LENGTH
    assert (ran.steps.truncated == over & ~ran.steps.terminated).all()
    assert ran.steps.truncated.any()


def test_keys(ran):
    """A key names a trajectory; every key starts somewhere else."""
    first, steps = ran.rollout(keys_from(0), ran.actions)
    jax.tree.map(np.testing.assert_array_equal, (first, steps), (ran.first, ran.steps))
    states = np.concatenate([ran.first.state, ran.compiled.start(keys_from(1))[1].state])
    apart = np.abs(states[:, None] - states).max(-1)
    assert (apart[~np.eye(len(states), dtype=bool)] > 1e-3).all()


def test_actions_are_clipped(ran):
    actions = random_actions(ran.env, seed=1, scale=3.0)
    low, high = (np.zeros(ran.env.spec.action_mask.shape, np.float32) for _ in range(2))
    low[ran.env.spec.action_mask] = np.concatenate(ran.env.spec.action_low)
    high[ran.env.spec.action_mask] = np.concatenate(ran.env.spec.action_high)
    inside = np.clip(actions, low, high)
    assert (inside != actions).any()
    beyond, clipped = (ran.compiled.play(ran.env_state, a) for a in (actions, inside))
    jax.tree.map(np.testing.assert_array_equal, beyond, clipped)


def without_dynamics(physics):
    """`physics` whose resets and steps return zeros, in the shapes of a reset: what a split does with them remains.

    That a step returns the same is checked here for bodies that do not play.
    """
    shapes = jax.eval_shape(physics.reset, jax.random.key(0))
    if physics.tree.body not in PLAYED_BODIES:
        assert jax.eval_shape(physics.step, shapes[0], jnp.zeros(len(physics.tree.actuators))) == shapes
    zeros = lambda *_: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)  # noqa: E731
    return physics._replace(reset=zeros, step=zeros)


@pytest.mark.parametrize("body", slow_unless({"hopper", "reacher"}, scenarios.BODIES))
def test_every_name_without_compiling(body, monkeypatch):
    """What a split does; of a body's names only one is played, by `ran`."""
    load = scenarios._load

    @functools.cache
    def loaded(body, *arguments):
        physics, backend = load(body, body, *arguments)
        return without_dynamics(physics), backend

    monkeypatch.setattr(scenarios, "_load", lambda name, *arguments: loaded(*arguments))
    for name in (f"{body}_{split}" for split in scenarios.BODIES[body].splits):
        env = envs.make(name)
        spec = env.spec
        assert spec.name == name
        metadata = dict(spec.metadata)
        assert metadata["partition"] == "|".join(spec.agents)
        assert metadata["body"] == body and metadata["engine"] == scenarios.BODIES[body].engines[0]
        assert (metadata["obs"], metadata["agent_id"]) == ("full", "True")
        assert spec.cpu_compiler_options == CPU_OPTIONS, "else long chains and the pusher compile for minutes"

        key, action = jax.random.key(0), jnp.zeros((spec.num_agents, spec.action_size))
        env_state, first = jax.eval_shape(env.reset, key, env.params)
        after = jax.eval_shape(env.step, key, env_state, action, env.params)
        assert after == (env_state, first), "what a step returns can be carried by a scan"
        assert first.obs.shape == (spec.num_agents, spec.observation_size)
        assert jax.eval_shape(env.drawing.pose, env_state).shape == (env.drawing.model.nq,)


# C MuJoCo as the oracle

FIRST_STEPS = {
    "ant": (3, 6.0, 0.6),  # 1 Newton iteration and explicit damping, felt wherever a joint is at the end of its range
    "coupled_halfcheetah": (5, 1e-3, 1e-3),
    "halfcheetah": (5, 1e-3, 0.6),  # paid one simulation step late
    "hopper": (5, 0.4, 0.04),  # Euler instead of RK4
    "humanoid": (5, 8.0, 0.1),  # as ant
    "humanoidstandup": (3, 5.0, 1.0),
    "manyagent_swimmer": (5, 0.02, 1e-3),
    "pusher": (5, 1e-4, 1e-4),
    "reacher": (5, 1e-4, 1e-4),
    "swimmer": (5, 1e-4, 1e-4),
    "walker2d": (5, 3.0, 0.2),  # as hopper
}
"""Steps, and bounds on the differences of observations and rewards in them; the largest entries of an observation, the
velocities, change by 1 to 20 in a step."""
MANYAGENT_ANT = {"floor": (1, 1e-3, 1e-3), "air": (4, 2e-2, 1e-3)}
"""MJX and C lay friction in other directions where a capsule meets the floor, which one step there shows."""


@pytest.mark.parametrize("start", ["floor", "air"])
def test_first_steps_are_those_of_c_mujoco(ran, start):
    """Gymnasium's environment in the states of a reset, or in those lifted off the floor, under the same actions."""
    if start == "air" and ran.body not in c_world.LIFTS:
        pytest.skip("it touches no floor")
    steps, *bounds = MANYAGENT_ANT[start] if ran.body == "manyagent_ant" else FIRST_STEPS[ran.body]
    env_state = c_world.lifted(ran.env, ran.env_state, c_world.LIFTS[ran.body] if start == "air" else 0.0)
    seen = ran.steps if start == "floor" else ran.compiled.play(env_state, ran.actions)
    obs, reward, terminated = c_world.steps(ran.env, env_state, ran.actions[:steps])
    pairs = ((seen.state[:steps, :, : obs.shape[-1]], obs), (seen.reward[:steps, :, 0], reward))
    assert np.less([np.abs(ours - theirs).max() for ours, theirs in pairs], bounds).all()
    np.testing.assert_array_equal(seen.terminated[:steps], terminated)


# Brax itself as the oracle


@pytest.mark.parametrize(
    "ran", [*slow_unless((), [PLAYED["ant"]]), *rare([PLAYED["humanoid"], PLAYED["halfcheetah"]])], indirect=True
)
def test_same_as_brax(ran):
    """A few steps of Brax's own environment, its whole state carried, from the same keys with the actions in its order.

    The two programs are compiled apart, so they agree to rounding only, which contacts enlarge step by step.
    """
    brax_env = brax_engine.load_brax(ran.body, brax_engine.BODIES[ran.body].default_backend)
    tree = ran.env.drawing.tree
    joints = [agent.split("+") for agent in ran.env.spec.agents]
    places = {name: (i, j) for i, agent in enumerate(joints) for j, name in enumerate(agent)}
    agent, slot = np.transpose([places[name] for name in tree.actuators])
    steps = 5
    controls = ran.actions[:steps, :, agent, slot]

    def rollout(keys, controls):
        state = jax.vmap(brax_env.reset)(keys)

        def step(state, control):
            state = jax.vmap(brax_env.step)(state, control)
            return state, (state.obs, state.reward, state.done)

        return jax.lax.scan(step, state, controls)[1]

    obs, reward, done = jax.jit(rollout, compiler_options=known(CPU_OPTIONS))(keys_from(0), controls)
    np.testing.assert_allclose(ran.steps.state[:steps], obs, atol=2e-3)
    np.testing.assert_allclose(ran.steps.reward[:steps, :, 0], reward, atol=2e-3)
    np.testing.assert_array_equal(ran.steps.terminated[:steps], done > 0.5)


@pytest.mark.slow
def test_standing_up_is_paid_as_in_gymnasium_or_as_in_brax():
    """Height over a simulation step of 3 ms, not over Brax's control step, and Gymnasium's control cost at +-0.4; or
    Brax's own number."""
    state = SimpleNamespace(pipeline_state=SimpleNamespace(q=np.arange(24.0)), reward=np.float32(7.0))
    brax_env = brax_engine.load_brax("humanoidstandup", "mjx")
    controls = np.random.default_rng(0).uniform(-1, 1, 17)
    expected = 2 / 0.003 + 1 - 0.1 * np.sum(np.square(0.4 * controls))
    assert brax_engine.standup_reward(brax_env)(state, controls) == pytest.approx(expected, rel=1e-6)
    assert brax_engine.brax_reward(state, np.zeros(17)) == 7.0
    env = envs.make("humanoidstandup_17x1", corrected=False)
    assert dict(env.spec.metadata)["corrected"] == "False" and dict(env.spec.options) == {"corrected": False}


def test_carried_state_is_small():
    """MJX's whole data is 3,000 numbers for the ant; a rollout selects over what is carried at every step."""
    env = envs.make("ant_4x2")
    carried = jax.eval_shape(lambda key: env.reset(key, env.params)[0], jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(carried)) < 120


# Other backends, observations and partitions


UNEVEN = "hip_1+ankle_1+hip_2+ankle_2+hip_3|ankle_3+hip_4+ankle_4"


@pytest.mark.slow
def test_uneven_agents_with_local_observations_on_spring():
    """Agents of 5 and 3 joints: padded entries are zero in observations and ignored in actions."""
    env = envs.make("ant_2x4", backend="spring", obs=1, agent_id=True, partition=UNEVEN)
    spec, tree, steps = env.spec, env.drawing.tree, 10
    assert "|".join(spec.agents) == UNEVEN and spec.action_sizes == (5, 3)
    functions, actions = compiled(env), random_actions(env, seed=0, steps=steps)
    env_state, first = functions.start(keys_from(0))
    after = functions.play(env_state, actions)
    check_timesteps(spec, first, (NUM_ENVS,))
    check_timesteps(spec, after, (steps, NUM_ENVS))

    partition = kinematics.parse_partition(tree, UNEVEN)
    for agent, seen in enumerate(kinematics.observation_indices(tree, partition, 1)):
        ids = np.broadcast_to(np.eye(2, dtype=np.float32)[agent], (steps, NUM_ENVS, 2))
        expected = np.concatenate([after.state[..., seen], ids], axis=-1)
        assert spec.observation_sizes[agent] == expected.shape[-1]
        np.testing.assert_array_equal(after.obs[..., agent, : expected.shape[-1]], expected)

    actions[..., ~spec.action_mask] = np.nan
    jax.tree.map(np.testing.assert_array_equal, functions.play(env_state, actions), after)


# The ones that compile fastest; mjx is played by `ran`, spring by the ant above.
@pytest.mark.parametrize(
    ("name", "backend"),
    rare([("reacher_2x1", "generalized"), ("reacher_2x1", "positional")]),
)
def test_a_few_steps_on_the_other_backends(name, backend):
    env = envs.make(name, engine="brax", backend=backend)
    first, after = compiled(env).rollout(keys_from(0), random_actions(env, seed=0, steps=10))
    check_timesteps(env.spec, first, (NUM_ENVS,))
    check_timesteps(env.spec, after, (10, NUM_ENVS))


# Brax treats positional as spring, with other numbers
@pytest.mark.parametrize(
    ("body", "backend"),
    slow_unless(
        lambda case: case[0] == "hopper",
        [
            (body, backend)
            for body in brax_engine.BODIES
            for backend in brax_engine.BACKENDS
            if backend != "positional" or body in ("ant", "hopper")
        ],
    ),
)
def test_every_body_loads_on_every_backend(body, backend):
    """Loading traces a reset and compares its observation with the documented entries."""
    env = envs.make(PLAYED[body], engine="brax", backend=backend)
    assert dict(env.spec.metadata)["backend"] == backend and env.spec.state_size == env.drawing.tree.observation_size


def test_exact_inverse_on_generalized():
    assert brax_engine.load_brax("halfcheetah", "generalized").sys.matrix_inv_iterations == 0


def test_import_is_cheap_and_building_is_quiet(tmp_path):
    """Neither `import envs` nor a wrong name loads brax; building a body prints and writes nothing."""
    script = (
        "import sys, envs\n"
        "try: envs.make('ant_3x3')\n"
        "except ValueError: pass\n"
        "assert 'brax' not in sys.modules and 'mujoco' not in sys.modules\n"
        "envs.make('halfcheetah_6x1', backend='spring')\n"
    )
    root = os.path.dirname(os.path.dirname(envs.__file__))
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
