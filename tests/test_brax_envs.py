"""The Brax bodies: the protocol's contract on the default backends, Brax itself as the oracle, every other backend."""

import os
import subprocess
import sys
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs import brax_bodies, kinematics

# One name per factorisation of the ant and one per body; other splits of the cheetah run the same physics.
CONTRACT_NAMES = ("ant_2x4", "ant_4x2", "ant_8x1", "halfcheetah_6x1")
STEPS, NUM_ENVS, EPISODE_LENGTH = 50, 4, 30
# These programs run for a fraction of a second and would compile for many.
FAST_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


def keys_from(seed):
    return jax.random.split(jax.random.key(seed), NUM_ENVS)


def random_actions(env, seed, scale=1.0, steps=STEPS):
    """[T, E, N, A]"""
    shape = (steps, NUM_ENVS, env.spec.num_agents, env.spec.action_size)
    return np.random.default_rng(seed).uniform(-scale, scale, shape).astype(np.float32)


def compiled_rollout(env):
    """`rollout(keys [E], actions [T, E, N, A]) -> (first TimeStep [E, ...], TimeSteps [T, E, ...])`, no resets."""

    def rollout(keys, actions):
        env_state, first = jax.vmap(env.reset, (0, None))(keys, env.params)

        def step(env_state, action):
            return jax.vmap(env.step, (0, 0, 0, None))(keys, env_state, action, env.params)

        return first, jax.lax.scan(step, env_state, actions)[1]

    compiled = jax.jit(rollout, compiler_options=FAST_COMPILE)
    return lambda keys, actions: jax.device_get(compiled(keys, actions))


class Ran(NamedTuple):
    """An environment, its compiled rollout and one run of it."""

    env: Any
    rollout: Callable
    actions: np.ndarray
    first: envs.TimeStep
    steps: envs.TimeStep


@pytest.fixture(scope="module", params=CONTRACT_NAMES)
def ran(request):
    env = envs.make(request.param, episode_length=EPISODE_LENGTH)
    rollout, actions = compiled_rollout(env), random_actions(env, seed=0)
    return Ran(env, rollout, actions, *rollout(keys_from(0), actions))


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
        assert (state == timestep.state[..., None, :]).all()
        assert (ids == np.eye(spec.num_agents)).all()


def test_time_limit(ran):
    over = np.arange(1, STEPS + 1)[:, None] >= EPISODE_LENGTH
    assert (ran.steps.truncated == over & ~ran.steps.terminated).all()
    assert ran.steps.truncated.any()


def test_keys(ran):
    """A key names a trajectory; every key starts somewhere else."""
    first, steps = ran.rollout(keys_from(0), ran.actions)
    jax.tree.map(np.testing.assert_array_equal, (first, steps), (ran.first, ran.steps))
    states = np.concatenate([ran.first.state, ran.rollout(keys_from(1), ran.actions)[0].state])
    apart = np.abs(states[:, None] - states).max(-1)
    assert (apart[~np.eye(len(states), dtype=bool)] > 1e-3).all()


def test_actions_are_clipped(ran):
    actions = random_actions(ran.env, seed=1, scale=3.0)
    beyond, clipped = (ran.rollout(keys_from(0), a)[1] for a in (actions, np.clip(actions, -1, 1)))
    jax.tree.map(np.testing.assert_array_equal, beyond, clipped)


@pytest.mark.parametrize("name", brax_bodies.FACTORIES)
def test_every_name_without_compiling(name):
    env = envs.make(name)
    spec, (body, factorisation) = env.spec, name.split("_")
    assert spec.name == name and factorisation == f"{spec.num_agents}x{spec.action_size}"
    metadata = dict(spec.metadata)
    assert metadata.pop("partition") == "|".join(spec.agents)
    backend = brax_bodies.BODIES[body].default_backend
    assert metadata == {"body": body, "backend": backend, "obs": "full", "agent_id": "True"}

    key, action = jax.random.key(0), jnp.zeros((spec.num_agents, spec.action_size))
    env_state, first = jax.eval_shape(env.reset, key, env.params)
    after = jax.eval_shape(env.step, key, env_state, action, env.params)
    assert after == (env_state, first), "what a step returns can be carried by a scan"
    assert first.obs.shape == (spec.num_agents, spec.observation_size)


# Brax itself as the oracle


@pytest.mark.parametrize("ran", ["ant_4x2", "halfcheetah_6x1"], indirect=True)
def test_same_as_brax(ran):
    """A few steps of Brax's own environment, its whole state carried, from the same keys with the actions in its order.

    The two programs are compiled apart, so they agree to rounding only, which contacts enlarge step by step.
    """
    body = dict(ran.env.spec.metadata)["body"]
    brax_env = brax_bodies.load_brax(body, brax_bodies.BODIES[body].default_backend)
    tree = brax_bodies.kinematic_tree(body)
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

    obs, reward, done = jax.jit(rollout, compiler_options=FAST_COMPILE)(keys_from(0), controls)
    np.testing.assert_allclose(ran.steps.state[:steps], obs, atol=2e-3)
    np.testing.assert_allclose(ran.steps.reward[:steps, :, 0], reward, atol=2e-3)
    np.testing.assert_array_equal(ran.steps.terminated[:steps], done > 0.5)


