"""Checks of arguments and the hints in their messages, for `envs` and `marl_kl`."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any


def suggest(name: str, known: Iterable[str]) -> str:
    """The hint for an unknown name: the known ones that resemble it, whatever their case, or all of them."""
    by_lower = {entry.lower(): entry for entry in known}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower)]
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(by_lower.values())}"


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
