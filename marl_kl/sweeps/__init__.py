"""Many settings and seeds at once: what is tried (`search`, or a TOML `file`), what is trained and stored together
(`pieces`) and leaves one result (`outcomes`), the sweep itself (`sweeper`), what its loggers get (`logs`), its tables
(`tables`), and all of it back from disk (`stored`)."""

from marl_kl.sweeps.search import choice, log_uniform, uniform
from marl_kl.sweeps.sweeper import sweep

__all__ = ["choice", "log_uniform", "sweep", "uniform"]
