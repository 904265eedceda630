"""Evaluation of trained policies in Gymnasium's v5 environments, which use MuJoCo's C engine.

The policies observe what Gymnasium observes, through the same wiring as in training (`envs.base.Wiring`), and the return
is Gymnasium's. Gymnasium is imported on first use (the extra `mujoco`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Env
from envs.bodies import mjcf
from envs.bodies.physics import contacts
from marl_kl.config import Config
from marl_kl.core.policies import make_actor
from marl_kl.core.rollout import policy_step
from marl_kl.core.trainer import Learner
from marl_kl.core.types import Carry
from marl_kl.results import EpisodeStatistics

_GYMNASIUM = {
    "ant": "Ant-v5",
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "humanoidstandup": "HumanoidStandup-v5",
    "manyagent_ant": "Ant-v5",
    "manyagent_swimmer": "Swimmer-v5",
    "pusher": "Pusher-v5",
    "reacher": "Reacher-v5",
    "swimmer": "Swimmer-v5",
    "walker2d": "Walker2d-v5",
}

_GENERATED = {"manyagent_ant": (mjcf.many_segment_ant, 4), "manyagent_swimmer": (mjcf.many_segment_swimmer, 1)}
"""Bodies of segments: their model, and how many joints drive a segment."""

_NO_COUNTERPART = {
    "coupled_halfcheetah": "Gymnasium has none, and that of Multi-Agent MuJoCo does not run on recent versions of mujoco",
}

_BONUS = "Brax pays the bonus for being upright on the step of a fall too"
_SOLVER = "Brax solves for contacts by 1 Newton iteration and integrates damping explicitly"
_LATE = "Brax pays for movement one simulation step late"
_KNOWN_DIFFERENCES = {
    "ant": (
        "Brax's ant starts at height 0.55 with bent legs (Gymnasium's at 0.75 with straight ones) and pays no contact "
        "cost", _BONUS, _SOLVER,
    ),
    "halfcheetah": (_LATE,),
    "hopper": (_BONUS, _LATE),
    "humanoid": ("Brax's humanoid pays no contact cost", _BONUS, _SOLVER),
    "humanoidstandup": (
        "Brax's humanoid starts at height 0.15 (Gymnasium's at 0.105) and pays no impact cost",
    ),
    "walker2d": (_BONUS, _LATE),
}  # fmt: skip
"""Of Brax's bodies: differences that the two models do not contain, see `_differences`."""
_ON_MJX = (_SOLVER, _LATE)
"""Those that hold for Brax's backend "mjx" only."""


class Counterpart(NamedTuple):
    """Gymnasium's environment of a body.

    Attributes:
        make: `make() -> gymnasium.Env`, with the episode length of training.
        name: its Gymnasium id.
        matched: how many leading entries of the body's full observation are also Gymnasium's leading ones.
        low, high: [actuators] the control range that the wiring clips to.
        c_low, c_high: [actuators] Gymnasium's, to which controls are rescaled.
        differences: known differences from the training physics, one phrase each.
    """

    make: Callable[[], Any]
    name: str
    matched: int
    low: np.ndarray
    high: np.ndarray
    c_low: np.ndarray
    c_high: np.ndarray
    differences: tuple[str, ...]

    def rescale(self, controls: np.ndarray) -> np.ndarray:
        """[..., actuators] the wiring's controls in Gymnasium's control range, float64."""
        share = (np.asarray(controls, np.float64) - self.low) / (self.high - self.low)
        return self.c_low + share * (self.c_high - self.c_low)


