"""The script behind docs/scenarios.md."""

from pathlib import Path

import pytest

from envs.bodies import scenarios
from experiments import scenario_table

PAGE = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text()


@pytest.mark.parametrize("body", scenarios.BODIES)
def test_differences_are_those_of_the_models(body):
    """Contacts, friction and integrators as installed."""
    assert scenario_table.difference_row(body) in PAGE


def test_every_section_is_as_the_script_writes_it():
    sections = ("_INTRODUCTION", "_MODEL_FILES", "_SLIPS", "_SEEN", "_CHECK", "_SLOWEST")
    assert all(getattr(scenario_table, section) in PAGE for section in sections)