def test_carried_state_is_small():
    """MJX's whole data is 3,000 numbers for the ant; a rollout selects over what is carried at every step."""
    env = envs.make("ant_4x2")
    carried = jax.eval_shape(lambda key: env.reset(key, env.params)[0], jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(carried)) < 120


# Other backends, observations and partitions


UNEVEN = "hip_1+ankle_1+hip_2+ankle_2+hip_3|ankle_3+hip_4+ankle_4"


def test_uneven_agents_with_local_observations_on_spring():
    """Agents of 5 and 3 joints: padded entries are zero in observations and ignored in actions."""
    env = envs.make("ant_2x4", backend="spring", obs=1, agent_id=True, partition=UNEVEN)
    spec, tree, steps = env.spec, brax_bodies.kinematic_tree("ant"), 10
    assert "|".join(spec.agents) == UNEVEN and spec.action_sizes == (5, 3)
    rollout, actions = compiled_rollout(env), random_actions(env, seed=0, steps=steps)
    first, after = rollout(keys_from(0), actions)
    check_timesteps(spec, first, (NUM_ENVS,))
    check_timesteps(spec, after, (steps, NUM_ENVS))

    partition = kinematics.parse_partition(tree, UNEVEN)
    for agent, seen in enumerate(kinematics.observation_indices(tree, partition, 1)):
        ids = np.broadcast_to(np.eye(2, dtype=np.float32)[agent], (steps, NUM_ENVS, 2))
        expected = np.concatenate([after.state[..., seen], ids], axis=-1)
        assert spec.observation_sizes[agent] == expected.shape[-1]
        np.testing.assert_array_equal(after.obs[..., agent, : expected.shape[-1]], expected)

    actions[..., ~spec.action_mask] = np.nan
    jax.tree.map(np.testing.assert_array_equal, rollout(keys_from(0), actions)[1], after)


@pytest.mark.parametrize("backend", ["positional", "generalized"])
def test_ant_on_the_other_backends(backend):
    env = envs.make("ant_4x2", backend=backend)
    first, after = compiled_rollout(env)(keys_from(0), random_actions(env, seed=0, steps=10))
    check_timesteps(env.spec, first, (NUM_ENVS,))
    check_timesteps(env.spec, after, (10, NUM_ENVS))
    assert dict(env.spec.metadata)["backend"] == backend


@pytest.mark.parametrize(
    "options, sizes",
    [
        ({}, (31,) * 4),
        ({"agent_id": False}, (27,) * 4),
        ({"obs": 0}, (15,) * 4),
        ({"obs": 1}, (18,) * 4),
        ({"obs": np.int64(9)}, (21,) * 4),
        ({"obs": 0, "agent_id": True}, (19,) * 4),
    ],
)
def test_observation_sizes(options, sizes):
    """Full: 27 + id. Local: 11 root coordinates, 4 own ones, then the other hips, then everybody's position."""
    assert envs.make("ant_4x2", **options).spec.observation_sizes == sizes


def test_exact_inverse_on_generalized():
    assert brax_bodies.load_brax("halfcheetah", "generalized").sys.matrix_inv_iterations == 0


# Bad input


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("ant_3x3", "env 'ant_3x3': 3 x 3 = 9, but the ant has 8 joints; known factorisations: 2x4, 4x2, 8x1"),
        ("HalfCheetah-4x2", "4 x 2 = 8, but the halfcheetah has 6 joints; known factorisations: 2x3, 3x2, 6x1"),
        ("ant-4x2", "unknown env 'ant-4x2'; did you mean ant_4x2?"),
        ("Ant_4x2", "did you mean ant_4x2?"),
        ("ant4X2", "did you mean ant_4x2?"),
        ("half_cheetah_6x1", "did you mean halfcheetah_6x1?"),
        ("ant", "unknown env 'ant'; known: ant_2x4, ant_4x2, ant_8x1"),
        ("ant_1x8", "known factorisations: 2x4, 4x2, 8x1; for a single agent make ant_2x4 with partition='1x8'"),
        ("ant_2x4d", "did you mean ant_2x4"),
        ("nothing like it", "unknown env 'nothing like it'; known: ant_2x4"),
    ],
)
def test_unknown_names(name, sentence):
    with pytest.raises(ValueError) as error:
        envs.make(name)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"backend": "warp"}, "backend='warp'; accepted: None, spring, positional, generalized, mjx"),
        ({"obs": -1}, "obs=-1; accepted: 'full' or a number of hops >= 0"),
        ({"obs": "local"}, "obs='local'; accepted: 'full'"),
        ({"obs": True}, "obs=True; accepted: 'full'"),
        ({"agent_id": 1}, "agent_id=1; accepted: None, True, False"),
        ({"episode_length": 0}, "episode_length=0; it must be at least 1"),
        ({"episode_length": 10.5}, "episode_length=10.5; it must be a whole number"),
        ({"partition": "3x3"}, "3 x 3 = 9, but the ant has 8 joints"),
        ({"partition": [["hip_1", "hip_1"]]}, "joint 'hip_1' is given 2 times"),
        ({"legs": 4}, "unknown option 'legs'; accepted: backend, obs, agent_id, episode_length, partition"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(ValueError) as error:
        envs.make("ant_4x2", **options)
    assert str(error.value).startswith("env 'ant_4x2': ") and sentence in str(error.value)


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
