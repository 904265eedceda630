"""Tables on terminals of any width: whole numbers, and nothing left out."""

import io
import re

import pytest
from rich.console import Console

from marl_kl.analysis import summary
from marl_kl.analysis.text_tables import terminal_table
from tests.support import synthetic


def _printed(table, width: int) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(table)
    assert max(map(len, output.getvalue().splitlines())) <= width
    return output.getvalue()


@pytest.mark.parametrize("width", [40, 50, 80, 100, 120, 200])
def test_no_number_of_the_summary_is_cut(width):
    result = synthetic.result(num_seeds=4)
    text = _printed(summary.table(result), width)
    per_seed, over_seeds = summary.rows(result)
    found = re.findall(r"\S+", text)
    assert "…" not in text
    assert {word for row in (*per_seed, *over_seeds) for cell in row for word in cell.split()} <= set(found)
    assert all(word in text for word in "untrained final last spent accepted".split())


def test_a_wide_text_column_does_not_squeeze_the_numbers():
    table = terminal_table(["method", "seeds", "final"], "a title")
    table.add_row("hatrpo_w, kl_budget=0.02, hidden_sizes=64,64", "4", "123456.789")
    assert "123456.789" in _printed(table, 50) and "hidden_sizes=64,64" in _printed(table, 50)
    assert len(_printed(table, 50).splitlines()) <= 8, "it fits as a table"
