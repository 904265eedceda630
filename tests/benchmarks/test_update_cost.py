"""The benchmark of one update: it runs from anywhere, and its counts of work are those of the networks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import update_cost

ROOT = Path(__file__).parents[2]


def test_flops_of_a_network_of_one_layer():
    """Weights W = 30 * 2, all in the first layer: forward W, gradient W, each product 2 W, each evaluation W."""
    products = 1 + 1 + 10 * 2 + 3
    assert update_cost.flops(4, (), 10, 3.0) == 2 * update_cost.BATCH * 4 * 60 * products


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_script_starts(script):
    """As the docs call it, without anything imported before it."""
    if "def main(" not in (ROOT / "benchmarks" / f"{script}.py").read_text():
        pytest.skip("a module of the scripts")
    command = [sys.executable, "-m", f"benchmarks.{script}", "--help"]
    assert "usage" in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(update_cost, "BATCH", 64)
    update_cost.main(["--agents", "2", "--hidden", "8", "--repeats", "1", "--json", str(tmp_path / "rows.json")])
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["agents"] == 2 and all(row[f"{name}_s"] > 0 for name in ("ours", "default", "plain", "floor"))
