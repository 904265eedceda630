"""The run folder: what comes back is what was written, and whatever is wrong with it is one sentence."""

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil

import jax
import pytest

from marl_kl.config import TrustRegionConfig
from marl_kl.results import Failure
from marl_kl.storage import run_folder, run_record
from marl_kl.storage.run_folder import RunExistsError, RunFolderError
from tests.support import synthetic
from tests.support.faults import fail_with


def _created(out, config=TrustRegionConfig()):
    with run_folder.lock_folder(out, run_record.record(synthetic.spec(), "hatrpo_w", config, (3, 5))):
        return out


def _one_sentence(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# run.json


def test_record_comes_back_as_it_was(tmp_path):
    config = TrustRegionConfig(kl_budget=0.1 + 0.2, value_clip=float("inf"), hidden_sizes=(3, 4))
    out = _created(tmp_path / "a" / "b", config)
    record = run_record.read_record(out)
    assert record.spec == synthetic.spec() and record.config == config and type(record.config) is TrustRegionConfig
    assert (record.algorithm, record.seeds, record.failures) == ("hatrpo_w", (3, 5), ())
    versions = record.document["versions"]
    assert versions["jax"] == jax.__version__ and versions["marl_kl"] and versions["python"]
    assert record.document["device"]["count"] == len(jax.devices())


def test_a_run_is_running_while_a_process_holds_its_folder(tmp_path):
    out = _created(tmp_path / "run")
    assert run_record.read_record(out).status == "stopped", "as after a SIGKILL"
    with run_folder.lock_folder(out, None):
        assert run_record.read_record(out).status == "running"
    (out / ".lock").unlink()
    assert run_record.read_record(out).status == "running", "where locks say nothing"
    run_folder.set_status(out, "finished")
    assert run_record.read_record(out).status == "finished"


def test_status_and_failures_are_noted(tmp_path):
    out = _created(tmp_path / "run")
    run_folder.set_status(out, "finished", [Failure(5, 7, "value")])
    record = run_record.read_record(out)
    assert record.status == "finished" and record.failures == (Failure(5, 7, "value"),) and record.document["ended"]
    with pytest.raises(ValueError, match="status='done'"):
        run_folder.set_status(out, "done")


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-run.json-123").touch()  # left by a process that was killed
    _created(tmp_path / "run")


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda out: _created(out), "already holds another run"),
        (lambda out: out.write_text("x"), "is a file"),
        (lambda out: (out.mkdir(), (out / "thesis.tex").touch()), "is not empty .it holds 'thesis.tex'."),
    ],
)
def test_a_taken_path_is_refused(tmp_path, prepare, message):
    prepare(tmp_path / "run")
    with pytest.raises(RunExistsError, match=message) as error:
        _created(tmp_path / "run")
    assert "run" in _one_sentence(error)
    assert isinstance(error.value, (ValueError, FileExistsError))


def test_a_path_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot create .*file/run: not a directory") as error:
        _created(tmp_path / "file" / "run")
    _one_sentence(error)


def test_an_unwritable_folder_is_refused_and_left_empty(tmp_path, monkeypatch):
    fail_with(monkeypatch, errno.EACCES)
    with pytest.raises(RunFolderError, match="cannot write .*run.json: permission denied"):
        _created(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _document(out, change):
    document = json.loads((out / "run.json").read_text())
    change(document)
    (out / "run.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda out: shutil.rmtree(out), "there is no run folder"),
        (lambda out: (out / "run.json").unlink(), "not a run folder: it has no run.json"),
        (lambda out: os.truncate(out / "run.json", 200), "truncated or damaged"),
        (lambda out: (out / "run.json").write_bytes(b"\xff\xfe\x00"), "truncated or damaged"),
        (lambda out: (out / "run.json").write_text('{"name": "other"}'), "not written by marl_kl"),
        (lambda out: (out / "run.json").write_text("[]"), "not written by marl_kl"),
        (lambda out: _document(out, lambda d: d.update(format=99)), "newer marl_kl .format 99; this one reads up to"),
        (lambda out: _document(out, lambda d: d.update(format=None)), "format is None"),
        (lambda out: _document(out, lambda d: d.pop("seeds")), "it lacks 'seeds'"),
        (lambda out: _document(out, lambda d: d["config"].update(kl_budget=-1)), "kl_budget=-1"),
        (lambda out: _document(out, lambda d: d["config"].update(novel=1)), "novel"),
        (lambda out: _document(out, lambda d: d.update(config_class="Other")), "config class 'Other' is unknown"),
        (lambda out: _document(out, lambda d: d.update(env=[1])), "does not describe a run"),
    ],
)
def test_damaged_and_foreign_folders_are_named(tmp_path, damage, message):
    out = _created(tmp_path / "run")
    damage(out)
    with pytest.raises(RunFolderError, match=message) as error:
        run_record.read_record(out)
    assert str(out) in _one_sentence(error)


