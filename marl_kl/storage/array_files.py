"""Flat trees of arrays on disk, by Orbax."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from envs.validation import first_line


def write_arrays(path: Path, leaves: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Writes the flat tree `leaves` to the new folder `path`; OSError if it cannot.

    Several processes write it together, each its parts of jax's arrays.
    """
    import orbax.checkpoint as ocp

    # Orbax does not store arrays without elements; their shape is all there is to them, and the template has it.
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.size}
    try:
        with _orbax_path(path) as known, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(known, leaves)
    except ValueError as error:
        raise _as_os_error(error) from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The inverse of `write_arrays`, less arrays without elements; ValueError or KeyError if Orbax cannot read it.

    Whole arrays, on whatever devices they were.
    """
    import orbax.checkpoint as ocp

    with _orbax_path(path) as known, ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        names = checkpointer.metadata(known).item_metadata.tree
        return checkpointer.restore(
            known, restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        )


@contextlib.contextmanager
def _orbax_path(path: Path) -> Iterator[Path]:
    """`path` for Orbax, which in this context logs nothing.

    It would log the traceback of each of its threads before it raises the same error. And it searches its own folder by
    patterns, in which the brackets of "runs/hatrpo[kl=0.1]" mean something else: a link without them leads there.
    """
    logger = logging.getLogger("absl")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        if not glob.has_magic(str(path)):
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="marl_kl-") as folder:
            link = Path(folder) / "checkpoint"
            link.symlink_to(path.parent.absolute(), target_is_directory=True)
            yield link / path.name
    finally:
        logger.disabled = was_disabled


def _as_os_error(error: ValueError) -> OSError:
    # The storage library reports a full disk, say, as a ValueError that quotes the system's error code.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(first_line(error))
