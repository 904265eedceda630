"""A process of its own with two CPU devices, where this one has another number."""

import subprocess
import sys
from pathlib import Path

from tests.support import kills

_SCRIPT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
{}
assert jax.device_count() == 2
"""


def run(lines, *arguments):
    """Python `lines`, with `arguments` in `sys.argv`, compiled as here."""
    command = [sys.executable, "-c", _SCRIPT.format(lines), *arguments]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env=kills.as_here())
