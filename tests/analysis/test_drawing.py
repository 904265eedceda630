"""Pictures of bodies: who owns which limb, outlines against brute force, what is in a GIF."""

import io

import mujoco
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import envs
from envs.base import Drawing, Env, EnvSpec
from envs.bodies.kinematics import KinematicTree
from envs.pictures import agent_colours
from marl_kl.analysis.bodies import drawing
from marl_kl.analysis.rendering import animation, recording
from tests.support.loaded_bodies import bodies_are_loaded_once  # noqa: F401  for all tests here

LEGS_OF_THE_ANT = {
    "left_leg_geom": 0, "left_ankle_geom": 0, "left_foot_geom": 0,
    "right_leg_geom": 1, "right_ankle_geom": 1, "right_foot_geom": 1,
    "back_leg_geom": 2, "third_ankle_geom": 2, "third_foot_geom": 2,
    "rightback_leg_geom": 3, "fourth_ankle_geom": 3, "fourth_foot_geom": 3,
}  # fmt: skip


def test_owners_of_the_ant():
    """hip_1 moves the left leg, hip_2 the right one, hip_3 and hip_4 those behind; torso and stubs belong to no agent."""
    env = envs.make("ant_4x2")
    model = env.drawing.model
    expected = [LEGS_OF_THE_ANT.get(model.geom(geom).name) for geom in range(model.ngeom)]
    assert drawing.owners(env) == tuple(() if agent is None else (agent,) for agent in expected)


@pytest.mark.slow
def test_a_limb_with_two_drivers_is_both_agents():
    """The humanoid's thigh has three joints, each with an agent of its own; knee and welded foot have one."""
    env = envs.make("humanoid_17x1")
    model, agents = env.drawing.model, env.spec.agents
    owners = {model.geom(geom).name: tuple(agents[a] for a in who) for geom, who in enumerate(drawing.owners(env))}
    assert owners["right_thigh1"] == ("right_hip_x", "right_hip_z", "right_hip_y")
    assert owners["right_shin1"] == ("right_knee",) and owners["torso1"] == ()


_SOLIDS = {
    "sphere": "0.3",
    "capsule": "0.1 0.4",
    "cylinder": "0.2 0.3",
    "ellipsoid": "0.1 0.2 0.5",
    "box": "0.1 0.2 0.3",
}


def _on_surface(kind, size):
    """[10^5, 3] points of the solid, in its own axes, up to its rim."""
    generator = np.random.default_rng(0)
    ball = generator.normal(size=(100_000, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    height = generator.choice([-1.0, 1.0], (100_000, 1))
    upright = np.array([0, 0, 1.0])
    disc = ball * [1, 1, 0] / np.linalg.norm(ball[:, :2], axis=1, keepdims=True)
    return {
        "sphere": lambda: size[0] * ball,
        "capsule": lambda: size[0] * ball + size[1] * height * upright,
        "cylinder": lambda: size[0] * disc + size[1] * height * upright,
        "ellipsoid": lambda: size * ball,
        "box": lambda: size * generator.choice([-1.0, 1.0], (100_000, 3)),
    }[kind]()


@pytest.mark.parametrize("kind", _SOLIDS)
def test_outlines_are_those_of_the_solid(kind):
    """In each direction the outline reaches as far as the furthest of many points of the solid's surface."""
    xml = f"""<mujoco><worldbody><body><joint name="j" axis="0 1 0"/>
      <geom type="{kind}" size="{_SOLIDS[kind]}" pos="0.1 0.2 0.3" euler="20 40 60"/></body></worldbody>
      <actuator><motor joint="j"/></actuator></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    tree = KinematicTree("solid", ("j",), (0,), (0,), (-1,), ((-1, 1),), ())
    spec = EnvSpec("solid", ("j",), (1,), (1,), "continuous", 1, 1)
    env = Env(spec, None, None, drawing=Drawing(model, None, tree, 0.1))
    view = drawing._camera(-65.0, 28.0, False)
    outlines = drawing._outlines(env, drawing._geom_parts(env), view, np.array([0.7]))

    data = mujoco.MjData(model)
    data.qpos[:] = 0.7
    mujoco.mj_kinematics(model, data)
    size = np.array(_SOLIDS[kind].split(), float)
    points = data.geom_xpos[0] + _on_surface(kind, size) @ data.geom_xmat[0].reshape(3, 3).T
    seen = points @ view.plane.T
    reach = (outlines.polygons[0, 0] * drawing._DIRECTIONS).sum(-1)
    furthest = (seen @ drawing._DIRECTIONS.T).max(axis=0)
    assert (furthest <= reach + 1e-9).all()
    np.testing.assert_allclose(furthest, reach, atol=2e-3)
    assert outlines.agent.tolist() == [0]


@pytest.mark.slow
def test_where_the_camera_stands():
    """Beside the hopper, over the swimmer, obliquely at the ant; right, up and near are a right-handed frame."""
    views = {name: drawing.camera(envs.make(name)) for name in ("hopper_3x1", "swimmer_2x1", "ant_4x2")}
    for view in views.values():
        np.testing.assert_allclose(np.cross(view.right, view.up), view.near, atol=1e-12)
    assert views["hopper_3x1"].is_side and views["hopper_3x1"].near[1] < -0.95
    assert views["swimmer_2x1"].near[2] > 0.9
    assert not views["ant_4x2"].is_side and 0.3 < views["ant_4x2"].near[2] < 0.7


def _walk(env, steps):
    """A recording of made-up poses: the hopper glides forwards and bends its knee."""
    poses = np.tile(env.drawing.model.qpos0, (steps + 1, 1))
    poses[:, 0] = np.linspace(0, 2, steps + 1)
    poses[:, 4] = np.linspace(0, -1, steps + 1)
    return recording.Recording(poses, np.zeros((steps, 3, 1)), np.linspace(0, 10, steps + 1), "terminated")


@pytest.mark.slow
def test_a_gif_in_real_time():
    """Steps of 8 ms at 25 frames per second: every fifth step, and the last; all agents' colours are in each."""
    env = envs.make("hopper_3x1")
    gif = Image.open(io.BytesIO(animation.animation(env, _walk(env, 12), "a title")))
    durations, frames = [], []
    for index in range(gif.n_frames):
        gif.seek(index)
        durations.append(gif.info["duration"])
        frames.append(np.asarray(gif.convert("RGB")))
    assert durations == [40, 40, 40, 1500] and gif.info["loop"] == 0
    for frame in frames:
        flat = frame.reshape(-1, 3)
        for colour in (*agent_colours(3), drawing.ROOT_COLOUR):
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (flat == rgb).all(axis=1).sum() > 50, colour
    assert len({frame.tobytes() for frame in frames}) == len(frames)


def test_a_still_of_any_pose_and_what_it_refuses():
    env = envs.make("manyagent_swimmer_3x2")
    axes = Figure().add_subplot()
    drawing.still(axes, env, np.zeros(env.drawing.model.nq))
    assert len(axes.collections) == 3
    with pytest.raises(ValueError, match=r"pose has shape \(3,\); env 'manyagent_swimmer_3x2' has \[nq\] = \(9,\)"):
        drawing.still(axes, env, np.zeros(3))
    with pytest.raises(ValueError, match="a pose is not finite"):
        drawing.still(axes, env, np.full(env.drawing.model.nq, np.nan))
    with pytest.raises(ValueError, match="env 'bilinear' is not a body"):
        drawing.still(axes, envs.make("bilinear"), np.zeros(3))


def test_many_agents_have_different_colours():
    for number in (2, 6, 7, 30):
        assert len(set(agent_colours(number))) == number
