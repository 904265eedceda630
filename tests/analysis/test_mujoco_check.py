"""A team in MuJoCo's C engine: observations, controls and returns against a loop by hand; re-evaluation; commands."""

import json
import sys

import gymnasium
import jax
import numpy as np
import pytest
from PIL import Image

import envs
import marl_kl
from envs.bodies import kinematics
from marl_kl import devices
from marl_kl.analysis.bodies import mujoco_check
from marl_kl.cli import main
from marl_kl.core import policies
from marl_kl.storage import files, loading, run_folder
from tests.support import random_run
from tests.support.counting_env import counting_env
from tests.support.loaded_bodies import bodies_are_loaded_once  # noqa: F401  for all tests here

pytestmark = pytest.mark.physics

UNEVEN = (("thigh_joint", "foot_joint"), ("leg_joint",))


@pytest.mark.slow
@pytest.mark.parametrize("squash", [False, True])
def test_a_team_in_the_c_engine_equals_a_loop_by_hand(squash):
    """Agents of two joints and of one, which see the root, their own joints and the nearest ones."""
    config = random_run.CONFIG.replace(squash=squash)
    env = envs.make("hopper", partition=UNEVEN, obs=1, agent_id=True, episode_length=40)
    spec, learner = env.spec, random_run.learner(env.spec, 0)
    counterpart = mujoco_check.counterpart(env)
    scores = mujoco_check.evaluate_team(counterpart, env, config, learner, seed=5, num_episodes=3)

    actor = policies.make_actor(spec, config)
    seen = kinematics.observation_indices(env.drawing.tree, UNEVEN, 1)
    joints = ["thigh_joint", "leg_joint", "foot_joint"]
    gym_env = gymnasium.make("Hopper-v5")
    for episode, start in enumerate(np.random.SeedSequence(5).generate_state(3)):
        observed, _ = gym_env.reset(seed=int(start))
        total = 0.0
        for step in range(1, 41):
            obs, control = np.zeros((2, spec.observation_size), np.float32), np.zeros(3)
            for agent, entries in enumerate(seen):
                obs[agent, : len(entries)] = observed[list(entries)]
                obs[agent, len(entries) + agent] = 1.0
            means, _ = actor.team_outputs(learner.actors, actor.inputs(learner.obs_moments, obs))
            for agent, own in enumerate(UNEVEN):
                for slot, joint in enumerate(own):
                    mean = means[agent, slot]
                    control[joints.index(joint)] = np.tanh(mean) if squash else np.clip(mean, -1, 1)
            observed, reward, terminated, _, _ = gym_env.step(control)
            total += reward
            if terminated:
                break
        assert scores.episode_length[episode] == step
        np.testing.assert_allclose(scores.episode_return[episode], total, rtol=1e-4)
    assert len(set(scores.episode_return)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "first_height"),
    [("hopper_3x1", {}, 1.25), ("hopper_3x1", {"engine": "mjx"}, 0.0), ("ant_4x2", {}, 0.0)],
)
def test_gymnasium_observes_what_the_training_engine_observes(name, options, first_height):
    """In the state of a reset, put into the C engine; `first_height` is what Gymnasium's file adds to Brax's height."""
    env = envs.make(name, **options)
    jitted = jax.jit(env.reset, compiler_options=devices.compiler_options("cpu", env.spec.cpu_compiler_options))
    env_state, timestep = jax.device_get(jitted(jax.random.key(0), env.params))
    counterpart = mujoco_check.counterpart(env)
    gym_env = counterpart.make().unwrapped
    gym_env.reset(seed=0)
    q = np.array(env.drawing.pose(env_state), np.float64)
    q[1] += first_height
    qd = timestep.state[-gym_env.model.nv :]  # the last entries of all three observations
    gym_env.set_state(q, qd.astype(np.float64))
    observed = gym_env._get_obs()[: counterpart.matched]
    assert counterpart.matched == env.spec.state_size
    np.testing.assert_allclose(observed, timestep.state, atol=1e-5)
    np.testing.assert_allclose(env.wiring.observe(observed.astype(np.float32)), timestep.obs, atol=1e-5)


