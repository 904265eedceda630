"""Writing files whole."""

from __future__ import annotations

import errno
import os

import pytest

from marl_kl.storage import files
from marl_kl.storage.files import RunFolderError
from tests.support.faults import fail_with, stopped


def test_a_full_disk_keeps_the_old_file_and_leaves_no_partial_file(tmp_path, monkeypatch):
    files.write_file(tmp_path / "summary.md", "old")
    fail_with(monkeypatch, errno.ENOSPC)
    with pytest.raises(RunFolderError, match="cannot write .*summary.md: no space left on device") as error:
        files.write_file(tmp_path / "summary.md", "new")
    assert "\n" not in str(error.value)
    assert (tmp_path / "summary.md").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.md"]


def test_leftovers_are_removed_but_for_those_that_resist(tmp_path, monkeypatch):
    """A thread may still write in them."""
    for name in (".tmp-1", ".tmp-2"):
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-3").touch()
    (tmp_path / "kept").touch()
    remove = os.rmdir
    monkeypatch.setattr(os, "rmdir", stopped(remove, OSError(errno.ENOTEMPTY, "directory not empty"), 1, "before"))
    files.remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and (tmp_path / "kept").exists()
    files.remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
