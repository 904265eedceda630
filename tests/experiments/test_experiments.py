"""The studies: every script's smallest size runs, pages hold the tables of the raw results, exact parts match other ways."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure

import envs
from envs.games import two_peaks_expectation
from experiments import (
    allocator_cost,
    bilinear,
    exact_gaussians,
    intervals,
    mixed_motives,
    off_policy,
    parameter_sharing,
    report,
    stage_games,
    study,
    tabular,
    theory,
    two_peaks,
    weighted_game,
)
from experiments.exact_gaussians import Team
from experiments.study import Piece, Report, Study
from experiments.styles import TRUST_REGION
from marl_kl.core import algorithms, allocators
from marl_kl.core.allocators import AllocationState


def quiet(line):
    pass


SMOKED = ("theory", "off_policy")
"""In every run of the slow tests, as is bodies_at_scale; the others, of the same parts, are `rare`."""


@pytest.mark.studies
@pytest.mark.parametrize(
    "one",
    [pytest.param(one, marks=pytest.mark.slow if one.name in SMOKED else pytest.mark.rare) for one in report.STUDIES],
    ids=lambda one: one.name,
)
def test_smoke(one, tmp_path):
    """The smallest size runs, its page has every table, its figures are drawn."""
    pieces = tmp_path / (one.name if one.is_incremental else "pieces")
    results = study.run(one, "smoke", pieces, tmp_path, quiet)
    text = study.write_report(one, results, tmp_path, pdf=True).read_text()
    shown = one.report(results)
    assert shown.tables and text.startswith(f"# {one.title}") and "nan" not in text
    for table in shown.tables.values():
        assert table in text
    for name in shown.figures:
        assert (tmp_path / f"{one.name}-{name}.png").stat().st_size > 3000
        assert (tmp_path / f"{one.name}-{name}.pdf").exists() and f"({one.name}-{name}.png)" in text


def test_configs_of_the_off_policy_study_have_nothing_unused():
    for size in ("quick", "full"):
        for piece in off_policy.pieces(size):
            config = off_policy.config_of(piece.settings["task"], piece.settings["method"], off_policy.SIZES[size])
            algorithms.get(piece.settings["method"]).refuse_unused(config)


def counting_study(log, numbers=(1.0, 2.0), broken=()):
    """A study of one number per piece, which logs what it runs."""

    def work(number):
        log.append(number)
        if number in broken:
            raise KeyboardInterrupt
        return {"value": np.array([number, np.nan])}

    def shown(results):
        values = [float(piece["value"][0]) for piece in results.pieces.values()]
        return Report({"numbers": f"{values}"}, {"it": Figure()})

    def pieces(size):
        return [
            Piece(f"piece-{i}", 1.0, {"number": n, "size": size}, lambda n=n: work(n)) for i, n in enumerate(numbers)
        ]

    return Study("counting", "Counting", pieces, shown)


def test_an_interrupted_study_is_resumed(tmp_path):
    log, printed = [], []
    with pytest.raises(KeyboardInterrupt):
        study.run(counting_study(log, broken=(2.0,)), "quick", tmp_path / "work", tmp_path, quiet)
    assert not (tmp_path / "counting.json").exists()
    results = study.run(counting_study(log), "quick", tmp_path / "work", tmp_path, printed.append)
    assert log == [1.0, 2.0, 2.0] and "1 of 2 pieces are done; the others take about 1 s" in printed[0]
    np.testing.assert_array_equal(results.pieces["piece-1"]["value"], [2.0, np.nan])
    whole = study.run(counting_study([]), "quick", tmp_path / "other", tmp_path / "elsewhere", quiet)
    assert {n: p["value"].tolist()[0] for n, p in whole.pieces.items()} == {"piece-0": 1.0, "piece-1": 2.0}
    study.run(counting_study(log), "quick", tmp_path / "work", tmp_path, quiet)
    assert log == [1.0, 2.0, 2.0], "nothing is left to do"


def test_pieces_of_other_settings_are_not_used(tmp_path):
    log = []
    study.run(counting_study(log), "quick", tmp_path / "work", tmp_path, quiet)
    results = study.run(counting_study(log, (1.0, 3.0)), "quick", tmp_path / "work", tmp_path, quiet)
    assert log == [1.0, 2.0, 3.0] and results.pieces["piece-1"]["value"][0] == 3.0
    assert results.settings["piece-1"] == {"number": 3.0, "size": "quick"} and results.machines == (study.machine(),)


def test_a_piece_is_run_again_when_what_it_needs_has_changed(tmp_path):
    """As the runs are when a search of another length has chosen another value."""
    log = []

    def chained(number):
        def follow(before):
            log.append(float(before["value"]))
            return {"value": before["value"] + 1}

        first = Piece("first", 1.0, {"number": number}, lambda: {"value": np.array(number)})
        second = Piece("second", 1.0, {}, follow, ("first",))
        return Study("chained", "Chained", lambda size: [first, second], lambda results: Report({}, {}))

    def run(number):
        results = study.run(chained(number), "quick", tmp_path / "work", tmp_path, quiet)
        return float(results.pieces["second"]["value"])

    assert [run(1.0), run(1.0), run(5.0), run(5.0)] == [2.0, 2.0, 6.0, 6.0]
    assert log == [1.0, 5.0]
    (tmp_path / "work" / "first.json").unlink()
    assert run(5.0) == 6.0 and log == [1.0, 5.0, 5.0], "nothing tells that it would be the same"


def test_a_report_is_computed_from_the_raw_results_and_keeps_the_discussion(tmp_path):
    one = counting_study([])
    study.run(one, "quick", tmp_path / "work", tmp_path, quiet)
    page = study.write_report(one, study.load(one, tmp_path), tmp_path)
    page.write_text(page.read_text().replace("# Counting", "# Counting\n\nA discussion written by hand."))
    document = json.loads((tmp_path / "counting.json").read_text())
    document["pieces"]["piece-0"]["values"]["value"] = [7, None]
    (tmp_path / "counting.json").write_text(json.dumps(document))
    text = study.write_report(one, study.load(one, tmp_path), tmp_path).read_text()
    assert "[7.0, 2.0]" in text and "[1.0, 2.0]" not in text and "A discussion written by hand." in text
    assert (tmp_path / "counting-it.png").exists() and not (tmp_path / "counting-it.pdf").exists()


def test_a_page_without_the_markers_of_a_table_is_an_error():
    page = "# Title\n\n<!-- table: one -->\nold\n<!-- end -->\n"
    assert study.with_tables(page, {"one": "new"}) == page.replace("old", "new")
    with pytest.raises(ValueError, match="two"):
        study.with_tables(page, {"one": "new", "two": "new"})
    with pytest.raises(ValueError, match="one"):
        study.with_tables(page, {})


@pytest.mark.slow
@pytest.mark.studies
@pytest.mark.parametrize("one", report.STUDIES, ids=lambda one: one.name)
def test_pages_committed_here_have_the_tables_of_the_raw_results(one):
    results = study.load(one, study.RESULTS)
    settings = {piece.name: json.loads(json.dumps(piece.settings)) for piece in one.pieces(results.size)}
    for name, stored in results.settings.items():  # which may be older than some of the fields
        assert stored == {key: settings[name][key] for key in stored}
    assert one.is_incremental or list(results.settings) == list(settings)
    shown = one.report(results)
    page = (study.RESULTS / f"{one.name}.md").read_text()
    assert study.with_tables(page, {**shown.tables, "source": study.source(one, results)}) == page
    for name in shown.figures:
        assert f"({one.name}-{name}.png)" in page and (study.RESULTS / f"{one.name}-{name}.png").exists()


@pytest.mark.slow
@pytest.mark.studies
def test_the_report_writes_pages_and_the_headline(tmp_path, monkeypatch):
    results = shutil.copytree(study.RESULTS, tmp_path / "results")
    (results / "gain_over_hatrpo.png").unlink()
    monkeypatch.setattr(report, "STUDIES", report.STUDIES[-1:])
    monkeypatch.setattr("sys.argv", ["report", "--results", str(results)])
    committed = (study.RESULTS.parent / "RESULTS.md").read_text()
    (tmp_path / "RESULTS.md").write_text(study.with_tables(committed, {"claims": "old"}))
    report.main()
    assert (results / "gain_over_hatrpo.png").exists()
    assert (tmp_path / "RESULTS.md").read_text() == committed, "its table is that of the raw results"


@pytest.mark.parametrize("hits, cases", [(0, 12), (12, 12), (3, 10)])
def test_intervals_of_shares_are_exact(hits, cases):
    """Clopper and Pearson's ends: at each, the observed count or a more extreme one has probability 2.5 %."""
    found = intervals.proportion(np.arange(cases) < hits)
    assert found.value == hits / cases
    if hits > 0:
        np.testing.assert_allclose(scipy.stats.binom.sf(hits - 1, cases, found.low), 0.025)
    if hits < cases:
        np.testing.assert_allclose(scipy.stats.binom.cdf(hits, cases, found.high), 0.025)


