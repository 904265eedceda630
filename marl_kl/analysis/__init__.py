"""Statistics, tables and figures.

Figures are made without pyplot, so matplotlib's backend does not matter to them. Its import, however, fails if MPLBACKEND
names no backend; it is therefore imported here, once, without that variable.
"""

import contextlib
import os
import sys

if "MPLBACKEND" in os.environ and "matplotlib" not in sys.modules:
    _backend = os.environ.pop("MPLBACKEND")
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = _backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend
