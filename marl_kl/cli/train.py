"""`marl-kl train` and `marl-kl resume`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import marl_kl
from envs.bodies import scenarios
from marl_kl.cli.options import (  # fmt: skip
    add_command,
    add_field,
    add_log,
    add_progress,
    default_out,
    env_options,
    make_env,
    parsed,
    seed_numbers,
    use_all_cpu_cores,
)
from marl_kl.cli.stored import made_again, use_cores_as_before, warnings_as_sentences
from marl_kl.config import Config
from marl_kl.core import algorithms
from marl_kl.storage import run_folder
from marl_kl.training import presets, run_file

DEFAULT_ALGORITHM = "hatrpo_w"

EXAMPLE = f"""examples:
  marl-kl train ant_4x2 --algorithm hatrpo_w --seeds 4 --total-env-steps 2e6 --out runs/ant --env backend=spring
  marl-kl train ant_4x2 --preset quick --seeds 4
  marl-kl train --config runs/ant/{run_file.NAME} --gamma 0.97

{run_file.EXAMPLE}"""


def add_train(commands, algorithm: algorithms.AlgorithmSpec) -> argparse.ArgumentParser:
    """Describes `marl-kl train`."""
    parser = commands.add_parser(
        "train",
        usage="marl-kl train [ENV] [--config FILE] [--preset NAME] [--algorithm NAME] [--seeds N] [--out FOLDER] "
        "[--env KEY=VALUE ...] [--log NAME ...] [config options]",
        help="train a team and write metrics, pictures and the learned policies to a folder",
        description=f"Trains one team per seed. Options below are those of --algorithm {algorithm.name}.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=_train, config_class=algorithm.config_class)
    parser.add_argument("env_name", metavar="ENV", nargs="?", help="environment (see marl-kl envs)")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"a TOML file that describes a run, see below, or a run folder's {run_file.NAME}; options override it",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"settings for this scenario: {', '.join(presets.names())} (see marl-kl presets); the file and other "
        "options override them",
    )
    parser.add_argument(
        "--algorithm",
        metavar="NAME",
        help=f"one of {', '.join(algorithms.names())} (default: {DEFAULT_ALGORITHM})",
    )
    parser.add_argument("--seeds", metavar="N", help="how many seeds (0, 1, ...), or which: 3,5,8 (default: 1)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="new folder for the run (default: runs/ENV-ALGORITHM-TIME)"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="env_options",
        help="option of the environment, such as backend=spring or obs=1; may be repeated",
    )
    add_log(parser)
    add_progress(parser)
    shared = {field.name for field in dataclasses.fields(Config)}
    groups = {
        True: parser.add_argument_group("config of every algorithm"),
        False: parser.add_argument_group(f"config of {algorithm.name}"),
    }
    for field in dataclasses.fields(algorithm.config_class):
        add_field(groups[field.name in shared], field)
    return parser


def described(file: Path | None) -> run_file.RunFile:
    """What the file says, or what holds where nothing is said; the latter's environment has no name."""
    return run_file.RunFile("", {}, DEFAULT_ALGORITHM, 1, {}) if file is None else run_file.read(file)


def _planned(arguments: argparse.Namespace) -> run_file.RunFile:
    """The run asked for: the command line before the file before the preset."""
    said, given = described(arguments.config), vars(arguments)
    env = arguments.env_name or said.env
    if not env:
        raise ValueError("the following arguments are required: ENV, or --config FILE (see marl-kl train --help)")
    algorithm = arguments.algorithm or said.algorithm
    preset = {}
    if arguments.preset is not None:
        preset = presets.fields(arguments.preset, scenarios.scenario_name(env) or env, algorithm)
    fields = {
        field.name: parsed(field, given[field.name])
        for field in dataclasses.fields(arguments.config_class)
        if field.name in given
    }
    return run_file.RunFile(
        env=env,
        env_options=said.env_options | env_options(arguments.env_options),
        algorithm=algorithm,
        seeds=said.seeds if arguments.seeds is None else seed_numbers(arguments.seeds),
        config=preset | said.config | fields,
    )


def _train(arguments: argparse.Namespace) -> int:
    plan = _planned(arguments)
    use_all_cpu_cores()
    plan.make_config()  # refuses bad values before an environment is built
    env = make_env(plan.env, plan.env_options)
    out = arguments.out or default_out(plan.env, plan.algorithm)
    with warnings_as_sentences():
        return _exit_code(
            lambda: marl_kl.train(
                env,
                plan.algorithm,
                seeds=plan.seeds,
                out=out,
                progress=arguments.progress,
                loggers=arguments.log,
                **plan.config,
            ),
            out,
        )


def _exit_code(train: Callable[[], marl_kl.TrainResult], out: Path) -> int:
    try:
        result = train()
    except KeyboardInterrupt:
        goes_on = f"; what was done until then is in {out}, and marl-kl resume {out} goes on"
        kept = goes_on if run_folder.holds_run(out) else ""
        print(f"marl-kl: interrupted{kept}", file=sys.stderr)
        return 130
    return 1 if len(result.failures) == len(result.seeds) else 0


def add_resume(commands) -> None:
    """Describes `marl-kl resume`."""
    text = "go on with a run from its newest checkpoint, as if it had never stopped"
    parser = add_command(
        commands,
        _resume,
        "resume RUN [--total-env-steps N] [--log NAME ...] [--progress MODE]",
        text,
        ". Environment, algorithm, config and seeds are those of the run.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that has stopped")
    parser.add_argument(
        "--total-env-steps",
        metavar="N",
        help="env steps per seed, those already taken included: makes a run longer (default: as it was)",
    )
    add_log(parser)
    add_progress(parser)


def _resume(arguments: argparse.Namespace) -> int:
    out = arguments.run
    if run_folder.is_sweep(out):
        raise ValueError(f"{str(out)!r} holds a sweep; marl-kl sweep FILE.toml --out {out} --resume goes on with it")
    record = run_folder.read_record(out)
    config = record.config
    if arguments.total_env_steps is not None:
        field = next(f for f in dataclasses.fields(config) if f.name == "total_env_steps")
        config = config.replace(total_env_steps=parsed(field, arguments.total_env_steps))
    use_cores_as_before(record)
    call = f"marl_kl.train(env, {record.algorithm!r}, ..., out={str(out)!r}, resume=True)"
    env = made_again(record, out, f"resume it from Python: {call}")
    with warnings_as_sentences():
        return _exit_code(
            lambda: marl_kl.train(
                env,
                record.algorithm,
                seeds=record.seeds,
                config=config,
                out=out,
                resume=True,
                progress=arguments.progress,
                loggers=arguments.log,
            ),
            out,
        )
