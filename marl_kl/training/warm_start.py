"""Warm starts: a new run that begins with the learners of a stored one."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from envs.base import EnvSpec
from marl_kl.config import Config, OffPolicyConfig
from marl_kl.core.algorithms import AlgorithmSpec
from marl_kl.core.trainer import learner_shapes
from marl_kl.storage import array_trees, loading, run_folder, run_record
from marl_kl.storage.checkpoints import START, Snapshot
from marl_kl.storage.files import RunFolderError
from marl_kl.storage.run_record import WARM_START

_ENV = ("agents", "observation_sizes", "action_sizes", "action_kind", "sub_actions", "state_size")
_NETWORKS = (
    "share_parameters",
    "hidden_sizes",
    "activation",
    "squash",
    "recurrent",
    "recurrent_critic",
    "actor_encoder",
    "critic_encoder",
)
"""What must be the same; the shapes of the learners tell only a part of it."""


def entries(init_from: str | PathLike | None, which: str) -> dict[str, str]:
    """The entries `WARM_START` of the run's record, none without `init_from`; ValueError for another `which`."""
    if which not in ("last", "best"):
        raise ValueError(f"init_which={which!r}; it must be 'last' or 'best'")
    if init_from is None and which != "last":
        raise ValueError(f"init_which={which!r} needs init_from, the folder of a run")
    return {} if init_from is None else dict(zip(WARM_START, (str(Path(init_from).absolute()), which)))


def recorded(out: str | PathLike) -> dict[str, str]:
    """The entries `WARM_START` of the run in `out`, none if it began anew."""
    document = run_record.read_record(out).document
    return {name: document[name] for name in WARM_START if name in document}


def start(
    document: Mapping[str, Any], spec: EnvSpec, algorithm: AlgorithmSpec, config: Config, num_seeds: int
) -> Snapshot:
    """`START`, with the learners that the entries `WARM_START` of `document` name, if it has them.

    Args:
        document: the run's record.
        spec, algorithm, config, num_seeds: the new run's.

    Raises:
        ValueError: the learners do not fit; the message names the first difference.
        RunFolderError: they cannot be read.
    """
    if "init_from" not in document:
        return START
    path, which = map(document.get, WARM_START)
    if run_folder.is_sweep(path):
        raise ValueError(f"init_from={path!r} holds a sweep; it must be the folder of a run")
    run = loading.load(path, which)
    _refuse_other(run, spec, config)
    count = len(run.seeds)
    if count not in (1, num_seeds):
        raise ValueError(f"{num_seeds} seeds; there must be {count}, as many as in init_from={path!r}")
    shapes, leaves = learner_shapes(spec, algorithm, config), dict(run.leaves)
    if run.algorithm != algorithm.name:
        shapes = shapes._replace(algorithm=())
        leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith("algorithm.")}
    try:
        learner = loading.of_seeds(shapes, count, leaves, run.source)
    except RunFolderError as error:
        raise ValueError(f"init_from={path!r} ({run.algorithm}) does not fit {algorithm.name}: {error}") from error
    rows = np.arange(num_seeds) % count
    return START._replace(
        state={f"learner.{name}": leaf[rows] for name, leaf in array_trees.flatten_tree(learner).items()}
    )


def _refuse_other(run: loading.Run, spec: EnvSpec, config: Config) -> None:
    if isinstance(config, OffPolicyConfig) != isinstance(run.config, OffPolicyConfig):
        raise ValueError(
            f"init_from={str(run.path)!r} is a run of {run.algorithm}; on-policy and off-policy algorithms have different networks"
        )
    for names, ours, theirs in ((_ENV, spec, run.spec), (_NETWORKS, config, run.config)):
        for name in names:
            here, there = (getattr(one, name, None) for one in (ours, theirs))
            if here != there:
                raise ValueError(f"{name}={here!r}; it must be {there!r} as in init_from={str(run.path)!r}")
