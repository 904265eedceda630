"""The script behind docs/scenarios.md."""

import json
from pathlib import Path

import pytest

from envs.bodies import scenarios
from experiments import scenario_table, study
from marl_kl.analysis.text_tables import markdown_row
from tests.support.grids import slow_unless

PAGE = Path(__file__).parents[2] / "docs" / "scenarios.md"


@pytest.mark.parametrize("body", slow_unless({"hopper"}, scenarios.BODIES))
def test_differences_are_those_of_the_models(body):
    """Contacts, friction and integrators as installed."""
    assert markdown_row(scenario_table.difference_row(body)) in PAGE.read_text()


@pytest.mark.slow
def test_the_page_has_the_markers_of_every_table():
    """The prose around them is written by hand."""
    measured = json.loads((PAGE.parents[1] / "benchmarks" / "results" / "bodies.json").read_text())
    names = ("scenarios", "differences", "checks", "machine", "speed")
    blanked = study.with_tables(PAGE.read_text(), dict.fromkeys(names, ""))
    assert "| body |" not in blanked
    rows = map(scenario_table.speed_row, measured["rows"])
    assert all(markdown_row(row) in PAGE.read_text() for row in rows)
