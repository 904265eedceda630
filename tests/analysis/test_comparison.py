"""Comparisons: pooling of seeds, small cases worked by hand, and warnings of unfair comparisons."""

import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import marl_kl
from marl_kl.analysis import statistics
from marl_kl.analysis.comparison import comparison_figures, comparison_tables, marl_eval
from marl_kl.analysis.figure_style import ALGORITHM_STYLES
from marl_kl.cli import main
from marl_kl.config import FirstOrderConfig, TrustRegionConfig
from marl_kl.results import EpisodeStatistics, Failure
from marl_kl.storage import run_tables
from marl_kl.storage.files import RunFolderError
from tests.support.grids import slow_unless
from tests.support.stored_runs import spec, store

RISING = np.array([[0.0, 10.0, 20.0, 40.0], [0.0, 10.0, 30.0, 60.0], [0.0, 20.0, 40.0, 50.0], [0.0, 0.0, 10.0, 30.0]])


@pytest.fixture
def two(tmp_path):
    """hatrpo and hatrpo_w, four seeds each, on one task."""
    return store(tmp_path / "h", RISING), store(tmp_path / "w", RISING + [0, 5, 10, 15], algorithm="hatrpo_w")


def test_numbers_of_one_task(two):
    comparison = marl_kl.compare(two, threshold=25, bootstrap=200)
    assert comparison.methods == ("hatrpo", "hatrpo_w") and [scale.name for scale in comparison.tasks] == ["legs"]
    (scale,) = comparison.tasks
    np.testing.assert_array_equal(scale.env_steps, [0, 1000, 2000, 3000])
    entry = comparison.entry("legs", "hatrpo")
    np.testing.assert_array_equal(entry.returns, RISING)
    np.testing.assert_array_equal(entry.final, [40, 60, 50, 30])
    np.testing.assert_allclose(entry.area, [(5 + 15 + 30) / 3, (5 + 20 + 45) / 3, (10 + 30 + 45) / 3, (0 + 5 + 20) / 3])
    np.testing.assert_array_equal(entry.steps_to_threshold, [3000, 2000, 2000, 3000])
    assert (scale.low, scale.high) == (0, 75), "where the runs begin, and the best end"
    np.testing.assert_allclose(entry.normalized, entry.final / 75)
    np.testing.assert_allclose(entry.curve.value, stats.trim_mean(RISING, 0.25, axis=0))
    assert entry.final_iqm.value == stats.trim_mean(entry.final, 0.25)
    interval = statistics.bootstrap_interval(entry.final, num_resamples=200)
    assert (entry.final_iqm.lower, entry.final_iqm.upper) == tuple(interval)
    chance = stats.mannwhitneyu([55, 75, 65, 45], entry.final).statistic / 16
    overall = comparison.overall.improvement
    assert overall.value[1, 0] == chance == 1 - overall.value[0, 1] and overall.lower[1, 0] == 1 - overall.upper[0, 1]
    assert comparison.entry("legs", "happo") is None


def test_the_interquartile_mean_is_rliables(tmp_path):
    """Of six runs the best and the worst are cut, whole; over two tasks three of twelve at each end."""
    returns = np.array([[0.0, x] for x in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)])
    runs = [store(tmp_path / f"{a}{s}", returns + i, spec=spec(s), algorithm=a)
            for i, a in enumerate(("hatrpo", "happo")) for s in ("legs", "arms")]  # fmt: skip
    comparison = marl_kl.compare(runs, bootstrap=50, references={"legs": (0, 1), "arms": (0, 1)})
    entry = comparison.entry("legs", "hatrpo")
    assert entry.final_iqm.value == 7.5 == stats.trim_mean(entry.final, 0.25)
    interval = statistics.bootstrap_interval(entry.final, num_resamples=50, statistic=statistics.interquartile_mean)
    assert (entry.final_iqm.lower, entry.final_iqm.upper) == tuple(interval)
    assert comparison.overall.iqm.value[0] == stats.trim_mean(np.repeat(entry.final, 2), 0.25)


def test_training_returns_are_averaged_over_the_last_tenth(tmp_path):
    steps = np.arange(42) * 100
    returns = np.random.default_rng(0).normal(size=(3, 42))
    comparison = marl_kl.compare([store(tmp_path / "h", returns, steps=steps)], metric="training", bootstrap=10)
    (entry,) = comparison.entries
    np.testing.assert_allclose(comparison.tasks[0].env_steps, steps[1:])
    np.testing.assert_allclose(entry.final, returns[:, -5:].mean(axis=1), err_msg="3700 to 4100: the last 400 of 4000")
    assert comparison.overall is None, "there is only one method"