def test_intervals_of_two_samples_cover_the_truth():
    """95 % intervals of a ratio of means: of 200 samples most contain 2."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        above, below = rng.normal(2, 0.4, 30), rng.normal(1, 0.1, 40)
        found = intervals.ratio(above, below, np.mean)
        covered += found.low <= 2 <= found.high
    assert 180 <= covered <= 199
    np.testing.assert_allclose(found.value, above.mean() / below.mean())


def test_estimates_as_text():
    found = intervals.Estimate(0.1234, -0.00001, 0.5)
    assert found.text() == "0.12 [0.00, 0.50]" and found.text(1, sign="+") == "+0.1 [0.0, 0.5]"
    assert found.text(0, percent=True) == "12 % [0, 50]"


def test_durations():
    assert [study.duration(s) for s in (40, 180, 9000)] == ["40 s", "3 min", "2.5 h"]


# The exact parts


def test_expected_payoff_is_the_sum_over_joint_actions():
    rng = np.random.default_rng(0)
    payoff = rng.normal(size=(2, 3, 2, 3))
    probability = np.array([[0.3, 0.7, 0.0], [0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])
    summed = sum(
        probability[0, a] * probability[1, b] * probability[2, c] * payoff[a, b, c] for a, b, c in np.ndindex(2, 3, 2)
    )
    got = stage_games.expected_payoff(jnp.asarray(probability), jnp.asarray(payoff))
    np.testing.assert_allclose(got, summed, rtol=1e-5)
    small = payoff[:, :2, :, :3]
    even = np.full((3, 2), 0.5)
    regrets = [max(small[..., i].mean(tuple(j for j in range(3) if j != i))) - small[..., i].mean() for i in range(3)]
    got = mixed_motives.total_regret(jnp.asarray(even), jnp.asarray(small))
    np.testing.assert_allclose(got, sum(regrets), rtol=1e-5)


def test_payoff_of_the_sharing_game():
    probability = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.3, 0.7]])
    env = envs.make("parameter_sharing", num_agents=4)
    total = 0.0
    for action in np.ndindex(2, 2, 2, 2):
        reward = env.step(None, env.reset(None, ())[0], jnp.array(action), ())[1].reward[0]
        total += float(reward) * np.prod([probability[i, a] for i, a in enumerate(action)])
    np.testing.assert_allclose(parameter_sharing.expected(jnp.asarray(probability)), total, rtol=1e-6)


@pytest.mark.parametrize("method", TRUST_REGION)
def test_exact_gaussian_updates_keep_the_budget_and_never_lower_the_reward(method, float64):
    update = exact_gaussians.make_update(two_peaks_expectation, exact_gaussians.ALLOCATORS[method](), learn_std=True)
    key, budget = jax.random.key(0), 0.3
    teams, done = jax.jit(lambda team: exact_gaussians.follow(update, key, team, budget, 12))(
        Team(jnp.zeros(2), jnp.zeros(2))
    )
    values = jax.vmap(lambda t: two_peaks_expectation(t.mean, jnp.exp(t.log_std)))(teams)
    assert np.diff(values).min() >= 0 and values[-1] > values[0]
    assert np.asarray(done.kl).sum(-1).max() <= budget * (1 + 1e-6)
    np.testing.assert_array_equal(np.sort(done.position, axis=-1), np.tile([0, 1], (12, 1)))


def test_the_bilinear_game_by_hand(float64):
    """mu = (-1/4, 1/4), KL 1/2 each: both step by 1, E[r] = mu1 mu2 falls to -9/16 simultaneously and rises to
    15/16 sequentially."""
    for simultaneous, after in ((True, -9 / 16), (False, 15 / 16)):
        allocator = exact_gaussians.ALLOCATORS["hatrpo"]()
        update = exact_gaussians.make_update(lambda mean, std: jnp.prod(mean), allocator, False, simultaneous)
        team, _ = update(jax.random.key(0), Team(jnp.array([-0.25, 0.25]), jnp.zeros(2)), 1.0)
        np.testing.assert_allclose(jnp.prod(team.mean), after, rtol=1e-5)


def test_steps_at_the_same_time_by_hand():
    """Every mean moves by 1 towards the sign of the other one, wherever it starts; KL 1/2 each."""
    size = bilinear.Size((1.0,), 5, 1, ())
    found = bilinear.step_exactly(bilinear.SIMULTANEOUS, size)
    a, b = bilinear.starts(5).T
    by_hand = (a + np.sign(b)) * (b + np.sign(a)) - a * b
    np.testing.assert_allclose(found["change"][0], by_hand, atol=1e-5)
    np.testing.assert_allclose(found["worse"], [(by_hand < -1e-4).mean()])


def test_orders_differ_only_in_the_order():
    """Thresholds are those of the share function, the order is that of the utilities even where those are equal."""
    game, policies, _ = theory.random_start(1, 0.5)
    utility = jnp.array([0.2, 0.5, 0.1])
    for share in (allocators.natural, allocators.uniform):
        done = [
            tabular.budgeted_iteration(game, policies, tabular.planned_in(order, share), 0.1, jax.random.key(0))
            for order in theory.ORDERS
        ]
        for one in done[1:]:
            np.testing.assert_allclose(one.thresholds, done[0].thresholds)
        assert abs(done[0].thresholds.sum() - 0.1) < 1e-6
        for order, expected in (("largest", [1, 0, 2]), ("smallest", [2, 0, 1])):
            plan = tabular.planned_in(order, share).start(jax.random.key(0), utility, 0.1)
            np.testing.assert_array_equal(plan[0], expected)


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


# Allocation


def thresholds_of(allocator, utility, spent, budget=1.0):
    """[N] what an allocator gives agents that each spend the share `spent` of it; utilities are the scores too."""
    n = len(utility)
    plan = allocator.start(jax.random.key(3), jnp.asarray(utility), jnp.asarray(budget))
    given, waiting, remaining, unassigned = np.zeros(n), np.ones(n, bool), budget, budget
    for position in range(n):
        now = AllocationState(jnp.int32(position), jnp.asarray(utility), jnp.asarray(waiting), remaining, unassigned)
        agent, threshold = (part.item() for part in allocator.next(plan, now))
        assert waiting[agent]
        given[agent], waiting[agent] = threshold, False
        remaining, unassigned = remaining - spent * threshold, unassigned - threshold
    return given


@pytest.mark.parametrize("share", [allocators.uniform, allocators.water_filling, allocators.natural])
def test_budget_is_carried_over_only_where_some_is_left(share):
    utility = np.array([0.4, 0.1, 0.2, 0.3], np.float32)
    for in_random_order in (False, True):
        allocator = weighted_game.carrying_over(share, in_random_order)
        np.testing.assert_allclose(thresholds_of(allocator, utility, 1.0), share(utility, 1.0), rtol=1e-4)
        half = thresholds_of(allocator, utility, 0.5)
        assert 1 < half.sum() and 0.5 * half.sum() <= 1
    nothing_spent = thresholds_of(weighted_game.carrying_over(allocators.uniform), utility, 0.0)
    np.testing.assert_allclose(np.sort(nothing_spent), [1 / 4, 1 / 3, 1 / 2, 1], rtol=1e-5)


def test_greedy_without_refunds_allocates_the_budget_once():
    """Shares in the ratio of the scores, whatever is spent."""
    scores = np.array([1.0, 4.0, 2.0, 1.0], np.float32)
    allocator = weighted_game.losing(allocators.greedy("proportional"))
    for spent in (0.0, 0.6, 1.0):
        np.testing.assert_allclose(thresholds_of(allocator, scores, spent), scores / 8, rtol=1e-5)
    assert thresholds_of(allocators.greedy("proportional"), scores, 0.6).sum() > 1


def first_update(name, batch, budget=0.04, seeds=4):
    """What `weighted_game` records of one update of its game, leaves [seed, ...]."""
    variant = next(v for v in weighted_game.VARIANTS if v.name == name)
    entry = weighted_game.entry_of(variant)
    env = envs.make("matrix_game", payoff=weighted_game.weighted_payoff())
    config = stage_games.game_config(entry, batch)

    def record(policy, params, metrics):
        names = ("kl_threshold", "kl_total", "utility", "gain", "step_fraction")
        before, after = (weighted_game.right_of(p) for p in (metrics["policy_before"], policy))
        return {name: metrics[name] for name in names} | {"before": before, "after": after}

    runs = {"kl_budget": np.full(seeds, budget)}
    kept = stage_games.learn(env, entry, config, runs, np.arange(seeds), 1, record)
    return {name: values[:, 0] for name, values in kept.items()}, variant


@pytest.mark.rare
@pytest.mark.studies
def test_leftover_budget_in_the_trainer():
    """Carried over or lost, the joint budget is kept; lost, it is allocated once, and carried over, more of it is spent."""
    carried, lost, plain = (first_update(n, 64)[0] for n in ("hatrpo_w-carried", "hatrpo_g-lost", "hatrpo_w"))
    for one in (carried, lost, plain):
        assert (one["kl_total"] <= 0.04).all()
    np.testing.assert_allclose(lost["kl_threshold"].sum(-1), 0.04, rtol=1e-3)
    assert (carried["kl_threshold"].sum(-1) >= plain["kl_threshold"].sum(-1) * 0.999).all()
    assert carried["kl_total"].sum() > 1.1 * plain["kl_total"].sum()
    own = algorithms.get("hatrpo")
    assert algorithms.get(own) == own


@pytest.mark.slow
@pytest.mark.studies
def test_first_update_of_the_weighted_game_against_a_direct_computation():
    """With many samples: predicted gains are those of the KKT formulas, come true, and shares are the rule's own."""
    first, variant = first_update("hatrpo_n", 16384)
    found = weighted_game.gains(first, np.full(4, 0.04), np.zeros(4))
    sizes = weighted_game.WEIGHTS * np.sqrt(first["before"] * (1 - first["before"]))
    by_hand = (sizes * np.sqrt(2 * first["kl_threshold"])).sum(-1)
    np.testing.assert_allclose(found["predicted"], by_hand, rtol=0.05)
    np.testing.assert_allclose(found["real"], found["accepted"], rtol=0.1)
    np.testing.assert_allclose(found["surrogate"], found["real"], rtol=0.1)
    every = np.full(4, 0.04)
    wanted = weighted_game.own_shares(variant, first["before"], every, np.full(4, 1e-4))
    assert weighted_game.apart(first["kl_threshold"] / 0.04, wanted).max() < 0.03


def test_own_shares_by_hand():
    even, budget, epsilon = np.full((1, 4), 1 / 3), np.ones(1), np.full(1, 1e-9)
    ratios = {"hatrpo": [1, 1, 1, 1], "hatrpo_w": [8, 4, 2, 1], "hatrpo_g": [8, 4, 2, 1], "hatrpo_n": [64, 16, 4, 1],
              "hatrpo_g-all": [1, 0, 0, 0]}  # fmt: skip
    for variant in weighted_game.VARIANTS:
        if variant.name in ratios:
            shares = np.array(ratios[variant.name]) / sum(ratios[variant.name])
            got = weighted_game.own_shares(variant, even, budget, epsilon)
            np.testing.assert_allclose(got, shares[None], atol=1e-5)
