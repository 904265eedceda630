"""A run that stopped goes on as if it had not: the same bits, whatever stopped it, or one sentence why it cannot."""

import datetime
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import marl_kl
from marl_kl.storage import checkpoints, run_folder, run_tables
from marl_kl.storage.run_folder import RunFolderError, RunWarning
from marl_kl.training import host_loop
from marl_kl.training.programs import Programs
from tests.support import kills
from tests.support.counting_env import counting_env
from tests.support.faults import fail_with, stopped
from tests.support.kills import assert_same_run, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the result of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, train(out)


@pytest.fixture
def copy(whole, tmp_path):
    """A finished run to be damaged."""
    return shutil.copytree(whole[0], tmp_path / "copy")


def _status(out):
    return json.loads((out / "run.json").read_text())["status"]


def _kept(out):
    return sorted(int(entry.name) for entry in (out / "checkpoints").iterdir())


def never_compile(*_):
    raise AssertionError("this must be settled before anything compiles")


def _stopped_in_a_chunk(calls):
    """`_advance`, whose `calls`-th call is interrupted while the chunk has the state's memory."""
    original, left = host_loop._Run._advance, [calls]

    def stopped(run, n):
        left[0] -= 1
        if not left[0]:
            run.programs.chunk(run.traced_fields, run.state, n)
            raise KeyboardInterrupt
        original(run, n)

    return stopped


@pytest.mark.slow
def test_interrupted_anywhere_it_ends_with_the_same_bits(whole, tmp_path, monkeypatch):
    """One run, stopped in a chunk, before an evaluation that is due, after one, in the middle of saving, by a fault."""
    out = tmp_path / "run"
    run, interrupt = host_loop._Run, KeyboardInterrupt()
    stops = (
        (run, "_advance", _stopped_in_a_chunk(6), "interrupted"),
        (run, "_advance", stopped(run._advance, RuntimeError(), 3, "after"), "failed"),
        (run, "_evaluate", stopped(run._evaluate, interrupt, 2, "before"), "interrupted"),
        (run, "_evaluate", stopped(run._evaluate, interrupt, 2, "after"), "interrupted"),
        (run_tables, "write_metrics", stopped(run_tables.write_metrics, interrupt, 3, "before"), "interrupted"),
    )
    seen = []
    for place, name, stopping, status in stops:
        monkeypatch.setattr(place, name, stopping)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            train(out, resume=True, save_interval=4 + len(seen))
        monkeypatch.undo()
        assert _status(out) == status
        seen.append(checkpoints.load(out).update)
    assert seen == sorted(set(seen)) and 0 < seen[0] and seen[-1] < kills.UPDATES
    result = train(out, resume=True)
    assert_same_run(out, whole[0])
    assert _status(out) == "finished"
    assert [entry["update"] for entry in json.loads((out / "run.json").read_text())["resumed"]] == seen
    np.testing.assert_array_equal(result.metrics["kl"], whole[1].metrics["kl"])
    np.testing.assert_array_equal(result.evaluation.update, whole[1].evaluation.update)


def test_killed_it_ends_with_the_same_bits(whole, tmp_path):
    """SIGKILL, from outside and inside a save; twenty of them: python -m tests.support.kills run FOLDER."""
    for seed, kill in enumerate(("outside", "inside")):
        assert "killed" in kills.be_killed("run", tmp_path / "run", kill, seed, environment=kills.as_here())
        assert _status(tmp_path / "run") == "running"
    train(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[0])


def test_the_newest_checkpoint_damaged_the_older_one_gives_the_same_bits(whole, copy):
    """Rows of updates that the older checkpoint does not have are dropped and computed again."""
    assert _kept(copy) == [56, 60]
    (copy / "checkpoints" / "60" / "manifest.json").write_text("{")
    (copy / "metrics.csv").write_text("lost")
    with pytest.warns(RunWarning, match="checkpoints/60 is damaged: .*; using the older one of update 56"):
        train(copy, resume=True)
    assert_same_run(copy, whole[0])
    assert _kept(copy) == [56, 60] and marl_kl.load(copy).update == 60


