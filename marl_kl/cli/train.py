"""`marl-kl train`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import marl_kl
from envs.base import Env
from envs.bodies import scenarios
from marl_kl.cli import joining
from marl_kl.cli.options import (
    add_devices,
    add_field,
    add_log,
    add_progress,
    chosen_out,
    make_env,
    one_line_warnings,
    parse_field,
    parse_pairs,
    parse_seeds,
    use_all_cpu_cores,
)
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


def add_train(commands, algorithm: algorithms.AlgorithmSpec) -> None:
    """Adds `marl-kl train`, with the config fields of `algorithm` as options."""
    parser = commands.add_parser(
        "train",
        usage="marl-kl train [ENV] [--config FILE] [--preset NAME] [--algorithm NAME] [--seeds N] [--out FOLDER] "
        "[--env KEY=VALUE ...] [--init-from RUN] [--devices N] [--log NAME ...] "
        f"{joining.USAGE} [config options]",
        help="train and write metrics, figures and the learned policies to a folder",
        description=f"Trains independent policies per seed. The options below are those of --algorithm {algorithm.name}.",
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
        help=f"TOML file that describes a run, see below, or a run folder's {run_file.NAME}; options override it",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"config for this scenario: {', '.join(presets.names())} (see marl-kl presets); the file and other "
        "options override it",
    )
    parser.add_argument(
        "--algorithm",
        metavar="NAME",
        help=f"one of {', '.join(algorithms.names())} (default: {DEFAULT_ALGORITHM})",
    )
    parser.add_argument("--seeds", metavar="N", help="number of seeds (0, 1, ...), or a list: 3,5,8 (default: 1)")
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
    parser.add_argument(
        "--init-from", type=Path, metavar="RUN", help="start from the learners of this run instead of random networks"
    )
    parser.add_argument(
        "--init-which",
        default="last",
        choices=("last", "best"),
        help="of that run, the learners of the newest checkpoint or the best evaluated ones (default: last)",
    )
    add_devices(parser, "as many as divide the seeds")
    joining.add_processes(parser)
    add_log(parser)
    add_progress(parser)
    shared = {field.name for field in dataclasses.fields(Config)}
    groups = {
        True: parser.add_argument_group("config of every algorithm"),
        False: parser.add_argument_group(f"config of {algorithm.name}"),
    }
    for field in dataclasses.fields(algorithm.config_class):
        if field.name in algorithm.unused:
            continue
        add_field(groups[field.name in shared], field)


def read_run_file(file: Path | None) -> run_file.RunFile:
    """The run that `file` describes; without a file the defaults, with an empty environment name."""
    return run_file.RunFile("", {}, DEFAULT_ALGORITHM, 1, {}) if file is None else run_file.read(file)


def train_and_exit_code(env: Env, algorithm: str, *, out: Path, **options) -> int:
    """Calls `marl_kl.train`: exit code 1 if every seed failed, 130 after Ctrl-C."""
    try:
        with one_line_warnings():
            result = marl_kl.train(env, algorithm, out=out, **options)
    except KeyboardInterrupt:
        saved = f"; the run is saved in {out}, continue with: marl-kl resume {out}"
        print(f"marl-kl: interrupted{saved if run_folder.holds_run(out) else ''}", file=sys.stderr)
        return 130
    return 1 if len(result.failures) == len(result.seeds) else 0


def _requested_run(arguments: argparse.Namespace) -> run_file.RunFile:
    """The command line overrides the file, the file overrides the preset."""
    from_file, given = read_run_file(arguments.config), vars(arguments)
    env = arguments.env_name or from_file.env
    if not env:
        raise ValueError("the following arguments are required: ENV, or --config FILE (see marl-kl train --help)")
    algorithm = algorithms.get(arguments.algorithm or from_file.algorithm).name
    preset = {}
    if arguments.preset is not None:
        preset = presets.fields(arguments.preset, scenarios.scenario_name(env) or env, algorithm)
    fields = {
        field.name: parse_field(field, given[field.name])
        for field in dataclasses.fields(arguments.config_class)
        if field.name in given
    }
    return run_file.RunFile(
        env=env,
        env_options=from_file.env_options | parse_pairs(arguments.env_options),
        algorithm=algorithm,
        seeds=from_file.seeds if arguments.seeds is None else parse_seeds(arguments.seeds),
        config=preset | from_file.config | fields,
    )


def _train(arguments: argparse.Namespace) -> int:
    run = _requested_run(arguments)
    run.make_config()  # refuses bad values before an environment is built
    use_all_cpu_cores()
    joining.join(arguments)
    env = make_env(run.env, run.env_options)
    with chosen_out(arguments.out, run.env, run.algorithm, announce=arguments.progress == "none") as out:
        return train_and_exit_code(
            env,
            run.algorithm,
            seeds=run.seeds,
            out=out,
            init_from=arguments.init_from,
            init_which=arguments.init_which,
            devices=arguments.devices,
            progress=arguments.progress,
            loggers=arguments.log,
            **run.config,
        )
