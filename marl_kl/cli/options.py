"""Options that several commands share, and parsing of their values."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import datetime
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

import envs
import marl_kl
from envs.base import Env
from envs.validation import first_line
from marl_kl import processes
from marl_kl.storage import run_folder, run_record
from marl_kl.storage.files import one_line_error
from marl_kl.training import loggers
from marl_kl.training.progress import MODES


def add_command(
    commands, command: Callable[[argparse.Namespace], int], usage: str, text: str, more: str, **options
) -> argparse.ArgumentParser:
    """Adds a command: `usage` begins with its name, `text` is its help, `text` + `more` its description."""
    parser = commands.add_parser(
        usage.split()[0],
        usage=f"marl-kl {usage}",
        help=text,
        description=f"{text[0].upper()}{text[1:]}{more}",
        allow_abbrev=False,
        **options,
    )
    parser.set_defaults(command=command)
    return parser


def add_progress(parser: argparse.ArgumentParser) -> None:
    """`--progress`."""
    parser.add_argument(
        "--progress",
        default="auto",
        choices=MODES,
        help="auto: a bar on a terminal, lines elsewhere; plain: lines; none: no output (default: auto)",
    )


def add_log(parser: argparse.ArgumentParser) -> None:
    """`--log`."""
    parser.add_argument(
        "--log",
        nargs="+",
        default=[],
        choices=loggers.NAMES,
        metavar="NAME",
        help=f"also log metrics during the run: {', '.join(loggers.NAMES)} (each needs the extra of that name)",
    )


def add_devices(parser: argparse.ArgumentParser, default: str) -> None:
    """`--devices`."""
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="spread seeds, and where devices are left each seed's environments, over at most N devices "
        f"(GPUs, or CPU cores; default: {default})",
    )


def add_setting(parser: argparse.ArgumentParser) -> None:
    """`--setting`."""
    parser.add_argument("--setting", type=int, metavar="K", help="of a sweep: the index of the setting")


def add_field(group, field: dataclasses.Field) -> None:
    """Adds the option of a config field; it is in the namespace only if it was given."""
    name = f"--{field.name.replace('_', '-')}"
    range_text = field.metadata["check"][1]
    notes = "; ".join(part for part in (range_text, f"default: {default_text(field.default)}") if part)
    text = f"{field.metadata['help']} ({notes})".replace("%", "%%")
    if isinstance(field.default, bool):
        group.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    metavar = {int: "N", float: "X", str: "NAME", tuple: "N,N,..."}[type(field.default)]
    group.add_argument(name, default=argparse.SUPPRESS, metavar=metavar, help=text)


def default_text(value) -> str:
    """A field's default as on the command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def parse_field(field: dataclasses.Field, text: Any):
    """The value of `text` for `field`; text that is none is returned as it is, for the config to refuse."""
    kind = type(field.default)
    with contextlib.suppress(ValueError):
        if kind is int:
            return _whole(text)
        if kind is tuple:
            return tuple(_whole(part) for part in text.strip("()[] ").rstrip(",").split(","))
        if kind is float:
            return float(text)
    return text


def _whole(text: str) -> int | float:
    """An int if possible; 2e6 as a float, which the config converts or refuses."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def parse_seeds(text: str) -> int | list[int]:
    """`--seeds`: the number of seeds, or a list of them; ValueError otherwise."""
    try:
        seeds = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"seeds={text!r}; it must be a number of seeds, such as 4, or a list such as 3,5,8") from None
    return seeds if "," in text else seeds[0] if seeds else 0


def parse_pairs(pairs: list[str], option: str = "--env", example: str = "backend=spring") -> dict[str, Any]:
    """KEY=VALUE of an option that takes them as keyword arguments."""
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"{option} {pair}: it must be KEY=VALUE, such as {example}")
        options[name.strip()] = _literal(text)
    return options


def _literal(text: str):
    """A Python literal if `text` is one (1, 0.5, True, (2, 3), None), else `text`."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


@contextlib.contextmanager
def chosen_out(
    out: Path | None, env_name: str, algorithm: str, parent: str = "runs", announce: bool = False
) -> Iterator[Path]:
    """`out`, or else a new folder of this job alone, named by the time (printed if `announce`); it is removed if empty."""
    if out is not None:
        yield out
        return
    name = f"{re.sub('[/:]', '-', f'{env_name}-{algorithm}')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    folders = (Path(parent) / name for name in names)
    out = Path(processes.from_first(lambda: str(next(folder for folder in folders if _is_made(folder)))))
    if announce and processes.is_first():
        print(out)
    try:
        yield out
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()  # only if it is empty


def _is_made(folder: Path) -> bool:
    """Makes the folder, unless it is there: of several jobs that begin at once one succeeds."""
    with one_line_error("create", folder):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            return False
    return True


def use_all_cpu_cores() -> None:
    """One device per core, unless jax has already been used."""
    with contextlib.suppress(RuntimeError):  # a program that calls `main` and has used jax keeps its devices
        marl_kl.use_all_cpu_cores()


def make_env(name: str, options: dict[str, Any]) -> Env:
    """`envs.make`, with a ValueError for unknown options too."""
    try:
        return envs.make(name, **options)
    except TypeError as error:
        raise ValueError(f"env {name!r} does not take {options}: {first_line(error)}") from error


def use_devices_of(record: run_record.RunRecord) -> None:
    """All CPU cores as devices if the run used several devices: results are bitwise equal on as many devices only."""
    if run_record.last_session(record.document)["device"]["count"] > 1:
        use_all_cpu_cores()


def working(text: str):
    """A line on a terminal while the context is not done; nothing elsewhere."""
    return Console(stderr=True).status(f"{text}...")


@contextlib.contextmanager
def one_line_warnings():
    """Prints `RunWarning`s on one line, without the code location."""
    show = warnings.showwarning

    def show_line(message, category, *location, **options):
        if issubclass(category, run_folder.RunWarning):
            if processes.is_first():
                with contextlib.suppress(OSError):  # standard error may be closed
                    print(f"marl-kl: {message}", file=sys.stderr)
        else:
            show(message, category, *location, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("always", run_folder.RunWarning)
        warnings.showwarning = show_line
        yield
