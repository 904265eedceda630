"""Trust-region multi-agent RL with one joint KL budget, in pure JAX.

See `train`, `sweep`, `compare`, `make_train` and `load`.
"""

from marl_kl import advantages, algorithms, allocators, presets, run_file, trust_region
from marl_kl.comparison import Comparison, compare
from marl_kl.config import Config, FirstOrderConfig, TrustRegionConfig
from marl_kl.devices import use_all_cpu_cores
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