def counterpart(env: Env) -> Counterpart:
    """Gymnasium's environment of the same body; compiles nothing.

    Raises:
        ValueError: there is no such environment, or its observation lacks what the agents see.
        ModuleNotFoundError: gymnasium is not installed.
    """
    spec, metadata = env.spec, dict(env.spec.metadata)
    body = metadata.get("body")
    if env.wiring is None or body is None:
        raise ValueError(f"env '{spec.name}' is not a body, so MuJoCo has no environment for it")
    if body not in _GYMNASIUM:
        reason = _NO_COUNTERPART.get(body, "Gymnasium has none")
        raise ValueError(f"env '{spec.name}': MuJoCo's C engine has no environment for it: {reason}")
    make = _maker(env, body)
    gym_env = make()
    model, c_model = env.drawing.model, gym_env.unwrapped.model
    observed_size = gym_env.observation_space.shape[0]
    gym_env.close()
    matched = _matched(env, metadata["engine"])
    if _joints(model) != _joints(c_model) or matched > observed_size:
        expected = _GYMNASIUM[body]
        raise ValueError(f"env '{spec.name}': its joints are not those of {expected}: another version of gymnasium?")
    full = np.full(spec.state_size, np.nan, np.float32)
    full[:matched] = 0.0
    if np.isnan(env.wiring.observe(full)).any():
        raise ValueError(
            f"env '{spec.name}': agents see entries of Brax's observation (after the first {matched} of "
            f"{spec.state_size}) that {_GYMNASIUM[body]} does not have; train with engine='mjx' for this check"
        )
    low, high = np.transpose(env.drawing.tree.control_range)
    c_low, c_high = c_model.actuator_ctrlrange.T
    phrases = _differences(metadata, body, model, c_model)
    return Counterpart(make, _GYMNASIUM[body], matched, low, high, c_low, c_high, phrases)


def evaluate_team(
    counterpart: Counterpart, env: Env, config: Config, learner: Learner, seed: int, num_episodes: int
) -> EpisodeStatistics:
    """`num_episodes` whole episodes [episode] of the deterministic policies in the C engine.

    The environments run in lockstep, so that each step evaluates the policies once. Gymnasium draws the initial states
    from seeds made of `seed` and the episode's number.

    Args:
        counterpart: `counterpart(env)`.
        env: the training environment.
        config, learner: of one training seed.
        seed: of the initial states.
        num_episodes: at least 1.
    """
    act, hidden = _policy(counterpart, env, config, learner, num_episodes)
    gym_envs = [counterpart.make() for _ in range(num_episodes)]
    start_seeds = np.random.SeedSequence(seed).generate_state(num_episodes)
    observed = np.stack([gym_env.reset(seed=int(start))[0] for gym_env, start in zip(gym_envs, start_seeds)])
    returns, lengths = np.zeros(num_episodes), np.zeros(num_episodes)
    alive = np.ones(num_episodes, bool)
    while alive.any():
        controls, hidden = act(observed, hidden)
        for episode in np.flatnonzero(alive):
            observed[episode], reward, terminated, truncated, _ = gym_envs[episode].step(controls[episode])
            returns[episode] += reward
            lengths[episode] += 1
            alive[episode] = not (terminated or truncated)
    for gym_env in gym_envs:
        gym_env.close()
    return EpisodeStatistics(returns, lengths)


def _policy(
    counterpart: Counterpart, env: Env, config: Config, learner: Learner, num_episodes: int
) -> tuple[Callable[[np.ndarray, Carry], tuple[np.ndarray, Carry]], Carry]:
    """`act(observed[E, G], hidden) -> (controls [E, actuators], hidden)` in Gymnasium's units, and the initial carry."""
    actor = make_actor(env.spec, config)
    action_mask = jnp.broadcast_to(env.spec.action_mask, (num_episodes, *env.spec.action_mask.shape))
    unmatched = np.full((num_episodes, env.spec.state_size - counterpart.matched), np.nan, np.float32)

    @jax.jit
    def controls_of(full, hidden):
        obs = jax.vmap(env.wiring.observe)(full)
        policy, hidden = policy_step(actor, learner.actors, learner.obs_moments, obs, action_mask, hidden)
        action = actor.env_action(jnp.swapaxes(policy.mode(), 0, 1))
        return jax.vmap(env.wiring.controls)(action), hidden

    def act(observed, hidden):
        full = np.concatenate([observed[:, : counterpart.matched].astype(np.float32), unmatched], axis=1)
        controls, hidden = controls_of(full, hidden)
        return counterpart.rescale(controls), hidden

    return act, actor.initial_carry((env.spec.num_agents, num_episodes))


