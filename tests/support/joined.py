"""Several processes of one run (`jax.distributed` on this machine)."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.support import kills

_SCRIPT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 1)
if {count} > 1:
    jax.distributed.initialize("127.0.0.1:{port}", {count}, {index})
{lines}
"""


def run(count, lines, *arguments):
    """Runs Python `lines` in so many processes of one CPU device each, with `arguments` in `sys.argv`, compiled as here, until all have ended."""
    port = _free_port()
    scripts = (_SCRIPT.format(count=count, port=port, index=index, lines=lines) for index in range(count))
    started = [_start(["-c", script, *map(str, arguments)]) for script in scripts]
    found = [process.communicate(timeout=600) for process in started]
    assert all(process.returncode == 0 for process in started), found


def command_line(count, *arguments):
    """`marl-kl`, started as so many processes."""
    joined = ["--coordinator", f"127.0.0.1:{_free_port()}", "--num-processes", str(count), "--process-id"]
    return [_start(["-m", "marl_kl", *map(str, arguments), *joined, str(index)]) for index in range(count)]


def _start(command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, *command], cwd=root, env=kills.as_here(), text=True, **pipes)


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
