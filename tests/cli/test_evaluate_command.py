"""`marl-kl evaluate`: what its options ask of `marl_kl.core.evaluation`, and what it prints and stores."""

import numpy as np
import pytest

import envs
import marl_kl
from marl_kl.cli import main
from marl_kl.core import evaluation
from marl_kl.storage import run_tables
from tests.support import random_run


@pytest.fixture(scope="module")
def game_run(tmp_path_factory):
    return random_run.store(tmp_path_factory.mktemp("runs") / "game", envs.make("bilinear"), best_updates=(3, 4))


@pytest.fixture
def calls(monkeypatch):
    """Replaces the evaluation itself by a record of its arguments."""
    calls = []

    def evaluate_again(env, config, seeds, updates, learner, **options):
        calls.append((config.eval_episodes, list(updates), options, learner.obs_moments.count.tolist()))
        return marl_kl.results.EpisodeStatistics(*np.ones((2, len(seeds), config.eval_episodes)))

    monkeypatch.setattr(evaluation, "evaluate_again", evaluate_again)
    return calls


def test_options(game_run, calls, capsys):
    last, best = (marl_kl.load(game_run, which).learner.obs_moments.count.tolist() for which in ("last", "best"))
    assert last != best
    cases = {
        "": (2, [7, 7], False, False, last, "last deterministic policies, after 7 updates; 2 episodes"),
        "--best": (2, [3, 4], False, False, best, "best deterministic policies, after 3, 4 updates; 2 episodes"),
        "--best --seed 1": (2, [4], False, False, best[1:], "after 4 updates"),
        "--stochastic": (2, [7, 7], True, False, last, "last stochastic policies"),
        "--absolute": (20, [3, 4], False, True, best, "stored in"),
        "--absolute --episodes 5": (5, [3, 4], False, True, best, "not stored"),
        "--absolute --seed 1": (20, [4], False, True, best[1:], "20 episodes per seed"),
    }
    for words, (episodes, updates, stochastic, fresh, learner, printed) in cases.items():
        assert main.main(["evaluate", str(game_run), *words.split()]) == 0
        assert calls.pop() == (episodes, updates, {"stochastic": stochastic, "fresh": fresh}, learner)
        assert printed in " ".join(capsys.readouterr().out.split())
        stored = {seed: returns.tolist() for seed, returns in run_tables.read_absolute(game_run).items()}
        assert stored == ({0: [1] * 20, 1: [1] * 20} if words == "--absolute" else {})
        (game_run / run_tables.ABSOLUTE).unlink(missing_ok=True)


def test_bad_options_give_a_one_line_error(game_run, tmp_path, capsys):
    old = random_run.store(tmp_path / "old", envs.make("bilinear"))
    bad = {
        f"{game_run} --stochastic --in mujoco": "policies are always deterministic",
        f"{game_run} --episodes 0": "episodes=0; it must be at least 1",
        f"{game_run} --seed 5": "seed=5 is not in this run",
        f"{old} --best": "has kept no best teams",
    }
    for words, message in bad.items():
        assert main.main(["evaluate", *words.split()]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
