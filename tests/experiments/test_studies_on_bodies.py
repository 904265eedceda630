"""Studies of bodies and of one-step games: who leads, scores on one scale, estimates of time, resuming inside a piece."""

import functools
import itertools
import json
import types

import numpy as np
import pytest

import envs
import marl_kl
from experiments import allocator_cost, brax_scores, brax_suite, device_pace, leaders, matrix_game, study, two_peaks
from experiments.brax_scores import Scores
from marl_kl.training.programs import Programs
from tests.support.shared_programs import programs_are_shared  # noqa: F401  for all tests here

# Who leads


@pytest.mark.parametrize("sequence", [(0, 0, 1, 2, 1), (2, 2, 2, 2), (0, 1, 2), (1, 0, 1, 0, 1, 1)])
def test_chance_is_the_mean_over_all_orders(sequence):
    orders = list(itertools.permutations(sequence))
    again = np.mean([[a == b for a, b in itertools.pairwise(order)] for order in orders])
    counts = np.bincount(sequence, minlength=3)
    np.testing.assert_allclose(leaders.in_random_order(counts), again)


def test_chance_of_independent_leaders_is_the_sum_of_squares():
    """Without bias, however few updates there are; the squared frequencies are too large by (1 - sum) / U."""
    chances, updates = np.array([0.5, 0.3, 0.2]), 6
    counts = np.random.default_rng(0).multinomial(updates, chances, size=40_000)
    truth = (chances**2).sum()
    assert abs(leaders.in_random_order(counts).mean() - truth) < 0.004
    biased = ((counts / updates) ** 2).sum(-1).mean()
    assert abs(biased - truth - (1 - truth) / updates) < 0.004
    assert np.isnan(leaders.in_random_order(np.array([1, 0])))


def test_leading_by_hand():
    share = np.eye(3)[[0, 0, 1, 1, 1, 2]]
    all_of_it = leaders.leading(share)
    np.testing.assert_array_equal(all_of_it.counts, [2, 3, 1])
    np.testing.assert_allclose(all_of_it.stays, 3 / 5)
    first = leaders.leading(share, np.array([True, True, True, False, False, False]))
    np.testing.assert_array_equal(first.counts, [2, 1, 0])
    np.testing.assert_allclose([first.stays, first.by_chance], [1 / 2, 2 / 6])


def test_shares_sum_to_one():
    threshold = np.array([[0.2, 0.6, 0.9], [0.0, 0.0, 0.0], [0.5, 0.25, 0.25]])
    share = leaders.normalised(threshold)
    np.testing.assert_allclose(share.sum(-1), [1, 0, 1])
    np.testing.assert_allclose(share, leaders.normalised(7 * threshold))
    np.testing.assert_allclose(share[0], threshold[0] / 1.7)


def test_shares_of_a_run():
    """Shares in the ratio of utilities correlate with them fully, whatever the budget; the KL spent need not."""
    rng = np.random.default_rng(1)
    utility = rng.uniform(1, 2, size=(2, 10, 4))
    given = 0.1 * leaders.normalised(utility)
    values = brax_suite.shares(utility, given, given[..., ::-1], np.array([0, 5, 10]))
    np.testing.assert_allclose(values["correlation"], 1.0)
    assert (values["correlation_spent"] < 0.9).all()
    np.testing.assert_allclose(values["share"].sum(-1), 1.0)
    np.testing.assert_allclose(values["led"].sum(), 1.0)
    again = brax_suite.shares(utility, 3 * given, given, np.array([0, 5, 10]))
    np.testing.assert_allclose(again["largest"], values["largest"])


def test_only_updates_before_99_percent_tell_who_leads():
    """Leaders alternate until the run is over; then the first one always leads, because no agent has anything to gain."""
    over = 7
    leader = np.where(np.arange(50) < over, np.arange(50) % 2, 0)
    threshold = np.broadcast_to(np.eye(2)[leader], (4, 3, 50, 2))
    reached = np.broadcast_to(np.arange(50) >= over - 1, (4, 3, 50))
    values = matrix_game.allocation(threshold, np.zeros((4, 3, 50, 2)), reached)
    np.testing.assert_array_equal(values["stays"], 0)
    np.testing.assert_allclose(values["by_chance"], (4 * 3 + 3 * 2) / (7 * 6))
    np.testing.assert_allclose(values["largest"][:, :over], 1)
    assert np.isnan(values["largest"][:, over:]).all()
    assert values["one_run"].shape == values["one_order"].shape == (matrix_game.DENSE, 2)


def test_early_updates_are_kept_one_by_one():
    shown = matrix_game.shown_updates(160)
    np.testing.assert_array_equal(shown[: matrix_game.DENSE], np.arange(matrix_game.DENSE))
    assert shown[-1] == 159 and len(shown) < 80 and (np.diff(shown) > 0).all()
    np.testing.assert_array_equal(matrix_game.shown_updates(4), np.arange(4))


# Scores


def test_scores_are_zero_where_teams_began_and_one_at_the_best():
    by_scenario = {
        "a": {"x": {"final": np.array([10.0, 30.0])}, "y": {"final": np.array([50.0, 20.0])}},
        "b": {"x": {"final": np.array([-3.0, -2.0])}, "y": {"final": np.array([-1.0, -3.0])}},
    }
    scores = {m: brax_scores.scored(by_scenario, {"a": 10.0, "b": -3.0}, m) for m in "xy"}
    np.testing.assert_allclose(scores["x"].normalized, [0, 0.5, 0, 0.5])
    np.testing.assert_allclose(scores["y"].normalized, [1, 0.25, 1, 0])
    np.testing.assert_array_equal(scores["x"].scenario, [0, 0, 1, 1])


