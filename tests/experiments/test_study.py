"""How studies are run, stored and reported: every script's smallest size runs, pages hold the tables of the raw results."""

import json
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import allocator_cost, off_policy, report, study
from experiments.study import Piece, Report, Study
from marl_kl.core import algorithms


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


def test_durations():
    assert [study.duration(s) for s in (40, 180, 9000)] == ["40 s", "3 min", "2.5 h"]


def test_timed_programs_are_interleaved():
    log = []
    programs = [lambda name=name: log.append(name) for name in "ab"]
    assert allocator_cost.interleaved(programs, 3).shape == (2, 3)
    assert "".join(log) == "ab" * 4
