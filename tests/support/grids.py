"""Full grids under the marker `slow`, a few cases of each in every run of the tests."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def slow_unless(fast: Collection[Any] | Callable[[Any], bool], cases: Iterable[Any]) -> list[Any]:
    """`cases` for `pytest.mark.parametrize`, of which all but the fast ones are marked slow."""
    is_fast = fast if callable(fast) else fast.__contains__
    return [case if is_fast(case) else _marked(case, pytest.mark.slow) for case in cases]


def rare(cases: Iterable[Any]) -> list[Any]:
    """`cases` that only `pytest -m rare` runs: what seldom changes and compiles for a minute."""
    return [_marked(case, pytest.mark.rare) for case in cases]


def _marked(case: Any, mark: pytest.MarkDecorator) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=mark)
