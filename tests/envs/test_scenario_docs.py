"""The scripts behind docs/scenarios.md and the table of the twelve scenarios."""

from pathlib import Path

import numpy as np
import pytest

from envs.bodies import scenarios
from experiments import scenario_table, twelve_scenarios
from tests.support.grids import slow_unless

PAGE = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text()


@pytest.mark.parametrize("body", slow_unless({"hopper"}, scenarios.BODIES))
def test_differences_are_those_of_the_models(body):
    """Contacts, friction and integrators as installed."""
    assert scenario_table.difference_row(body) in PAGE


def test_every_section_is_as_the_script_writes_it():
    sections = ("_INTRODUCTION", "_MODEL_FILES", "_SLIPS", "_SEEN", "_CHECK", "_SLOWEST")
    assert all(getattr(scenario_table, section) in PAGE for section in sections)


def test_returns_before_the_second_end_of_an_episode_are_not_compared():
    """Of two seeds; the first return stays what it is until another episode ends."""
    training = np.array([[np.nan, 1.0, 1.0, 3.0], [np.nan, 2.0, 2.0, 6.0]])
    once, twice = np.array([[0, 4, 0, 0]] * 2), np.array([[0, 4, 0, 4]] * 2)
    assert twelve_scenarios.ends(training, once) is None
    first, last = twelve_scenarios.ends(training, twice)
    assert first.tolist() == [1.0, 2.0] and last.tolist() == [3.0, 6.0]
