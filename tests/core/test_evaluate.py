"""Evaluation: sampling teams, other episodes, and the command's choices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
import marl_kl
from marl_kl.cli import main
from marl_kl.core import evaluation
from marl_kl.core.trainer import make_train
from marl_kl.storage import run_tables
from tests.support import random_run
from tests.support.counting_env import counting_env


def test_a_sampling_team_loses_what_its_noise_costs():
    """The reward falls by the first agent's squared action / 100: 0.01 std^2 per step more than the mode's, five steps;
    four standard errors are 0.002."""
    env = counting_env()
    config = marl_kl.Config(hidden_sizes=(4,), init_std=1.0, eval_episodes=4096)
    learner = (
        make_train(env, "hatrpo", marl_kl.TrustRegionConfig(hidden_sizes=(4,), init_std=1.0))
        .init(jax.random.key(0))
        .learner
    )
    play = {stochastic: jax.jit(evaluation.make_evaluate(env, config, stochastic)) for stochastic in (False, True)}
    mode, sampled = (np.asarray(play[stochastic](jax.random.key(1), learner).episode_return) for stochastic in play)
    assert np.mean(mode - sampled) == pytest.approx(0.05, abs=0.002)
    assert len(np.unique(sampled)) > 4000 and not np.array_equal(sampled, play[True](jax.random.key(2), learner)[0])


def test_keys_are_per_seed_and_update_and_fresh_ones_are_others():
    same = evaluation.keys((3, 8), 5)
    np.testing.assert_array_equal(jax.random.key_data(same), jax.random.key_data(evaluation.keys((3, 8), (5, 5))))
    all_keys = [evaluation.keys((3, 8), updates, fresh) for updates in (5, (6, 7)) for fresh in (False, True)]
    data = jax.random.key_data(jnp.concatenate(all_keys))
    assert len(np.unique(data, axis=0)) == 8


@pytest.fixture(scope="module")
def game_run(tmp_path_factory):
    return random_run.store(tmp_path_factory.mktemp("runs") / "game", envs.make("bilinear"), best_updates=(3, 4))


def test_the_command_s_choices(game_run, monkeypatch, capsys):
    """What is asked for is seen in how it is evaluated and in what is said."""
    calls = []

    def evaluate_again(env, config, seeds, updates, learner, **options):
        calls.append((config.eval_episodes, list(updates), options, learner.obs_moments.count.tolist()))
        return marl_kl.results.EpisodeStatistics(*np.ones((2, len(seeds), 2)))

    monkeypatch.setattr(evaluation, "evaluate_again", evaluate_again)
    last, best = (marl_kl.load(game_run, which).learner.obs_moments.count.tolist() for which in ("last", "best"))
    assert last != best
    asked = {
        "": (2, [7, 7], False, False, last, "after 7 updates; 2 episodes per seed, mean ± std; determ"),
        "--best": (2, [3, 4], False, False, best, "each seed's best evaluated team, after 3, 4 updates; 2 episodes"),
        "--best --seed 1": (2, [4], False, False, best[1:], "after 4 updates"),
        "--stochastic": (2, [7, 7], True, False, last, "sampling policies"),
        "--absolute": (20, [3, 4], False, True, best, "absolute metric: in other episodes than those by which"),
        "--absolute --episodes 5": (5, [3, 4], False, True, best, "only the full metric (all seeds, all episodes, det"),
        "--absolute --seed 1": (20, [4], False, True, best[1:], "20 episodes per seed"),
    }
    for words, (episodes, updates, stochastic, fresh, learner, said) in asked.items():
        assert main.main(["evaluate", str(game_run), *words.split()]) == 0
        assert calls.pop() == (episodes, updates, {"stochastic": stochastic, "fresh": fresh}, learner)
        assert said in " ".join(capsys.readouterr().out.split())
        kept = run_tables.read_absolute(game_run)
        assert {seed: found.tolist() for seed, found in kept.items()} == (
            {0: [1, 1], 1: [1, 1]} if words == "--absolute" else {}
        )
        (game_run / run_tables.ABSOLUTE).unlink(missing_ok=True)


def test_wrong_options_of_evaluate_are_one_line_errors(game_run, tmp_path, capsys):
    old = random_run.store(tmp_path / "old", envs.make("bilinear"))
    bad = {
        f"{game_run} --stochastic --in mujoco": "--stochastic: in the C engine the policies are always deterministic",
        f"{old} --best": "has kept no best teams; load the last ones",
    }
    for words, message in bad.items():
        assert main.main(["evaluate", *words.split()]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
