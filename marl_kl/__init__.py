"""Trust-region multi-agent RL with one joint KL budget, in pure JAX.

See `train`, `sweep`, `compare`, `make_train` and `load`.

Everything is imported when it is first used, so that a stored policy acts without what trains it, and the command line
helps at once.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

# at once: it sets the size of XLA's thread pool, before anything uses jax
from marl_kl.devices import use_all_cpu_cores

if TYPE_CHECKING:
    from marl_kl import advantages, algorithms, allocators, presets, run_file, trust_region
    from marl_kl.comparison import Comparison, compare
    from marl_kl.config import Config, FirstOrderConfig, TrustRegionConfig
    from marl_kl.host_loop import train
    from marl_kl.loading import load
    from marl_kl.results import SweepResult, TrainResult
    from marl_kl.sweeps import choice, log_uniform, sweep, uniform
    from marl_kl.trainer import Train, TrainState, make_train

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Config",
    "FirstOrderConfig",
    "SweepResult",
    "Train",
    "TrainResult",
    "TrainState",
    "TrustRegionConfig",
    "advantages",
    "algorithms",
    "allocators",
    "choice",
    "compare",
    "load",
    "log_uniform",
    "make_train",
    "presets",
    "run_file",
    "sweep",
    "train",
    "trust_region",
    "uniform",
    "use_all_cpu_cores",
]

_HOMES = {
    "comparison": ("Comparison", "compare"),
    "config": ("Config", "FirstOrderConfig", "TrustRegionConfig"),
    "host_loop": ("train",),
    "loading": ("load",),
    "results": ("SweepResult", "TrainResult"),
    "sweeps": ("choice", "log_uniform", "sweep", "uniform"),
    "trainer": ("Train", "TrainState", "make_train"),
}
"""Module -> what of it is a name of the package; the other names are modules."""

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        found = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        found = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
