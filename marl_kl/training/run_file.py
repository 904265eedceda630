"""The TOML file that describes a run: for `marl-kl train --config FILE`, and `config.toml` in every run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from envs.base import EnvSpec
from marl_kl.config import Config
from marl_kl.core import algorithms
from marl_kl.storage.run_record import current_fields
from marl_kl.training import toml_file

NAME = "config.toml"
"""What the file is called in a run folder."""

EXAMPLE = """a file for --config:
  env = "ant_4x2"
  algorithm = "hatrpo_w"
  seeds = 4                  # or which: [3, 5, 8]

  [env_options]
  backend = "spring"

  [config]
  total_env_steps = 2e6
"""


class RunFile(NamedTuple):
    """The content of such a file: names and plain values.

    Attributes:
        env: the environment's name. env_options: keyword arguments of `envs.make`.
        algorithm: the algorithm's name.
        seeds: how many, or which.
        config: config fields; the others have their defaults.
    """

    env: str
    env_options: dict[str, Any]
    algorithm: str
    seeds: int | Sequence[int]
    config: dict[str, Any]

    def make_config(self, **changes) -> Config:
        """The config, with `changes` to it.

        Raises:
            ValueError: a field that the algorithm does not have, or a bad value; the message names it.
        """
        return algorithms.get(self.algorithm).config_class().replace(**{**self.config, **changes})


def read(path: str | PathLike) -> RunFile:
    """Reads the description of a run.

    Raises:
        ValueError: it is no TOML, lacks `env` or `algorithm`, or has an unknown key; one line. Names and values
            of config fields are checked by `RunFile.make_config`, those of the environment by `envs.make`.
        OSError: it cannot be opened.
    """
    content = toml_file.read(Path(path), ("seeds",), ("env_options", "config"))
    tables, seeds = content.tables, content.options.get("seeds", 1)
    return RunFile(content.env, tables["env_options"], content.algorithm, seeds, current_fields(tables["config"]))


def text(spec: EnvSpec, algorithm: str, config: Config, seeds: Sequence[int]) -> str | None:
    """A file that describes this run down to the last field; None if `envs.make` cannot make the environment."""
    if spec.options is None:
        return None
    fields = dataclasses.fields(config)
    # an option that is None is left out, which means the same to every factory: TOML has no None
    options = {name: value for name, value in spec.options if value is not None}
    parts = (
        f"# marl-kl train --config {NAME} is this run again\n\n",
        toml_file.text({"env": spec.name, "algorithm": algorithm, "seeds": list(seeds)}),
        f"\n[env_options]\n{toml_file.text(options)}" if options else "",
        "\n[config]\n",
        toml_file.text(
            {field.name: getattr(config, field.name) for field in fields},
            {field.name: field.metadata["help"] for field in fields},
        ),
    )
    return "".join(parts)