def test_long_curves_are_laid_on_a_hundred_steps(tmp_path):
    steps = np.arange(400)
    comparison = marl_kl.compare([store(tmp_path / "h", np.tile(3.0 * steps, (3, 1)), steps=steps)], bootstrap=10)
    np.testing.assert_allclose(comparison.tasks[0].env_steps, np.linspace(0, 399, 100))
    np.testing.assert_allclose(comparison.entries[0].returns[0], 3 * np.linspace(0, 399, 100))


# Who is who


def test_runs_of_one_setting_are_pooled_and_other_settings_told_apart(tmp_path):
    runs = [
        store(tmp_path / "0", RISING[:2], config=TrustRegionConfig(gamma=0.9), seeds=(0, 1)),
        store(tmp_path / "1", RISING[2:], config=TrustRegionConfig(gamma=0.9, eval_interval=7), seeds=(2, 3)),
        store(tmp_path / "2", RISING, config=TrustRegionConfig(gamma=0.97)),
        store(tmp_path / "3", RISING, algorithm="happo", config=FirstOrderConfig(gamma=0.97, clip_eps=0.1)),
    ]
    comparison = marl_kl.compare(runs, bootstrap=10)
    assert comparison.methods == ("hatrpo, gamma=0.9", "hatrpo, gamma=0.97", "happo, gamma=0.97")
    assert comparison.entry("legs", "hatrpo, gamma=0.9").seeds == (0, 1, 2, 3)
    np.testing.assert_array_equal(comparison.entry("legs", "hatrpo, gamma=0.9").returns, RISING)
    assert comparison.warnings == (), "budgets are equal"


def test_a_seed_counts_once(tmp_path):
    runs = [store(tmp_path / "0", RISING, seeds=(0, 1, 2, 3)), store(tmp_path / "1", RISING[:2], seeds=(3, 4))]
    with pytest.raises(ValueError, match="seed 3 of hatrpo on legs is both in .*0 and in .*1; the seeds of"):
        marl_kl.compare(runs)
    with pytest.raises(ValueError, match="seed 0 of hatrpo on legs is twice: "):
        marl_kl.compare([runs[0], runs[0]])


def test_tasks_of_one_name_are_told_apart_by_what_differs(tmp_path):
    runs = [
        store(tmp_path / "0", RISING, spec=spec(backend="mjx", obs="full")),
        store(tmp_path / "1", RISING, spec=spec(backend="spring", obs="full")),
        store(tmp_path / "2", RISING, spec=spec("other")),
        store(tmp_path / "3", RISING, spec=spec("other"), params="f"),
    ]
    names = [scale.name for scale in marl_kl.compare(runs, bootstrap=10).tasks]
    assert names == ["legs (backend=mjx)", "legs (backend=spring)", "other #1", "other #2"]


def test_a_method_may_have_another_budget_on_another_task(tmp_path):
    """n agents have n times the budget of one: the label is the same, and a note names the budgets."""
    runs = [
        store(tmp_path / f"{name}-{algorithm}", RISING + 5 * (algorithm == "hatrpo_g"), spec=spec(name),
              algorithm=algorithm, config=TrustRegionConfig(kl_budget=budget))
        for name, budget in (("ant", 0.04), ("humanoid", 0.17)) for algorithm in ("hatrpo", "hatrpo_g")
    ]  # fmt: skip
    comparison = marl_kl.compare(runs, bootstrap=100)
    assert comparison.methods == ("hatrpo", "hatrpo_g") and comparison.overall.tasks == ("ant", "humanoid")
    assert comparison.warnings == () and comparison.kl_budgets["hatrpo"] == (0.04, 0.17)
    assert "hatrpo: kl_budget differs between tasks (0.04, 0.17)" in comparison.notes
    # 8 runs of each, the same 4 numbers on both tasks
    assert comparison.overall.iqm.value[0] == pytest.approx(
        stats.trim_mean(np.tile([40, 60, 50, 30], 2) - 2.5, 0.25) / 62.5
    )
    np.testing.assert_allclose(comparison.overall.profile.value[0][[0, -1]], [1, 0])


