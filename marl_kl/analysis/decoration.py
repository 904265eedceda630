"""Pictures, tables and terminals are decoration: one that fails costs a warning, never the work."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from envs.validation import first_line
from marl_kl.storage.run_folder import RunWarning


@contextlib.contextmanager
def decoration(what: str) -> Iterator[None]:
    """Inside this context an error becomes a `RunWarning`: "no `what`: reason".

    rich ends the process when it prints to a closed pipe; this is caught too.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # of matplotlib, its fonts, the terminal, or the disk
        reason = "the pipe is closed" if isinstance(error, SystemExit) else first_line(error)
        warnings.warn(f"no {what}: {reason}", RunWarning, stacklevel=3)