@pytest.mark.slow
def test_controls_are_rescaled_to_the_actuators_range():
    """Brax's humanoid takes controls in [-1, 1], Gymnasium's in [-0.4, 0.4]."""
    counterpart = mujoco_check.counterpart(envs.make("humanoid_17x1", obs=1))
    assert counterpart.matched == 45
    for control, rescaled in ((1.0, 0.4), (-0.5, -0.2)):
        np.testing.assert_allclose(
            counterpart.rescale(np.full((2, 17), control)), np.full((2, 17), rescaled), rtol=1e-6
        )


def test_chains_are_made_as_long_as_the_body():
    counterpart = mujoco_check.counterpart(envs.make("manyagent_ant_2x2", episode_length=7))
    gym_env = counterpart.make()
    assert gym_env.unwrapped.model.nu == 16 and counterpart.name == "Ant-v5" and gym_env.spec.max_episode_steps == 7


def test_known_differences_are_named():
    counterpart = mujoco_check.counterpart(envs.make("ant_4x2", backend="spring"))
    assert [phrase.split()[:2] for phrase in counterpart.differences] == [
        ["Brax's", "spring"], ["Brax's", "ant"], ["Brax", "pays"], ["Brax", "integrates"], ["4", "of"],
        ["contacts", "begin"],
    ]  # fmt: skip
    assert "the same model and rules" in mujoco_check.counterpart(envs.make("ant_4x2", engine="mjx")).differences[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("humanoid_9|8", r"\(after the first 45 of 244\) that Humanoid-v5 does not have; train with engine='mjx'"),
        ("coupled_halfcheetah_1p1", "that of Multi-Agent MuJoCo does not run on recent versions of mujoco"),
        ("matrix_game", "env 'matrix_game' is not a body"),
    ],
)
def test_unsupported_checks_give_a_one_line_error(name, message):
    with pytest.raises(ValueError, match=message) as error:
        mujoco_check.counterpart(envs.make(name))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gym_name"), [("reacher_2x1", "Reacher-v5"), ("pusher_3p", "Pusher-v5")])
def test_brax_has_other_reachers_and_pushers(name, gym_name):
    assert mujoco_check.counterpart(envs.make(name)).name == gym_name
    message = f"of Brax's observation .* that {gym_name} does not have; train with engine='mjx'"
    with pytest.raises(ValueError, match=message):
        mujoco_check.counterpart(envs.make(name, engine="brax"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("halfcheetah_6x1", ["one simulation step late", "5 of Brax's geoms can touch the floor, 8 of Gymnasium's"]),
        ("hopper_3x1", ["the bonus", "1 of Brax's geoms", "0 pairs of Brax's limbs can touch each other, 3 of"]),
        ("walker2d_2x3", ["the bonus", "3 of Brax's geoms", "foot_geom on the floor is 0.9 on Brax, 1.9 on"]),
        ("humanoid_17x1", ["the bonus", "2 of Brax's geoms", "0 pairs of Brax's limbs", "0 mm above the floor on"]),
        ("humanoidstandup_17x1", ["0.15 (Gymnasium's at 0.105)", "9 of Brax's geoms can touch the floor, 17 of"]),
    ],
)  # fmt: skip
def test_differences_of_the_models_are_found(name, phrases):
    printed = "; ".join(mujoco_check.counterpart(envs.make(name, obs=0)).differences)
    assert all(phrase in printed for phrase in phrases)
    assert ("the bonus" in printed) == ("the bonus" in phrases)


def test_a_missing_gymnasium_is_named(monkeypatch):
    env = envs.make("hopper_3x1")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs gymnasium, .* pip install 'marl_kl\[mujoco\]'"):
        mujoco_check.counterpart(env)


# The commands


@pytest.fixture(scope="module")
def hopper_run(tmp_path_factory):
    env = envs.make("hopper_3x1", backend="spring", episode_length=30)  # the physics that compiles fastest
    return random_run.store(tmp_path_factory.mktemp("runs") / "hopper", env)


