"""The accelerator's benchmark, at sizes for a CPU: rows are written one by one, and the time is kept."""

import json

import pytest

import marl_kl
from benchmarks import accelerator


@pytest.fixture(autouse=True)
def _devices_are_there_already(monkeypatch):
    monkeypatch.setattr(marl_kl, "use_all_cpu_cores", lambda: None)


def test_when_the_time_is_over_no_row_is_begun(capsys):
    accelerator.main(["--minutes", "0"])
    assert "the time is over" in capsys.readouterr().out


def test_what_does_not_fit_is_a_row(monkeypatch, tmp_path):
    def too_large():
        raise MemoryError("it needs more")

    monkeypatch.setattr(accelerator, "cases", lambda small: [("training", too_large), ("repeat", lambda: [{"ok": 1}])])
    accelerator.main(["--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row.get("error") for row in rows] == ["it needs more", None] and rows[1]["ok"] == 1


@pytest.mark.rare
def test_every_case_at_its_smallest(tmp_path):
    accelerator.main(["--small", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {"repeat", "precision", "update", "training"}
    assert rows[0]["same_bits"]
    assert all(row["error"] < 1e-2 for row in rows if row["case"] == "precision")
