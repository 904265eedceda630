"""What a stored run costs beside its programs is measured within the loop."""

import json

import pytest

import marl_kl
from benchmarks import host_overhead


@pytest.mark.slow
def test_the_time_outside_the_programs_is_a_share_of_that_within(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(marl_kl, "use_all_cpu_cores", lambda: None)
    sizes = ["--seeds", "2", "--num-envs", "2", "--rollout-length", "4", "--updates", "3", "--repeats", "1"]
    host_overhead.main(["--env", "matrix_game", *sizes, "--json", str(tmp_path / "figures.json")])
    found = json.loads((tmp_path / "figures.json").read_text())
    training, host = found["training_ms_per_update"], found["host_ms_per_update"]
    assert training > 0 and host > 0 and found["share"] == pytest.approx(host / training)
    assert "matrix_game, 2 seeds" in capsys.readouterr().out