# One process at a time


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path):
    out = _created(tmp_path / "run")
    with run_folder.lock_folder(out, None):
        with pytest.raises(RunFolderError, match=f"is in use by another process .process {os.getpid()} on "):
            with run_folder.lock_folder(out, None):
                pass
    with run_folder.lock_folder(out, None):
        pass


def test_unfinished_files_of_a_killed_process_are_removed_by_the_next(tmp_path):
    out = _created(tmp_path / "run")
    (out / ".tmp-metrics.csv-123").touch()
    with run_folder.lock_folder(out, None):
        assert sorted(entry.name for entry in out.iterdir()) == [".lock", "run.json"]


def test_a_read_only_folder_gives_a_one_line_error(tmp_path, monkeypatch):
    out = _created(tmp_path / "run")

    def refuse(self, *_, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(type(out), "open", refuse)
    with pytest.raises(RunFolderError, match="cannot write .*run/.lock: read-only file system") as error:
        with run_folder.lock_folder(out, None):
            pass
    _one_sentence(error)


def test_a_file_system_without_locks_is_used_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert (_created(tmp_path / "run") / "run.json").exists()


# Which run it is


def test_a_resumed_run_is_noted(tmp_path):
    out = _created(tmp_path / "run")
    run_folder.set_status(out, "interrupted")
    longer = run_record.record(synthetic.spec(), "hatrpo_w", TrustRegionConfig(total_env_steps=7), (3, 5))
    device = {"kind": "cpu", "platform": "cpu", "count": 99}
    run_folder.record_resume(out, longer | {"device": device}, 12)
    record = run_record.read_record(out)
    assert (
        record.document["status"] == "running"
        and record.document["ended"] is None
        and record.config.total_env_steps == 7
    )
    assert [(entry["update"], entry["device"]) for entry in record.document["resumed"]] == [(12, device)]
    assert run_record.last_session(record.document)["device"] == device


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, None),
        ({"config": TrustRegionConfig(total_env_steps=5, save_interval=1, eval_interval=3, chunk_updates=2)}, None),
        ({"config": TrustRegionConfig(gamma=0.5)}, "config.gamma is 0.99 there and 0.5 here"),
        ({"seeds": (5, 3)}, r"seeds is \[3, 5\] there and \[5, 3\] here"),
        ({"algorithm": "hatrpo"}, "algorithm is 'hatrpo_w' there and 'hatrpo' here"),
        ({"env_params": "0"}, "env_params is 'f' there and '0' here"),
        ({"spec": synthetic.spec(num_agents=3)}, "env.agents is"),
        ({"spec": dataclasses.replace(synthetic.spec(), metadata=(("backend", "mjx"),))}, "env.metadata.backend is"),
        ({"spec": dataclasses.replace(synthetic.spec(), options=())}, None),
    ],
)
def test_all_that_the_numbers_depend_on_tells_one_run_from_another(tmp_path, options, message):
    same = {
        "spec": synthetic.spec(),
        "algorithm": "hatrpo_w",
        "config": TrustRegionConfig(),
        "seeds": (3, 5),
        "env_params": "f",
    }
    stored = json.loads(json.dumps(run_record.record(**same)))
    found = run_record.first_mismatch(*map(run_record.fingerprint, (stored, run_record.record(**same | options))))
    assert (found is None) if message is None else re.match(message, found)
