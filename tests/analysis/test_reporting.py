"""The end of a run: figures and a summary in its folder, a table on the console."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from marl_kl.analysis import reporting
from marl_kl.storage.run_folder import RunWarning
from tests.support import synthetic


@pytest.mark.parametrize("kl", [True, False])
def test_finish_writes_figures_and_summary_and_prints_the_table(tmp_path, kl):
    output = io.StringIO()
    reporting.finish(synthetic.result(kl=kl, out=tmp_path), console=Console(file=output))
    figures = {"learning_curve.png", "diagnostics.png", *(["kl_share.png"] if kl else [])}
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
import os, pathlib, sys
from marl_kl.analysis import reporting
from tests.support import synthetic
assert os.environ["MPLBACKEND"] == "nonsense"
reporting.finish(synthetic.result(out=pathlib.Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_an_unusable_backend_of_matplotlib_does_not_matter(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _UNUSABLE_BACKEND, tmp_path],
        env={**os.environ, "MPLBACKEND": "nonsense"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "hatrpo_w on legs" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "summary.md",
        "learning_curve.png",
        "kl_share.png",
        "diagnostics.png",
    }


class _ClosedPipe(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self):
        raise OSError("no file")


def test_figures_and_terminals_that_fail_cost_a_warning(tmp_path, monkeypatch):
    """Also a closed pipe, at which rich ends the process."""
    console = Console(file=_ClosedPipe())
    monkeypatch.setattr(reporting, "write_figures", lambda result: 1 / 0)
    monkeypatch.setattr(console, "on_broken_pipe", lambda: sys.exit(1), raising=False)
    with pytest.warns(RunWarning) as warned:
        reporting.finish(synthetic.result(out=tmp_path), console=console)
    assert [str(warning.message) for warning in warned] == [
        f"no figures in {tmp_path}: division by zero",
        "no table on the terminal: the pipe is closed",
    ]
    assert (tmp_path / "summary.md").exists()
