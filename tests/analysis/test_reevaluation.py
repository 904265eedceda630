"""`marl_kl.evaluate`: policies from a folder and from `load`, any environment, and the absolute metric."""

import numpy as np
import pytest

import envs
import marl_kl
from marl_kl.results import Failure
from marl_kl.storage import run_folder, run_tables
from tests.support import random_run
from tests.support.counting_env import counting_env


@pytest.fixture(scope="module")
def game_run(tmp_path_factory):
    return random_run.store(tmp_path_factory.mktemp("runs") / "game", envs.make("bilinear"), best_updates=(3, 4))


def test_a_folder_and_a_loaded_run_give_the_same_evaluation(game_run):
    result = marl_kl.evaluate(game_run, which="best", episodes=3)
    assert result.seeds == (0, 1) and result.updates == (3, 4) and result.algorithm == "hatrpo_w"
    assert result.episode_return.shape == result.episode_length.shape == (2, 3)
    assert np.ptp(result.episode_return) > 0 and result.mujoco is None and result.stored is None
    loaded = marl_kl.evaluate(marl_kl.load(game_run, "best"), episodes=3)
    np.testing.assert_array_equal(loaded.episode_return, result.episode_return)
    one = marl_kl.evaluate(game_run, which="best", episodes=3, seeds=(1,))
    np.testing.assert_allclose(one.episode_return[0], result.episode_return[1], rtol=1e-6)
    assert one.seeds == (1,) and one.updates == (4,)


def test_stochastic_policies_earn_other_returns(game_run):
    deterministic, stochastic = (marl_kl.evaluate(game_run, stochastic=s).episode_return for s in (False, True))
    assert not np.array_equal(deterministic, stochastic)


def test_the_absolute_metric_is_stored_if_it_is_complete(game_run):
    for options in ({"episodes": 5}, {"seeds": (1,)}, {"stochastic": True}):
        assert marl_kl.evaluate(game_run, absolute=True, **options).stored is None
    result = marl_kl.evaluate(game_run, absolute=True)
    assert result.updates == (3, 4) and result.episode_return.shape == (2, 20)
    assert result.stored == game_run / run_tables.ABSOLUTE
    for seed, returns in run_tables.read_absolute(game_run).items():
        np.testing.assert_allclose(returns, result.episode_return[seed], rtol=1e-6)


def test_the_user_s_own_environment_is_given(tmp_path):
    env = counting_env()
    out = random_run.store(tmp_path / "own", env)
    with pytest.raises(ValueError, match="envs.make cannot make the environment 'counting' of .* env="):
        marl_kl.evaluate(out)
    assert marl_kl.evaluate(out, env=env).episode_length.shape == (2, 2)
    with pytest.raises(run_folder.RunFolderError, match="the environment 'counting' of .* has changed"):
        marl_kl.evaluate(out, env=envs.make("bilinear"))


def test_failed_seeds_are_warned_of(tmp_path):
    out = random_run.store(tmp_path / "run", envs.make("bilinear"))
    run_folder.set_status(out, "finished", [Failure(1, 6, "critic")])
    with pytest.warns(run_folder.RunWarning, match=r"seed 1 failed \(critic was not finite in update 7\)"):
        marl_kl.evaluate(out)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"episodes": 0}, "episodes=0; it must be at least 1"),
        ({"seeds": (0, 9)}, "seed=9 is not in this run"),
        ({"which": "first"}, "which='first'; it must be"),
        ({"setting": 0}, "holds a run, which has no settings"),
        ({"stochastic": True, "in_mujoco": True}, "policies are always deterministic"),
        ({"in_mujoco": True}, "bilinear"),
    ],
)
def test_bad_arguments_give_a_one_line_error(game_run, options, message):
    with pytest.raises(ValueError, match=message) as error:
        marl_kl.evaluate(game_run, **options)
    assert "\n" not in str(error.value)


def test_a_loaded_run_has_fixed_learners(game_run):
    last = marl_kl.load(game_run)
    with pytest.raises(ValueError, match="these are the last policies, not the best ones"):
        marl_kl.evaluate(last, absolute=True)
    with pytest.raises(ValueError, match="setting=0; only a sweep's folder has settings"):
        marl_kl.evaluate(last, setting=0)
