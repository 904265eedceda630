"""Pictures as a GIF, or as an MP4 by the program ffmpeg."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

import numpy as np

LAST_FRAME_SECONDS = 1.5
"""For which animations show their last picture."""


def gif(images: Sequence[np.ndarray], seconds: float, colours: np.ndarray) -> bytes:
    """A loop of frames with one palette, so that only changes are stored; the last frame stays for a while.

    Args:
        images: [height, width, 3] uint8 each. seconds: per frame. colours: [C, 3] uint8, at most 256.
    """
    from PIL import Image

    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.tobytes())
    first, *rest = (Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    durations = [max(20, round(1000 * seconds))] * len(rest) + [round(1000 * LAST_FRAME_SECONDS)]
    content = io.BytesIO()
    first.save(content, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return content.getvalue()


def common_palette(images: Sequence[np.ndarray]) -> np.ndarray:
    """[up to 256, 3] uint8 colours for all of these frames, from up to eight of them; white stays white."""
    from PIL import Image

    some = np.concatenate(images[:: -(-len(images) // 8)])
    found = np.array(Image.fromarray(some).quantize(256).getpalette(), np.uint8).reshape(-1, 3)
    found[(found > 245).all(axis=-1)] = 255
    return found


def ffmpeg() -> str:
    """The program ffmpeg: that on the PATH, or that of the package imageio-ffmpeg.

    Raises:
        ModuleNotFoundError: there is neither.
    """
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise ModuleNotFoundError("MP4 needs ffmpeg: install it, or pip install imageio-ffmpeg") from None
    return imageio_ffmpeg.get_ffmpeg_exe()


def mp4(images: Sequence[np.ndarray], frames_per_second: float, encoder: str) -> bytes:
    """H.264, which every browser plays; the last frame stays for a while."""
    height, width, _ = images[0].shape
    still = round(LAST_FRAME_SECONDS * frames_per_second)
    frames = b"".join(image.tobytes() for image in (*images, *images[-1:] * still))
    with tempfile.TemporaryDirectory() as folder:
        to = os.path.join(folder, "episode.mp4")
        form = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {frames_per_second:g} -i -"
        even = ["-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
        done = subprocess.run(
            [encoder, "-loglevel", "error", *form.split(), *even, to], input=frames, capture_output=True
        )
        if done.returncode:
            raise OSError(f"ffmpeg failed: {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
        with open(to, "rb") as file:
            return file.read()
