"""A setting of a stored sweep is loaded, evaluated, shown and compared as a run, or refused in one line."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

import envs
import marl_kl
from marl_kl.cli import main
from marl_kl.core import evaluation
from marl_kl.storage import checkpoints, run_folder, run_record
from marl_kl.storage import stored_sweeps as sweep_folders
from marl_kl.storage.files import RunFolderError
from tests.support.grids import slow_unless
from tests.support.shared_programs import programs_are_shared  # noqa: F401  for all tests here
from tests.support.small_run import SMALL
from tests.support.stored_runs import store
from tests.training.test_sweeps import assert_same_up_to_rounding

FILE = """
env = "matrix_game"
algorithm = "hatrpo_w"
seeds = [4, 7]
runs_at_once = 3

[env_options]
num_agents = 2
steps = 3

[grid]
kl_budget = [0.02, 0.08, 0.3]

[config]
num_envs = 4
rollout_length = 8
hidden_sizes = [8]
critic_minibatches = 2
eval_episodes = 4
total_env_steps = 224
chunk_updates = 3
eval_interval = 2
"""
UPDATES, EVALUATED = 7, [0, 2, 4, 6, 7]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two shards of three runs, so that the seeds of a setting are in one shard or in two."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "file.toml").write_text(FILE)
    words = ["sweep", str(folder / "file.toml"), "--out", str(folder / "sweep"), "--progress", "none"]
    assert main.main(words) == 0
    return folder / "sweep"


@pytest.fixture
def copy(out, tmp_path):
    return shutil.copytree(out, tmp_path / "sweep")


@functools.cache
def _env():
    return envs.make("matrix_game", num_agents=2, steps=3)


def _trained(tmp_path, setting=1):
    """The same setting as a run."""
    config = sweep_folders.record_of(tmp_path / "sweep", setting).config
    return marl_kl.train(_env(), "hatrpo_w", seeds=[4, 7], config=config, out=tmp_path / "run", progress="none")


@pytest.mark.slow
def test_a_setting_is_the_run_that_train_makes(copy, tmp_path):
    """Metrics, evaluations on the way, last and best teams, up to rounding."""
    single = _trained(tmp_path)
    setting = sweep_folders.read(copy).setting(1)
    assert (setting.spec, setting.algorithm, setting.config, setting.seeds) == (
        single.spec, single.algorithm, single.config, single.seeds
    )  # fmt: skip
    np.testing.assert_array_equal(setting.env_steps, single.env_steps)
    assert setting.metrics.keys() == single.metrics.keys()
    for name, values in single.metrics.items():
        assert_same_up_to_rounding(setting.metrics[name], values, name)
    assert setting.evaluation.update.tolist() == single.evaluation.update.tolist() == EVALUATED
    assert_same_up_to_rounding(setting.evaluation.episode_return, single.evaluation.episode_return)
    for which in ("last", "best"):
        ours, theirs = marl_kl.load(copy, which, setting=1), marl_kl.load(tmp_path / "run", which)
        assert (ours.update, ours.seeds, ours.best_updates) == (theirs.update, theirs.seeds, theirs.best_updates)
        assert jax.tree.structure(ours.learner) == jax.tree.structure(theirs.learner)
        for leaf, other in zip(jax.tree.leaves(ours.learner), jax.tree.leaves(theirs.learner)):
            assert leaf.dtype == other.dtype
            assert_same_up_to_rounding(leaf, other)


@pytest.mark.parametrize("setting", slow_unless({1}, range(3)))
@pytest.mark.parametrize("which", ["last", "best"])
def test_the_teams_that_were_evaluated_are_those_that_were_saved(out, which, setting):
    result, run = sweep_folders.read(out), marl_kl.load(out, which, setting=setting)
    episodes = result.evaluations[setting]
    updates = [run.update_of(seed) for seed in run.seeds]
    again = evaluation.evaluate_again(_env(), run.config, run.seeds, updates, run.learner)
    places = [EVALUATED.index(update) for update in updates]
    np.testing.assert_array_equal(again.episode_return, episodes.episode_return[np.arange(2), places])
    means = episodes.episode_return.mean(-1)
    assert places == ([4, 4] if which == "last" else means.argmax(1).tolist())
    # a budget of its own, so a team of its own
    others = [marl_kl.load(out, which, setting=other).learner for other in {0, 1, 2} - {setting}]
    assert which == "best" or not any(
        np.array_equal(leaf, same) for other in others for leaf, same in [_kernels(run.learner, other)]
    )


def _kernels(*learners):
    return [jax.tree.leaves(learner.actors)[-1] for learner in learners]


def test_policies_of_a_setting(out):
    run = marl_kl.load(out, setting=2)
    assert run.config.kl_budget == 0.3 and run.config == sweep_folders.read(out).config_of(2)
    observation = np.zeros((2, run.spec.observation_size), np.float32)
    team = run.policy(seed=7)(observation)
    alone = [run.agent_policy(i, seed=7)(observation[i, : run.spec.observation_sizes[i]]) for i in range(2)]
    np.testing.assert_array_equal(team, alone)


def test_the_stored_sweep_equals_the_returned_one(copy, capsys):
    """A finished sweep that is resumed returns its result; `read` has the same, bit for bit."""
    returned = marl_kl.sweep(
        _env(), "hatrpo_w", grid={"kl_budget": [0.02, 0.08, 0.3]}, seeds=[4, 7], runs_at_once=3, out=copy, resume=True,
        progress="none", total_env_steps=224, chunk_updates=3, eval_interval=2, **SMALL,
    )  # fmt: skip
    stored = sweep_folders.read(copy)
    for name in ("spec", "algorithm", "config", "settings", "seeds", "failures", "out"):
        assert getattr(stored, name) == getattr(returned, name), name
    for part in ("env_steps", "metrics", "evaluations", "untrained", "final"):
        jax.tree.map(np.testing.assert_array_equal, getattr(stored, part), getattr(returned, part))


def test_commands(copy, capsys):
    """show, evaluate, compare and resume, of a sweep and of one setting."""

    def said(*words, code=0):
        assert main.main([*map(str, words)]) == code
        streams = capsys.readouterr()
        return streams.out + streams.err

    text = said("show", copy)
    assert "status       finished" in text and "    kl_budget = swept" in text and "3 settings, 2 seeds each" in text
    text = said("show", copy, "--setting", 1, "--all")
    assert "kl_budget = 0.08" in text and "mean ± std" in text
    text = said("evaluate", copy, "--setting", 1, "--seed", 7)
    assert "after 7 updates; 4 episodes per seed" in text
    said("evaluate", copy, "--setting", 1, "--absolute")
    absolute = (copy / "setting1" / "absolute.csv").read_text().splitlines()
    assert len(absolute) == 1 + 2 * 40
    text = said("compare", copy, "--threshold", 0.1)
    assert all(f"hatrpo_w, kl_budget={budget}" in text for budget in ("0.02", "0.08", "0.3"))
    assert "3 methods on matrix_game" in text
    text = said("resume", copy, code=2)
    assert f"holds a sweep; resume it with marl-kl sweep FILE.toml --out {copy} --resume" in text


@pytest.mark.slow
def test_compared_settings_are_methods(copy, tmp_path):
    """Their curves are those of the sweep; a run of one of the settings, with another seed, is pooled with it."""
    result = sweep_folders.read(copy)
    config = result.config_of(2)
    marl_kl.train(_env(), "hatrpo_w", seeds=[9], config=config, out=tmp_path / "run", progress="none")
    comparison = marl_kl.compare([copy, tmp_path / "run"], bootstrap=20)
    assert comparison.methods == tuple(f"hatrpo_w, kl_budget={budget}" for budget in ("0.02", "0.08", "0.3"))
    assert [entry.seeds for entry in comparison.entries] == [(4, 7), (4, 7), (4, 7, 9)]
    for k, entry in enumerate(comparison.entries):
        means = result.evaluations[k].episode_return.astype(np.float64).mean(-1)
        np.testing.assert_allclose(entry.returns[:2], means)
    assert comparison.notes == marl_kl.compare([copy, tmp_path / "run"], bootstrap=20).notes


def _lose_a_shard(out):
    shutil.rmtree(out / "pieces" / "1-2")
    run_folder.set_status(out, "interrupted", name=run_record.SWEEP)


def _stored_by_an_older_version(out):
    """Without teams."""
    for folder in (out / "pieces").iterdir():
        now = checkpoints.load(folder)
        fingerprint = json.loads(next(folder.glob("checkpoints/*/snapshot.json")).read_text())["run"]
        checkpoints.save(folder, now._replace(state={}, best=None), fingerprint, keep=1)


@pytest.mark.parametrize(
    "damage, setting, message",
    [
        (None, None, "holds a sweep; name one of its settings, 0 to 2"),
        (None, 3, "setting=3; the sweep in '.*' has settings 0 to 2"),
        (None, -1, "setting=-1; the sweep in"),
        (None, "a", "setting='a'; the sweep in"),
        (_lose_a_shard, 1, "setting 1 of the sweep in '.*' is not finished: resume the sweep"),
        (_stored_by_an_older_version, 0, "was stored without learners, by an older version"),
        (
            lambda out: shutil.rmtree(out / "pieces"),
            0,
            "there is no folder 'pieces' in '.*': of this sweep only tables",
        ),
    ],
)
def test_folders_without_teams_give_a_one_line_error(copy, damage, setting, message):
    if damage:
        damage(copy)
    with pytest.raises((ValueError, RunFolderError), match=message) as error:
        marl_kl.load(copy, setting=setting)
    assert "\n" not in str(error.value)


def test_a_run_has_no_settings(tmp_path):
    run = store(tmp_path / "run", np.zeros((1, 3)))
    with pytest.raises(ValueError, match="setting=0, but '.*' holds a run, which has no settings"):
        marl_kl.load(run, setting=0)
    with pytest.raises(RunFolderError, match="is not a run folder: it has no run.json"):
        marl_kl.load(tmp_path)


def test_an_interrupted_sweep_shows_its_finished_runs(copy, capsys):
    """Setting 1 has a seed in each shard: one of them is lost."""
    _lose_a_shard(copy)
    assert main.main(["show", str(copy)]) == 0
    text = capsys.readouterr().out
    assert "status       interrupted" in text and "3 of 6 runs are finished" in text
    result = sweep_folders.read(copy)
    assert np.isfinite(result.metrics["kl_total"]).all(-1).tolist() == [[True, True], [True, False], [False, False]]
    assert [len(evaluation.update) for evaluation in result.evaluations] == [5, 5, 0]
    assert np.isnan(result.final.episode_return).all(-1).tolist() == [[False, False], [False, True], [True, True]]
    assert main.main(["show", str(copy), "--setting", "1"]) == main.main(["show", str(copy), "--setting", "2"]) == 0
    assert "nothing is saved yet" in capsys.readouterr().out
    assert marl_kl.load(copy, setting=0).seeds == (4, 7)
    comparison = marl_kl.compare([copy], bootstrap=20)
    assert comparison.methods == ("hatrpo_w",)
    assert any("2 of 3 settings are not finished and are left out" in note for note in comparison.notes)
    shutil.rmtree(copy / "pieces" / "1-1")
    (copy / "table.csv").unlink()
    with pytest.raises(ValueError, match="3 of 3 settings are not finished and are left out: there is nothing to comp"):
        marl_kl.compare([copy])