def test_ratio_of_variances_counts_scenarios_alike():
    """Ratios 16 and 1 make 4, though the second scenario's variance is a million times the first's."""
    scenario = np.repeat([0, 1], 6)
    base = np.tile([-1.0, 0.0, 1.0, 2.0, -2.0, 0.5], 2)
    below = Scores(base * np.where(scenario, 1000, 1), scenario)
    above = Scores(base * np.where(scenario, 1000, 4), scenario)
    found = brax_scores.variance_ratio(above, below)
    np.testing.assert_allclose(found.value, 4.0)
    assert found.low < 4.0 < found.high
    np.testing.assert_allclose(brax_scores.variance_ratio(below, above).value, 0.25)


# Time


def test_compiling_takes_as_long_everywhere():
    pieces = [device_pace.COMPILE + 100, device_pace.COMPILE + 300, 30.0]
    np.testing.assert_allclose(device_pace.with_compilation(pieces, 1.0), 1.0)
    here = 2 * device_pace.COMPILE + 30 + 400 / 8
    np.testing.assert_allclose(device_pace.with_compilation(pieces, 8.0), sum(pieces) / here)


def test_the_estimate_is_that_of_this_device(monkeypatch, tmp_path):
    """As many ants are stepped as the size has environments at once; the smallest size needs none."""
    asked, printed = [], []

    def stepping(env, seeds, num_envs):
        asked.append((env, seeds, num_envs))
        return 10 * device_pace.REFERENCE

    def without_body(scenario):
        return types.SimpleNamespace(spec=types.SimpleNamespace(metadata=()))

    monkeypatch.setattr(device_pace, "measured_steps", stepping)
    monkeypatch.setattr(envs, "make", without_body)
    monkeypatch.setattr(brax_suite, "make_env", without_body)
    assert brax_suite.pace("smoke") == 1.0 and not asked
    pieces = brax_suite.pieces("quick")
    expected = device_pace.with_compilation([piece.seconds for piece in pieces], 10.0)
    np.testing.assert_allclose(brax_suite.pace("quick"), expected)
    assert asked[0][1:] == (6, 16) and 1 < expected < 10

    quick = [piece._replace(run=lambda *needs: {"value": np.zeros(1)}) for piece in pieces]
    one = brax_suite.STUDY._replace(pieces=lambda size: quick)
    study.run(one, "quick", tmp_path / "pieces", tmp_path, printed.append)
    hours = study.duration(sum(piece.seconds for piece in pieces) / expected)
    assert f"about {hours} here" in printed[0]


def test_settings_of_a_piece_hold_everything():
    """Methods differ in them, the critic's passes and the budget's default among them; all are plain JSON."""
    settings = {piece.name: piece.settings for piece in brax_suite.pieces("smoke")}
    texts = [json.dumps(each, allow_nan=False) for each in settings.values()]
    assert len(set(texts)) == len(texts)
    critic, plain = settings["bilinear-hatrpo_critic"], settings["bilinear-hatrpo"]
    different = {name for name in plain if plain[name] != critic[name]}
    assert different == {"method", "critic_epochs"} and critic["critic_epochs"] == brax_suite.CRITIC_EPOCHS
    assert plain["cg_damping"] == 1.0 and plain["gamma"] == 0.97 and plain["total_env_steps"] == 96


@pytest.mark.slow
@pytest.mark.studies
def test_a_piece_is_resumed_inside(tmp_path, monkeypatch):
    """Cut off after its search, it does not search again, and ends as if it had never stopped."""
    size = brax_suite.SIZES["smoke"]
    monkeypatch.setattr(brax_suite, "make_env", functools.cache(brax_suite.make_env))
    whole = brax_suite.play("bilinear", "hatrpo", size)
    sweep, calls, compiled = marl_kl.sweep, [], []

    def cut_off(*arguments, **options):
        calls.append(options["seeds"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sweep(*arguments, **options)

    monkeypatch.setattr(marl_kl, "sweep", cut_off)
    with pytest.raises(KeyboardInterrupt):
        brax_suite.play("bilinear", "hatrpo", size, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bilinear-hatrpo-search"]
    compile_all = Programs.compile
    monkeypatch.setattr(Programs, "compile", lambda self: compiled.append(self.num_runs) or compile_all(self))
    gone_on = brax_suite.play("bilinear", "hatrpo", size, folder=tmp_path)
    assert len(calls) == 4 and len(compiled) == 1, "the search is read, the runs are trained"
    assert not list(tmp_path.iterdir())
    assert whole.keys() == gone_on.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(values, gone_on[name], err_msg=name)


# Two peaks, and cost


@pytest.mark.slow
@pytest.mark.studies
def test_every_start_has_its_own_orders(monkeypatch):
    """HATRPO's order is random, a different one from each start; water-filling has no randomness."""
    monkeypatch.setattr(two_peaks, "SHOWN_STARTS", np.array([[2.0, 3.0]] * 4))
    size = two_peaks.SIZES["smoke"]._replace(updates=3, grid=2)
    by_chance, planned = (two_peaks.climb_exactly(m, False, size) for m in ("hatrpo", "hatrpo_w"))
    assert by_chance["ended"].shape == (1, 4, size.orders) and planned["ended"].shape == (1, 4, 1)
    assert by_chance["paths"].shape == (4, 3, 2), "every update is drawn"
    assert np.ptp(by_chance["paths"], axis=0).max() > 1e-3
    np.testing.assert_array_equal(np.ptp(planned["paths"], axis=0), 0)


def test_timed_programs_are_interleaved():
    log = []
    programs = [lambda name=name: log.append(name) for name in "ab"]
    assert allocator_cost.interleaved(programs, 3).shape == (2, 3)
    assert "".join(log) == "ab" * 4
