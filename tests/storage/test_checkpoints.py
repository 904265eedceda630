"""Checkpoints: what comes back is what was stored, whole or not at all, and whatever is wrong is one sentence."""

import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from marl_kl.results import Evaluation, SweepFailure, Timing
from marl_kl.storage import array_trees, checkpoints
from marl_kl.storage.best import Best
from marl_kl.storage.checkpoints import Snapshot
from marl_kl.storage.run_folder import RunFolderError, RunWarning
from tests.support.example_state import example_state
from tests.support.grids import slow_unless

RUN = {"algorithm": "hatrpo_w", "seeds": [3, 5, 8], "config": {"gamma": 0.99, "value_clip": "inf"}}


def _snapshot(update, **state):
    generator = np.random.default_rng(update)
    evaluation = Evaluation(
        np.array([0, update]), np.array([0, update * 10**12]), generator.normal(size=(3, 2, 4)).astype(np.float32),
        np.full((3, 2, 4), 5.0, np.float32),
    )  # fmt: skip
    return Snapshot(
        update,
        array_trees.flatten_tree(example_state(**state)),
        {"kl": generator.normal(size=(3, update, 2)).astype(np.float32), "return": generator.normal(size=(3, update))},
        evaluation,
        (SweepFailure(0, 5, 1, "value"),),
        Timing(0.1 + 0.2, 3.0, 4.0),
        Best(
            np.array([0, update, 3]),
            np.array([0.1 + 0.2, -np.inf, np.nan]),
            array_trees.flatten_tree(example_state(value=2.0)),
        ),
    )


def _save(out, update, keep=2, **state):
    checkpoints.save(out, _snapshot(update, **state), RUN, keep)


def _updates(out):
    return sorted(int(entry.name) for entry in (out / "checkpoints").iterdir())


