"""A sweep that was stopped goes on as if it had not: the same bits, nothing trained twice, or one sentence why not."""

import errno
import json
import os
import shutil
import types

import jax
import numpy as np
import pytest

import marl_kl
from marl_kl.storage import checkpoints, run_folder
from marl_kl.storage.run_folder import RunFolderError, RunWarning
from marl_kl.training import sweeper
from marl_kl.training.programs import Programs
from marl_kl.training.shards import Piece
from tests.support import kills
from tests.support.counting_env import counting_env
from tests.support.faults import fail_with, stopped
from tests.training.test_host_loop import SMALL

GRID = {"kl_budget": (0.02, 0.08, 0.3)}
UPDATES = 7
UNTOUCHED = ("table.csv", "curves.csv", "log.jsonl")


def sweep(out, **options):
    """Pieces of two runs, stored every other update; the third one is filled up."""
    options = {
        "grid": GRID, "seeds": [4], "total_env_steps": 32 * UPDATES, "chunk_updates": 3, "save_interval": 2,
        "runs_at_once": 2, "progress": "none", "out": out, **SMALL, **options,
    }  # fmt: skip
    return marl_kl.sweep(counting_env(), "hatrpo_w", **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nobody disturbed."""
    return sweep(tmp_path_factory.mktemp("whole") / "sweep", loggers=[_noting([])])


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole.out, tmp_path / "sweep")


def _noting(streams):
    def noting(about):
        stream = {"id": about.id, "rows": []}
        streams.append(stream)
        return types.SimpleNamespace(write=stream["rows"].extend, close=lambda: None)

    return noting


def _document(out):
    return json.loads((out / "sweep.json").read_text())


def _stored(out):
    """Piece -> the updates of its checkpoints."""
    folders = sorted((out / "pieces").iterdir())
    return {f.name: sorted(int(entry.name) for entry in (f / "checkpoints").iterdir()) for f in folders}


def _assert_same(got, wanted):
    for name, values in wanted.metrics.items():
        np.testing.assert_array_equal(got.metrics[name], values, err_msg=name)
    for part, other in zip(jax.tree.leaves(got.evaluations), jax.tree.leaves(wanted.evaluations)):
        np.testing.assert_array_equal(part, other)
    for name in UNTOUCHED:
        assert (got.out / name).read_bytes() == (wanted.out / name).read_bytes(), name


def never(*_):
    raise AssertionError("this must be settled before anything compiles")


def _full_from(update):
    """`checkpoints.save`, but from `update` on the disk is full."""

    def save(original, patch):
        def until_full(folder, snapshot, *arguments):
            if snapshot.update >= update:
                fail_with(patch, errno.ENOSPC)
            original(folder, snapshot, *arguments)

        return until_full

    return save


def _stopped(error, calls, when):
    return lambda original, patch: stopped(original, error, calls, when)


_STOPS = (
    (Piece, "_evaluated", _stopped(KeyboardInterrupt, 1, "after"), "interrupted", {}),
    (Programs, "chunk", _stopped(KeyboardInterrupt, 2, "after"), "interrupted", {"1-1": [2]}),
    (checkpoints, "_write_arrays", _stopped(RuntimeError("a fault"), 1, "after"), "failed", {"1-1": [2]}),
    (checkpoints, "save", _full_from(6), "running", {"1-1": [2, 4]}),
    (Piece, "_evaluated", _stopped(KeyboardInterrupt, 1, "before"), "interrupted", {"1-1": [4, 6]}),
    (Piece, "_evaluated", _stopped(KeyboardInterrupt, 3, "before"), "interrupted", {"1-1": [7], "1-2": [4, 6]}),
    (sweeper.sweep_tables, "write", _stopped(KeyboardInterrupt, 1, "before"), "interrupted", {"1-1": [7], "1-2": [7]}),
)


def test_stopped_anywhere_it_ends_with_the_same_bits(whole, tmp_path, monkeypatch):
    """After the first evaluation, in a chunk, in a save, by a full disk, in the last evaluations, before the tables."""
    out, streams = tmp_path / "sweep", []
    for place, name, fault, status, stored in _STOPS:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fault(getattr(place, name), patch))
            with pytest.raises((KeyboardInterrupt, RuntimeError, RunFolderError)) as error:
                sweep(out, resume=True, loggers=[_noting(streams)])
        assert "\n" not in str(error.value)
        assert _document(out)["status"] == status
        assert (_stored(out) if (out / "pieces").exists() else {}) == stored
    assert not (out / "table.csv").exists()
    assert [stream["id"] for stream in streams[:4]] == [streams[0]["id"], streams[1]["id"]] * 2
    last = []
    monkeypatch.setattr(Programs, "compile", never)
    result = sweep(out, resume=True, loggers=[_noting(last)])
    _assert_same(result, whole)
    document = _document(out)
    assert document["status"] == "finished" and len(document["resumed"]) == len(_STOPS)
    assert {stream["id"] for stream in last} == {stream["id"] for stream in streams} and len(last) == 3
    for k, stream in enumerate(last):
        training = [(update, "training") for update in range(1, UPDATES + 1)]
        assert [(row.update, row.kind) for row in stream["rows"]] == [
            (0, "evaluation"), *training, (UPDATES, "evaluation")
        ]  # fmt: skip
        values = [row.values["kl_total"] for row in stream["rows"][1:-1]]
        np.testing.assert_allclose(values, result.metrics["kl_total"][k, 0], rtol=1e-6)
    assert _stored(out) == {"1-1": [7], "1-2": [7]}


def test_killed_it_ends_with_the_same_bits(tmp_path):
    """SIGKILL, from outside and inside a save; twenty of them: python -m tests.support.kills sweep FOLDER."""
    for seed, kill in enumerate(("outside", "inside")):
        assert "killed" in kills.be_killed("sweep", tmp_path / "sweep", kill, seed, environment=kills.as_here())
        assert _document(tmp_path / "sweep")["status"] == "running"
    kills.sweep(tmp_path / "sweep", resume=True)
    kills.sweep(tmp_path / "reference")
    kills.assert_same_sweep(tmp_path / "sweep", tmp_path / "reference")


def test_a_finished_sweep_has_nothing_to_do(whole, copy, monkeypatch):
    """All of its result is there, and a lost table is made again."""
    monkeypatch.setattr(Programs, "compile", never)
    document = (copy / "sweep.json").read_text()
    (copy / "table.csv").unlink()
    result = sweep(copy, resume=True)
    _assert_same(result, whole)
    assert result.timing == whole.timing and (copy / "sweep.json").read_text() == document


def test_how_runs_were_cut_is_remembered(tmp_path, monkeypatch, capsys):
    """With other neighbours a run is the same up to rounding only; another day has other free memory."""
    out = tmp_path / "sweep"
    free = iter([3])
    monkeypatch.setattr(sweeper.devices, "free_bytes", lambda mesh: next(free, 2**60))
    monkeypatch.setattr(Programs, "state_bytes", 1.0)
    monkeypatch.setattr(Piece, "_state", stopped(None, KeyboardInterrupt, 1, "before"))
    with pytest.raises(KeyboardInterrupt):
        sweep(out, runs_at_once=None)
    assert _document(out)["sizes"] == {"1": 2}
    monkeypatch.undo()
    made = []
    monkeypatch.setattr(Programs, "compile", lambda self: (made.append(self.num_runs), never()))
    with pytest.raises(AssertionError):
        sweep(out, runs_at_once=None, resume=True, progress="plain")
    assert made == [2] and "going on: 0 of 3 runs are done" in capsys.readouterr().out


def _truncate(out, name):
    os.truncate(out / name, 60)


def _damage_piece(out):
    (out / "pieces" / "1-2" / "checkpoints" / "7" / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (None, {"gamma": 0.5}, "holds another sweep: config.gamma is 0.99 there and 0.5 here"),
        (None, {"seeds": [4, 5]}, r"holds another sweep: seeds is \[4\] there and \[4, 5\] here"),
        (None, {"grid": {"kl_budget": (0.02, 0.09, 0.3)}}, "settings.1.kl_budget is 0.08 there and 0.09 here"),
        (None, {"grid": {"kl_budget": (0.02, 0.08)}}, "number of settings is 3 there and 2 here"),
        (None, {"eval_interval": 3}, "eval_interval is 0 there and 3 here"),
        (None, {"total_env_steps": 320}, "total_env_steps is 224 there and 320 here"),
        (None, {"runs_at_once": 3}, "runs_at_once is 2 there and 3 here"),
        (lambda out: _truncate(out, "sweep.json"), {}, "sweep.json is truncated or damaged"),
        (lambda out: shutil.rmtree(out / "pieces"), {}, "there are no pieces in '.*', only its table.csv"),
        (
            _damage_piece,
            {},
            "1-2/checkpoints/7 is damaged: its manifest.json is missing; without the folder .*/1-2 its 1",
        ),
    ],
)
def test_what_cannot_go_on_is_one_sentence(copy, monkeypatch, damage, options, message):
    monkeypatch.setattr(Programs, "compile", never)
    if damage:
        damage(copy)
    with pytest.raises(RunFolderError, match=message) as error:
        sweep(copy, resume=True, **options)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


def test_a_run_is_no_sweep_and_nowhere_is_none(tmp_path):
    with run_folder.lock_folder(
        tmp_path, run_folder.record(counting_env().spec, "hatrpo_w", marl_kl.TrustRegionConfig(), [4])
    ):
        pass
    with pytest.raises(RunFolderError, match="already holds another run"):
        sweep(tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume=True needs out"):
        sweep(None, resume=True)


def test_two_processes_do_not_share_a_folder(copy, monkeypatch):
    monkeypatch.setattr(Programs, "compile", never)
    with run_folder.lock_folder(copy, None), pytest.raises(RunFolderError, match="is in use by another process"):
        sweep(copy, resume=True)


def test_a_sweep_that_goes_on_where_there_is_less_memory_is_refused(tmp_path, monkeypatch):
    """Before its first update: its pieces must stay as they are, for the same bits."""
    with monkeypatch.context() as patch:
        patch.setattr(Piece, "_state", stopped(None, KeyboardInterrupt, 1, "before"))
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path / "sweep")
    monkeypatch.setattr(Programs, "bytes_per_run", 2.0**30)
    monkeypatch.setattr(sweeper.devices, "free_bytes", lambda mesh: 2**30)
    monkeypatch.setattr(Programs, "chunk", never)
    message = (
        r"^training 2 runs at once, as this sweep has begun, needs about 2.0 GiB of memory, of which 1.0 GiB are free; "
        r"go on where there is more memory, or begin the sweep in another folder with runs_at_once below 2$"
    )
    with pytest.raises(MemoryError, match=message):
        sweep(tmp_path / "sweep", resume=True)
    assert _document(tmp_path / "sweep")["sizes"] == {"1": 2}


def test_a_full_memory_is_one_sentence(tmp_path, monkeypatch):
    """Before the first update if XLA's account says so; if only the device finds out, then."""
    with monkeypatch.context() as patch:
        patch.setattr(Programs, "bytes_per_run", 2.0**40)
        patch.setattr(sweeper.devices, "free_bytes", lambda mesh: 2**30)
        with pytest.raises(
            MemoryError, match=r"training a single run needs about 1,024.0 GiB of memory, of which 1.0 GiB"
        ):
            sweep(tmp_path / "forecast")
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore of it")
    monkeypatch.setattr(Programs, "chunk", stopped(Programs.chunk, error, 1, "before"))
    with pytest.raises(
        MemoryError, match="^training 2 runs at once does not fit .*; give runs_at_once a number below 2"
    ):
        sweep(tmp_path / "found")
    assert _document(tmp_path / "found")["status"] == "failed"


def test_what_is_missing_is_trained_again_and_other_machinery_is_said(whole, copy):
    shutil.rmtree(copy / "pieces" / "1-2")
    document = _document(copy)
    document["versions"]["jax"] = "0.0.1"
    (copy / "sweep.json").write_text(json.dumps(document | {"status": "interrupted"}))
    with pytest.warns(RunWarning, match="goes on, but perhaps not bit for bit: versions.jax is '0.0.1' before and"):
        _assert_same(sweep(copy, resume=True), whole)
    assert _document(copy)["status"] == "finished" and _stored(copy) == {"1-1": [7], "1-2": [7]}
