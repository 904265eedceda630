"""One pose per body in which all limbs are visible, for figures."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.base import Env

POSES = {
    "ant": {f"ankle_{leg}": angle for leg, angle in zip("1234", (50, -50, -50, 50))},
    "coupled_halfcheetah": {"bthigh0": -25, "fthigh0": 20, "bthigh1": 15, "fthigh1": -25, "fshin1": 20},
    "halfcheetah": {"bthigh": -25, "bshin": 20, "fthigh": 25, "fshin": -30},
    "hopper": {"rooty": 6, "thigh_joint": -15, "leg_joint": -22, "foot_joint": 43},
    "humanoid": {
        "right_hip_y": -55, "right_knee": -50, "left_hip_y": 15, "left_knee": -25, "abdomen_y": -8,
        "right_shoulder1": -30, "left_shoulder1": 35, "right_elbow": -20, "left_elbow": -20,
    },
    "humanoidstandup": {"right_knee": -70, "right_hip_y": -60, "left_knee": -15, "left_hip_y": -15},
    "pusher": {"r_shoulder_pan_joint": -30, "r_elbow_flex_joint": -40},
    "reacher": {"joint0": 25, "joint1": 70},
    "swimmer": {"motor1_rot": 50, "motor2_rot": -50},
    "walker2d": {
        "rooty": 12, "thigh_joint": -15, "leg_joint": -5, "foot_joint": 32,
        "thigh_left_joint": -50, "leg_left_joint": -30, "foot_left_joint": 15,
    },
}  # fmt: skip
"""Per body, joints in degrees; the others keep their initial position, clipped to their range."""


def pose(env: Env) -> np.ndarray:
    """[nq] the body's pose in `POSES`, on the floor; chains of swimming links in a wave."""
    model = env.drawing.model
    angles = POSES.get(dict(env.spec.metadata)["body"], {})
    q = model.qpos0.copy()
    for joint in range(model.njnt):
        name, address = model.joint(joint).name, model.jnt_qposadr[joint]
        if name in angles:
            q[address] += np.radians(angles[name])
        elif name.startswith("rot"):
            q[address] = model.jnt_axis[joint, 2] * np.radians(55) * np.sin(2 * np.pi * int(name[3:]) / 7)
        elif model.jnt_limited[joint]:
            q[address] = np.clip(q[address], *model.jnt_range[joint])
    height = root_height_index(model)
    if height is not None:
        q[height] -= _lowest_point(model, q)
    return q


def root_height_index(model: mujoco.MjModel) -> int | None:
    """Index of the root's height in q; None if it cannot move vertically."""
    if model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
        return 2
    upright = (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE) & (model.jnt_axis[:, 2] > 0.99) & (model.jnt_bodyid == 1)
    return int(model.jnt_qposadr[np.flatnonzero(upright)[0]]) if upright.any() else None


def _lowest_point(model: mujoco.MjModel, q: np.ndarray) -> float:
    """Height of the lowest point of the moving spheres and capsules."""
    data = mujoco.MjData(model)
    data.qpos[:] = q
    mujoco.mj_kinematics(model, data)
    is_capsule = model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE
    reach = model.geom_size[:, 0] + is_capsule * model.geom_size[:, 1] * np.abs(data.geom_xmat[:, 8])
    return float(np.min((data.geom_xpos[:, 2] - reach)[model.geom_bodyid > 0]))
