"""Gymnasium's environments as the oracle: their rules on their own states, and steps of both engines side by side."""

import gymnasium
import jax
import mujoco
import numpy as np
import pytest
from gymnasium_robotics.envs.multiagent_mujoco import many_segment_ant, many_segment_swimmer
from mujoco import mjx

import envs
from envs.bodies import mjcf, mjx_engine
from envs.compiling import known
from tests.support.grids import rare, slow_unless

pytestmark = pytest.mark.physics

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


@pytest.mark.parametrize("body", slow_unless({"hopper"}, GYMNASIUM))
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
    assert rules.frame_skip == env.frame_skip and mjx_engine.load(body).seconds == pytest.approx(env.dt)
    assert ended == (body in ("ant", "hopper", "humanoid", "walker2d")), "or choose other controls"


@pytest.mark.parametrize("body", [*slow_unless((), ["halfcheetah"]), *rare(["ant", "hopper", "humanoid", "walker2d"])])
def test_first_steps(body):
    """From the same state with the same controls; relative to the largest entry.

    The ant is in the air, as MJX and C lay friction in other directions where a capsule meets the floor. Bodies whose
    default engine is mjx are compared with C in tests/envs/test_bodies.py.
    """
    tolerance = 1e-4
    physics, env = mjx_engine.load(body), gymnasium_env(body)
    rules = mjx_engine.BODIES[body][1]
    q, qd = (x.astype(np.float32) for x in (env.data.qpos, env.data.qvel))
    q[2] += 2.0 * (body == "ant")
    env.set_state(q.astype(np.float64), qd.astype(np.float64))
    progress = np.float32(rules.progress(env.model, env.data))
    state = mjx_engine.State(q, qd, np.zeros(env.model.nv, np.float32), progress)
    step = jax.jit(physics.step, compiler_options=known(physics.compiler_options))
    for control in random_controls(env, 4).astype(np.float32):
        state, seen = step(state, control)
        obs, reward, terminated, _, _ = env.step(control.astype(np.float64))
        np.testing.assert_allclose(seen.observation, obs, atol=tolerance * max(1.0, np.abs(obs).max()))
        np.testing.assert_allclose(seen.reward, reward, atol=tolerance * max(1.0, abs(reward)))
        assert bool(seen.terminated) == terminated


@pytest.mark.parametrize("body", slow_unless({"hopper"}, GYMNASIUM))
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


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pusher_3p", r"env 'pusher_3p': .*'mjx' reads pusher_v5.xml from gymnasium, which is not installed; pip "
         r"install 'marl_kl\[mujoco\]'; engine='brax' does not need it, see docs/scenarios.md$"),
        ("coupled_halfcheetah_1p1", r"coupled_half_cheetah.xml from gymnasium_robotics.*'marl_kl\[mujoco\]'$"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named(monkeypatch, name, sentence):
    """The message names the engine that does not need it, if there is one."""
    monkeypatch.setattr(mjx_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=sentence):
        envs.make(name)
