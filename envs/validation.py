"""Checks of arguments and the hints in their messages, and what users name by path, for `envs` and `marl_kl`."""

from __future__ import annotations

import difflib
import importlib
import operator
from collections.abc import Iterable
from typing import Any


def suggest(name: str, known: Iterable[str]) -> str:
    """The hint for an unknown name: the known ones that resemble it, whatever their case, or all of them."""
    by_lower = {entry.lower(): entry for entry in known}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower)]
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(by_lower.values())}"


def is_path(name: str) -> bool:
    """Whether `name` is a path "package.module:attribute" rather than the name of something that is built in."""
    return ":" in name


def imported(path: str, what: str) -> Any:
    """What the path "package.module:attribute" stands for.

    Args:
        path: of something of the user's own.
        what: what it should be, for messages: "algorithm".

    Raises:
        ValueError: there is no such module or attribute; the message says where modules are looked for. Whatever the module
            itself raises while it is imported is raised as it is.
    """
    module_name, _, attribute = path.partition(":")
    try:
        found = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:  # ValueError: an empty name
        missing = getattr(error, "name", None) or module_name
        if not f"{module_name}.".startswith(f"{missing}."):
            raise  # a module that it imports is missing
        raise ValueError(
            f"{what} {path!r}: there is no module {module_name!r}; the folder that holds it must be on PYTHONPATH, or be "
            "the working directory of marl-kl"
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{what} {path!r}: module {module_name!r} has no {attribute!r}")
        found = getattr(found, name)
    return found


def path_of(function: Any) -> str:
    """The path of a function or class; of what is defined in a script or a notebook it begins with "__main__:"."""
    return f"{function.__module__}:{function.__qualname__}"


def check_integer(name: str, value: Any, at_least: int, below: float = float("inf"), hint: str = "") -> int:
    """`value` as an int in [at_least, below).

    Args:
        name: the argument's.
        value: anything.
        at_least, below: its range.
        hint: what is accepted besides, for the message.

    Raises:
        ValueError: it is no integer (a bool is none), or is out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not at_least <= number < below:
        limit = f" and below {below}" if number is not None and number >= at_least else ""
        raise ValueError(f"{name}={value!r}; it must be an integer >= {at_least}{limit}{hint}")
    return number


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
