"""`marl_kl.envs` is the package `envs`, and its modules, under a name that no other package can shadow."""

import sys

import envs  # noqa: F401  its modules are registered below

for _name, _module in list(sys.modules.items()):
    if _name == "envs" or _name.startswith("envs."):
        sys.modules[f"{__package__}.{_name}"] = _module
