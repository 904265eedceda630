"""A search chooses in ranges, by the results, and again the same; what it refuses; killed, it resumes to the same bits."""

import sys

import numpy as np
import pytest

import marl_kl
from marl_kl.cli import main
from marl_kl.training.adaptive_search import make_search
from marl_kl.training.programs import Programs
from tests.support import kills
from tests.training.test_runner import never_compile
from tests.training.test_sweeps import sweep

CONFIG = marl_kl.TrustRegionConfig()
SPACE = {
    "kl_budget": marl_kl.log_uniform(1e-4, 1.0),
    "gamma": marl_kl.choice([0.5, 0.9]),
    "gae_lambda": marl_kl.uniform(0, 1),
}


def made(space=SPACE, samples=8, rounds=6, sampler="tpe", search_seed=0):
    return make_search(CONFIG, {}, space, samples, rounds, sampler, search_seed)


def searched(search, score):
    """All settings of a search of which `score(config)` is known."""
    settings, scores = (), []
    for _ in range(search.rounds):
        settings += search.next_round(settings, scores)
        scores = [score(setting.config) for setting in settings]
    return settings, scores


def test_it_finds_what_pays_and_leaves_out_what_fails():
    """Best at a budget of 0.01 and gamma 0.9; a large lambda fails. Random draws of as many settings as a reference."""

    def score(config):
        loss = abs(np.log10(config.kl_budget) + 2) + 2 * (config.gamma < 0.9)
        return -np.inf if config.gae_lambda > 0.7 else -loss

    settings, scores = searched(made(), score)
    assert (
        all(1e-4 <= s.config.kl_budget <= 1 and s.config.gamma in (0.5, 0.9) for s in settings) and len(settings) == 48
    )
    first, last = np.split(np.maximum(scores, -9.0), [24])
    _, drawn = searched(made(sampler="optuna.samplers:RandomSampler"), score)
    assert np.median(last) > np.median(first) and np.median(last) > np.median(np.maximum(drawn, -9.0))
    assert max(scores) > -0.2 and np.mean(last == -9) < 0.25


def test_a_round_depends_on_results_and_seed_alone():
    search = made(samples=4)
    first = search.next_round((), ())
    scores = [0.5, 2.0, -np.inf, 1.0]
    assert first == made(samples=4).next_round((), ()) != made(samples=4, search_seed=1).next_round((), ())
    assert len({setting.fields["kl_budget"] for setting in first}) == 4
    second = search.next_round(first, scores)
    assert second == made(samples=4).next_round(first, scores) != search.next_round(first, scores[::-1])
    again = tuple(search.setting(setting.fields) for setting in first)
    assert again == first and first[0].config.kl_budget == first[0].fields["kl_budget"]


GAMMA = {"gamma": marl_kl.uniform(0.5, 0.9)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": {}}, "search is empty; give search="),
        ({"search": [0.1]}, r"search=\[0.1\]; it must be a dict"),
        ({"search": {"gamma": [0.5, 0.9]}}, r"search\['gamma'\]=\[0.5, 0.9\]; it must be marl_kl.log_uniform"),
        ({"search": {"gama": marl_kl.uniform(0, 1)}}, "unknown config field 'gama' .* did you mean gamma"),
        ({"search": {"gamma": marl_kl.uniform(0.5, 1.5)}}, r"gamma=1.5; it must be a finite number in \[0, 1\]"),
        ({"search": {"value_clip": marl_kl.choice([1.0, np.inf])}}, r"search\['value_clip'\] is choice.* must be finite"),
        ({"search": {"critic_epochs": marl_kl.choice([4, 8])}}, "'critic_epochs' cannot be searched: another value needs another pro"),
        ({"search": {"save_interval": marl_kl.choice([4, 8])}}, "'save_interval' cannot be swept"),
        ({"gamma": 0.9}, "gamma=0.9 is given, and swept as well"),
        ({"grid": {"gae_lambda": [0.9]}}, "search is given, and grid or random as well"),
        ({"samples": None}, "samples=None; it must be an integer >= 1"),
        ({"rounds": 0}, "rounds=0; it must be an integer >= 1"),
        ({"rounds": 2**20}, "these are 4194304 settings, samples times rounds; at most 65536"),
        ({"search": None, "grid": {"gamma": [0.9]}, "samples": None}, "rounds=2, but there is nothing to search"),
        ({"sampler": "gp"}, "sampler='gp'; it must be 'tpe' or a path, such as 'optuna.samplers:GPSampler'"),
        ({"sampler": "optuna.samplers:Gp"}, "module 'optuna.samplers' has no 'Gp'"),
        ({"search": {"actor_lr": marl_kl.log_uniform(1e-4, 1e-3)}}, "unknown config field 'actor_lr'"),
    ],
)  # fmt: skip
def test_bad_input_gives_a_one_line_error_before_compilation(options, message, monkeypatch, tmp_path):
    monkeypatch.setattr(Programs, "compile", never_compile)
    with pytest.raises(ValueError, match=message) as caught:
        sweep(**{"search": GAMMA, "samples": 4, "rounds": 2, "out": tmp_path / "run", **options})
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_without_optuna_the_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    head = 'env = "matrix_game"\nalgorithm = "hatrpo"\nsamples = 2\nrounds = 2\n'
    (tmp_path / "search.toml").write_text(head + "[search]\ngamma = { uniform = [0.5, 0.9] }\n")
    assert main.main(["sweep", str(tmp_path / "search.toml"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "marl-kl: search needs Optuna: pip install 'marl_kl[search]'\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.rare
def test_a_killed_search_ends_as_one_that_was_not(tmp_path):
    kills.search(tmp_path / "whole")
    for seed, kill in enumerate(("outside", "inside", "inside")):
        assert kills.be_killed("search", tmp_path / "parts", kill, seed, environment=kills.as_here()).endswith("killed")
    kills.search(tmp_path / "parts", resume=True)
    kills.assert_same_sweep(tmp_path / "parts", tmp_path / "whole")
    for command in ("show", "compare", "report"):
        assert main.main([command, str(tmp_path / "parts")]) == 0
