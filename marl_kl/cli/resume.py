"""`marl-kl resume`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import jax

from marl_kl.cli import joining
from marl_kl.cli.options import add_command, add_devices, add_log, add_progress, parse_field, use_devices_of
from marl_kl.cli.train import train_and_exit_code
from marl_kl.storage import run_folder, run_record


def add_resume(commands) -> None:
    """Adds `marl-kl resume`."""
    text = "resume a run from its newest checkpoint, with the result of an uninterrupted run"
    usage = f"resume RUN [--total-env-steps N] [--devices N] [--log NAME ...] [--progress MODE] {joining.USAGE}"
    more = ". Environment, algorithm, config and seeds are those of the run."
    parser = add_command(commands, _resume, usage, text, more)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of an interrupted or finished run")
    parser.add_argument(
        "--total-env-steps",
        metavar="N",
        help="env steps per seed in total, to extend the run (default: those of the run)",
    )
    add_devices(parser, "those of the run, if they are here")
    joining.add_processes(parser)
    add_log(parser)
    add_progress(parser)


def _resume(arguments: argparse.Namespace) -> int:
    from marl_kl.analysis.rebuild import rebuild_env

    out = arguments.run
    if run_folder.is_sweep(out):
        raise ValueError(f"{str(out)!r} holds a sweep; resume it with marl-kl sweep FILE.toml --out {out} --resume")
    record = run_record.read_record(out)
    config = record.config
    if arguments.total_env_steps is not None:
        field = next(f for f in dataclasses.fields(config) if f.name == "total_env_steps")
        config = config.replace(total_env_steps=parse_field(field, arguments.total_env_steps))
    use_devices_of(record)
    joining.join(arguments)
    call = f"marl_kl.train(env, {record.algorithm!r}, ..., out={str(out)!r}, resume=True)"
    env = rebuild_env(record, out, f"resume it from Python: {call}")
    return train_and_exit_code(
        env, record.algorithm, seeds=record.seeds, config=config, out=out, resume=True,
        devices=_devices_of(record) if arguments.devices is None else arguments.devices,
        progress=arguments.progress, loggers=arguments.log,
    )  # fmt: skip


def _devices_of(record: run_record.RunRecord) -> int | None:
    """How many devices shared the environments of the seeds, if there are as many here; None if they did not."""
    device = run_record.last_session(record.document)["device"]
    used = device.get("used", 1)
    is_spread, is_here = device.get("per_seed", 1) > 1, used <= jax.device_count() and used % jax.process_count() == 0
    return used if is_spread and is_here else None
