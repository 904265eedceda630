"""Stored policies together with the environment they were trained in, built again by name."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Literal

import envs
from envs.base import Env
from marl_kl.results import what_failed
from marl_kl.storage import array_trees, loading, run_folder, run_record, stored_sweeps


def rebuild_env(record: run_record.RunRecord, path: str | os.PathLike, advice: str) -> Env:
    """The environment of a run, by `envs.make`.

    Args:
        record: the run's. path: its folder, for the error.
        advice: the end of the error: what the user can do instead.

    Raises:
        ValueError: `envs.make` cannot make it: it is the user's own, or has parameters that are not options.
    """
    spec = record.spec
    env = None if spec.options is None else envs.make(spec.name, **dict(spec.options))
    if env is None or array_trees.digest(env.params) != record.document.get("env_params"):
        raise ValueError(f"envs.make cannot make the environment '{spec.name}' of {path}; {advice}")
    return env


def load_with_env(
    path: str | os.PathLike,
    which: Literal["last", "best"] = "last",
    setting: int | None = None,
    *,
    env: Env | None = None,
    advice: str,
) -> tuple[loading.Run, Env]:
    """A stored run, or a setting of a sweep, and the environment it was trained in.

    A `RunWarning` names each failed seed.

    Args:
        path, which, setting: as in `marl_kl.load`.
        env: the environment; None: `rebuild_env`, with `advice`.

    Raises:
        ValueError: as `marl_kl.load` and `rebuild_env`.
        RunFolderError: as `marl_kl.load`, or the environment is not that of the run.
    """
    record = stored_sweeps.record_of(path, setting)
    env = rebuild_env(record, path, advice) if env is None else env
    stored, ours = ({"env": run_record.env_identity(dataclasses.asdict(spec))} for spec in (record.spec, env.spec))
    mismatch = run_record.first_mismatch(stored, ours)
    if mismatch:
        raise run_folder.RunFolderError(f"the environment '{record.spec.name}' of {path} has changed: {mismatch}")
    for failure in record.failures:
        message = f"seed {failure.seed} failed ({what_failed(failure)}); its last finite parameters are used"
        warnings.warn(message, run_folder.RunWarning, stacklevel=3)
    return loading.load(path, which, setting), env
