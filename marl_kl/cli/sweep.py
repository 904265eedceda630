"""`marl-kl sweep`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import marl_kl
from marl_kl.cli.options import add_command, add_log, add_progress, default_out, make_env, use_all_cpu_cores
from marl_kl.cli.stored import warnings_as_sentences
from marl_kl.storage import run_folder
from marl_kl.training import sweep_file as sweep_file


def add_sweep(commands) -> None:
    """Describes `marl-kl sweep`."""
    text = "train many settings side by side, as a TOML file says"
    parser = add_command(
        commands, _sweep, "sweep FILE.toml [--out FOLDER] [--resume] [--log NAME ...] [--progress MODE]", text, ".",
        epilog=sweep_file.EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", type=Path, metavar="FILE", help="the sweep's description, see below")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for the tables (default: a new sweeps/ENV-ALGORITHM-TIME)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the sweep in --out, as if it had never stopped"
    )
    add_log(parser)
    add_progress(parser)


def _sweep(arguments: argparse.Namespace) -> int:
    if arguments.resume and arguments.out is None:
        raise ValueError("--resume needs --out FOLDER, the folder of the sweep that is to go on")
    plan = sweep_file.read(arguments.file)
    use_all_cpu_cores()
    env = make_env(plan.env, plan.env_options)
    out = arguments.out or default_out(plan.env, plan.algorithm, "sweeps")
    try:
        with warnings_as_sentences():
            result = marl_kl.sweep(
                env,
                plan.algorithm,
                out=out,
                resume=arguments.resume,
                progress=arguments.progress,
                loggers=arguments.log,
                **plan.options,
                **plan.config,
            )
    except KeyboardInterrupt:
        again = f"marl-kl sweep {arguments.file} --out {out} --resume"
        kept = f"; what is done is in {out}, and {again} goes on" if run_folder.holds_run(out, run_folder.SWEEP) else ""
        print(f"marl-kl: interrupted{kept}", file=sys.stderr)
        return 130
    return 1 if len(result.failures) == len(result.settings) * len(result.seeds) else 0
