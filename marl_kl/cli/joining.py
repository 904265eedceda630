"""Options that make several processes train one run (`marl_kl.processes`)."""

from __future__ import annotations

import argparse
import os
from typing import Any

import jax

from envs.validation import first_line
from marl_kl import processes
from marl_kl.cli import lost_process

USAGE = "[--coordinator HOST:PORT --num-processes N --process-id I]"

_HEARTBEAT_TIMEOUT = 30
"""Seconds without a sign of life after which a process counts as lost, where no connection to it has broken before."""

_LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Variables of launchers that jax knows: how many processes they started."""


def add_processes(parser: argparse.ArgumentParser) -> None:
    """`--coordinator`, `--num-processes`, `--process-id`."""
    group = parser.add_argument_group("several processes in one run, all started with the same other options")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens; or auto: as the environment says (Slurm, Open MPI, Kubernetes, TPU); or none "
        "(default: auto if Slurm or Open MPI has started several processes, else none)",
    )
    group.add_argument("--num-processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")


def join(arguments: argparse.Namespace) -> None:
    """Joins the other processes of the run, if there are any; call it before jax is used.

    From then on what jax's runtime writes about a lost process is one line.

    Raises:
        ValueError: a bad option, or nothing in the environment tells about other processes.
        OSError: they were not found.
    """
    options = _chosen(arguments.coordinator, arguments.num_processes, arguments.process_id)
    if options is None:
        return
    lost_process.redirect(processes.LOST)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT, **options)
    except RuntimeError as error:
        raise OSError(f"cannot join the other processes: {first_line(error)}") from error
    except ValueError:
        raise ValueError("coordinator='auto', but nothing in the environment tells about other processes") from None


def _chosen(coordinator: str | None, num_processes: int | None, process_id: int | None) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None if this process is alone."""
    if coordinator is None:
        is_launched = any(os.environ.get(name, "1") not in ("", "1") for name in _LAUNCHED)
        coordinator = "auto" if is_launched else "none"
    numbers = {"num_processes": num_processes, "process_id": process_id}
    if coordinator in ("auto", "none"):
        for name, number in numbers.items():
            if number is not None:
                raise ValueError(f"{name}={number} needs coordinator, HOST:PORT of process 0")
        return {} if coordinator == "auto" else None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator={coordinator!r}; it must be HOST:PORT of process 0, 'auto' or 'none'")
    if num_processes is None or num_processes < 1:
        raise ValueError(f"num_processes={num_processes}; it must be at least 1")
    if process_id is None or not 0 <= process_id < num_processes:
        raise ValueError(f"process_id={process_id}; it must be from 0 to {num_processes - 1}")
    return {"coordinator_address": coordinator, **numbers}
