"""A recorded episode as a GIF, an MP4 or a strip of pictures, of bodies and of environments that draw themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from envs.base import Env
from marl_kl.analysis.bodies import drawing
from marl_kl.analysis.figure_style import figure_bytes
from marl_kl.analysis.rendering import video
from marl_kl.analysis.rendering.recording import Recording

KINDS = ("gif", "mp4", "png")
"""How an episode can be shown."""

STEPS_PER_SECOND = 5.0
"""Of environments that are not bodies, whose steps have no duration."""

_MAX_FRAMES_PER_SECOND = 25.0
_PICTURES = 6
"""Of a strip, at most."""

_DPI = 80


def animation(env: Env, recording: Recording, title: str, kind: str = "gif") -> bytes:
    """The recording as a picture that moves, or as a strip.

    Args:
        env: a body, or an environment with `draw`.
        recording: of that environment.
        title: the line above the drawing.
        kind: "gif", which loops, or "mp4": in real time, at most 25 frames per second (environments that are not
            bodies: `STEPS_PER_SECOND`); "png": up to six moments in one picture.

    Raises:
        ModuleNotFoundError: "mp4" without ffmpeg (see `video.ffmpeg`).
    """
    if kind == "png":
        return _strip(env, recording, title)
    encoder = video.ffmpeg() if kind == "mp4" else None
    seconds = _seconds_per_step(env)
    stride = max(1, round(1.0 / (_MAX_FRAMES_PER_SECOND * seconds)))
    last = len(recording.actions)
    shown = [*range(0, last, stride), last]
    figure, axes = _page(env, title)
    show = _scene(axes, env, recording, shown)
    caption = figure.text(0.02, 0.015, "", fontsize=9, ha="left", va="bottom", color="0.2")
    images = []
    for index, t in enumerate(shown):
        show(index)
        caption.set_text(_caption(env, recording, t))
        images.append(_image(figure))
        figure.set_layout_engine("none")  # all frames have the layout of the first
    if encoder is not None:
        return video.mp4(images, 1.0 / (stride * seconds), encoder)
    palette = video.common_palette(images) if env.drawing is None else drawing.palette(env)
    return video.gif(images, stride * seconds, palette)


def _strip(env: Env, recording: Recording, title: str) -> bytes:
    shown = np.unique(np.linspace(0, len(recording.actions), _PICTURES).round().astype(int)).tolist()
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows + 0.4), layout="constrained")
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if index >= len(shown):
            axes.set_axis_off()
            continue
        _scene(axes, env, recording, shown)(index)
        lines = filter(None, [_caption(env, recording, shown[index]), axes.get_title()])
        axes.set_title("")
        axes.set_title("\n".join(lines), fontsize=9, loc="left", color="0.2")
        repeated = axes.get_legend() if index < len(shown) - 1 else None
        if repeated is not None:
            repeated.remove()
    if env.drawing is not None:
        drawing.legend(figure, env, loc="outside lower center", ncols=min(env.spec.num_agents + 1, 5), fontsize=8)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure_bytes(figure, "png")


def _scene(axes: Axes, env: Env, recording: Recording, shown: Sequence[int]) -> Callable[[int], None]:
    """A function that draws moment `shown[index]` on `axes`."""
    if env.drawing is not None:
        return drawing.scene(axes, env, recording.states[shown])

    def show(index: int) -> None:
        t = shown[index]
        state = jax.tree.map(lambda leaf: leaf[t], recording.states)
        axes.clear()
        env.draw(axes, state, recording.actions[t - 1] if t else None, env.params)

    return show


def _seconds_per_step(env: Env) -> float:
    return 1.0 / STEPS_PER_SECOND if env.drawing is None else env.drawing.seconds


def _caption(env: Env, recording: Recording, t: int) -> str:
    time = "" if env.drawing is None else f"{t * env.drawing.seconds:6.2f} s   "
    end = f"  {recording.ended}" if recording.ended and t == len(recording.actions) else ""
    return f"{time}step {t:4d}   return {recording.episode_return[t]:8.2f}{end}"


def _page(env: Env, title: str) -> tuple[Figure, Axes]:
    if env.drawing is not None:
        figure = Figure(figsize=(8.0, 4.6), dpi=_DPI, facecolor="w")
        axes = figure.add_axes((0.0, 0.07, 0.74, 0.85))
        size = 8 if env.spec.num_agents <= 10 else 7
        drawing.legend(figure, env, loc="center left", bbox_to_anchor=(0.745, 0.5), fontsize=size, labelspacing=0.5)
    else:
        figure = Figure(figsize=(6.4, 5.2), dpi=_DPI, facecolor="w", layout="constrained")
        figure.get_layout_engine().set(rect=(0.01, 0.06, 0.98, 0.87))
        axes = figure.subplots()
    FigureCanvasAgg(figure)
    figure.text(0.02, 0.975, title, fontsize=11, ha="left", va="top")
    return figure, axes


def _image(figure: Figure) -> np.ndarray:
    """[height, width, 3] uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
