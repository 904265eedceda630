"""The benchmark of growth: exponents of known laws, and a row of every axis."""

import json

import pytest

import marl_kl
from benchmarks import growth


def test_exponents_of_known_laws():
    rows = [{"value": v, "linear": 3 * v, "flat": 7, "bent": max(v, 4)} for v in (1, 2, 4, 8)]
    assert growth.exponents(rows, "linear") == pytest.approx((1, 1))
    assert growth.exponents(rows, "flat") == pytest.approx((0, 0))
    whole, last = growth.exponents(rows, "bent")
    assert whole < last == pytest.approx(1)


@pytest.mark.rare
def test_every_axis(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(marl_kl, "use_all_cpu_cores", lambda: None)  # the devices are there already
    monkeypatch.setattr(growth, "BASE", growth.Point(num_envs=2, hidden=4))
    small = {"seeds": (1, 2), "num_envs": (2, 4), "agents": (2, 4), "hidden": (2, 4), "env_steps": (4096, 8192)}
    monkeypatch.setattr(growth, "GROWING", small)
    growth.main(["--repeats", "1", "--json", str(tmp_path / "figures.json")])
    found = json.loads((tmp_path / "figures.json").read_text())["axes"]
    assert {axis["axis"]: tuple(row["value"] for row in axis["rows"]) for axis in found} == small
    for axis in found:
        assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in axis["rows"])
        assert ("disk" in axis["exponents"]) == (axis["axis"] == "env_steps")
