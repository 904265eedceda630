"""Gymnasium's environments as the oracle: their rules on their own states, and steps of both engines side by side."""

import gymnasium
import jax
import mujoco
import numpy as np
import pytest
from gymnasium_robotics.envs.multiagent_mujoco import many_segment_ant, many_segment_swimmer
from mujoco import mjx

from envs import mjcf, mjx_engine

GYMNASIUM = {
    "ant": "Ant-v5",
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "humanoidstandup": "HumanoidStandup-v5",
    "pusher": "Pusher-v5",
    "reacher": "Reacher-v5",
    "swimmer": "Swimmer-v5",
    "walker2d": "Walker2d-v5",
}


def gymnasium_env(body):
    env = gymnasium.make(GYMNASIUM[body]).unwrapped
    env.reset(seed=0)
    return env


def random_controls(env, steps):
    space = env.action_space
    return np.random.default_rng(0).uniform(space.low, space.high, (steps, *space.shape))


@pytest.mark.parametrize("body", GYMNASIUM)
def test_rules(body, float64):
    """Observation, reward and termination of states that C MuJoCo stepped to, up to a fall where one is possible."""
    env = gymnasium_env(body)
    rules = mjx_engine.BODIES[body][1]
    ended = False
    for control in random_controls(env, 80):
        before = mjx.put_data(env.model, env.data)
        obs, reward, terminated, _, _ = env.step(control)
        after = mjx.put_data(env.model, env.data)
        velocity = (rules.progress(env.model, after) - rules.progress(env.model, before)) / env.dt
        np.testing.assert_allclose(rules.observe(after), obs, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(rules.reward(env.model, after, velocity, control), reward, rtol=1e-5, atol=1e-5)
        assert bool(rules.terminated(after)) == terminated
        ended |= terminated
        if ended:
            break
    assert rules.frame_skip == env.frame_skip
    assert ended == (body in ("ant", "hopper", "humanoid", "walker2d")), "or choose other controls"


@pytest.mark.parametrize(("body", "steps", "tolerance"), [("halfcheetah", 8, 1e-3), ("reacher", 8, 1e-3)])
def test_steps(body, steps, tolerance):
    """From the same states with the same controls."""
    physics, env = mjx_engine.load(body), gymnasium_env(body)
    controls = random_controls(env, steps).astype(np.float32)

    def rollout(key):
        state, first = physics.reset(key)
        return state, first, jax.lax.scan(physics.step, state, controls)[1]

    compiled = jax.jit(rollout, compiler_options=dict(physics.compiler_options))
    state, first, seen = compiled(jax.random.key(0))
    env.set_state(np.asarray(state.qpos, np.float64), np.asarray(state.qvel, np.float64))
    np.testing.assert_allclose(first.observation, env._get_obs(), atol=1e-5)
    for step, control in enumerate(controls):
        obs, reward, terminated, _, _ = env.step(control.astype(np.float64))
        np.testing.assert_allclose(seen.observation[step], obs, atol=tolerance)
        np.testing.assert_allclose(seen.reward[step], reward, atol=tolerance)
        assert bool(seen.terminated[step]) == terminated


@pytest.mark.parametrize("body", GYMNASIUM)
def test_starts_are_as_spread_as_gymnasiums(body):
    """Mean and standard deviation of q and qd over many resets."""
    env = gymnasium_env(body)
    rules = mjx_engine.BODIES[body][1]
    q, qd = jax.jit(jax.vmap(lambda key: rules.reset(key, env.model)))(jax.random.split(jax.random.key(0), 4000))
    theirs = [(env.reset_model(), env.data.qpos.copy(), env.data.qvel.copy())[1:] for _ in range(500)]
    for ours, of_gymnasium in zip((q, qd), map(np.stack, zip(*theirs))):
        spread = of_gymnasium.std(0)
        np.testing.assert_allclose(ours.mean(0), of_gymnasium.mean(0), atol=0.25 * spread.max())
        np.testing.assert_allclose(ours.std(0), spread, rtol=0.15)


@pytest.mark.parametrize(
    ("library", "generated", "segments"),
    [
        (many_segment_ant, mjcf.many_segment_ant, 6),
        (many_segment_swimmer, lambda n: mjcf.swimmer(mjcf.many_segment_swimmer_joints(n), alternate=True), 20),
    ],
    ids=["ant", "swimmer"],
)
def test_chains_are_those_of_ma_mujoco(library, generated, segments, tmp_path):
    library.gen_asset(segments, str(tmp_path / "model.xml"))
    theirs = mujoco.MjModel.from_xml_path(str(tmp_path / "model.xml"))
    ours = mujoco.MjModel.from_xml_string(generated(segments))
    for field in (
        "body_mass", "body_pos", "body_inertia", "body_parentid", "jnt_axis", "jnt_range", "jnt_pos", "dof_damping",
        "dof_armature", "actuator_gear", "actuator_trnid", "actuator_ctrlrange", "qpos0",
    ):  # fmt: skip
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), err_msg=field)
    assert [ours.joint(i).name for i in range(3, ours.njnt)] == [theirs.joint(i).name for i in range(3, theirs.njnt)]


def test_the_swimmer_is_gymnasiums():
    theirs = gymnasium_env("swimmer").model
    ours = mjx_engine.BODIES["swimmer"][0]()
    for field in ("body_mass", "body_pos", "body_inertia", "jnt_axis", "jnt_range", "dof_armature", "actuator_gear"):
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), err_msg=field)
    assert ours.opt.integrator == theirs.opt.integrator and ours.opt.timestep == theirs.opt.timestep


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(mjx_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"half_cheetah.xml from gymnasium.*pip install 'marl_kl\[mujoco\]'"):
        mjx_engine.load("halfcheetah")


def test_long_chains_need_an_option():
    assert ("xla_cpu_use_fusion_emitters", False) in mjx_engine.load("manyagent_swimmer", 4).compiler_options
