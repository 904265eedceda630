"""Writing files whole."""

from __future__ import annotations

import errno

import pytest

from marl_kl import files
from marl_kl.files import RunFolderError
from tests.faults import fail_with


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    files.write_file(tmp_path / "summary.md", "old")
    fail_with(monkeypatch, errno.ENOSPC)
    with pytest.raises(RunFolderError, match="cannot write .*summary.md: no space left on device") as error:
        files.write_file(tmp_path / "summary.md", "new")
    assert "\n" not in str(error.value)
    assert (tmp_path / "summary.md").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.md"]
