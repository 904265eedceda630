"""The runs on environments of other libraries: one case at a time, results of others kept, the table from the files."""

import pytest

import marl_kl
from experiments import ecosystem, study
from experiments.ecosystem import EVALUATIONS, SPREAD, TRAINING


def evaluation(key, seed, env_steps, value, won=""):
    return (*key, str(seed), str(env_steps), str(value), won)


def test_the_table_by_hand():
    key = (SPREAD, "ippo", "1003520")
    lines = [evaluation(key, seed, steps, seed + steps, "0.5") for seed in (0, 1) for steps in (0, 10, 20)]
    other = [evaluation((SPREAD, "mappo", "64"), 0, 0, 99)]
    table = ecosystem.table([*lines, *other], [(*key, "-23.4", "-24.4", "-22", "30301")])
    row = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert row[:3] == [SPREAD, "ippo", "1,003,520"] and row[5:] == ["-23.40 [-24.40, -22.00]", "30,301"]
    assert row[3] == "0.50 [0.00, 1.00] → 20.50 [20.00, 21.00]" and row[4] == "0.50 [0.50, 0.50] → 0.50 [0.50, 0.50]"


def test_the_committed_page_has_the_table_of_the_files():
    evaluations = ecosystem.read(study.RESULTS / "ecosystem.csv", EVALUATIONS)
    training = ecosystem.read(study.RESULTS / "ecosystem-training.csv", TRAINING)
    assert {line[:3] for line in evaluations} == {line[:3] for line in training}
    page = (study.RESULTS / "ecosystem.md").read_text()
    assert study.with_tables(page, {"returns": ecosystem.table(evaluations, training)}) == page


def test_files_of_another_form_are_an_error(tmp_path):
    path = tmp_path / "ecosystem.csv"
    assert ecosystem.read(path, EVALUATIONS) == []
    path.write_text("task,algorithm\n")
    with pytest.raises(ValueError, match="budget"):
        ecosystem.read(path, EVALUATIONS)


@pytest.mark.slow
@pytest.mark.studies
def test_one_case_at_a_time_keeps_the_others(tmp_path, monkeypatch):
    """Smoke: the case is run, its lines replace older ones, and stored cases are not run again."""
    monkeypatch.setattr(marl_kl, "use_all_cpu_cores", lambda: None)
    monkeypatch.setattr(ecosystem, "CASES", {f"{SPREAD}:ippo": 64, "matrix_game:hatrpo": 64})
    results = tmp_path / "results"
    results.mkdir()
    kept, replaced = (SPREAD, "ippo", "1003520"), ("matrix_game", "hatrpo", "64")
    ecosystem.write(results / "ecosystem.csv", EVALUATIONS, [evaluation(k, 9, 0, 7) for k in (kept, replaced)])
    ecosystem.write(results / "ecosystem-training.csv", TRAINING, [(*k, "1", "1", "1", "1") for k in (kept, replaced)])
    call = ["--out", str(tmp_path / "runs"), "--results", str(results), "--smoke", "--seeds", "2"]
    ecosystem.main([*call, "--only", "matrix_game:hatrpo"])
    lines = ecosystem.read(results / "ecosystem.csv", EVALUATIONS)
    training = ecosystem.read(results / "ecosystem-training.csv", TRAINING)
    assert evaluation(kept, 9, 0, 7) in lines and evaluation(replaced, 9, 0, 7) not in lines
    assert {line[3] for line in lines if line[:3] == replaced} == {"0", "1"}
    assert [line[:3] for line in training] == [kept, replaced] and training[0][3:] == ("1", "1", "1", "1")
    assert "matrix_game" in (results / "ecosystem.md").read_text()
    monkeypatch.setattr(marl_kl, "train", None)
    monkeypatch.setattr(ecosystem, "CASES", {"matrix_game:hatrpo": 64})
    ecosystem.main(call)
