"""`marl_kl.envs` is the module `envs`, under a name that no other package can take.

`envs` is a common name: where another package of that name comes first on the path, `import envs` gives that one, while
`import marl_kl.envs` reports it.
"""

import sys

import envs

if not hasattr(envs, "EnvSpec"):
    where = getattr(envs, "__file__", None) or list(getattr(envs, "__path__", ["?"]))[0]
    raise ImportError(
        f"marl_kl needs its own package 'envs', but {where} comes first on the path; rename that one, or move its "
        "folder behind the installed packages in sys.path"
    )
sys.modules[__name__] = envs
