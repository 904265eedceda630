"""The TOML file that describes a sweep for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from envs.validation import suggest
from marl_kl.core import algorithms
from marl_kl.training import toml_file
from marl_kl.training.search import DISTRIBUTIONS, Distribution

EXAMPLE = """example:
  env = "ant_4x2"
  algorithm = "hatrpo_w"
  seeds = 8                             # or which: [3, 5, 8]
  samples = 16                          # draws of [random], at every point of [grid]
  search_seed = 0
  # runs_at_once = 64                   # default: as many as memory holds

  [env_options]
  backend = "spring"

  [grid]
  hidden_sizes = [[32, 32], [64, 64]]

  [random]
  kl_budget = { log_uniform = [0.01, 0.3] }    # or uniform = [low, high], choice = [value, ...]

  [config]
  total_env_steps = 1e6

  # instead of [grid] and [random]: each of `rounds` times (at the top) Optuna chooses `samples` settings by the results so far
  # [search]
  # kl_budget = { log_uniform = [0.01, 0.3] }
"""

_OPTIONS = ("seeds", "samples", "rounds", "sampler", "search_seed", "runs_at_once")
_TABLES = ("env_options", "grid", "random", "search", "config")


class SweepFile(NamedTuple):
    """The content of such a file.

    Attributes:
        env: the environment's name. env_options: its options.
        algorithm: the algorithm's name.
        options: keyword arguments of `marl_kl.sweep` that are no config fields.
        config: the config fields that are not swept.
    """

    env: str
    env_options: dict[str, Any]
    algorithm: str
    options: dict[str, Any]
    config: dict[str, Any]


def read(path: Path) -> SweepFile:
    """Reads a sweep file.

    Raises:
        ValueError: it is no TOML, lacks `env` or `algorithm`, or has an unknown key; one line.
        OSError: it cannot be opened.
    """
    content = toml_file.read(path, _OPTIONS, _TABLES)
    tables = content.tables
    config_class = algorithms.get(content.algorithm).config_class
    for table in ("config", "grid", "random", "search"):
        config_class().refuse_unknown(tables[table])
    drawn = {
        table: {name: _distribution(f"{table}.{name}", written) for name, written in tables[table].items()}
        for table in ("random", "search")
    }
    search = {"search": drawn["search"]} if drawn["search"] else {}
    return SweepFile(
        content.env, tables["env_options"], content.algorithm,
        {**content.options, "grid": tables["grid"], "random": drawn["random"], **search}, tables["config"],
    )  # fmt: skip


def _distribution(field: str, written: Any) -> Distribution:
    """From `{ log_uniform = [0.01, 0.3] }`."""
    is_one = isinstance(written, dict) and len(written) == 1 and isinstance(next(iter(written.values())), list)
    if not is_one:
        raise ValueError(
            f"{field}={written!r}; it must be written as in {field.partition('.')[2]} = {{ log_uniform = [0.01, 0.3] }}"
        )
    ((name, arguments),) = written.items()
    if name not in DISTRIBUTIONS:
        raise ValueError(f"{field}: unknown distribution {name!r}; {suggest(name, DISTRIBUTIONS)}")
    if name != "choice" and len(arguments) != 2:
        raise ValueError(f"{field}: {name} is {arguments!r}; it must be [low, high]")
    return DISTRIBUTIONS[name](*arguments)
