"""Runs with a replay: resumed with the same bits, or without the replay where it was not stored; refused if too large."""

import dataclasses
import os
import sys

import jax
import numpy as np
import pytest

import envs
import marl_kl
from marl_kl.analysis.report import pages
from marl_kl.core import algorithms
from marl_kl.storage import checkpoints
from marl_kl.storage.run_folder import RunWarning
from marl_kl.training import warm_start
from tests.support import kills, topology
from tests.support.kinds_env import kinds_env
from tests.support.shared_programs import programs_are_shared  # noqa: F401  for all tests here

SMALL = {
    "num_envs": 4, "rollout_length": 8, "hidden_sizes": (8,), "warmup_steps": 64, "replay_size": 128, "minibatch_size": 8,
    "n_step": 2, "eval_episodes": 2, "eval_interval": 4, "save_interval": 0, "chunk_updates": 3, "updates_per_step": 0.25,
    "progress": "none",
}  # fmt: skip
WHOLE, PART = 8 * 32, 5 * 32


def train(out, total_env_steps=WHOLE, **fields):
    return marl_kl.train(
        kinds_env("squashed"), "hatd3", seeds=2, out=out, total_env_steps=total_env_steps, **{**SMALL, **fields}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, train(out)


@pytest.mark.slow
def test_a_resumed_run_is_the_whole_one_replay_included(whole, tmp_path):
    out = tmp_path / "run"
    train(out, PART)
    train(out, resume=True)
    wanted, found = (checkpoints.load(folder) for folder in (whole[0], out))
    assert wanted.update == found.update == 8 and "replay.transitions.experience.obs" in wanted.state
    for expected, values in ((wanted.state, found.state), (wanted.metrics, found.metrics)):
        assert expected.keys() == values.keys()
        for name, leaf in expected.items():
            np.testing.assert_array_equal(values[name], leaf, err_msg=name)


@pytest.mark.rare
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    """By SIGKILL within a save, where it is resumed until its end."""
    reference, victim = tmp_path / "reference", tmp_path / "victim"
    updates = 20
    kills.train_with_replay(reference, total_env_steps=32 * updates)
    assert "killed" in kills.be_killed("replay", victim, "inside", 1, updates, environment=kills.as_here())
    kills.train_with_replay(victim, resume=True, total_env_steps=32 * updates)
    kills.assert_same_run(victim, reference)


@pytest.mark.slow
def test_a_run_whose_replay_is_not_stored_fills_a_new_one(tmp_path):
    out = tmp_path / "run"
    train(out, PART, save_replay=False)
    assert not any(name.startswith("replay.") for name in checkpoints.load(out).state)
    with pytest.warns(RunWarning, match=r"checkpoints/5 has no replay \(save_replay=False\): it begins empty"):
        result = train(out, resume=True)
    np.testing.assert_array_equal(result.metrics["replay_fill"][0], [0.25, 0.5, 0.75, 1, 1, 0.25, 0.5, 0.75])
    np.testing.assert_array_equal(np.isnan(result.metrics["q_loss"][0]), [True, *[False] * 4, True, False, False])
    assert np.all(result.metrics["exploration"][:, 2:] == np.float32(0.1)), "uniform actions in the first warm-up only"


def test_a_replay_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    message = r"seeds=2 at once .* needs about .* GiB .*; replay_size=\d+ would fit"
    with pytest.raises(MemoryError, match=message):
        train(tmp_path / "run", replay_size=10**9)
    assert not os.listdir(tmp_path)


def test_a_missing_flashbax_is_one_line_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "flashbax", None)
    with pytest.raises(ModuleNotFoundError, match=r"need flashbax, .* pip install 'marl_kl\[off-policy\]'"):
        train(tmp_path / "run")
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_warm_start_has_the_targets_too_and_needs_an_off_policy_run(whole, finished):
    spec, config = kinds_env("squashed").spec, whole[1].config
    source = {"init_from": str(whole[0]), "init_which": "last"}
    snapshot = warm_start.start(source, spec, algorithms.get("matd3"), config, 2)
    stored = checkpoints.load(whole[0]).state
    assert not any(name.startswith("learner.algorithm") for name in snapshot.state), "another algorithm's optimisers"
    for name, leaf in snapshot.state.items():
        np.testing.assert_array_equal(stored[name], leaf)
    assert any(name.startswith("learner.critic.target_actors") for name in snapshot.state)
    with pytest.raises(
        ValueError, match="is a run of hatrpo_w; on-policy and off-policy algorithms have different net"
    ):
        warm_start.start(source | {"init_from": str(finished[0])}, spec, algorithms.get("matd3"), config, 2)


