"""What the TOML files of runs and sweeps have in common: an environment, an algorithm, options, tables; and lines of
TOML with comments, which tomli-w does not write.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from envs.validation import first_line, suggest
from marl_kl.core import algorithms
from marl_kl.storage.files import one_line_error


class Content(NamedTuple):
    """The content of such a file.

    Attributes:
        env: the environment's name. algorithm: the algorithm's, a known one.
        options: the other keys that it has.
        tables: name -> table; those that it lacks are empty.
    """

    env: str
    algorithm: str
    options: dict[str, Any]
    tables: dict[str, dict[str, Any]]


def read(path: Path, options: Collection[str], tables: Collection[str]) -> Content:
    """Reads a file that names an environment and an algorithm.

    Args:
        path: the file.
        options: the keys that it may have in addition to `env` and `algorithm`.
        tables: the tables that it may have.

    Raises:
        ValueError: it is no TOML, lacks `env` or `algorithm`, or has an unknown key; one line.
        RunFolderError: it cannot be read.
    """
    with one_line_error("read", path):
        raw = path.read_bytes()
    try:
        content = tomllib.loads(raw.decode())
    except ValueError as error:  # also what is not UTF-8
        raise ValueError(f"{path} is not a TOML file: {first_line(error)}") from error
    except RecursionError:
        raise ValueError(f"{path} is not a TOML file that can be read: it is nested too deeply") from None
    known = ("env", "algorithm", *options, *tables)
    for key in content:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}; {suggest(key, known)}")
    for key in ("env", "algorithm"):
        if not isinstance(content.get(key), str):
            raise ValueError(f"{path}: {key} must be there, and be a name in quotes")
    found = {name: content.get(name, {}) for name in tables}
    for name, table in found.items():
        if not isinstance(table, dict):
            raise ValueError(f"{path}: {name} must be a table, written [{name}]")
    algorithm = algorithms.get(content["algorithm"]).name
    return Content(content["env"], algorithm, {key: content[key] for key in options if key in content}, found)


def text(values: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """`values`, whose names need no quotes, as lines of TOML, with a comment behind those in `comments`.

    Raises:
        ValueError: a value of a kind that TOML does not have.
    """
    comments = comments or {}
    lines = [f"{name} = {_value(value)}" for name, value in values.items()]
    width = max(map(len, lines), default=0)
    noted = (f"{line:<{width}}  # {comments[name]}" if name in comments else line for line, name in zip(lines, values))
    return "".join(f"{line}\n" for line in noted)


def _value(value: Any) -> str:
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and jax
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        # tomli-w writes one item per line, which leaves no place for a comment
        return f"[{', '.join(map(_value, value))}]"
    try:
        if isinstance(value, Mapping):
            raise TypeError
        return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")
    except TypeError:
        raise ValueError(
            f"{value!r} cannot be written to a TOML file; it must be a number, a text, or a list of these"
        ) from None
