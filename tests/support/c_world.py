"""Gymnasium's environments as the reference for a body's first steps: the C engine, started in the body's states."""

import jax
import mujoco
import numpy as np
from mujoco import mjx

import envs
from envs.bodies import mjx_engine
from marl_kl.analysis.bodies import mujoco_check, poses

LIFTS = {
    "ant": 0.3,
    "coupled_halfcheetah": 1.0,
    "halfcheetah": 1.0,
    "hopper": 1.0,
    "humanoid": 0.4,
    "humanoidstandup": 1.0,
    "manyagent_ant": 2.0,
    "walker2d": 0.6,
}
"""How far bodies are raised, so that for some steps nothing touches the floor and no episode ends in which the engines
have different rewards."""


def coordinates(env_state):
    """(q, qd) of either engine's state, [E, ...]."""
    inner = env_state.inner
    return (inner["qpos"], inner["qvel"]) if isinstance(inner, dict) else (inner.qpos, inner.qvel)


def lifted(env, env_state, height):
    """`env_state` [E, ...] with the root `height` higher."""
    if not height:
        return env_state
    inner, place = env_state.inner, poses.root_height_index(env.drawing.model)
    q = np.array(coordinates(env_state)[0])
    q[:, place] += height
    if isinstance(inner, dict):
        above = inner["x"].replace(pos=inner["x"].pos + np.float32([0, 0, height]))
        return env_state._replace(inner=inner | {"qpos": q, "x": above})
    return env_state._replace(inner=inner._replace(qpos=q))


def steps(env, env_state, actions):
    """(observation [T, E, matched], reward [T, E], terminated [T, E]) of the C engine from `env_state` [E, ...]."""
    controls = np.asarray(jax.vmap(jax.vmap(env.wiring.controls))(actions))
    make, stretched, matched = _world(env)
    world = make()
    played = [_play(world, start, stretched(own))
              for start, own in zip(_starts(env, env_state), np.swapaxes(controls, 0, 1))]  # fmt: skip
    obs, reward, terminated = (np.stack(rows, axis=1) for rows in zip(*played))
    return obs[..., :matched], reward, terminated


def _play(world, start, controls):
    world.reset(seed=0)
    world.set_state(*start)
    return map(np.stack, zip(*(world.step(control)[:3] for control in controls)))


def _starts(env, env_state):
    """(q, qd) per environment; Brax counts the height of planar bodies from another point than Gymnasium."""
    facts = dict(env.spec.metadata)
    raised = facts["engine"] == "brax" and facts["body"] in ("hopper", "walker2d")
    for q, qd in zip(*(np.array(x, np.float64) for x in coordinates(env_state))):
        q[1] += 1.25 * raised
        yield q, qd


def _world(env):
    body = dict(env.spec.metadata)["body"]
    if body == "coupled_halfcheetah":
        return lambda: CoupledWorld(body), lambda controls: controls, env.spec.state_size
    name = f"{body}_{env.spec.name.removeprefix(body + '_')}"
    engine = dict(env.spec.metadata)["engine"]
    there = mujoco_check.counterpart(envs.make(name, obs=0, engine=engine, episode_length=env.spec.episode_length))
    return lambda: there.make().unwrapped, there.rescale, there.matched


class CoupledWorld:
    """Gymnasium has none: our rules on states that C MuJoCo stepped to."""

    def __init__(self, body):
        model_of, self.rules = mjx_engine.BODIES[body]
        self.model = model_of()
        self.data = mujoco.MjData(self.model)

    def reset(self, seed):
        mujoco.mj_resetData(self.model, self.data)

    def set_state(self, q, qd):
        self.data.qpos[:], self.data.qvel[:] = q, qd
        mujoco.mj_forward(self.model, self.data)

    def step(self, control):
        before = self.rules.progress(self.model, self.data)
        self.data.ctrl[:] = control
        mujoco.mj_step(self.model, self.data, self.rules.frame_skip)
        seen = mjx.put_data(self.model, self.data)
        seconds = self.rules.frame_skip * self.model.opt.timestep
        velocity = (self.rules.progress(self.model, self.data) - before) / seconds
        reward = self.rules.reward(self.model, seen, velocity, control)
        return np.asarray(self.rules.observe(seen)), np.asarray(reward), bool(self.rules.terminated(seen))