def test_tasks_that_not_all_methods_were_run_on_are_left_out_of_the_figures_over_tasks(tmp_path):
    runs = [
        store(tmp_path / "0", RISING, spec=spec("ant")),
        store(tmp_path / "1", RISING, spec=spec("ant"), algorithm="hatrpo_n"),
        store(tmp_path / "2", RISING, spec=spec("hopper")),
    ]
    comparison = marl_kl.compare(runs, bootstrap=10)
    assert comparison.overall.tasks == ("ant",) and "estimates over tasks leave out hopper" in "; ".join(
        comparison.notes
    )
    comparison = marl_kl.compare(runs[1:], bootstrap=10)
    assert comparison.overall is None and "no task was run with all methods" in "; ".join(comparison.notes)


# Warnings


def test_unequal_budgets_are_a_row_of_the_table(tmp_path, capsys):
    runs = [
        store(tmp_path / "0", RISING, config=TrustRegionConfig(kl_budget=0.08)),
        store(tmp_path / "1", RISING, config=TrustRegionConfig(kl_budget=0.16), algorithm="hatrpo_w"),
        store(tmp_path / "2", RISING, config=FirstOrderConfig(), algorithm="happo"),
    ]
    comparison = marl_kl.compare(runs, bootstrap=10)
    (warning,) = comparison.warnings
    assert warning.startswith("the joint KL budgets on legs differ (0.08, 0.16)")
    assert [cells.split(" | ")[1] for cells in comparison_tables.markdown(comparison).splitlines()[6:9]] == [
        "0.08",
        "0.16",
        "-",
    ]
    lines = comparison_tables.markdown(comparison).splitlines()
    (row,) = [line for line in lines if line.startswith(f"| **Warning: {warning}")]
    assert row.count("|") == lines[4].count("|"), "the row is one of the table"
    assert main.main(["compare", *map(str, runs), "--bootstrap", "10"]) == 0
    assert warning in " ".join(capsys.readouterr().out.split())


def test_runs_of_different_lengths_are_compared_on_their_common_part(tmp_path):
    longer = store(tmp_path / "0", RISING)
    shorter = store(
        tmp_path / "1", RISING[:, :3] + 1, steps=[0, 1000, 2000], algorithm="hatrpo_w", status="interrupted"
    )
    comparison = marl_kl.compare([longer, shorter], bootstrap=10)
    assert comparison.tasks[0].env_steps[-1] == 2000
    np.testing.assert_array_equal(comparison.entry("legs", "hatrpo").final, RISING[:, 2])
    assert f"compared up to 2,000 env steps, the end of {shorter}; the longest run has 3,000" in comparison.warnings[0]
    assert f"{shorter} is interrupted, not finished: it is compared up to its last save" in comparison.notes


def test_a_final_return_without_an_evaluation_gives_a_warning(tmp_path):
    runs = [
        store(tmp_path / "0", RISING[:, [0, 3]], steps=[0, 10_000]),
        store(tmp_path / "1", RISING[:, [0, 3]], steps=[0, 5_000], algorithm="hatrpo_w"),
    ]
    comparison = marl_kl.compare(runs, bootstrap=10)
    np.testing.assert_allclose(comparison.entry("legs", "hatrpo").final, RISING[:, 3] / 2)
    assert f"the final return of {runs[0]} is interpolated between 0 and 10,000 env steps" in comparison.warnings[1]


def test_failed_seeds_are_left_out_and_named(tmp_path):
    run = store(tmp_path / "0", RISING, failures=[Failure(1, 4, "critic")])
    comparison = marl_kl.compare([run], bootstrap=10)
    assert comparison.entries[0].seeds == (0, 2, 3)
    assert f"seed 1 of {run} failed (critic was not finite in update 5) and is left out" in comparison.warnings[0]


def test_intervals_need_three_seeds_on_every_task(tmp_path):
    runs = [store(tmp_path / "0", RISING), store(tmp_path / "1", RISING[:2], algorithm="hatrpo_w")]
    comparison = marl_kl.compare(runs, bootstrap=10)
    assert np.isfinite(comparison.entry("legs", "hatrpo").final_iqm.lower)
    assert np.isnan(comparison.entry("legs", "hatrpo_w").final_iqm.lower)
    assert np.isnan(comparison.overall.improvement.lower[0, 1]) and comparison.overall.improvement.value[0, 1] == 3 / 8
    assert "fewer than 3 seeds" in "; ".join(comparison.notes) and "nan" not in comparison_tables.markdown(comparison)


