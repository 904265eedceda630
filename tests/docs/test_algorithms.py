"""docs/algorithms.md says what the code says: every field, default and metric, and none that is gone."""

import dataclasses
import re
from pathlib import Path

import pytest

import marl_kl
from marl_kl.cli.options import default_text
from marl_kl.core import algorithms
from marl_kl.results import AGENT_METRICS, TEAM_METRICS

ROOT = Path(__file__).parents[2]
SECTIONS = re.split(r"^#+ ", (ROOT / "docs" / "algorithms.md").read_text(), flags=re.MULTILINE)


def rows(title):
    """The cells of the table in the section whose title starts so, by the name in its first column."""
    (section,) = [section for section in SECTIONS if section.startswith(title)]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    # a bar within a cell is written with a backslash before it
    cells = [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


CLASSES = (
    marl_kl.Config,
    marl_kl.OnPolicyConfig,
    marl_kl.TrustRegionConfig,
    marl_kl.FirstOrderConfig,
    marl_kl.OffPolicyConfig,
)


@pytest.mark.parametrize("config_class", CLASSES)
def test_every_field_is_there_with_its_default_range_and_meaning(config_class):
    above = dataclasses.fields(config_class.__base__) if config_class is not marl_kl.Config else ()
    inherited = {field.name: field.default for field in above}
    fields = {f.name: f for f in dataclasses.fields(config_class) if (f.name, f.default) not in inherited.items()}
    documented = rows(f"{config_class.__name__}:")
    assert list(documented) == list(fields)
    for name, (default, usual_range, meaning) in documented.items():
        assert (default, meaning) == (default_text(fields[name].default), fields[name].metadata["help"])
        assert usual_range


@pytest.mark.parametrize("title, meanings", [("Of the team", TEAM_METRICS), ("Of each agent", AGENT_METRICS)])
def test_every_metric_is_listed_with_its_meaning_and_warning_signs(title, meanings):
    documented = rows(title)
    assert {name: meaning for name, (meaning, _) in documented.items()} == meanings
    assert all(warning for _, warning in documented.values())


def test_every_algorithm_is_there_with_its_config_class():
    assert tuple(rows("Which one when")) == algorithms.names()
    readme = (ROOT / "README.md").read_text()
    for name in algorithms.names():
        assert f"`{name}`" in readme
        (title,) = [s for s in SECTIONS if s.startswith(f"{algorithms.get(name).config_class.__name__}:")]
        assert name in re.findall(r"\w+", title.splitlines()[0])
