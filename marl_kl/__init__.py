"""Trust-region multi-agent RL with one joint KL budget, in pure JAX. See `train`, `make_train` and `load`."""

from marl_kl import advantages, algorithms, allocators, trust_region
from marl_kl.config import Config, FirstOrderConfig, TrustRegionConfig
from marl_kl.devices import use_all_cpu_cores
from marl_kl.host_loop import train
from marl_kl.loading import load
from marl_kl.results import TrainResult
from marl_kl.trainer import Train, TrainState, make_train

__version__ = "0.1.0"

__all__ = [
    "Config",
    "FirstOrderConfig",
    "Train",
    "TrainResult",
    "TrainState",
    "TrustRegionConfig",
    "advantages",
    "algorithms",
    "allocators",
    "load",
    "make_train",
    "train",
    "trust_region",
    "use_all_cpu_cores",
]
