"""An episode as pictures: what is recorded, what `draw` is given, what is in the files."""

import io
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import envs
from envs import pictures
from envs.adapters import jaxmarl
from envs.base import Drawing
from envs.time_limit import TimedState, with_time_limit
from marl_kl.analysis.rendering import animation, recording, video
from marl_kl.cli import main
from marl_kl.core import evaluation
from tests.support import random_run
from tests.support.counting_env import CountingState, counting_env

# Animations

EPISODE = recording.Recording(
    TimedState(TimedState(CountingState(np.zeros(3), np.arange(3)), np.arange(3)), np.arange(3)),
    np.arange(4.0).reshape(2, 2, 1), np.arange(3.0), "truncated",
)  # fmt: skip
"""Of the counting environment with one more time limit around it."""


def test_draw_is_given_every_state_and_the_action_that_led_to_it():
    given = []

    def draw(axes, env_state, action, params):
        axes.plot(env_state.inner.t, 0, "o")
        given.append((int(env_state.inner.t), None if action is None else action[:, 0].tolist(), params))

    env = with_time_limit(counting_env()._replace(draw=draw, params=7))
    gif = Image.open(io.BytesIO(animation.animation(env, EPISODE, "a title")))
    assert given == [(0, None, 7), (1, [0, 1], 7), (2, [2, 3], 7)]
    durations, corners = [], []
    for index in range(gif.n_frames):
        gif.seek(index)
        durations.append(gif.info["duration"])
        corners.append(gif.convert("RGB").getpixel((0, 0)))
    assert durations == [200, 200, 1500] and corners == [(255, 255, 255)] * 3
    given.clear()
    strip = Image.open(io.BytesIO(animation.animation(env, EPISODE, "a title", "png")))
    assert strip.size[0] > 2000 and [t for t, *_ in given] == [0, 1, 2]


def _axes():
    return Figure().add_subplot()


@pytest.mark.parametrize("name", ["matrix_game", "digits"])
def test_the_chosen_entry_of_a_payoff_is_framed(name):
    """Three players with 2, 3 and 4 choices: a row for each choice of the first."""
    table = np.arange(24.0).reshape(2, 3, 4)
    options, action = {"digits_of": (2, 1)}, np.array([[1, 2], [1, 0]])
    options, action = ({}, np.array([1, 2, 1])) if name == "matrix_game" else (options, action)
    env = envs.make(name, payoff=table, **options)
    axes = _axes()
    env.draw(axes, TimedState((), 1), action, env.params)
    np.testing.assert_array_equal(axes.images[0].get_array(), table.reshape(2, 12))
    assert [frame.get_xy() for frame in axes.patches] == [(8.5, 0.5)] and table[1, 2, 1] == table.reshape(2, 12)[1, 9]
    assert axes.texts[21].get_text() == "21" and axes.get_ylabel().endswith(
        "agent_0.0" if name == "digits" else "agent_0"
    )


def test_what_large_games_and_others_show():
    axes = _axes()
    pictures.payoff(axes, np.zeros((2,) * 13), np.array([0, 1] * 6 + [1]), [f"agent_{i}" for i in range(13)])
    shown = np.asarray(axes.images[0].get_array())
    assert shown.argmax(1).tolist() == [0, 1] * 6 + [1]
    prisoners = envs.make("matrix_game", payoff=[[[3, 3], [0, 5]], [[5, 0], [1, 1]]], per_agent=True)
    prisoners.draw(axes := _axes(), TimedState((), 0), None, prisoners.params)
    np.testing.assert_array_equal(axes.images[0].get_array(), [[3, 2.5], [2.5, 1]])
    assert not axes.patches, "nothing is chosen yet"


def test_a_joint_action_in_its_landscape():
    env = envs.make("bilinear")
    env.draw(axes := _axes(), TimedState((), 1), np.array([[-2.0], [5.0]]), ())
    point = next(line for line in axes.lines if line.get_marker() == "o")
    assert point.get_xydata().tolist() == [[-2, 5]] and axes.get_xlim() == pytest.approx((-3, 5.5))


