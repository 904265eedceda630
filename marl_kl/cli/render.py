"""`marl-kl render`."""

from __future__ import annotations

import argparse
from pathlib import Path

from marl_kl.cli.options import add_command, add_setting, one_line_warnings, use_devices_of, working
from marl_kl.storage import files, stored_sweeps


def add_render(commands) -> None:
    """Adds `marl-kl render`."""
    text = "draw one episode of trained policies as an animated GIF or MP4, or as a strip of pictures (PNG)"
    usage = "render RUN|SWEEP [--setting K] [--seed S] [--steps N] [--out FILE]"
    more = "; for bodies, and environments with `draw`. The policies are deterministic."
    parser = add_command(commands, _render, usage, text, more)
    parser.add_argument("run", type=Path, metavar="RUN|SWEEP", help="the folder of a run or of a sweep")
    add_setting(parser)
    parser.add_argument("--seed", type=int, metavar="S", help="the training seed to draw (default: the first)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="env steps at most (default: 300)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the file, .gif, .mp4 or .png (default: episode-seedS.gif in the folder)",
    )


def _render(arguments: argparse.Namespace) -> int:
    from marl_kl.analysis.figure_style import algorithm_style
    from marl_kl.analysis.rebuild import load_with_env
    from marl_kl.analysis.rendering import animation, recording, video
    from marl_kl.core import evaluation

    out = arguments.out
    if out is not None and (out.suffix[1:] not in animation.KINDS or not out.parent.is_dir()):
        raise ValueError(f"out={str(out)!r}; it must be a .gif, .mp4 or .png file in an existing folder")
    if out is not None and out.suffix == ".mp4":
        video.ffmpeg()  # before the episode is played
    use_devices_of(stored_sweeps.record_of(arguments.run, arguments.setting))
    advice = "draw it from Python: marl_kl.analysis.rendering.animation.animation(env, ...)"
    with one_line_warnings():
        run, env = load_with_env(arguments.run, setting=arguments.setting, advice=advice)
    seed = run.seeds[0] if arguments.seed is None else arguments.seed
    key = evaluation.keys((seed,), run.update)[0]
    with working("compiling and playing an episode"):
        episode = recording.record(env, run.config, run.learner_of(seed), key, arguments.steps)
    setting = "" if arguments.setting is None else f"-setting{arguments.setting}"
    out = out or arguments.run / f"episode{setting}-seed{seed}.gif"
    with working("drawing"):
        title = f"{run.spec.name}   {algorithm_style(run.algorithm).label}   seed {seed}"
        files.write_file(out, animation.animation(env, episode, title, out.suffix[1:]))
    ended = episode.ended or "not ended"
    print(f"{out}: {len(episode.actions)} steps ({ended}), return {episode.episode_return[-1]:.1f}")
    return 0
