"""`evaluate`: evaluates the policies of a stored run again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from envs.base import Env, EnvSpec
from marl_kl.analysis.rebuild import load_with_env, rebuild_env
from marl_kl.core import evaluation
from marl_kl.results import EpisodeStatistics
from marl_kl.storage import run_folder, run_record, run_tables, stored_sweeps
from marl_kl.storage.files import one_line_error
from marl_kl.storage.loading import Run


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` returns.

    Attributes:
        spec: the environment's static description.
        algorithm: the algorithm's name.
        seeds: S seeds, in the order of every seed axis.
        updates: [S] updates after which the evaluated policies were stored.
        episode_return: [seed, episode] team returns. episode_length: [seed, episode] env steps.
        stored: the file of the absolute metric, if it was written.
        mujoco: returns and lengths [seed, episode] in Gymnasium's environment; None unless asked for.
        mujoco_env: the name of that environment. mujoco_differences: known differences from the training physics.
    """

    spec: EnvSpec
    algorithm: str
    seeds: tuple[int, ...]
    updates: tuple[int, ...]
    episode_return: np.ndarray
    episode_length: np.ndarray
    stored: Path | None = None
    mujoco: EpisodeStatistics | None = None
    mujoco_env: str = ""
    mujoco_differences: tuple[str, ...] = ()


def evaluate(
    run: str | os.PathLike | Run,
    *,
    which: Literal["last", "best"] = "last",
    setting: int | None = None,
    seeds: Sequence[int] | None = None,
    episodes: int | None = None,
    stochastic: bool = False,
    absolute: bool = False,
    in_mujoco: bool = False,
    env: Env | None = None,
) -> EvaluationResult:
    """Evaluates the policies of a stored run, in the episodes of the training's own evaluation.

    Args:
        run: the folder of a run or a sweep, or what `load` returned, whose policies are evaluated as they are.
        which: the last policies, or for each seed those with the best evaluation so far.
        setting: of a sweep, the index of the setting.
        seeds: the training seeds to evaluate; None: all.
        episodes: per seed; None: the run's `eval_episodes`.
        stochastic: sample actions, as in training; False: deterministic policies.
        absolute: the absolute metric (Gorsane et al. 2022): the best policies in ten times the episodes, other ones than
            those they were chosen by. The whole of it (a folder, all seeds, default episodes, deterministic) is stored
            in the folder as `absolute.csv`, where `compare` reads it.
        in_mujoco: also in the Gymnasium v5 environment of the body, by MuJoCo's C engine (the extra `mujoco`).
        env: the training environment; None: made again by `envs.make`.

    Raises:
        ValueError: a bad argument, an environment that is not `envs.make`'s, or one without a counterpart in MuJoCo.
        RunFolderError: no readable run there, no best policies, or another environment than that of the run.
        ModuleNotFoundError: `in_mujoco` without the extra.
    """
    if episodes is not None and episodes < 1:
        raise ValueError(f"episodes={episodes}; it must be at least 1")
    if stochastic and in_mujoco:
        raise ValueError("stochastic=True: in MuJoCo's C engine policies are always deterministic")
    loaded, env = _loaded(run, "best" if absolute else which, setting, env)
    factor = evaluation.ABSOLUTE_FACTOR if absolute else 1
    config = loaded.config.replace(eval_episodes=episodes or factor * loaded.config.eval_episodes)
    chosen = loaded.seeds if seeds is None else tuple(seeds)
    updates = tuple(loaded.update_of(seed) for seed in chosen)
    learners = [loaded.learner_of(seed) for seed in chosen]
    mujoco = {}
    if in_mujoco:
        from marl_kl.analysis.bodies import mujoco_check

        counterpart = mujoco_check.counterpart(env)  # refuses early
        mujoco = {"mujoco_env": counterpart.name, "mujoco_differences": counterpart.differences}
    result = evaluation.evaluate_again(
        env, config, chosen, updates, _stacked(learners), stochastic=stochastic, fresh=absolute
    )
    stored = None
    if absolute and not (isinstance(run, Run) or stochastic or episodes or seeds is not None):
        stored = _store(Path(run), setting, chosen, updates, config.batch_size, result)
    if in_mujoco:
        each = zip(learners, chosen)
        mujoco["mujoco"] = _stacked(
            [mujoco_check.evaluate_team(counterpart, env, config, one, s, config.eval_episodes) for one, s in each]
        )
    return EvaluationResult(
        loaded.spec, loaded.algorithm, chosen, updates, result.episode_return, result.episode_length, stored, **mujoco
    )


def _loaded(
    run: str | os.PathLike | Run, which: Literal["last", "best"], setting: int | None, env: Env | None
) -> tuple[Run, Env]:
    """The policies, and the environment to evaluate them in."""
    path = run.path if isinstance(run, Run) else run
    advice = f"evaluate it with marl_kl.evaluate({str(path)!r}, env=...)"
    if not isinstance(run, Run):
        return load_with_env(path, which, setting, env=env, advice=advice)
    if setting is not None:
        raise ValueError(f"setting={setting!r}; only a sweep's folder has settings, not what load has returned")
    if which == "best" and run.best_updates is None:
        raise ValueError("these are the last policies, not the best ones; load them with load(path, which='best')")
    if env is None:
        name = run_record.SWEEP if run_folder.is_sweep(path) else run_record.RUN
        env = rebuild_env(run_record.read_record(path, name), path, advice)
    return run, env


def _store(
    path: Path, setting: int | None, seeds: Sequence[int], updates: Sequence[int], batch_size: int,
    episodes: EpisodeStatistics,
) -> Path:  # fmt: skip
    """Writes the absolute metric to the folder of the run, or of the sweep's setting."""
    folder = path if setting is None else stored_sweeps.folder_of(path, setting)
    with one_line_error("create", folder):
        folder.mkdir(exist_ok=True)
    run_tables.write_absolute(folder, seeds, updates, batch_size, episodes)
    return folder / run_tables.ABSOLUTE


def _stacked(trees: Sequence):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
