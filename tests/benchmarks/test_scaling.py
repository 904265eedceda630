"""The benchmark of scaling: what it counts, and a row of every case."""

import json

import pytest

from benchmarks import scaling


def test_the_bytes_of_sums_are_those_of_their_arrays():
    hlo = """
  %a = f32[2,3]{1,0} all-reduce(%x), channel_id=1
  %b = (f64[4]{0}, pred[]) all-reduce-start(%x, %y), channel_id=2
  %c = f32[100]{0} add(%x, %all-reduce)
"""
    assert scaling.all_reduces(hlo) == [24, 33]


@pytest.mark.slow
def test_a_run_is_measured_on_each_number_of_devices_and_in_several_processes(tmp_path):
    from tests.support import topology

    out = tmp_path / "scaling.json"
    lines = """
from benchmarks import scaling
scaling.marl_kl.use_all_cpu_cores = lambda: None
arguments = "--env matrix_game --num-envs 8 --samples 64 --repeats 1 --processes 2 --json".split()
scaling.main([*arguments, sys.argv[1]])"""
    topology.run(lines, out, devices=2)
    found = json.loads(out.read_text())
    rows = found["rows"]
    assert [(row["kind"], row["processes"], row["devices"], row["num_envs"]) for row in rows] == [
        ("one", 1, 1, 8), ("strong", 1, 2, 8), ("weak", 1, 2, 16), ("seeds", 1, 2, 8),
        ("strong", 2, 2, 8), ("weak", 2, 2, 16), ("seeds", 2, 2, 8),
    ]  # fmt: skip
    sums = {(row["kind"], row["processes"]): row["sums"] for row in rows}
    assert sums["one", 1] == sums["seeds", 1] == sums["seeds", 2] == 0 < sums["strong", 1] == sums["strong", 2]
    assert all(row["seconds"] > 0 < row["efficiency"] for row in rows)
    assert all(found["seconds_of_sum"][between] > 0 for between in ("devices", "processes"))
