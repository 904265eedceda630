"""From words on the command line to values, and the options that several commands have."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import datetime
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import envs
import marl_kl
from envs.base import Env
from marl_kl.storage.files import first_line
from marl_kl.training import loggers
from marl_kl.training.progress import MODES


def add_command(
    commands, command: Callable[[argparse.Namespace], int], usage: str, text: str, more: str, **options
) -> argparse.ArgumentParser:
    """A command whose help is `text` and whose description goes on with `more`; `usage` begins with its name."""
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
        help="auto: a bar on a terminal, lines elsewhere; plain: lines; none: silence (default: auto)",
    )


def add_log(parser: argparse.ArgumentParser) -> None:
    """`--log`."""
    parser.add_argument(
        "--log",
        nargs="+",
        default=[],
        choices=loggers.NAMES,
        metavar="NAME",
        help=f"where the numbers go besides, while it runs: {', '.join(loggers.NAMES)} (each an extra of that name)",
    )


def add_field(group, field: dataclasses.Field) -> None:
    """The option of a config field; only what was given is in the namespace."""
    name = f"--{field.name.replace('_', '-')}"
    # The metavar already says that it is a number.
    range_text = field.metadata["check"][1].removeprefix("a finite number ").removeprefix("a number ")
    notes = "; ".join(part for part in (range_text, f"default: {default_text(field.default)}") if part)
    text = f"{field.metadata['help']} ({notes})".replace("%", "%%")
    # SUPPRESS: only what was given reaches the config, whose own defaults hold for the rest.
    if isinstance(field.default, bool):
        group.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    metavar = {int: "N", float: "X", str: "NAME", tuple: "N,N,..."}[type(field.default)]
    group.add_argument(name, default=argparse.SUPPRESS, metavar=metavar, help=text)


def default_text(value) -> str:
    """A field's default as it would be typed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def parsed(field: dataclasses.Field, text: Any):
    """The value that `text` means for `field`; text that means none goes on to the config, which knows what to say."""
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
    """An int where it is one; 2e6 as a float, which the config turns into an int or refuses."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def seed_numbers(text: str) -> int | list[int]:
    """`--seeds`: a number of seeds, or which; ValueError otherwise."""
    try:
        seeds = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"seeds={text!r}; it must be a number of seeds, such as 4, or seeds such as 3,5,8") from None
    return seeds if "," in text else seeds[0] if seeds else 0


def env_options(pairs: list[str]) -> dict[str, Any]:
    """`--env KEY=VALUE`, as keyword arguments of `envs.make`."""
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"--env {pair}: it must be KEY=VALUE, such as backend=spring")
        options[name.strip()] = _literal(text)
    return options


def _literal(text: str):
    """A Python literal where `text` is one (1, 0.5, True, (2, 3), None), else `text` itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def default_out(env_name: str, algorithm: str, parent: str = "runs") -> Path:
    """The folder of a run that was given none; one that is not there yet, whatever the clock says."""
    name = f"{env_name.replace('/', '-')}-{algorithm}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(out for out in (Path(parent) / name for name in names) if not out.exists())


def use_all_cpu_cores() -> None:
    """A device per core, unless jax is in use already."""
    with contextlib.suppress(RuntimeError):  # an embedding program that has used jax keeps its devices
        marl_kl.use_all_cpu_cores()


def make_env(name: str, options: dict[str, Any]) -> Env:
    """`envs.make`, whose every complaint is a ValueError."""
    try:
        return envs.make(name, **options)
    except TypeError as error:
        raise ValueError(f"env {name!r} does not take {options}: {first_line(error)}") from error
