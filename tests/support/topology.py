"""Other processes of ours: one with several CPU devices, or several of one device each that are joined in one run."""

import subprocess
import sys
from pathlib import Path

from benchmarks.scaling import free_port
from tests.support import kills

_SCRIPT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", {devices})
if {processes} > 1:
    jax.distributed.initialize("127.0.0.1:{port}", {processes}, {index})
{lines}
assert jax.device_count() == {processes} * {devices}
"""


def run(lines, *arguments, devices=1, processes=1):
    """What Python `lines` print in process 0, with `arguments` in `sys.argv`, compiled as here; once all have ended."""
    port = free_port()
    scripts = [
        _SCRIPT.format(processes=processes, devices=devices, port=port, index=index, lines=lines)
        for index in range(processes)
    ]
    started = [_start(["-c", script, *map(str, arguments)]) for script in scripts]
    found = [process.communicate(timeout=600) for process in started]
    assert all(process.returncode == 0 for process in started), found
    return found[0][0]


def command_line(processes, *arguments):
    """`marl-kl`, started as so many processes."""
    joined = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(processes), "--process-id"]
    return [_start(["-m", "marl_kl", *map(str, arguments), *joined, str(index)]) for index in range(processes)]


def _start(command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, *command], cwd=root, env=kills.as_here(), text=True, **pipes)