def test_a_finished_run_is_extended(whole, tmp_path, capsys):
    """As the run that was that long from the start, but for the evaluation at the old end, which is kept."""
    out = tmp_path / "run"
    short = train(out, total_env_steps=32 * 40)
    assert short.env_steps[-1] == 32 * 40 and short.evaluation.update[-1] == 40
    (out / run_tables.ABSOLUTE).write_text("of teams that are no longer the best")
    long = train(out, resume=True, progress="plain")
    assert not (out / run_tables.ABSOLUTE).exists()
    assert "continuing at update 40 of 60" in capsys.readouterr().out
    for name, values in whole[1].metrics.items():
        np.testing.assert_array_equal(long.metrics[name], values, err_msg=name)
    scheduled = long.evaluation.update != 40
    np.testing.assert_array_equal(long.evaluation.update[scheduled], whole[1].evaluation.update)
    np.testing.assert_array_equal(long.evaluation.episode_return[:, scheduled], whole[1].evaluation.episode_return)
    record = run_folder.read_record(out)
    assert record.config.total_env_steps == 32 * 60 and record.status == "finished"
    assert long.timing.train > short.timing.train and long.timing.compile > short.timing.compile


def test_a_finished_run_has_nothing_to_do(whole, copy, monkeypatch):
    monkeypatch.setattr(host_loop._Run, "compile", never_compile)
    document = (copy / "run.json").read_text()
    (copy / "learning_curve.png").unlink()  # killed while it drew
    result = train(copy, resume=True)
    np.testing.assert_array_equal(result.metrics["kl"], whole[1].metrics["kl"])
    assert result.timing == whole[1].timing and (copy / "run.json").read_text() == document
    assert (copy / "learning_curve.png").exists()
    with pytest.raises(ValueError, match="total_env_steps=320; it must be at least 1920, which the run in .* has"):
        train(copy, resume=True, total_env_steps=320)


def _lose_checkpoints(out):
    shutil.rmtree(out / "checkpoints")


