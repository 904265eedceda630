"""The end of a run: figures and a summary in its folder, a table on the console."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from marl_kl.analysis import reporting
from tests.support import synthetic


@pytest.mark.parametrize("kl", [True, False])
def test_finish_writes_figures_and_summary_and_prints_the_table(tmp_path, kl):
    output = io.StringIO()
    reporting.finish(synthetic.result(kl=kl, out=tmp_path), console=Console(file=output))
    figures = {"learning_curve.png", *(["kl_share.png"] if kl else [])}
    assert {entry.name for entry in tmp_path.iterdir()} == {"summary.md", *figures}
    for name in figures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "mean ± std" in output.getvalue() and str(tmp_path) in output.getvalue()


def test_without_a_folder_only_the_table_and_when_quiet_nothing(capsys):
    reporting.finish(synthetic.result(), console=None)
    assert "hatrpo_w on legs" in capsys.readouterr().out
    reporting.finish(synthetic.result(), quiet=True)
    assert capsys.readouterr().out == ""


_UNUSABLE_BACKEND = """
import pathlib, sys
from marl_kl.analysis import reporting
from tests.support import synthetic
reporting.finish(synthetic.result(out=pathlib.Path(sys.argv[1])))
"""


def test_an_unusable_backend_of_matplotlib_does_not_fail_the_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _UNUSABLE_BACKEND, tmp_path], env={**os.environ, "MPLBACKEND": "none"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "RunWarning: no figures in" in done.stderr and "hatrpo_w on legs" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["summary.md"]