def test_a_task_without_learning_still_has_a_scale(tmp_path):
    comparison = marl_kl.compare([store(tmp_path / "0", np.array([[5.0, 1.0], [5.0, 2.0]]))], bootstrap=10)
    assert (comparison.tasks[0].low, comparison.tasks[0].high) == (1, 2) and "above the mean initial one" in "; ".join(
        comparison.notes
    )
    comparison = marl_kl.compare([store(tmp_path / "1", np.ones((2, 2)))], bootstrap=10)
    np.testing.assert_array_equal(comparison.entries[0].normalized, 0)


def test_references_are_the_reader_s_own(two):
    comparison = marl_kl.compare(two, references={"legs": (-100, 100)}, bootstrap=10)
    np.testing.assert_allclose(comparison.entry("legs", "hatrpo").normalized, [0.7, 0.8, 0.75, 0.65])


def test_versions_that_differ_are_a_note(two):
    path = two[1] / "run.json"
    path.write_text(path.read_text().replace('"python": "', '"python": "9.'))
    assert "the runs were made with different versions: python" in "; ".join(marl_kl.compare(two, bootstrap=10).notes)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runs": []}, r"runs=\[\]; at least one folder is needed"),
        ({"metric": "loss"}, "metric='loss'; it must be one of evaluation, training"),
        ({"bootstrap": 0}, "bootstrap=0; it must be an integer >= 1"),
        ({"seed": -1}, "seed=-1; it must be an integer >= 0"),
        ({"threshold": {"arms": 3}}, "threshold: there are no runs on 'arms'; tasks: legs"),
        ({"threshold": float("nan")}, "threshold=nan for all tasks; it must be a finite number"),
        ({"references": {"arms": (0, 1)}}, "references: there are no runs on 'arms'"),
        ({"references": {"legs": (1, 0)}}, r"references: legs=\(1, 0\); it must be two finite numbers, low < high"),
    ],
)
def test_bad_input_gives_a_one_line_error(two, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        marl_kl.compare(**{"runs": two, **options})
    assert "\n" not in str(caught.value)


def test_unreadable_runs_are_named(tmp_path, two):
    with pytest.raises(RunFolderError, match="there is no run folder"):
        marl_kl.compare([*two, tmp_path / "none"])
    (two[0] / "evaluation.csv").unlink()
    with pytest.raises(RunFolderError, match="holds a run of which nothing was saved yet"):
        marl_kl.compare(two)


def test_curves_without_a_common_env_step_are_refused(tmp_path):
    runs = [
        store(tmp_path / "0", RISING[:, :2], steps=[0, 100]),
        store(tmp_path / "1", RISING, steps=[0, 500, 600, 700], algorithm="hatrpo_w"),
    ]
    with pytest.raises(ValueError, match="no env step in common: .*0 ends at 100, .*1 begins at 500"):
        marl_kl.compare(runs, metric="training")


def test_every_option_is_in_the_documentation(capsys):
    with pytest.raises(SystemExit):
        main.main(["compare", "--help"])
    documented = (Path(__file__).parents[2] / "docs" / "comparisons.md").read_text()
    options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
    assert len(options) == 6 and all(option in documented for option in options)


# What is written


def _texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("num_methods, num_tasks", slow_unless({(1, 1)}, [(1, 1), (8, 2)]))
def test_figures_name_every_method_and_axis_and_explain_their_intervals(tmp_path, num_methods, num_tasks):
    runs = [
        store(tmp_path / f"{k}-{t}", RISING + k, spec=spec(f"task_{t}"), config=TrustRegionConfig(gamma=0.9 + k / 100))
        for k in range(num_methods) for t in range(num_tasks)
    ]  # fmt: skip
    comparison = marl_kl.compare(runs, bootstrap=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = comparison_figures.figures(comparison)
        for figure in drawn.values():
            figure.savefig(io.BytesIO(), format="png", dpi=50)
    assert len(drawn) == (1 if num_methods == 1 else 4)
    for name, figure in drawn.items():
        text = _texts(figure).replace("\n", " ")
        assert all(method.replace("hatrpo", "HATRPO", 1) in text for method in comparison.methods), name
        assert "95 %" in text and "bootstrap intervals" in text
    styles = {(line.get_color(), str(line._dash_pattern)) for line in drawn["learning_curves"].axes[0].get_lines()}
    assert len(styles) == num_methods, "no two curves look alike"
    text = _texts(drawn["learning_curves"])
    assert "env steps per seed" in text and "evaluation return" in text


def test_the_folder_and_the_layout_of_marl_eval(two, tmp_path, capsys):
    out = tmp_path / "made" / "here"
    words = ["compare", *map(str, two), "--out", str(out), "--threshold", "25", "--reference", "legs=0,100"]
    assert main.main([*words, "--bootstrap", "20", "--seed", "3"]) == 0
    assert "hatrpo_w" in capsys.readouterr().out
    figures = ("learning_curves", "final_returns", "performance_profiles", "probability_of_improvement")
    pictures = {f"{name}.{kind}" for name in figures for kind in ("png", "pdf")}
    assert {path.name for path in out.iterdir()} == {"comparison.md", "marl_eval.json", *pictures}
    for name in pictures:
        assert (out / name).read_bytes().startswith(b"\x89PNG" if name.endswith("png") else b"%PDF")
    table = (out / "comparison.md").read_text()
    assert "| hatrpo | 0.08 | 4 | 45 ± 12.9 |" in table and "| 3,000 (4 of 4) |" in table
    document = json.loads((out / "marl_eval.json").read_text())
    run = document["marl_kl"]["legs"]["hatrpo_w"]["seed_2"]
    assert list(run) == ["step_1", "step_2", "step_3", "step_4", "absolute_metrics"]
    assert run["step_2"] == {"step_count": 1000, "return": [24.0, 26.0]}
    assert run["absolute_metrics"] == {"return": [64.0, 66.0]}


def test_the_absolute_metric_is_exported_where_it_was_measured(two):
    best = EpisodeStatistics(np.arange(12.0).reshape(4, 3), np.ones((4, 3)))
    run_tables.write_absolute(two[1], range(4), [3, 2, 3, 1], 1000, best)
    document = json.loads(marl_eval.as_json(marl_kl.compare(two, bootstrap=10)))["marl_kl"]["legs"]
    assert document["hatrpo_w"]["seed_2"]["absolute_metrics"] == {"return": [6.0, 7.0, 8.0]}
    assert document["hatrpo"]["seed_2"]["absolute_metrics"] == {"return": [49.0, 51.0]}
    trained = json.loads(marl_eval.as_json(marl_kl.compare(two, metric="training", bootstrap=10)))["marl_kl"]["legs"]
    assert trained["hatrpo_w"]["seed_2"]["absolute_metrics"] == {"return": [65.0]}
    (two[1] / run_tables.ABSOLUTE).write_text("seed\n1\n")
    with pytest.raises(RunFolderError, match="absolute.csv is damaged: it lacks"):
        marl_kl.compare(two, bootstrap=10)


def test_marl_eval_is_given_no_commas_in_names(tmp_path):
    configs = [TrustRegionConfig(gamma=0.9, hidden_sizes=(8, 8)), TrustRegionConfig(gamma=0.8)]
    comparison = marl_kl.compare(
        [store(tmp_path / str(k), RISING, config=c) for k, c in enumerate(configs)], bootstrap=10
    )
    document = json.loads(marl_eval.as_json(comparison))
    assert list(document["marl_kl"]["legs"]) == [
        "hatrpo gamma=0.9 hidden_sizes=8x8",
        "hatrpo gamma=0.8 hidden_sizes=64x64",
    ]


@pytest.mark.parametrize(
    "words, message",
    [
        ("--threshold x", "threshold='x'; it must be a number"),
        ("--threshold 1 --threshold 2", "'1' has no task; write TASK=1"),
        ("--reference legs=1", "references: legs=(1.0,); it must be two finite numbers"),
        ("--bootstrap many", "bootstrap='many'; it must be an integer"),
    ],
)
def test_bad_options_give_a_one_line_error(two, words, message, capsys):
    assert main.main(["compare", *map(str, two), *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_each_algorithm_has_its_own_colour_in_every_comparison(tmp_path):
    runs = [store(tmp_path / name, RISING, algorithm=name) for name in ("hatrpo_g", "hatrpo", "hatrpo_w")]
    for chosen in (runs, runs[::-1], runs[:2]):
        comparison = marl_kl.compare(chosen, bootstrap=10)
        lines = comparison_figures.learning_curves(comparison).axes[0].get_lines()
        assert [line.get_color() for line in lines] == [ALGORITHM_STYLES[m].colour for m in comparison.methods]
