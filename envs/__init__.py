"""Environments: pure `reset` and `step`, no training code.

`envs.make(name, **options)`, `envs.names()`; `envs.from_gymnax` and `envs.from_jaxmarl` for those that have another
interface; `envs.check(env)` for your own.
"""

from envs.check import check
from envs.gymnax_wrapper import from_gymnax
from envs.jaxmarl_wrapper import from_jaxmarl
from envs.registry import make, names
from envs.types import Env, EnvSpec, EnvState, TimeStep

__all__ = ["Env", "EnvSpec", "EnvState", "TimeStep", "check", "from_gymnax", "from_jaxmarl", "make", "names"]
