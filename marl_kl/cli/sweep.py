"""`marl-kl sweep`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import marl_kl
from envs.base import Env
from marl_kl.cli.options import (
    add_command,
    add_log,
    add_progress,
    chosen_out,
    make_env,
    one_line_warnings,
    parse_pairs,
    use_all_cpu_cores,
)
from marl_kl.storage import run_folder, run_record
from marl_kl.training import sweep_file


def add_sweep(commands) -> None:
    """Adds `marl-kl sweep`."""
    text = "train many settings in parallel, as described in a TOML file"
    parser = add_command(
        commands, _sweep, "sweep FILE.toml [--out FOLDER] [--resume] [--slurm [KEY=VALUE ...]] [--log NAME ...] [--progress MODE]", text, ".",
        epilog=sweep_file.EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", type=Path, metavar="FILE", help="the sweep's description, see below")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for the tables (default: a new sweeps/ENV-ALGORITHM-TIME)"
    )
    parser.add_argument("--resume", action="store_true", help="resume the sweep in --out")
    parser.add_argument(
        "--slurm",
        nargs="*",
        metavar="KEY=VALUE",
        help="train every shard of runs_at_once runs as a job of Slurm, or where there is none as a process, with these "
        "parameters of submitit: timeout_min=240 gpus_per_node=1 slurm_partition=long (needs the extra cluster)",
    )
    add_log(parser)
    add_progress(parser)


def _sweep(arguments: argparse.Namespace) -> int:
    if arguments.resume and arguments.out is None:
        raise ValueError("--resume needs --out FOLDER, the folder of the sweep to resume")
    description = sweep_file.read(arguments.file)
    slurm = None if arguments.slurm is None else parse_pairs(arguments.slurm, "--slurm", "timeout_min=240")
    use_all_cpu_cores()
    env = make_env(description.env, description.env_options)
    with chosen_out(
        arguments.out, description.env, description.algorithm, "sweeps", arguments.progress == "none"
    ) as out:
        return _sweep_and_exit_code(arguments, description, env, out, slurm)


def _sweep_and_exit_code(
    arguments: argparse.Namespace,
    description: sweep_file.SweepFile,
    env: Env,
    out: Path,
    slurm: dict[str, Any] | None,
) -> int:
    try:
        with one_line_warnings():
            result = marl_kl.sweep(
                env,
                description.algorithm,
                out=out,
                resume=arguments.resume,
                slurm=slurm,
                progress=arguments.progress,
                loggers=arguments.log,
                **description.options,
                **description.config,
            )
    except KeyboardInterrupt:
        again = f"marl-kl sweep {arguments.file} --out {out} --resume"
        saved = f"; finished runs are saved in {out}, continue with: {again}"
        print(f"marl-kl: interrupted{saved if run_folder.holds_run(out, run_record.SWEEP) else ''}", file=sys.stderr)
        return 130
    return 1 if len(result.failures) == len(result.settings) * len(result.seeds) else 0
