"""A process of its own with so many CPU devices, where this one has another number."""

import subprocess
import sys
from pathlib import Path

from tests.support import kills

_SCRIPT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", {count})
{lines}
assert jax.device_count() == {count}
"""


def run(count, lines, *arguments):
    """What Python `lines` print, with `arguments` in `sys.argv`, compiled as here."""
    command = [sys.executable, "-c", _SCRIPT.format(count=count, lines=lines), *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, check=True, cwd=root, env=kills.as_here(), stdout=subprocess.PIPE, text=True).stdout
