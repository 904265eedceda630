"""The command line: `marl-kl COMMAND`, or `python -m marl_kl COMMAND`.

The options of `train` are generated from the fields of the algorithm's config class, with help, range and default.
Invalid input gives one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax

import marl_kl
from marl_kl import processes
from marl_kl.cli import compare, completion, evaluate, listing, render, report, resume, show, sweep, train
from marl_kl.cli.ctrl_c import end_on_second_interrupt
from marl_kl.core import algorithms


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after `marl-kl`; None: those of this process; without any, the help is printed.

    Returns:
        The exit code: 0; 1 if every seed failed; 2 for invalid input; 130 after Ctrl-C. A second Ctrl-C ends the
        process immediately.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(
            os.getcwd()
        )  # for paths of users' own environments, algorithms and networks, as `python -m` does
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± or Σ shows "?"
    try:
        arguments = _parse(argv)
        marl_kl.use_compilation_cache()
        with end_on_second_interrupt():
            return arguments.command(arguments)
    except Exception as error:
        is_bug = _is_bug(error)
        if is_bug and not processes.are_many():
            raise
        print(
            "".join(traceback.format_exception(error)) if is_bug else f"marl-kl: {error}", file=sys.stderr, flush=True
        )
        if processes.are_many():
            os._exit(1 if is_bug else 2)  # jax would wait for the other processes, which wait for this one
        return 2


def _is_bug(error: Exception) -> bool:
    """Whether its traceback is needed; the others are one-line messages to the user."""
    is_own = isinstance(error, ModuleNotFoundError) and error.name is not None
    is_message = isinstance(error, (ValueError, OSError, MemoryError, ModuleNotFoundError)) and not is_own
    return not is_message or len(str(error).splitlines()) > 1


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage."""

    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="marl-kl",
        description="Multi-agent RL with trust regions and one joint KL budget, and first-order baselines.",
        epilog=train.EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"marl-kl {marl_kl.__version__} (jax {jax.__version__})")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train.add_train(commands, _algorithm_in(argv))
    resume.add_resume(commands)
    sweep.add_sweep(commands)
    evaluate.add_evaluate(commands)
    render.add_render(commands)
    compare.add_compare(commands)
    report.add_report(commands)
    show.add_show(commands)
    listing.add_envs(commands)
    listing.add_algorithms(commands)
    listing.add_presets(commands)
    completion.add_completion(commands, parser)
    arguments, unknown = parser.parse_known_args(argv or ["--help"])
    if unknown:
        chosen = next(p for p in commands.choices.values() if p.get_default("command") is arguments.command)
        known = [option for action in chosen._actions for option in action.option_strings]
        raise ValueError(_unknown_word(unknown[0], known, chosen))
    return arguments


def _algorithm_in(argv: list[str]) -> algorithms.AlgorithmSpec:
    """The requested algorithm, needed before parsing, since the options of `train` depend on it."""
    if argv[:1] != ["train"]:
        return algorithms.get(train.DEFAULT_ALGORITHM)
    pre_parser = _Parser(prog="marl-kl train", add_help=False, allow_abbrev=False)
    pre_parser.add_argument("--algorithm")
    pre_parser.add_argument("--config", type=Path)
    given = pre_parser.parse_known_args(argv)[0]
    return algorithms.get(given.algorithm or train.read_run_file(given.config).algorithm)


def _unknown_word(word: str, known: list[str], parser: argparse.ArgumentParser) -> str:
    """The message about a word that no option of the command takes: whose option it is, or which it resembles."""
    option = word.split("=")[0]
    field = option.removeprefix("--").replace("-", "_")
    users = [name for name in algorithms.names() if algorithms.get(name).uses(field)]
    if option.startswith("--") and users:
        is_train = parser.prog.endswith(" train")
        return (
            f"option {option} belongs to {', '.join(users) if is_train else f'train, not to {parser.prog.split()[-1]}'}"
        )
    if word.replace(".", "", 1).isdigit():
        return f"unknown argument {word}; the numbers of one option are written with commas: 64,64"
    part_of = [entry for entry in known if option.startswith("--") and option[2:] in entry[2:].split("-")]
    # --kl-budget, but not --kl-budget-final-fraction
    part_of = [entry for entry in part_of if not any(entry.startswith(f"{shorter}-") for shorter in part_of)]
    near = part_of or difflib.get_close_matches(option, known, n=1)
    kind = "option" if word.startswith("-") else "argument"
    hint = f"did you mean {' or '.join(near)}?" if near else "see --help"
    return f"unknown {kind} {word}; {hint}"
