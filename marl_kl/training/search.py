"""The settings of a sweep: grids and random draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from envs.validation import check_integer
from marl_kl.config import SCHEDULE, Config
from marl_kl.storage.shards import Setting

MAX_SETTINGS = 2**16
"""The most settings that one sweep takes; more are taken for a typing error."""

NOT_SWEPT = (*SCHEDULE, "eval_episodes")
"""Fields that must be the same for all settings, so that their results form one array."""


class Distribution(NamedTuple):
    """The distribution of a field's values.

    Attributes:
        text: how it was written.
        draw: `draw(generator, n)` -> n values; the first of them are the same for any n.
        kind: "uniform", "log_uniform" or "choice".
        values: its two ends, or what to choose from.
    """

    text: str
    draw: Callable[[np.random.Generator, int], list]
    kind: str
    values: tuple


def uniform(low: float, high: float) -> Distribution:
    """Numbers drawn evenly from [low, high)."""
    text = _between("uniform", low, high)
    return Distribution(text, lambda generator, n: generator.uniform(low, high, n).tolist(), "uniform", (low, high))


def log_uniform(low: float, high: float) -> Distribution:
    """Numbers whose logarithm is drawn evenly from [log low, log high)."""
    text = _between("log_uniform", low, high, at_least=0.0)

    def draw(generator, n):
        return np.exp(generator.uniform(math.log(low), math.log(high), n)).tolist()

    return Distribution(text, draw, "log_uniform", (low, high))


def choice(values: Sequence) -> Distribution:
    """One of `values`, each as often as any other."""
    values = _listed("choice's values", values)

    def draw(generator, n):
        return [values[i] for i in generator.integers(len(values), size=n)]

    return Distribution(f"choice({values})", draw, "choice", tuple(values))


DISTRIBUTIONS = {"log_uniform": log_uniform, "uniform": uniform, "choice": lambda *values: choice(values)}
"""By name; each called with its numbers, or with the values to choose from."""


def make_settings(
    config: Config,
    fixed: Mapping[str, Any],
    grid: Mapping[str, Sequence] | None = None,
    random: Mapping[str, Distribution] | None = None,
    samples: int | None = None,
    search_seed: int = 0,
) -> tuple[Setting, ...]:
    """All combinations of the grid, each with the same `samples` draws of the random fields.

    The draws of a field depend on `search_seed` and its name only: more samples add to them, and another field leaves
    them as they are.

    Args:
        config: what is neither fixed nor swept.
        fixed: fields of all settings. They are not checked by themselves: whether minibatches divide a batch, say, only
            a whole setting tells.
        grid: field -> values, all combined with all; the last field changes fastest.
        random: field -> what to draw from.
        samples: how many draws.
        search_seed: seed of the draws, an integer >= 0.

    Raises:
        ValueError: an unknown field, a value out of its range, ...: one line.
    """
    grid = {name: _listed(f"grid[{name!r}]", values) for name, values in check_swept("grid", grid, fixed).items()}
    random = check_swept("random", random, fixed)
    if not grid and not random:
        raise ValueError("there is nothing to sweep; give grid={field: values} or random={field: distribution}")
    twice = sorted(set(grid) & set(random))
    if twice:
        raise ValueError(f"'{twice[0]}' is in grid and in random; it must be in one of them")
    _check_samples(random, samples, search_seed)
    count = math.prod(map(len, grid.values())) * (samples or 1)
    if count > MAX_SETTINGS:
        raise ValueError(f"these are {count} settings, grid times samples; there must be at most {MAX_SETTINGS}")
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    draws = _draws(random, samples, search_seed)
    return tuple(make_setting(config, fixed, point | draw) for point in points for draw in draws)


def _check_samples(random: Mapping[str, Distribution], samples: Any, search_seed: Any) -> None:
    if not random and samples is not None:
        raise ValueError(f"samples={samples!r}, but there is nothing to draw; give random={{field: distribution}}")
    if not random:
        return
    check_integer("samples", samples, 1)
    check_integer("search_seed", search_seed, 0)


def _draws(random: Mapping[str, Distribution], samples: int | None, search_seed: int) -> list[dict[str, Any]]:
    if not random:
        return [{}]
    drawn = {}
    for name, distribution in random.items():
        refuse_no_distribution("random", name, distribution)
        drawn[name] = distribution.draw(np.random.default_rng([search_seed, *name.encode()]), samples)
    return [dict(zip(drawn, values)) for values in zip(*drawn.values())]


def make_setting(config: Config, fixed: Mapping[str, Any], fields: Mapping[str, Any]) -> Setting:
    """`config` with the `fixed` fields, and those of one setting."""
    config = config.replace(**fixed, **fields)
    return Setting({name: getattr(config, name) for name in fields}, config)


def check_swept(argument: str, given: Any, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, which must be a dict of fields that may be swept and are not `fixed`; `argument` is its name."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{argument}={given!r}; it must be a dict with config fields as keys")
    for name in given or {}:
        if name in fixed:
            raise ValueError(f"{name}={fixed[name]!r} is given, and swept as well; it must be one of the two")
        if name in NOT_SWEPT:
            raise ValueError(f"'{name}' cannot be swept: it must be the same for all settings; give it as {name}=...")
    return dict(given or {})


def refuse_no_distribution(argument: str, name: str, distribution: Any) -> None:
    """Raises ValueError if `argument[name]` is something else."""
    if not isinstance(distribution, Distribution):
        raise ValueError(
            f"{argument}[{name!r}]={distribution!r}; it must be marl_kl.log_uniform(low, high), "
            "marl_kl.uniform(low, high) or marl_kl.choice(values)"
        )


def _listed(name: str, values: Any) -> list:
    """A list of distinct values; lists within it as tuples, so that a TOML file can say hidden_sizes."""
    if hasattr(values, "tolist"):  # arrays of numpy and jax
        values = values.tolist()
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    listed = [tuple(value) if isinstance(value, list) else value for value in values] if is_list else []
    if not listed or any(value in listed[:i] for i, value in enumerate(listed)):
        raise ValueError(f"{name} is {values!r}; it must be a list of at least one value, none of them twice")
    return listed


def _between(name: str, low: Any, high: Any, at_least: float = -math.inf) -> str:
    try:
        is_range = at_least < low < high < math.inf and math.isfinite(float(high) - float(low))
    except (TypeError, OverflowError):
        is_range = False
    text = f"{name}({low!r}, {high!r})"
    if not is_range:
        zero = "0 < " if at_least == 0 else ""
        raise ValueError(f"{text}; it must have two finite numbers, {zero}low < high")
    return text
