"""Synthetic runs in run folders written as `train` writes them, for tests of reading."""

import numpy as np

from envs.base import EnvSpec
from marl_kl.config import TrustRegionConfig
from marl_kl.results import Evaluation
from marl_kl.storage import run_folder, run_record, run_tables


def spec(name="legs", **metadata) -> EnvSpec:
    return EnvSpec(name, ("a", "b"), (3, 3), (1, 1), "continuous", 4, 100, True, tuple(metadata.items()))


def store(
    out,
    returns,
    *,
    steps=None,
    spec=spec(),
    algorithm="hatrpo",
    config=TrustRegionConfig(),
    seeds=None,
    status="finished",
    failures=(),
    params=None,
):
    """A run whose evaluations have the mean returns `returns` [seed, K] at the env steps `steps` [K], and whose
    training returns are the same but the first, which is missing.

    Each evaluation has two episodes, 1 below and 1 above its mean.
    """
    returns = np.asarray(returns, np.float64)
    steps = np.arange(returns.shape[1]) * 1000 if steps is None else np.asarray(steps)
    seeds = tuple(range(len(returns))) if seeds is None else seeds
    update = np.arange(len(steps))
    episodes = returns[..., None] + np.array([-1.0, 1.0])
    with run_folder.lock_folder(out, run_record.record(spec, algorithm, config, seeds, params)):
        run_tables.write_evaluation(out, seeds, Evaluation(update, steps, episodes, np.full(episodes.shape, 100)))
        metrics = {"episode_return": returns[:, 1:], "kl_total": np.full(returns[:, 1:].shape, 0.01)}
        run_tables.write_metrics(out, spec.agents, seeds, steps[1:], metrics)
        run_folder.set_status(out, status, failures)
    return out