def test_the_dead_are_crosses_and_health_is_a_bar():
    env = SimpleNamespace(unit_type_health=np.array([45.0, 80.0]), unit_type_shorthands=["m", "h"])
    env.map_width = env.map_height = 32
    state = SimpleNamespace(
        unit_positions=np.array([[8.0, 16], [9, 17], [24, 16]]), unit_alive=np.array([True, False, True]),
        unit_teams=np.array([0, 0, 1]), unit_health=np.array([9.0, 45, 80]), unit_types=np.array([0, 0, 1]),
    )  # fmt: skip
    jaxmarl._draw_units(env, axes := _axes(), state)
    marks = [(line.get_marker(), *line.get_xydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    assert marks == [("o", 8, 16), ("x", 9, 17), ("s", 24, 16)]
    bars = [np.ptp(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(np.array(bars[1::2]) / bars[::2], [0.2, 1.0])
    assert [text.get_text() for text in axes.texts] == ["m", "h"]


def test_particles_are_agents_in_colour_and_grey_landmarks_and_say_what_they_say():
    env = SimpleNamespace(agents=["speaker", "listener"], rad=np.array([0.1, 0.2, 0.3]), silent=[0, 1], dim_c=3)
    state = SimpleNamespace(p_pos=np.array([[0.0, 1], [2, 0], [-1, 0]]), c=np.eye(3)[[2, 0]])
    jaxmarl._draw_particles(env, axes := _axes(), state, None, ())
    assert [(*disc.center, disc.radius) for disc in axes.patches] == [(-1, 0, 0.3), (0, 1, 0.1), (2, 0, 0.2)]
    assert to_hex(axes.patches[1].get_facecolor()).upper() == pictures.PALETTE[0]
    assert [text.get_text() for text in axes.texts] == ["0", "says 2", ""] and axes.get_xlim()[1] > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paxmen_4", "jaxmarl/MPE_simple_reference_v3"])
def test_render_draws_what_is_no_body(name, tmp_path, capsys):
    """With the file kinds that need no further program."""
    out = random_run.store(tmp_path / "run", envs.make(name))
    for kind in ("gif", "png"):
        assert main.main(["render", str(out), "--steps", "3", "--out", str(out / f"episode.{kind}")]) == 0
        assert Image.open(out / f"episode.{kind}").size[0] > 400
        assert "episode.gif: 3 steps (not ended), return" in capsys.readouterr().out or kind == "png"


# Recordings


def _drawn(env):
    return env._replace(drawing=Drawing(None, lambda state: jnp.stack([state.inner.start, state.inner.t]), None, 0.1))


@pytest.mark.parametrize(
    ("terminate_at", "steps", "length", "ended"),
    [(None, 9, 5, "truncated"), (3, 9, 3, "terminated"), (None, 2, 2, None)],
)
def test_a_recording_ends_with_its_episode(terminate_at, steps, length, ended):
    env = _drawn(counting_env(episode_length=5, terminate_at=terminate_at))
    learner = random_run.learner(env.spec, 0)
    recorded = recording.record(env, random_run.CONFIG, learner, evaluation.keys((3,), 0)[0], steps)
    assert recorded.ended == ended and recorded.states.shape == (length + 1, 2)
    np.testing.assert_array_equal(recorded.states[:, 1], np.arange(length + 1))
    assert np.ptp(recorded.states[:, 0]) == 0 and recorded.episode_return[0] == 0
    rewards = np.diff(recorded.episode_return)
    assert (rewards <= np.arange(1, length + 1)).all() and (rewards > np.arange(length)).all()


def test_a_recording_of_states_and_actions():
    """Of an environment that draws itself: the whole state, with keys as numbers, and the policy's actions."""

    def with_key(pair):
        state, timestep = pair
        return (state, jax.random.key(3)), timestep

    inner = counting_env(episode_length=3)
    env = inner._replace(
        reset=lambda key, params: with_key(inner.reset(key, params)),
        step=lambda key, state, action, params: with_key(inner.step(key, state[0], action, params)),
        draw=lambda *_: None,
    )
    recorded = recording.record(env, random_run.CONFIG, random_run.learner(env.spec, 0), jax.random.key(1), 9)
    state, key_data = recorded.states
    assert state.t.tolist() == [0, 1, 2, 3] and key_data.tolist() == [[0, 3]] * 4
    wanted = np.cumsum(np.arange(1, 4) - 0.01 * recorded.actions[:, 0, 0] ** 2)
    np.testing.assert_allclose(recorded.episode_return[1:], wanted, rtol=1e-5)


def test_nothing_to_record():
    with pytest.raises(ValueError, match=r"env 'counting' cannot be drawn; give it a function draw\(axes, env_state,"):
        recording.record(counting_env(), random_run.CONFIG, None, None, 3)
    with pytest.raises(ValueError, match="steps=0; it must be at least 1"):
        recording.record(_drawn(counting_env()), random_run.CONFIG, None, None, 0)


def test_mp4_gets_every_frame_and_holds_the_last_one(tmp_path):
    """A program in the place of ffmpeg, which stores what it is given."""
    encoder = tmp_path / "ffmpeg"
    encoder.write_text('#!/bin/sh\nfor last; do :; done\ncat > "$last"\n')
    encoder.chmod(0o755)
    images = [np.full((4, 6, 3), value, np.uint8) for value in (1, 2)]
    stored = np.frombuffer(video.mp4(images, 10.0, str(encoder)), np.uint8).reshape(-1, 4, 6, 3)
    assert stored[:, 0, 0, 0].tolist() == [1, 2, *[2] * 15]


def test_mp4_without_ffmpeg_says_what_to_install(monkeypatch):
    monkeypatch.setattr(video.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(
        ModuleNotFoundError, match="MP4 needs ffmpeg: install it, or pip install imageio-ffmpeg"
    ) as error:
        video.ffmpeg()
    assert error.value.name is None, "one line on the command line, not a traceback"