def _maker(env: Env, body: str) -> Callable[[], Any]:
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the check in MuJoCo's C engine needs gymnasium, which is not installed; pip install 'marl_kl[mujoco]'"
        ) from None

    def make(**options):
        limit = env.spec.episode_length
        return gymnasium.make(_GYMNASIUM[body], max_episode_steps=limit, disable_env_checker=True, **options)

    def make_generated():
        model_of, joints_per_segment = _GENERATED[body]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{body}.xml"
            file.write_text(model_of(len(env.drawing.tree.actuators) // joints_per_segment), encoding="utf-8")
            return make(xml_file=str(file))

    return make_generated if body in _GENERATED else make


def _matched(env: Env, engine: str) -> int:
    """Engine "mjx": all entries, as it follows Gymnasium's rules; Brax: the coordinates, which come first."""
    if engine == "mjx":
        return env.spec.state_size
    are_coordinates = [entry.category in ("qpos", "qvel") for entry in env.drawing.tree.entries]
    return (are_coordinates + [False]).index(False)


def _joints(model: Any) -> tuple[list[str], list[int]]:
    """Names of the joints, and the joint of each actuator."""
    return [model.joint(index).name for index in range(model.njnt)], model.actuator_trnid[:, 0].tolist()


def _differences(metadata: dict[str, str], body: str, model: Any, c_model: Any) -> tuple[str, ...]:
    if metadata["engine"] == "mjx":
        return ("the same model and rules; trained in float32 with at most 4 iterations of Newton's solver per step",)
    on_mjx = metadata["backend"] == "mjx"
    known = [phrase for phrase in _KNOWN_DIFFERENCES.get(body, ()) if on_mjx or phrase not in _ON_MJX]
    if not on_mjx:
        known.insert(0, f"Brax's {metadata['backend']} physics is another task than MuJoCo's")
    if metadata.get("corrected") == "False":
        known.append("Brax's reward pays a fifth for height and a tenth for control")
    if model.opt.integrator != c_model.opt.integrator:
        known.append("Brax integrates by Euler's rule, Gymnasium by RK4")
    return (*known, *contact_differences(model, c_model))


def contact_differences(model: Any, c_model: Any) -> tuple[str, ...]:
    """Differences in possible contacts between Brax's `mujoco.MjModel` and Gymnasium's, one phrase each."""
    ours, theirs = contacts(model), contacts(c_model)
    phrases = []
    if len(ours.floor) != len(theirs.floor):
        phrases.append(f"{len(ours.floor)} of Brax's geoms can touch the floor, {len(theirs.floor)} of Gymnasium's")
    if ours.limbs != theirs.limbs:
        phrases.append(f"{ours.limbs} pairs of Brax's limbs can touch each other, {theirs.limbs} of Gymnasium's")
    phrases += [
        f"friction of {name} on the floor is {friction:g} on Brax, {c_friction:g} on Gymnasium"
        for name, friction, c_friction in _shared_frictions(model, c_model)
        if friction != c_friction
    ]
    margin, c_margin = (float(x.geom_margin[list(touching.floor)].max(initial=0.0))
                        for x, touching in ((model, ours), (c_model, theirs)))  # fmt: skip
    if margin != c_margin:
        phrases.append(f"contacts begin {1000 * margin:g} mm above the floor on Brax, {1000 * c_margin:g} on Gymnasium")
    return tuple(phrases)


def _shared_frictions(model: Any, c_model: Any) -> list[tuple[str, float, float]]:
    """(name, friction, C friction) of geoms that can touch the floor in both models."""
    ours, theirs = (
        {x.geom(geom).name: friction for geom, friction in zip(touching.floor, touching.friction)}
        for x, touching in ((model, contacts(model)), (c_model, contacts(c_model)))
    )
    return [(name, ours[name], theirs[name]) for name in ours if name and name in theirs]
