"""Environments: pure `reset` and `step`, no training code.

`envs.make(name, **options)` and `envs.names()`; `envs.from_gymnax`, `envs.from_jaxmarl`, `envs.from_jumanji` and
`envs.from_pettingzoo` for environments with those interfaces; `envs.check(env)` tests a new environment.
"""

from envs.adapters.gymnax import from_gymnax
from envs.adapters.jaxmarl import from_jaxmarl
from envs.adapters.jumanji import from_jumanji
from envs.adapters.pettingzoo import from_pettingzoo
from envs.base import Env, EnvSpec, EnvState, TimeStep
from envs.check import check
from envs.registry import make, names

__all__ = [
    "Env",
    "EnvSpec",
    "EnvState",
    "TimeStep",
    "check",
    "from_gymnax",
    "from_jaxmarl",
    "from_jumanji",
    "from_pettingzoo",
    "make",
    "names",
]
