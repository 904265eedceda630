"""What version 0.1 stored before its modules moved (`tests/data/stored_by_0.1.tar.gz`) is read, shown and resumed."""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import envs
import marl_kl
from marl_kl.cli import main
from marl_kl.config import TrustRegionConfig
from tests.support.kills import without_wall_clock

ARCHIVE = Path(__file__).parents[1] / "data" / "stored_by_0.1.tar.gz"


@pytest.fixture
def stored(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize("name, options", [("run", {}), ("sweep", {"setting": 1})])
@pytest.mark.parametrize("which", ["last", "best"])
def test_policies_are_loaded_to_the_same_actions(stored, name, options, which):
    expected = json.loads((stored / "expected.json").read_text())
    run = marl_kl.load(stored / name, which=which, **options)
    shape = (run.spec.num_agents, run.spec.observation_size)
    obs = np.linspace(-1, 1, np.prod(shape), dtype=np.float32).reshape(shape)
    for seed in run.seeds:
        assert run.policy(seed=seed)(obs).tolist() == expected[f"{name}/{which}/{seed}"]["action"]
    total = sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(run.learner.actors))
    assert total == pytest.approx(expected[f"{name}/{which}/parameter_sum"], rel=1e-12)


@pytest.mark.parametrize("command", ["show run", "show sweep", "report run", "report sweep", "compare run sweep"])
def test_commands_read_it(stored, command, monkeypatch, capsys):
    monkeypatch.chdir(stored)
    assert main.main(command.split()) == 0
    if command.startswith("report"):
        assert "<img" in (stored / command.split()[1] / "report.html").read_text()


@pytest.mark.slow
def test_a_run_is_extended(stored):
    before = (stored / "run" / "metrics.csv").read_text().splitlines()
    result = marl_kl.train(
        envs.make("matrix_game", num_agents=2), "hatrpo_w", seeds=[3, 5], out=stored / "run", resume=True,
        progress="none",
        config=TrustRegionConfig(
            num_envs=4, rollout_length=4, hidden_sizes=(4,), critic_minibatches=1, eval_episodes=4, total_env_steps=160,
            eval_interval=3, line_search="geometric", utility="first_order",
        ),
    )  # fmt: skip
    assert result.metrics["episode_return"].shape == (2, 10)
    after = without_wall_clock(stored / "run").splitlines()
    assert after[0] == before[0] and set(before) <= set(after) and len(after) == 21
    assert np.isnan(result.wall_time_s[0]) and np.isfinite(result.wall_time_s[-1])


def test_a_finished_sweep_is_returned_as_it_was(stored):
    result = marl_kl.sweep(
        envs.make("matrix_game", num_agents=2), "hatrpo", grid={"kl_budget": [0.02, 0.1]}, seeds=2, out=stored / "sweep",
        resume=True, line_search="geometric", num_envs=4, rollout_length=4, hidden_sizes=(4,), critic_minibatches=1, eval_episodes=4,
        total_env_steps=96, eval_interval=3, progress="none",
    )  # fmt: skip
    assert result.metrics["episode_return"].shape == (2, 2, 6)
