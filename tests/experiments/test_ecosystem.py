"""The runs on environments of others: one case at a time, rows of others kept, verdicts from the numbers."""

import csv

import pytest

import marl_kl
from experiments import ecosystem
from experiments.ecosystem import REFERENCES, SMAX, SPREAD, Row

ROW = Row(
    SPREAD, "ippo", "1,003,520", "-41.4 [-44.5, -38.2] → -22.8 [-24.2, -20.8]", "", "-23.4 [-24.4, -22.0]", "30,301"
)  # fmt: skip
SPREAD_REFERENCE, SMAX_REFERENCE = REFERENCES


@pytest.mark.parametrize(
    "sampling, verdict",
    [
        ("-23.4 [-24.4, -22.0]", "**not worse** (-23.4 [-24.4, -22.0] against -24.23 [-25.23, -22.72]) .* overlap"),
        ("-21.0 [-22.0, -20.0]", "**better**"),
        ("-27.0 [-28.0, -26.0]", "**worse**"),
        ("-25.5 [-26.0, -25.23]", "**not worse** .* only touch"),
    ],
)
def test_the_verdict_beside_jaxmarl_is_that_of_the_intervals(sampling, verdict):
    sentence = ecosystem.against(SPREAD_REFERENCE, [ROW._replace(sampling=sampling)])
    start, *rest = verdict.split(" .* ")
    assert start in sentence and all(part in sentence for part in rest)


def test_only_runs_of_as_many_env_steps_are_compared():
    assert "not run for 1,000,000 env steps" in ecosystem.against(SPREAD_REFERENCE, [ROW._replace(env_steps="503,808")])
    longer = Row(SMAX, "mappo", "2,002,944", "", "", "1.9 [1.8, 2.0]", "")
    assert "not run" in ecosystem.against(SMAX_REFERENCE, [longer])


@pytest.mark.parametrize(
    "trained, won, words",
    [
        ("-22.8 [-24.2, -20.8]", "", ["**learns**"]),
        ("-39.0 [-42.0, -37.0]", "", ["**not shown to learn**"]),
        ("1.8 [1.7, 1.9]", "0.0 [0.0, 0.0] → 0.85 [0.81, 0.9]", ["**learns**", "at least 0.8 of the episodes are won"]),
        ("1.8 [1.7, 1.9]", "0.0 [0.0, 0.0] → 0.81 [0.78, 0.9]", ["its interval begins below (0.81 from 0.78 on)"]),
        ("1.8 [1.7, 1.9]", "0.0 [0.0, 0.0] → 0.7 [0.6, 0.8]", ["it is below"]),
    ],
)
def test_what_a_row_shows(trained, won, words):
    sentence = ecosystem.learned(ROW._replace(returns=f"-41.4 [-44.5, -38.2] → {trained}", won=won))
    assert all(word in sentence for word in words)


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    rows = [ROW._replace(task=SMAX, algorithm="hatrpo", won="0.0 [0.0, 0.0] → 0.8 [0.7, 0.9]"), ROW]
    (tmp_path / "ecosystem.md").write_text(ecosystem.document(rows))
    assert ecosystem.read_rows(tmp_path / "ecosystem.md") == rows
    assert ecosystem.read_rows(tmp_path / "absent.md") == []


def test_the_stored_results_are_of_this_form():
    folder = ecosystem.Path(ecosystem.__file__).parent / "results"
    rows, lines = ecosystem.read_rows(folder / "ecosystem.md"), ecosystem.read_evaluations(folder / "ecosystem.csv")
    assert {one.key for one in rows} == {(task, name, f"{int(steps):,}") for task, name, steps, *_ in lines}
    assert (folder / "ecosystem.md").read_text() == ecosystem.document(rows)


@pytest.mark.slow
def test_one_case_at_a_time_keeps_the_others(tmp_path, monkeypatch):
    """Smoke: the case is run, its row and lines take the place of older ones, and what is there is not run again."""
    monkeypatch.setattr(marl_kl, "use_all_cpu_cores", lambda: None)
    monkeypatch.setattr(ecosystem, "CASES", {f"{SPREAD}:ippo": 64, "matrix_game:hatrpo": 64})
    results = tmp_path / "results"
    results.mkdir()
    old = ROW._replace(task="matrix_game", algorithm="hatrpo", env_steps="64")
    (results / "ecosystem.md").write_text(ecosystem.document([ROW, old]))
    kept = (SPREAD, "ippo", "1003520", "0", "0", "-41", "")
    replaced = ("matrix_game", "hatrpo", "64", "9", "0", "7", "")
    with open(results / "ecosystem.csv", "w") as file:
        csv.writer(file).writerows([ecosystem.CSV_HEADER, kept, replaced])
    call = ["--out", str(tmp_path / "runs"), "--results", str(results), "--smoke", "--seeds", "2"]
    ecosystem.main([*call, "--only", "matrix_game:hatrpo"])
    rows, lines = (
        ecosystem.read_rows(results / "ecosystem.md"), ecosystem.read_evaluations(results / "ecosystem.csv")
    )  # fmt: skip
    assert rows[0] == ROW and rows[1].key == old.key and rows[1] != old
    assert kept in lines and replaced not in lines and {line[3] for line in lines[1:]} == {"0", "1"}
    monkeypatch.setattr(marl_kl, "train", None)
    monkeypatch.setattr(ecosystem, "CASES", {"matrix_game:hatrpo": 64})
    ecosystem.main(call)
