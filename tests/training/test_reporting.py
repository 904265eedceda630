"""What a finished run leaves: pictures and a summary in its folder, a table on the console."""

import io

import pytest
from rich.console import Console

from marl_kl.training import reporting
from tests.support import synthetic


@pytest.mark.parametrize("kl", [True, False])
def test_finish_writes_pictures_and_summary_and_prints_the_table(tmp_path, kl):
    output = io.StringIO()
    reporting.finish(synthetic.result(kl=kl, out=tmp_path), console=Console(file=output))
    pictures = {"learning_curve.png", *(["kl_share.png"] if kl else [])}
    assert {entry.name for entry in tmp_path.iterdir()} == {"summary.md", *pictures}
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "mean ± std" in output.getvalue() and str(tmp_path) in output.getvalue()


def test_without_a_folder_only_the_table_and_when_quiet_nothing(capsys):
    reporting.finish(synthetic.result(), console=None)
    assert "hatrpo_w on legs" in capsys.readouterr().out
    reporting.finish(synthetic.result(), quiet=True)
    assert capsys.readouterr().out == ""
