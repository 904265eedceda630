"""Environments: pure `reset` and `step`, no training code. `envs.make(name, **options)`, `envs.names()`."""

from envs.registry import make, names
from envs.types import Env, EnvSpec, EnvState, TimeStep

__all__ = ["Env", "EnvSpec", "EnvState", "TimeStep", "make", "names"]
