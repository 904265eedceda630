"""A run or a sweep that stopped is resumed with the same bits, whatever stopped it, or refused in one line."""

import datetime
import errno
import functools
import itertools
import json
import os
import re
import shutil
import signal
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

import marl_kl
from marl_kl.storage import array_trees, checkpoints, run_folder, run_record, run_tables, stored_runs
from marl_kl.storage.run_folder import RunFolderError, RunWarning
from marl_kl.storage.run_record import RUN, SWEEP
from marl_kl.training import runner, sweeper
from marl_kl.training.programs import Programs
from marl_kl.training.shard_loop import ShardLoop
from tests.support import kills, topology
from tests.support.counting_env import counting_env
from tests.support.faults import fail_with, stopped
from tests.support.grids import slow_unless
from tests.support.kills import assert_same_run, train, without_wall_clock
from tests.support.shared_programs import programs_are_shared  # noqa: F401  for all tests here


class Kind(NamedTuple):
    """A run or a sweep, undisturbed.

    Attributes:
        name: "run" or "sweep". record: the name of its record.
        start: starts or resumes one in a folder. assert_same: compares two folders.
        out: its folder. result: what `start` returned.
    """

    name: str
    record: str
    start: Callable
    assert_same: Callable
    out: Path
    result: marl_kl.TrainResult | marl_kl.SweepResult


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(name) -> Kind`, started when it is first asked for."""

    @functools.cache
    def of(name):
        out = tmp_path_factory.mktemp("whole") / name
        start, assert_same = kills.KINDS[name]
        return Kind(name, {"run": RUN, "sweep": SWEEP}[name], start, assert_same, out, start(out))

    return of


@pytest.fixture(scope="module", params=slow_unless({"run"}, ["run", "sweep"]))
def whole(request, undisturbed):
    return undisturbed(request.param)


@pytest.fixture(scope="module")
def whole_run(undisturbed):
    """The folder and the result of an undisturbed run."""
    return undisturbed("run").out, undisturbed("run").result


@pytest.fixture
def copy(whole, tmp_path):
    """To be damaged."""
    return shutil.copytree(whole.out, tmp_path / "copy")


@pytest.fixture
def run_copy(whole_run, tmp_path):
    return shutil.copytree(whole_run[0], tmp_path / "copy")


def _document(out):
    return json.loads(next(path for path in (out / RUN, out / SWEEP) if path.exists()).read_text())


def _kept(out):
    return sorted(int(entry.name) for entry in (out / "checkpoints").iterdir())


def never(*_):
    raise AssertionError("this must be settled before anything compiles")


def _noting(streams):
    """A logger that adds the id and the rows of each stream to `streams`."""

    def noting(about):
        stream = {"id": about.id, "seeds": about.seeds, "rows": []}
        streams.append(stream)
        return types.SimpleNamespace(write=stream["rows"].extend, close=lambda: None)

    return noting


def _ctrl_c(original, calls):
    """`original`, during whose `calls`-th call Ctrl-C is pressed."""
    left = [calls]

    def call(*arguments):
        left[0] -= 1
        if not left[0]:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    return call


@pytest.mark.slow
def test_stopped_anywhere_it_ends_with_the_same_bits(whole, tmp_path, monkeypatch):
    """In a chunk, by Ctrl-C and by a fault; before and after an evaluation; in a save; before the last tables."""
    out, interrupt, streams = tmp_path / "out", KeyboardInterrupt(), []
    chunk, evaluate, write = Programs.chunk, Programs.evaluate, checkpoints.write_arrays
    stops = [
        (Programs, "chunk", _ctrl_c(chunk, 6), "interrupted"),
        # the state is lost: back to the last checkpoint
        (Programs, "chunk", stopped(chunk, RuntimeError(), 4, "after"), "failed"),
        (Programs, "evaluate", stopped(evaluate, interrupt, 2, "before"), "interrupted"),
        (Programs, "evaluate", stopped(evaluate, interrupt, 2, "after"), "interrupted"),
        (checkpoints, "write_arrays", stopped(write, RuntimeError(), 2, "after"), "failed"),
        (run_tables, "write_metrics", stopped(run_tables.write_metrics, interrupt, 3, "before"), "interrupted"),
        (sweeper.sweep_tables, "write", stopped(None, interrupt, 1, "before"), "interrupted"),
    ]
    del stops[-1 if whole.name == "run" else -2]
    seen = []
    for place, name, stopping, status in stops:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, stopping)
            with pytest.raises((KeyboardInterrupt, RuntimeError)):
                whole.start(out, resume=True, save_interval=4 + len(seen), loggers=[_noting(streams)])
        assert _document(out)["status"] == status
        seen.append(kills.last_update(out))
    assert seen == sorted(set(seen)) and seen[0] > 0
    last = []
    result = whole.start(out, resume=True, loggers=[_noting(last)])
    whole.assert_same(out, whole.out)
    document = _document(out)
    assert document["status"] == "finished" and len(document["resumed"]) == len(stops)
    if whole.name == "run":
        assert [entry["update"] for entry in document["resumed"]] == seen
    np.testing.assert_array_equal(result.metrics["kl"], whole.result.metrics["kl"])
    for part, other in zip(*map(jax.tree.leaves, (_evaluations(result), _evaluations(whole.result)))):
        np.testing.assert_array_equal(part, other)
    assert {stream["id"] for stream in last} == {stream["id"] for stream in streams}
    assert len(last) == len({stream["id"] for stream in last})
    for stream in last:
        updates = [row.update for row in stream["rows"] if row.kind == "training"]
        assert updates == np.repeat(np.arange(1, kills.UPDATES + 1), len(stream["seeds"])).tolist()


def _evaluations(result):
    return result.evaluation if isinstance(result, marl_kl.TrainResult) else result.evaluations


@pytest.mark.slow
def test_killed_it_ends_with_the_same_bits(whole, tmp_path):
    """SIGKILL, from outside or inside a save; twenty of them: python -m tests.support.kills run|sweep FOLDER."""
    out = tmp_path / "out"
    for seed, kill in enumerate({"run": ("outside",), "sweep": ("inside",)}[whole.name]):
        assert "killed" in kills.be_killed(whole.name, out, kill, seed, environment=kills.as_here())
        assert _document(out)["status"] == "running"
    whole.start(out, resume=True)
    whole.assert_same(out, whole.out)


def test_finished_there_is_nothing_to_do(whole, copy, monkeypatch):
    """All of the result is there, and a lost file is written again."""
    monkeypatch.setattr(Programs, "compile", never)
    document = (copy / whole.record).read_text()
    lost = {"run": "learning_curve.png", "sweep": "table.csv"}[whole.name]
    (copy / lost).unlink()
    result = whole.start(copy, resume=True)
    np.testing.assert_array_equal(result.metrics["kl"], whole.result.metrics["kl"])
    assert result.timing == whole.result.timing and (copy / whole.record).read_text() == document
    assert (copy / lost).exists()


def test_two_processes_do_not_share_a_folder(whole, copy, monkeypatch):
    monkeypatch.setattr(Programs, "compile", never)
    with run_folder.lock_folder(copy, None), pytest.raises(RunFolderError, match="is in use by another process"):
        whole.start(copy, resume=True)


def test_resume_needs_a_folder(whole):
    with pytest.raises(ValueError, match="resume=True needs out"):
        whole.start(None, resume=True)


def test_other_hardware_is_reported(whole, copy):
    """Other versions or devices may round differently."""
    document = _document(copy)
    document["device"]["count"] += 1
    (copy / whole.record).write_text(json.dumps(document | {"status": "interrupted"}))
    with pytest.warns(RunWarning, match=r"resuming, but perhaps not bit for bit: device.count is \d before and \d now"):
        whole.start(copy, resume=True)
    (copy / whole.record).write_text(json.dumps(_document(copy) | {"status": "interrupted"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole.start(copy, resume=True)


# Faults of disk and clock


def _until(monkeypatch, code, update):
    """`checkpoints.save`, but from `update` on the disk answers with the errno `code`."""
    save = checkpoints.save

    def until(out, snapshot, *arguments):
        if snapshot.update >= update:
            fail_with(monkeypatch, code)
        save(out, snapshot, *arguments)

    return until


def _backwards(monkeypatch):
    """Every clock that people can set runs backwards: that of Python, and that of the record."""
    seconds = itertools.count(2e9, -1000)
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(seconds)) * 10**9)
    monkeypatch.setattr(
        run_record, "now", lambda: datetime.datetime.fromtimestamp(next(seconds), datetime.UTC).isoformat()
    )


@pytest.mark.slow
def test_no_fault_costs_more_than_an_interval(whole, tmp_path, monkeypatch):
    """Ctrl-C while it compiles; Ctrl-C in a save, and in the save that answers it; a full disk; one that can only be
    read; and all the time a clock that runs backwards."""
    out, interrupt = tmp_path / "out", KeyboardInterrupt()
    write = checkpoints.write_arrays
    faults = (
        (Programs, "compile", lambda _: stopped(None, interrupt, 1, "before"), "interrupted", 0),
        (checkpoints, "write_arrays", lambda _: stopped(write, interrupt, 3, "from"), "interrupted", 8),
        (checkpoints, "save", lambda patch: _until(patch, errno.ENOSPC, 20), "running", 16),
        (checkpoints, "save", lambda patch: _until(patch, errno.EROFS, 28), "running", 24),
    )
    for place, name, fault, status, update in faults:
        with monkeypatch.context() as patch:
            _backwards(patch)
            patch.setattr(place, name, fault(patch))
            with pytest.raises((KeyboardInterrupt, RunFolderError)) as error:
                whole.start(out, resume=True)
        assert error.type is KeyboardInterrupt or "\n" not in str(error.value)
        assert _document(out)["status"] == status
        assert kills.last_update(out) == update
    with monkeypatch.context() as patch:
        _backwards(patch)
        result = whole.start(out, resume=True)
    whole.assert_same(out, whole.out)
    assert min(result.timing) > 0
    document = _document(out)
    assert document["ended"] < document["started"]


def test_no_module_uses_an_adjustable_clock():
    """But for the times in `run.json`, which are read by people, and the names of folders."""
    found = {
        path.name
        for folder in ("marl_kl", "envs")
        for path in (Path(__file__).parents[2] / folder).rglob("*.py")
        if re.search(r"\btime\.time|mtime|datetime\.now|\.today\(", path.read_text())
    }
    assert found == {"run_record.py", "options.py"}


# Damaged and other folders


def _lose_checkpoints(out):
    shutil.rmtree(out / "checkpoints")


def _damage_all(out):
    for manifest in out.glob("**/checkpoints/*/manifest.json"):
        manifest.unlink()


def _from_the_future(out):
    for manifest in out.glob("**/checkpoints/*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))


def _swap_run(out):
    document = json.loads((out / "run.json").read_text())
    document["config"]["gamma"] = 0.5
    (out / "run.json").write_text(json.dumps(document))


_NOT_RESUMED = {
    "run": [
        (None, {"gamma": 0.5}, "holds another run: config.gamma is 0.99 there and 0.5 here"),
        (None, {"seeds": 2}, r"another run: seeds is \[4, 7\] there and \[0, 1\] here; train other seeds into another"),
        (None, {"total_env_steps": 320}, "total_env_steps=320; it must be at least 1920, which the run in .* has"),
        (_lose_checkpoints, {}, "there is no checkpoint in '.*', only its metrics.csv"),
        (_damage_all, {}, "checkpoints/60 is damaged: its manifest.json is missing$"),
        (_from_the_future, {}, "checkpoints/60 was written by a newer marl_kl"),
        (_swap_run, {"gamma": 0.5}, "checkpoints/60 belongs to another run: config.gamma is 0.99 there and 0.5 here"),
        (lambda out: os.truncate(out / "run.json", 100), {}, "run.json is truncated or damaged"),
        (lambda out: (out / "run.json").unlink(), {}, "is not empty .it holds 'checkpoints'."),
    ],
    "sweep": [
        (None, {"gamma": 0.5}, "holds another sweep: config.gamma is 0.99 there and 0.5 here"),
        (None, {"seeds": [4, 5]}, r"holds another sweep: seeds is \[4\] there and \[4, 5\] here$"),
        (None, {"grid": {"kl_budget": (0.02, 0.09, 0.3)}}, "settings.1.kl_budget is 0.08 there and 0.09 here"),
        (None, {"grid": {"kl_budget": (0.02, 0.08)}}, "number of settings is 3 there and 2 here"),
        (None, {"eval_interval": 3}, "eval_interval is 7 there and 3 here"),
        (None, {"total_env_steps": 320}, "total_env_steps is 1920 there and 320 here"),
        (None, {"runs_at_once": 3}, "runs_at_once is 2 there and 3 here"),
        (lambda out: os.truncate(out / "sweep.json", 60), {}, "sweep.json is truncated or damaged"),
        (lambda out: shutil.rmtree(out / "pieces"), {}, "there is no folder 'pieces' in '.*', only table.csv"),
        (
            lambda out: _damage_all(out / "pieces" / "1-2"),
            {},
            "1-2/checkpoints/60 is damaged: its manifest.json is missing; delete the folder .*/1-2 to train its 1 runs",
        ),
    ],
}


def test_a_refused_resume_gives_a_one_line_error_and_changes_no_file(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Programs, "compile", never)
    for index, (damage, options, message) in enumerate(_NOT_RESUMED[whole.name]):
        copy = shutil.copytree(whole.out, tmp_path / str(index))
        if damage:
            damage(copy)
        before = _contents(copy)
        with pytest.raises(ValueError, match=message) as error:
            whole.start(copy, resume=True, **options)
        assert "\n" not in str(error.value) and str(copy) in str(error.value)
        assert before == _contents(copy), message


def _contents(out):
    """But for the lock, and what a sweep writes before it opens its shards."""
    names = (".lock",) if (out / RUN).exists() else (".lock", "log.jsonl", SWEEP)
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name not in names}


@pytest.mark.parametrize(
    "env, algorithm, message",
    [
        (counting_env(episode_length=6), "hatrpo_w", "env.episode_length is 5 there and 6 here"),
        (counting_env()._replace(params=np.ones(2)), "hatrpo_w", "env_params is"),
        (counting_env(), "hatrpo", "algorithm is 'hatrpo_w' there and 'hatrpo' here"),
    ],
)
def test_another_environment_or_algorithm_is_another_run(run_copy, env, algorithm, message):
    with pytest.raises(RunFolderError, match=f"holds another run: {message}"):
        marl_kl.train(env, algorithm, seeds=[4, 7], out=run_copy, resume=True, progress="none", **kills.CONFIG)


def test_the_newest_checkpoint_damaged_the_older_one_gives_the_same_bits(whole_run, run_copy):
    """Rows of updates that the older checkpoint does not have are dropped and computed again."""
    assert _kept(run_copy) == [56, 60]
    (run_copy / "checkpoints" / "60" / "manifest.json").write_text("{")
    (run_copy / "metrics.csv").write_text("lost")
    with pytest.warns(RunWarning, match="checkpoints/60 is damaged: .*; using the older one of update 56"):
        train(run_copy, resume=True)
    assert_same_run(run_copy, whole_run[0])
    assert _kept(run_copy) == [56, 60] and marl_kl.load(run_copy).update == 60


# What only runs do


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.csv", "evaluation.csv"])
def test_half_a_row_is_not_read_and_replaced(whole_run, tmp_path, monkeypatch, name):
    """What a kill leaves that strikes while rows are appended; those before it are read."""
    out = tmp_path / "run"
    monkeypatch.setattr(Programs, "chunk", stopped(Programs.chunk, KeyboardInterrupt, 9, "before"))
    with pytest.raises(KeyboardInterrupt):
        train(out)
    monkeypatch.undo()
    before = stored_runs.read_result(out)
    with (out / name).open("a") as file:
        file.write((out / name).read_text().splitlines()[1] + "\n4,99,3168,0.12")
    after = stored_runs.read_result(out)
    np.testing.assert_array_equal(after.metrics["kl"], before.metrics["kl"])
    np.testing.assert_array_equal(after.evaluation.episode_return, before.evaluation.episode_return)
    train(out, resume=True)
    assert_same_run(out, whole_run[0])


@pytest.mark.slow
def test_a_full_disk_while_rows_are_appended_leaves_whole_rows(whole_run, tmp_path, monkeypatch):
    out, append = tmp_path / "run", run_tables.append_to_file

    def full(path, content):
        monkeypatch.setattr(os, "fsync", stopped(None, OSError(errno.ENOSPC, "no space left on device"), 1, "from"))
        append(path, content)

    monkeypatch.setattr(run_tables, "append_to_file", full)
    with pytest.raises(RunFolderError, match="cannot write .*: no space left on device"):
        train(out)
    monkeypatch.undo()
    assert without_wall_clock(whole_run[0]).startswith(without_wall_clock(out))
    train(out, resume=True)
    assert_same_run(out, whole_run[0])


@pytest.mark.slow
def test_a_table_is_written_once_and_then_appended_to(tmp_path, monkeypatch):
    """So that its cost does not grow with the length of the run."""
    written = {"write_file": [], "append_to_file": []}
    for name, sizes in written.items():
        original = getattr(run_tables, name)
        monkeypatch.setattr(run_tables, name, _measured(original, sizes))
    train(tmp_path / "run")
    assert len(written["write_file"]) == 2, "one per table"
    sizes = written["append_to_file"]
    assert len(sizes) > 20 and sum(sizes) < sum(path.stat().st_size for path in (tmp_path / "run").glob("*.csv"))


def _measured(original, sizes):
    def write(path, content):
        sizes.append(len(content))
        original(path, content)

    return write


def test_the_state_leaves_the_devices_only_where_it_is_saved(tmp_path, monkeypatch):
    copied, named = [], array_trees.named_leaves
    monkeypatch.setattr(array_trees, "named_leaves", lambda tree: copied.append(type(tree).__name__) or named(tree))
    train(tmp_path / "run", save_interval=0)
    assert copied.count("TrainState") == 1


@pytest.mark.slow
def test_a_finished_run_is_extended(whole_run, tmp_path, capsys):
    """As the run that was that long from the start, but for the evaluation at the old end, which is kept."""
    out = tmp_path / "run"
    short = train(out, total_env_steps=32 * 40)
    assert short.env_steps[-1] == 32 * 40 and short.evaluation.update[-1] == 40
    (out / run_tables.ABSOLUTE).write_text("of learners that are no longer the best")
    long = train(out, resume=True, progress="plain")
    assert not (out / run_tables.ABSOLUTE).exists()
    assert "resuming at update 40 of 60" in capsys.readouterr().out
    for name, values in whole_run[1].metrics.items():
        np.testing.assert_array_equal(long.metrics[name], values, err_msg=name)
    scheduled = long.evaluation.update != 40
    np.testing.assert_array_equal(long.evaluation.update[scheduled], whole_run[1].evaluation.update)
    np.testing.assert_array_equal(long.evaluation.episode_return[:, scheduled], whole_run[1].evaluation.episode_return)
    record = run_record.read_record(out)
    assert record.config.total_env_steps == 32 * 60 and record.status == "finished"
    assert long.timing.train > short.timing.train and long.timing.compile > short.timing.compile


@pytest.mark.slow
def test_a_run_is_resumed_on_another_number_of_devices(whole_run, tmp_path):
    """Started on two, finished here: a warning, and the same results up to rounding."""
    out = tmp_path / "run"
    topology.run("from tests.support import kills\nkills.train(sys.argv[1], total_env_steps=32 * 20)", out, devices=2)
    here = jax.device_count()
    assert here != 2 and run_record.read_record(out).document["device"]["count"] == 2
    with pytest.warns(RunWarning, match=f"perhaps not bit for bit: device.count is 2 before and {here} now"):
        result = train(out, resume=True)
    assert _document(out)["status"] == "finished" and result.evaluation.update[-1] == kills.UPDATES
    for name in ("kl", "kl_total", "episode_return", "value_loss"):
        np.testing.assert_allclose(result.metrics[name], whole_run[1].metrics[name], rtol=1e-2, atol=1e-4, err_msg=name)


def test_an_annealed_run_keeps_its_end(tmp_path, monkeypatch):
    """Its schedule ends there; the rest is free."""
    monkeypatch.setattr(runner._Run, "_trained", lambda run, shard, snapshot, status: snapshot)
    monkeypatch.setattr(runner.reporting, "finish", lambda *_, **__: None)

    def resume(**options):
        options = {
            "out": tmp_path / "run",
            "resume": True,
            "progress": "none",
            "actor_lr_final_fraction": 0.0,
            **options,
        }
        return marl_kl.train(counting_env(), "happo", **{**kills.CONFIG, **options})

    resume()
    resume(chunk_updates=7, save_interval=3)
    steps = kills.CONFIG["total_env_steps"]
    for other in (steps // 2, 2 * steps):
        message = f"total_env_steps is {steps} there and {other} here; a schedule "
        with pytest.raises(RunFolderError, match=message) as error:
            resume(total_env_steps=other)
        assert "\n" not in str(error.value) and "train a new" in str(error.value)
    with pytest.raises(RunFolderError, match="config.actor_lr_final_fraction is 0.0 there and 0.5 here"):
        resume(actor_lr_final_fraction=0.5)


# What only sweeps do


def _stopped_before_training(out, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(ShardLoop, "run", stopped(None, KeyboardInterrupt, 1, "before"))
        with pytest.raises(KeyboardInterrupt):
            kills.sweep(out, **options)


def test_the_size_of_shards_is_remembered(tmp_path, monkeypatch, capsys):
    """In another program a trial is the same up to rounding only; another day has other free memory."""
    out = tmp_path / "sweep"
    free = iter([3])
    with monkeypatch.context() as patch:
        patch.setattr(sweeper.devices, "free_bytes", lambda mesh: next(free, 2**60))
        patch.setattr(Programs, "state_bytes", 1.0)
        _stopped_before_training(out, monkeypatch, runs_at_once=None)
    assert _document(out)["sizes"] == {"1": 2}
    made = []
    monkeypatch.setattr(Programs, "compile", lambda self: (made.append(self.num_runs), never()))
    with pytest.raises(AssertionError):
        kills.sweep(out, runs_at_once=None, resume=True, progress="plain")
    assert made == [2] and "resuming: 0 of 3 runs are finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_that_is_resumed_with_less_memory_is_refused(tmp_path, monkeypatch):
    """Before its first update: its shards must stay as they are, for the same bits."""
    _stopped_before_training(tmp_path / "sweep", monkeypatch)
    monkeypatch.setattr(Programs, "bytes_per_run", 2.0**30)
    monkeypatch.setattr(sweeper.devices, "free_bytes", lambda mesh: 2**30)
    monkeypatch.setattr(Programs, "chunk", never)
    message = (
        r"^training 2 runs at once, as this sweep has begun, needs about 2.0 GiB of memory, of which 1.0 GiB are free; "
        r"resume it where there is more memory, or start it in another folder with runs_at_once below 2$"
    )
    with pytest.raises(MemoryError, match=message):
        kills.sweep(tmp_path / "sweep", resume=True)
    assert _document(tmp_path / "sweep")["sizes"] == {"1": 2}


def test_a_shard_that_is_missing_is_trained_again(whole, copy):
    if whole.name == "run":
        pytest.skip("has no shards on disk")
    shutil.rmtree(copy / "pieces" / "1-2")
    (copy / "sweep.json").write_text(json.dumps(_document(copy) | {"status": "interrupted"}))
    whole.start(copy, resume=True)
    whole.assert_same(copy, whole.out)


def test_a_run_is_no_sweep(tmp_path):
    with run_folder.lock_folder(
        tmp_path, run_record.record(counting_env().spec, "hatrpo_w", marl_kl.TrustRegionConfig(), [4])
    ):
        pass
    with pytest.raises(RunFolderError, match="already holds another run"):
        kills.sweep(tmp_path, resume=True)


@pytest.mark.slow
def test_out_of_memory_gives_a_one_line_error(tmp_path, monkeypatch):
    """Before the first update if XLA's account says so; if only the device finds out, then."""
    with monkeypatch.context() as patch:
        patch.setattr(Programs, "bytes_per_run", 2.0**40)
        patch.setattr(sweeper.devices, "free_bytes", lambda mesh: 2**30)
        with pytest.raises(
            MemoryError, match=r"training a single run needs about 1,024.0 GiB of memory, of which 1.0 GiB"
        ):
            kills.sweep(tmp_path / "forecast")
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore of it")
    monkeypatch.setattr(Programs, "chunk", stopped(Programs.chunk, error, 1, "before"))
    with pytest.raises(
        MemoryError, match="^training 2 runs at once does not fit .*; give runs_at_once a number below 2"
    ):
        kills.sweep(tmp_path / "found")
    assert _document(tmp_path / "found")["status"] == "failed"