def _damage_all(out):
    for manifest in (out / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()


def _from_the_future(out):
    for manifest in (out / "checkpoints").glob("*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))


def _swap_run(out):
    document = json.loads((out / "run.json").read_text())
    document["config"]["gamma"] = 0.5
    (out / "run.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "damage, options, message",
    [
        (None, {"gamma": 0.5}, "holds another run: config.gamma is 0.99 there and 0.5 here"),
        (None, {"seeds": 2}, r"another run: seeds is \[4, 7\] there and \[0, 1\] here; each seed is a run of its own"),
        (_lose_checkpoints, {}, "there is no checkpoint in '.*', only its metrics.csv"),
        (_damage_all, {}, "checkpoints/60 is damaged: its manifest.json is missing"),
        (_from_the_future, {}, "checkpoints/60 was written by a newer marl_kl"),
        (_swap_run, {"gamma": 0.5}, "checkpoints/60 belongs to another run: config.gamma is 0.99 there and 0.5 here"),
        (lambda out: os.truncate(out / "run.json", 100), {}, "run.json is truncated or damaged"),
        (lambda out: (out / "run.json").unlink(), {}, "is not empty .it holds 'checkpoints'."),
    ],
)
def test_what_cannot_go_on_is_one_sentence_and_stays_as_it_is(copy, monkeypatch, damage, options, message):
    monkeypatch.setattr(host_loop._Run, "compile", never_compile)
    if damage:
        damage(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(RunFolderError, match=message) as error:
        train(copy, resume=True, **options)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    "env, algorithm, message",
    [
        (counting_env(episode_length=6), "hatrpo_w", "env.episode_length is 5 there and 6 here"),
        (counting_env()._replace(params=np.ones(2)), "hatrpo_w", "env_params is"),
        (counting_env(), "hatrpo", "algorithm is 'hatrpo_w' there and 'hatrpo' here"),
    ],
)
def test_another_environment_or_algorithm_is_another_run(copy, env, algorithm, message):
    with pytest.raises(RunFolderError, match=f"holds another run: {message}"):
        marl_kl.train(env, algorithm, seeds=[4, 7], out=copy, resume=True, progress="none", **kills.CONFIG)


def test_two_processes_do_not_share_a_folder(copy, monkeypatch):
    monkeypatch.setattr(host_loop._Run, "compile", never_compile)
    with run_folder.lock_folder(copy, None), pytest.raises(RunFolderError, match="is in use by another process"):
        train(copy, resume=True)


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match="resume=True needs out"):
        train(None, resume=True)


def test_other_machinery_is_said(copy, monkeypatch):
    """Other versions or devices may round otherwise."""
    monkeypatch.setattr(host_loop._Run, "loop", lambda run: None)
    document = json.loads((copy / "run.json").read_text())
    document["device"]["count"] += 1
    (copy / "run.json").write_text(json.dumps(document | {"status": "running"}))
    with pytest.warns(RunWarning, match=r"goes on, but perhaps not bit for bit: device.count is \d before and \d now"):
        train(copy, resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(copy, resume=True)


_ON_TWO_DEVICES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from tests import kills
kills.train(sys.argv[1], total_env_steps=32 * 20)
assert jax.device_count() == 2
"""


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_devices(whole, tmp_path):
    """Begun on two, ended here: said, and the same but for rounding."""
    out = tmp_path / "run"
    command = [sys.executable, "-c", _ON_TWO_DEVICES, out]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env=kills.as_here())
    here = jax.device_count()
    assert here != 2 and run_folder.read_record(out).document["device"]["count"] == 2
    with pytest.warns(RunWarning, match=f"perhaps not bit for bit: device.count is 2 before and {here} now"):
        result = train(out, resume=True)
    assert _status(out) == "finished" and result.evaluation.update[-1] == kills.UPDATES
    for name in ("kl", "kl_total", "episode_return", "value_loss"):
        np.testing.assert_allclose(result.metrics[name], whole[1].metrics[name], rtol=1e-2, atol=1e-4, err_msg=name)


# The faults of the world, one after another


def _until(monkeypatch, code, update):
    """`checkpoints.save`, but from `update` on the disk answers with the errno `code`."""
    save = checkpoints.save

    def until(out, snapshot, *arguments):
        if snapshot.update >= update:
            fail_with(monkeypatch, code)
        save(out, snapshot, *arguments)

    return until


def _backwards(monkeypatch):
    """Every clock that people can set runs backwards: that of Python, and that of `run.json`."""
    seconds = itertools.count(2e9, -1000)
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(seconds)) * 10**9)
    monkeypatch.setattr(
        run_folder, "_now", lambda: datetime.datetime.fromtimestamp(next(seconds), datetime.UTC).isoformat()
    )


@pytest.mark.slow
def test_no_fault_costs_more_than_an_interval(whole, tmp_path, monkeypatch):
    """Ctrl-C while it compiles; Ctrl-C in a save, and in the save that answers it; a full disk; one that can only be
    read; and all the time a clock that runs backwards."""
    out, interrupt = tmp_path / "run", KeyboardInterrupt()
    write = checkpoints._write_arrays
    faults = (
        (Programs, "compile", lambda _: stopped(None, interrupt, 1, "before"), "interrupted", None),
        (checkpoints, "_write_arrays", lambda _: stopped(write, interrupt, 3, "from"), "interrupted", 8),
        (checkpoints, "save", lambda patch: _until(patch, errno.ENOSPC, 20), "running", 16),
        (checkpoints, "save", lambda patch: _until(patch, errno.EROFS, 28), "running", 24),
    )
    for place, name, fault, status, update in faults:
        with monkeypatch.context() as patch:
            _backwards(patch)
            patch.setattr(place, name, fault(patch))
            with pytest.raises((KeyboardInterrupt, RunFolderError)) as error:
                train(out, resume=True)
        assert error.type is KeyboardInterrupt or "\n" not in str(error.value)
        assert _status(out) == status
        found = checkpoints.load(out)
        assert update == (found and found.update)
    with monkeypatch.context() as patch:
        _backwards(patch)
        result = train(out, resume=True)
    assert_same_run(out, whole[0])
    assert min(result.timing) > 0 and result.steps_per_second > 0
    document = json.loads((out / "run.json").read_text())
    assert document["ended"] < document["started"]


def test_nothing_asks_a_clock_that_can_be_set():
    """But for the times in `run.json`, which are read by people, and the names of folders."""
    found = {
        path.name
        for folder in ("marl_kl", "envs")
        for path in (Path(__file__).parents[2] / folder).rglob("*.py")
        if re.search(r"\btime\.time|mtime|datetime\.now|\.today\(", path.read_text())
    }
    assert found == {"run_folder.py", "words.py"}


def test_an_annealed_run_keeps_its_end(tmp_path, monkeypatch):
    """Its learning rate is 0 there; the rest of the schedule is free."""
    monkeypatch.setattr(host_loop._Run, "loop", lambda run: None)
    monkeypatch.setattr(host_loop, "_close", lambda run, status: None)
    monkeypatch.setattr(host_loop.reporting, "finish", lambda *_, **__: None)

    def resume(**options):
        options = {"out": tmp_path / "run", "resume": True, "progress": "none", "anneal_lr": True, **options}
        return marl_kl.train(counting_env(), "happo", **{**kills.CONFIG, **options})

    resume()
    resume(chunk_updates=7, save_interval=3)
    steps = kills.CONFIG["total_env_steps"]
    for other in (steps // 2, 2 * steps):
        with pytest.raises(
            ValueError, match=f"total_env_steps={other}; with anneal_lr it must stay {steps}, as"
        ) as error:
            resume(total_env_steps=other)
        assert "\n" not in str(error.value) and "train a new run" in str(error.value)
    with pytest.raises(RunFolderError, match="config.anneal_lr is True there and False here"):
        resume(anneal_lr=False)