def _one_sentence(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


def _assert_same(found: Snapshot, wanted: Snapshot):
    assert (found.update, found.failures, found.timing) == (wanted.update, wanted.failures, wanted.timing)
    evaluations = (snapshot.evaluation._asdict() for snapshot in (found, wanted))
    best = (snapshot.best.learner for snapshot in (found, wanted))
    when = ({"update": s.best.update, "episode_return": s.best.episode_return} for s in (found, wanted))
    for a, b in ((found.state, wanted.state), (found.metrics, wanted.metrics), evaluations, best, when):
        b = {name: leaf for name, leaf in b.items() if leaf.size}
        assert a.keys() == b.keys()
        for name in b:
            assert isinstance(a[name], np.ndarray) and a[name].dtype == b[name].dtype, name
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("folder", ["run", "hatrpo[kl=0.1]", "é *?{x} %d"])
def test_a_snapshot_comes_back_as_it_was(tmp_path, folder):
    """To the bit and in its own precision, though jax is in single precision; whatever the folder's name."""
    out = tmp_path / folder
    out.mkdir()
    assert checkpoints.load(out) is None
    _save(out, 12)
    _assert_same(checkpoints.load(out, RUN), _snapshot(12))


def test_a_checkpoint_of_a_version_that_kept_no_best_teams_is_read(tmp_path):
    checkpoints.save(tmp_path, _snapshot(3)._replace(best=None), RUN, keep=1)
    stored = tmp_path / "checkpoints" / "3"
    about = json.loads((stored / "snapshot.json").read_text())
    assert about.pop("best") is None
    (stored / "snapshot.json").write_text(json.dumps(about))
    manifest = json.loads((stored / "manifest.json").read_text())
    checksum = checkpoints._sha256(stored / "snapshot.json")
    _edit(stored / "manifest.json", files=manifest["files"] | {"snapshot.json": checksum})
    assert checkpoints.load(tmp_path, RUN).best is None


def test_the_last_ones_are_kept_and_a_newer_save_of_one_replaces_it(tmp_path):
    for update in (9, 10, 100):
        _save(tmp_path, update)
    _save(tmp_path, 100, value=4.0)
    assert _updates(tmp_path) == [10, 100]
    assert checkpoints.load(tmp_path).state["actors.Dense_0.kernel"].max() == 4.0
    _save(tmp_path, 200, keep=1)
    assert _updates(tmp_path) == [200]
    _save(tmp_path, 150)  # by a run that had to go back behind 200
    assert _updates(tmp_path) == [150]


def _killed_at(monkeypatch, out, moment, **state):
    """A save of update 3 that is killed before (even moments) or after (odd ones) a step: the manifest and each rename.

    Nothing is tidied up, as after SIGKILL. Whether there was such a step.
    """
    steps = itertools.count()

    def deadly(work):
        def step(path, *arguments):
            if str(path).endswith("snapshot.json"):
                return work(path, *arguments)
            if next(steps) == moment:
                raise KeyboardInterrupt
            work(path, *arguments)
            if next(steps) == moment:
                raise KeyboardInterrupt

        return step

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_synced", deadly(checkpoints.write_synced))
        patch.setattr(os, "replace", deadly(os.replace))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        try:
            _save(out, 3, **state)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("moment", range(7))
def test_a_kill_at_any_step_leaves_the_old_one_or_the_new_one(tmp_path, monkeypatch, moment):
    """The steps are the manifest, the new checkpoint's name, the pruned one's."""
    for update in (1, 2):
        _save(tmp_path, update)
    assert _killed_at(monkeypatch, tmp_path, moment) == (moment < 6)
    is_new = moment >= 3
    _assert_same(checkpoints.load(tmp_path), _snapshot(3 if is_new else 2))
    _save(tmp_path, 4)
    assert _updates(tmp_path) == [3 if is_new else 2, 4]


@pytest.mark.parametrize("again", slow_unless({5}, [0, 5]))
@pytest.mark.parametrize("moment", range(9))
def test_a_kill_while_a_checkpoint_is_replaced_leaves_it_or_its_successor(tmp_path, monkeypatch, moment, again):
    """The steps are the manifest, the old checkpoint's spare name, the new one's name, the spare one's removal; killed
    there once more by the process that resumes, and with no other checkpoint to fall back on."""
    _save(tmp_path, 3, keep=1)
    assert _killed_at(monkeypatch, tmp_path, moment, keep=1, value=4.0) == (moment < 8)
    found = checkpoints.load(tmp_path, RUN).state["actors.Dense_0.kernel"].max()
    assert found == (4.0 if moment >= 5 else 1.0)
    assert _killed_at(monkeypatch, tmp_path, again, keep=1, value=9.0)
    assert checkpoints.load(tmp_path, RUN).state["actors.Dense_0.kernel"].max() in (found, 9.0)
    _save(tmp_path, 3, keep=1)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["3"]
    _assert_same(checkpoints.load(tmp_path), _snapshot(3))


def test_a_spare_one_counts_as_one_of_its_update(tmp_path):
    """What a kill between the two renames leaves, when the run is resumed."""
    for update in (1, 2):
        _save(tmp_path, update, keep=3)
    stored = tmp_path / "checkpoints"
    stored.joinpath("2").rename(stored / "2~")
    shutil.copytree(stored / "1", stored / "1~")
    _save(tmp_path, 3, keep=3)
    assert sorted(entry.name for entry in stored.iterdir()) == ["1", "2~", "3"]
    _save(tmp_path, 4)
    assert _updates(tmp_path) == [3, 4]


def _largest_file(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


_DAMAGE = [
    (lambda one: os.truncate(_largest_file(one), 20), "has changed since it was written"),
    (lambda one: _flip(_largest_file(one)), "has changed since it was written"),
    (lambda one: _largest_file(one).unlink(), "is missing"),
    (lambda one: shutil.rmtree(one / "arrays"), "is missing"),
    (lambda one: _flip(one / "snapshot.json"), "its file snapshot.json has changed"),
    (lambda one: (one / "manifest.json").unlink(), "its manifest.json is missing"),
    (lambda one: os.truncate(one / "manifest.json", 40), "its manifest.json is unreadable"),
    (lambda one: (one / "manifest.json").write_text("[]"), "its manifest.json is unreadable"),
]


@pytest.mark.parametrize("damage, message", _DAMAGE)
def test_a_damaged_checkpoint_is_named_and_an_older_one_used(tmp_path, capfd, damage, message):
    _save(tmp_path, 5)
    shutil.copytree(tmp_path / "checkpoints" / "5", tmp_path / "older")
    damage(tmp_path / "checkpoints" / "5")
    with pytest.raises(RunFolderError, match=f"checkpoints/5 is damaged: .*{message}") as error:
        checkpoints.load(tmp_path)
    _one_sentence(error)
    (tmp_path / "checkpoints" / "5").rename(tmp_path / "checkpoints" / "6")
    (tmp_path / "older").rename(tmp_path / "checkpoints" / "5")
    with pytest.warns(RunWarning, match=f"checkpoints/6 is damaged: .*{message}.*; using the older one of update 5"):
        _assert_same(checkpoints.load(tmp_path), _snapshot(5))
    assert "Traceback" not in capfd.readouterr().err


def test_foreign_and_newer_checkpoints_are_refused_though_an_older_one_would_do(tmp_path):
    for update in (4, 5):
        _save(tmp_path, update)
    other = RUN | {"config": {"gamma": 0.5, "value_clip": "inf"}}
    with pytest.raises(RunFolderError, match="checkpoints/5 belongs to another run: config.gamma is 0.99 there"):
        checkpoints.load(tmp_path, other)
    newest = tmp_path / "checkpoints" / "5"
    shutil.copytree(newest, tmp_path / "checkpoints" / "7")
    with pytest.raises(RunFolderError, match="checkpoints/7 has another name than its update, 5"):
        checkpoints.load(tmp_path, RUN)
    _edit(tmp_path / "checkpoints" / "7" / "manifest.json", format=99)
    with pytest.raises(RunFolderError, match="checkpoints/7 was written by a newer marl_kl .format 99; this one"):
        checkpoints.load(tmp_path, RUN)


# Reading while a run trains


def _saving_meanwhile(monkeypatch, out, saves):
    """Every reading begins, and is overtaken by the save that `saves` gives next, if it gives one."""
    verify = checkpoints._verify

    def slow(checkpoint, files):
        for update in itertools.islice(saves, 1):
            _save(out, update, keep=1)
        verify(checkpoint, files)

    monkeypatch.setattr(checkpoints, "_verify", slow)


def test_a_checkpoint_in_use_is_not_removed(tmp_path, monkeypatch, recwarn):
    _save(tmp_path, 1)
    _saving_meanwhile(monkeypatch, tmp_path, iter([2]))
    _assert_same(checkpoints.load(tmp_path), _snapshot(1))
    assert _updates(tmp_path) == [1, 2] and not recwarn.list
    _save(tmp_path, 3, keep=1)
    assert _updates(tmp_path) == [3]


def test_a_checkpoint_replaced_during_a_read_is_not_reported_as_damaged(tmp_path, monkeypatch, capfd, recwarn):
    """On a file system without locks; 3 comes twice."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    _save(tmp_path, 1)
    _saving_meanwhile(monkeypatch, tmp_path, iter([2, 3, 3]))
    assert checkpoints.load(tmp_path).update == 3
    assert not recwarn.list and "Traceback" not in capfd.readouterr().err
    _saving_meanwhile(monkeypatch, tmp_path, itertools.count(4))
    with pytest.raises(RunFolderError, match=r"cannot read .*/checkpoints: it changed \d+ times meanwhile") as error:
        checkpoints.load(tmp_path)
    _one_sentence(error)


# Trouble in writing


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    _save(tmp_path, 1)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunFolderError, match="cannot write .*checkpoints/2: no space left on device") as error:
        _save(tmp_path, 2)
    _one_sentence(error)
    monkeypatch.undo()
    assert checkpoints.load(tmp_path).update == 1 and _updates(tmp_path) == [1]


def test_a_full_disk_inside_orbax_gives_a_one_line_error(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    def fail(self, directory, *_, **__):
        (directory.parent / f"{directory.name}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: in database\nNo space left on device [os_error_code='28']")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(RunFolderError, match="cannot write .*checkpoints/1: no space left on device"):
        _save(tmp_path, 1)
    assert _updates(tmp_path) == []


def test_a_file_in_place_of_the_folder_gives_a_one_line_error(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(RunFolderError, match="cannot write") as error:
        _save(tmp_path, 1)
    _one_sentence(error)


# Ctrl-C


def test_ctrl_c_waits_for_the_end_of_a_save(tmp_path, monkeypatch, capfd, caplog):
    """At moments all over real saves: each is on disk when KeyboardInterrupt comes, and the next one is as usual."""
    _save(tmp_path, 1)
    begin = time.perf_counter()
    _save(tmp_path, 2)
    seconds = time.perf_counter() - begin
    moments = iter(np.linspace(0.001, seconds, 20))
    write, before = checkpoints.write_arrays, signal.getsignal(signal.SIGALRM)

    def with_alarm(*arguments):
        signal.setitimer(signal.ITIMER_REAL, next(moments, 0))
        write(*arguments)

    interrupted = 0
    monkeypatch.setattr(checkpoints, "write_arrays", with_alarm)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        for update in range(3, 23):
            try:
                _save(tmp_path, update)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert checkpoints.load(tmp_path).update == update and _updates(tmp_path) == [update - 1, update]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted >= 3
    assert "Traceback" not in capfd.readouterr().err and not caplog.records
