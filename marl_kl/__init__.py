"""Trust-region multi-agent RL with one joint KL budget, in pure JAX.

See `train`, `sweep`, `load`, `evaluate`, `compare` and `make_train`.

Names are imported on first use, so that `load` does not import the training code, and `marl-kl --help` is fast.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _require_own_envs() -> None:
    """Raises ImportError if `import envs` would give another package, or has: every part of marl_kl needs its own."""
    spec = importlib.util.find_spec("envs")
    place = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
    if place is None or Path(place).resolve().parent != Path(__file__).resolve().parents[1] / "envs":
        raise ImportError(
            f"marl_kl needs its own package 'envs', but {place} comes first on the path; rename that one, or put its "
            "folder behind the installed packages in sys.path"
        )


_require_own_envs()

# at once: it sets the size of XLA's thread pool, before anything uses jax
from marl_kl.devices import use_all_cpu_cores, use_compilation_cache  # noqa: E402

if TYPE_CHECKING:
    from marl_kl import envs
    from marl_kl.analysis.comparison.compare_runs import compare
    from marl_kl.analysis.comparison.estimates import Comparison
    from marl_kl.analysis.reevaluation import EvaluationResult, evaluate
    from marl_kl.config import Config, FirstOrderConfig, OffPolicyConfig, OnPolicyConfig, TrustRegionConfig
    from marl_kl.core import advantages, algorithms, allocators, schemes, surrogates, trust_region
    from marl_kl.core.trainer import Train, TrainState, make_train
    from marl_kl.results import SweepResult, TrainResult
    from marl_kl.storage import files
    from marl_kl.storage.loading import load
    from marl_kl.training import loggers, presets, run_file
    from marl_kl.training.runner import train
    from marl_kl.training.search import choice, log_uniform, uniform
    from marl_kl.training.sweeper import sweep

__version__ = "0.1.0"

_HOMES = {
    "analysis.comparison.compare_runs": ("compare",),
    "analysis.comparison.estimates": ("Comparison",),
    "analysis.reevaluation": ("EvaluationResult", "evaluate"),
    "config": ("Config", "FirstOrderConfig", "OffPolicyConfig", "OnPolicyConfig", "TrustRegionConfig"),
    "core.trainer": ("Train", "TrainState", "make_train"),
    "results": ("SweepResult", "TrainResult"),
    "storage.loading": ("load",),
    "training.runner": ("train",),
    "training.search": ("choice", "log_uniform", "uniform"),
    "training.sweeper": ("sweep",),
}
"""Module -> its public names."""

_MODULES = {
    "": ("envs",),
    "core.": ("advantages", "algorithms", "allocators", "schemes", "surrogates", "trust_region"),
    "storage.": ("files",),
    "training.": ("loggers", "presets", "run_file"),
}
"""Room -> its public modules."""

_NAMES = {name: (home, name) for home, names in _HOMES.items() for name in names}
_NAMES |= {name: (f"{room}{name}", None) for room, names in _MODULES.items() for name in names}

__all__ = sorted([*_NAMES, "use_all_cpu_cores", "use_compilation_cache"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, attribute = _NAMES[name]
    module = importlib.import_module(f"{__name__}.{home}")
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
