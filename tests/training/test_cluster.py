"""Shards of a sweep as jobs: submitit's local executor stands in for a cluster's scheduler."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import envs
import marl_kl
from marl_kl.storage import folder_lock
from marl_kl.storage.files import RunFolderError
from marl_kl.training import cluster
from tests.support.counting_env import counting_env

SWEEP = {
    "grid": {"kl_budget": (0.02, 0.08, 0.3)}, "seeds": 4, "runs_at_once": 2, "num_envs": 4, "rollout_length": 8,
    "hidden_sizes": (8,), "critic_minibatches": 2, "eval_episodes": 4, "total_env_steps": 32 * 40, "chunk_updates": 2,
    "save_interval": 4, "progress": "none",
}  # fmt: skip


def train(out, **options):
    return marl_kl.sweep(envs.make("matrix_game"), "hatrpo_w", **SWEEP, out=out, **options)


def _kill_when_saved(shards, killed):
    """SIGKILL for the process that holds the lock of each shard, once it has a checkpoint."""
    deadline = time.monotonic() + 300
    left = list(shards)
    while left and time.monotonic() < deadline:
        for shard in list(left):
            lock = shard / ".lock"
            if any((shard / "checkpoints").glob("*")) and lock.exists() and lock.read_text().startswith("process"):
                os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)
                killed.append(shard.name)
                left.remove(shard)
        time.sleep(0.01)


@pytest.mark.slow
def test_six_shards_of_which_two_are_killed_give_the_table_of_a_local_sweep(tmp_path):
    plain = train(tmp_path / "plain")
    out = tmp_path / "jobs"
    killed: list[str] = []
    victims = [out / "pieces" / name for name in ("1-2", "1-5")]
    hunter = threading.Thread(target=_kill_when_saved, args=(victims, killed))
    hunter.start()
    with pytest.raises(
        RunFolderError,
        match=r"2 of 6 shards failed: 1-2 \(it ended without a result, .*\), 1-5 \(it .*\); resume the sweep",
    ) as error:
        train(out, slurm={"timeout_min": 20})
    hunter.join()
    assert sorted(killed) == ["1-2", "1-5"] and "\n" not in str(error.value)
    with folder_lock.locked(victims[0]), pytest.raises(RunFolderError, match=r"1 of 2 shards failed: 1-2 \(.*in use"):
        train(out, slurm={}, resume=True)
    swept = train(out, slurm={}, resume=True)
    for name, values in plain.metrics.items():
        np.testing.assert_array_equal(values, swept.metrics[name], err_msg=name)
    for name in ("table.csv", "curves.csv"):
        assert (tmp_path / "plain" / name).read_bytes() == (out / name).read_bytes()


def test_what_jobs_cannot_do_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "sweep"
    with pytest.raises(ValueError, match="slurm is given, but no out"):
        train(None, slurm={})
    with pytest.raises(
        ValueError, match="slurm is given, but jobs cannot make the environment 'counting'; give it by the path"
    ):
        marl_kl.sweep(counting_env(), "hatrpo_w", **SWEEP, out=out, slurm={})
    with pytest.raises(ValueError, match="slurm={'colour': 'red'}; .*colour"):
        train(out, slurm={"colour": "red"})
    assert not out.exists()


def test_without_submitit_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'marl_kl\[cluster\]'"):
        train(tmp_path / "sweep", slurm={})


def test_a_job_whose_time_is_up_is_queued_again(tmp_path):
    job = cluster.ShardJob(Path("sweep"), "1-1")
    assert job.checkpoint().function == job
