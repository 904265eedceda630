"""One look per algorithm."""

from marl_kl.analysis.figure_style import ALGORITHM_STYLES, algorithm_style
from marl_kl.core import algorithms


def test_every_algorithm_has_its_own_look():
    assert set(ALGORITHM_STYLES) == set(algorithms.names())
    for part in ("label", "colour", "marker"):
        assert len({getattr(style, part) for style in ALGORITHM_STYLES.values()}) == len(ALGORITHM_STYLES)
    assert algorithm_style("my.module:mine").label == "my.module:mine"


def test_a_display_name_finds_its_algorithm():
    assert all(algorithms.get(style.label).name == name for name, style in ALGORITHM_STYLES.items())