@pytest.mark.slow
def test_evaluate_prints_both_physics(hopper_run, capsys):
    assert main.main(["evaluate", str(hopper_run), "--in", "mujoco", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert (
        "hatrpo_w on hopper_3x1" in printed and "return in brax spring" in printed and "return in C MuJoCo" in printed
    )
    assert "Gymnasium's Hopper-v5; known differences: Brax's spring physics is another task" in " ".join(
        printed.split()
    )
    rows = [line.split() for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1"]
    env, run = envs.make("hopper_3x1", episode_length=30), loading.load(hopper_run)
    counterpart = mujoco_check.counterpart(env)
    scores = mujoco_check.evaluate_team(counterpart, env, run.config, run.learner_of(1), seed=1, num_episodes=2)
    assert rows[0][7] == f"{scores.episode_return.mean():.3g}"


@pytest.mark.slow
def test_render_writes_a_gif_into_the_run(hopper_run, capsys):
    assert main.main(["render", str(hopper_run), "--steps", "6", "--seed", "1"]) == 0
    file = hopper_run / "episode-seed1.gif"
    assert capsys.readouterr().out.startswith(f"{file}: 6 steps (not ended), return ")
    assert Image.open(file).n_frames == 3


_BAD = {
    "render {run} --seed 5": "seed=5 is not in this run; it has 0, 1",
    "render {run} --steps 0": "steps=0; it must be at least 1",
    "render {run} --out {run}/picture.jpg": "it must be a .gif, .mp4 or .png file in an existing folder",
    "render {run} --out nowhere/picture.gif": "it must be a .gif, .mp4 or .png file in an existing folder",
    "render {run}/none": "there is no run folder",
    "render {path}": "env 'tests.support.own_work:grid' cannot be drawn; give it a function draw(axes,",
    "render": "required: RUN",
    "evaluate {run} --seed 5": "seed=5 is not in this run; it has 0, 1",
    "evaluate {run} --episodes 0": "episodes=0; it must be at least 1",
    "evaluate {run} --episodes few": "invalid int value: 'few'",
    "evaluate {run} --in brax": "invalid choice: 'brax'",
    "evaluate {game} --in mujoco": "env 'bilinear' is not a body",
    "evaluate {own}": "envs.make cannot make the environment 'counting'",
    "evaluate {other}": "has changed: env.episode_length is 31 there and 30 here",
}


@pytest.mark.parametrize("words", _BAD)
def test_bad_input_gives_a_one_line_error(words, hopper_run, tmp_path, capsys):
    stored = {"run": lambda: hopper_run, "game": lambda: random_run.store(tmp_path / "game", envs.make("bilinear"))}
    stored["own"] = lambda: random_run.store(tmp_path / "own", counting_env())
    stored["path"] = lambda: random_run.store(tmp_path / "path", envs.make("tests.support.own_work:grid"))
    stored["other"] = lambda: _of_another_version(tmp_path / "other")
    folders = {name: make() for name, make in stored.items() if "{" + name + "}" in words}
    assert main.main(words.format(**folders).split()) == 2
    captured = capsys.readouterr()
    assert _BAD[words] in captured.err
    assert captured.out == "" and captured.err.startswith("marl-kl: ") and captured.err.count("\n") == 1


def _of_another_version(out):
    """Its run.json says another length of episodes than making the environment by name gives."""
    random_run.store(out, envs.make("hopper_3x1", episode_length=30))
    path = out / "run.json"
    document = json.loads(path.read_text())
    document["env"]["episode_length"] += 1
    files.write_file(path, json.dumps(document))
    return out


def test_a_failed_seed_is_reported(hopper_run, tmp_path, capsys):
    out = random_run.store(tmp_path / "game", envs.make("bilinear"))
    run_folder.set_status(out, "finished", [marl_kl.results.Failure(1, 4, "reward")])
    assert main.main(["evaluate", str(out)]) == 0
    captured = capsys.readouterr()
    why = "reward was not finite in update 5"
    assert captured.err == f"marl-kl: seed 1 failed ({why}); its last finite parameters are used\n"
    assert "evaluation return" in captured.out