@pytest.mark.slow
def test_a_stored_run_acts_and_is_evaluated_again(whole):
    out, result = whole
    run = marl_kl.load(out)
    obs = np.zeros((3, 3), np.float32)
    low, high = run.spec.action_range
    mode, sample = run.policy(0)(obs), run.policy(0)(obs, key=jax.random.key(0))
    assert np.all((low <= mode) & (mode <= high) & (low <= sample) & (sample <= high)) and np.any(mode != sample)
    np.testing.assert_allclose(run.agent_policy(2)(obs[2]), mode[2], rtol=1e-6)
    called = jax.export.deserialize(bytearray(run.export(0))).call(obs[:1, :2])
    np.testing.assert_allclose(called[0], mode[0, :2], rtol=1e-5)
    again = marl_kl.evaluate(out, env=kinds_env("squashed"))
    np.testing.assert_allclose(again.episode_return, result.evaluation.episode_return[:, -1], rtol=1e-6)
    assert dataclasses.asdict(run.config) == dataclasses.asdict(result.config)


@pytest.mark.slow
def test_a_run_has_a_page_and_is_compared_with_an_on_policy_run(whole, tmp_path):
    """Labels have what was chosen, not what is every algorithm's own default, such as the activation."""
    schedule = {"total_env_steps": WHOLE, "num_envs": 4, "rollout_length": 8, "eval_episodes": 2, "progress": "none"}
    other = tmp_path / "other"
    marl_kl.train(kinds_env("squashed"), "hatrpo", seeds=2, out=other, hidden_sizes=(8,), squash=True, **schedule)
    page = pages.write(whole[0], tmp_path / "page.html").read_text()
    assert "hatd3 on kinds" in page and "Q loss" in page and "updates_per_step" in page
    comparison = marl_kl.compare([whole[0], other], bootstrap=10)
    assert comparison.methods == ("hatd3", "hatrpo")


@pytest.mark.slow
def test_two_devices_have_a_replay_each(whole, tmp_path):
    lines = "from tests.training import test_off_policy\ntest_off_policy.train(sys.argv[1])"
    topology.run(lines, tmp_path / "run", devices=2)
    wanted, found = (checkpoints.load(folder) for folder in (whole[0], tmp_path / "run"))
    for name in ("transitions.experience.obs", "transitions.experience.reward", "finals.experience.obs"):
        leaf = wanted.state[f"replay.{name}"]
        assert leaf.shape[0] == 2
        np.testing.assert_allclose(found.state[f"replay.{name}"], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found.metrics["q_loss"], wanted.metrics["q_loss"], rtol=1e-3)


@pytest.mark.rare
def test_soldiers_that_die_are_not_learned_from():
    """SMAX, whose time steps say who is alive: training is finite, and the replay has the dead."""
    env = envs.make("jaxmarl/HeuristicEnemySMAX")
    fields = {**SMALL, "rollout_length": 16, "replay_size": 64 * 10, "n_step": 3, "eval_interval": 0}
    config = marl_kl.OffPolicyConfig(**{name: value for name, value in fields.items() if name != "progress"})
    train = marl_kl.make_train(env, "matd3", config)
    state, metrics = jax.jit(lambda key: jax.lax.scan(lambda s, _: train.update(s), train.init(key), None, 10))(
        jax.random.key(0)
    )
    alive = state.replay.transitions.experience.alive
    assert alive.shape == (4, 160, env.spec.num_agents) and 0 < np.mean(~alive) < 1
    assert np.all(np.isfinite(metrics["q_loss"][1:])) and np.all(np.isfinite(metrics["actor_loss"][1:]))
    assert not np.any(metrics["nonfinite"])
