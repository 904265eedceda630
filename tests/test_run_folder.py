"""The run folder: what comes back is what was written, and whatever is wrong with it is one sentence."""

import errno
import json
import os
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from tests import synthetic
from marl_kl import run_folder
from marl_kl.config import TrustRegionConfig
from marl_kl.results import Evaluation, Failure
from marl_kl.run_folder import RunExistsError, RunFolderError


class _Learner(NamedTuple):
    actors: Any
    state: Any
    key: Any
    empty: Any


def _learner(seeds=3, value=1.0):
    return _Learner(
        actors={"Dense_0": {"kernel": jnp.full((seeds, 2, 5), value), "a/b.c": jnp.ones((seeds,), jnp.bfloat16)}},
        state=((), [jnp.arange(seeds), jnp.full((seeds,), jnp.nan)], None),
        key=jax.random.split(jax.random.key(0), seeds),
        empty=jnp.zeros((seeds, 0)),
    )


def _created(out, config=TrustRegionConfig()):
    with run_folder.claim(out, run_folder.record(synthetic.spec(), "hatrpo_w", config, (3, 5))):
        return out


def _one_sentence(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# run.json


def test_record_comes_back_as_it_was(tmp_path):
    config = TrustRegionConfig(kl_budget=0.1 + 0.2, value_clip=float("inf"), hidden_sizes=(3, 4))
    out = _created(tmp_path / "a" / "b", config)
    record = run_folder.read_record(out)
    assert record.spec == synthetic.spec() and record.config == config and type(record.config) is TrustRegionConfig
    assert (record.algorithm, record.seeds, record.status, record.failures) == ("hatrpo_w", (3, 5), "running", ())
    versions = record.document["versions"]
    assert versions["jax"] == jax.__version__ and versions["marl_kl"] and versions["python"]
    assert record.document["device"]["count"] == len(jax.devices())


def test_status_and_failures_are_noted(tmp_path):
    out = _created(tmp_path / "run")
    run_folder.set_status(out, "finished", [Failure(5, 7, "value")])
    record = run_folder.read_record(out)
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


def test_an_unwritable_folder_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    _fail_with(monkeypatch, errno.EACCES)
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
        run_folder.read_record(out)
    assert str(out) in _one_sentence(error)


# Metrics


def test_metrics_read_back_exactly_by_pandas(tmp_path):
    result = synthetic.result(num_seeds=2, num_agents=3, num_updates=7)
    metrics = result.metrics | {
        "count": np.arange(14).reshape(2, 7),
        "flag": np.eye(2, 7, dtype=bool),
        "extremes": np.full((2, 7), [np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 0.1, -0.0], np.float32),
        "double": np.random.default_rng(0).normal(size=(2, 7)),
    }
    env_steps = np.arange(1, 8) * 10**12
    run_folder.write_metrics(tmp_path, result.spec.agents, (4, 9), env_steps, metrics)
    frame = pd.read_csv(tmp_path / "metrics.csv")
    assert list(frame["seed"]) == [4] * 7 + [9] * 7
    assert list(frame["update"]) == [*range(1, 8)] * 2
    assert list(frame["env_steps"]) == [*env_steps] * 2
    for name, values in metrics.items():
        columns = [name] if values.ndim == 2 else [f"{name}[{agent}]" for agent in result.spec.agents]
        read = frame[columns].to_numpy().reshape(values.shape)
        np.testing.assert_array_equal(read.astype(values.dtype), values, err_msg=name)
    assert list(frame.columns[:4]) == ["seed", "update", "env_steps", "episode_return"]
    assert "kl[hip_1+ankle_1]" in frame.columns


def test_metrics_of_a_wrong_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metric 'kl' has shape \(2, 5\); it must be \(2, 4\) or \(2, 4, 1\)"):
        run_folder.write_metrics(tmp_path, ("a",), (0, 1), np.arange(4), {"kl": np.zeros((2, 5))})


def test_a_run_of_no_updates_has_a_header(tmp_path):
    run_folder.write_metrics(tmp_path, ("a",), (0,), np.arange(0), {"kl": np.zeros((1, 0, 1))})
    assert list(pd.read_csv(tmp_path / "metrics.csv").columns) == ["seed", "update", "env_steps", "kl[a]"]


def test_evaluation_reads_back_by_pandas(tmp_path):
    returns = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    update = np.array([0, 5, 10])
    run_folder.write_evaluation(tmp_path, (4, 9), Evaluation(update, update * 10**12, returns, np.full((2, 3, 4), 7)))
    frame = pd.read_csv(tmp_path / "evaluation.csv").set_index(["seed", "update", "episode"])
    assert frame.loc[(9, 5, 2), "episode_return"].astype(np.float32) == returns[1, 1, 2]
    assert frame.loc[(9, 10, 0), "env_steps"] == 10 * 10**12
    assert (frame["episode_length"] == 7).all() and len(frame) == 24


# The learner


def test_learner_comes_back_in_the_template_s_structure(tmp_path):
    learner = _learner()
    run_folder.save_learner(tmp_path, learner, 12)
    back, update = run_folder.load_learner(tmp_path, jax.eval_shape(lambda: learner))
    assert update == 12 and type(back) is _Learner
    assert jax.tree.structure(back) == jax.tree.structure(learner)
    np.testing.assert_array_equal(jax.random.key_data(back.key), jax.random.key_data(learner.key))
    for found, wanted in zip(jax.tree.leaves(back._replace(key=0)), jax.tree.leaves(learner._replace(key=0))):
        assert np.asarray(found).dtype == np.asarray(wanted).dtype
        np.testing.assert_array_equal(found, wanted)
    assert isinstance(back.actors["Dense_0"]["kernel"], np.ndarray)


def test_without_a_template_leaves_come_by_path(tmp_path):
    run_folder.save_learner(tmp_path, _learner(), 1)
    leaves, _ = run_folder.load_learner(tmp_path)
    assert leaves["actors.Dense_0.kernel"].shape == (3, 2, 5)
    run_folder.save_learner(tmp_path / "bare", jnp.ones(3), 1)
    np.testing.assert_array_equal(run_folder.load_learner(tmp_path / "bare", jnp.zeros(3))[0], np.ones(3))


def test_the_last_two_checkpoints_are_kept_and_a_newer_save_of_one_replaces_it(tmp_path):
    for update, value in ((9, 1.0), (10, 2.0), (100, 3.0), (100, 4.0)):
        run_folder.save_learner(tmp_path, _learner(value=value), update)
    folders = sorted(entry.name for entry in (tmp_path / "learner").iterdir() if entry.is_dir())
    assert folders == ["10", "100"]
    leaves, update = run_folder.load_learner(tmp_path)
    assert update == 100 and leaves["actors.Dense_0.kernel"].max() == 4.0


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    run_folder.save_learner(tmp_path, _learner(), 1)
    run_folder.save_learner(tmp_path, _learner(), 2)
    (tmp_path / "learner" / "2.sha256.json").unlink()  # as if killed before the last write
    assert run_folder.load_learner(tmp_path)[1] == 1


def _largest_file(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda learner: shutil.rmtree(learner), "there is no stored learner"),
        (lambda learner: shutil.rmtree(learner / "5"), "there is no stored learner"),
        (lambda learner: os.truncate(_largest_file(learner / "5"), 20), "has changed"),
        (lambda learner: _largest_file(learner / "5").unlink(), "is missing"),
        (lambda learner: (learner / "5.sha256.json").write_text("{"), "checksums are unreadable"),
    ],
)
def test_missing_and_corrupt_checkpoints_are_named(tmp_path, capfd, damage, message):
    run_folder.save_learner(tmp_path, _learner(), 5)
    damage(tmp_path / "learner")
    with pytest.raises(RunFolderError, match=message) as error:
        run_folder.load_learner(tmp_path)
    assert str(tmp_path) in _one_sentence(error)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda learner: learner._replace(actors={}), "which the learner does not have"),
        (lambda learner: learner._replace(empty=jnp.ones((3, 2))), "lacks 'empty'"),
        (lambda learner: _learner(seeds=4), r"with shape .*; the learner needs"),
        (lambda learner: learner._replace(state=((), [jnp.zeros(3)] * 2, None)), "as int32"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, change, message):
    run_folder.save_learner(tmp_path, _learner(), 5)
    with pytest.raises(RunFolderError, match=message) as error:
        run_folder.load_learner(tmp_path, change(_learner()))
    _one_sentence(error)


# Writing


def _fail_with(monkeypatch, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    run_folder.write_file(tmp_path / "summary.md", "old")
    _fail_with(monkeypatch, errno.ENOSPC)
    with pytest.raises(RunFolderError, match="cannot write .*summary.md: no space left on device") as error:
        run_folder.write_file(tmp_path / "summary.md", "new")
    _one_sentence(error)
    assert (tmp_path / "summary.md").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.md"]


def test_a_full_disk_during_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    run_folder.save_learner(tmp_path, _learner(value=1.0), 1)
    _fail_with(monkeypatch, errno.ENOSPC)
    with pytest.raises(RunFolderError, match="no space left on device"):
        run_folder.save_learner(tmp_path, _learner(value=2.0), 2)
    monkeypatch.undo()
    assert run_folder.load_learner(tmp_path)[1] == 1


def test_a_full_disk_inside_orbax_is_one_sentence_too(tmp_path, monkeypatch, capfd):
    import orbax.checkpoint as ocp

    def fail(self, directory, *_, **__):
        (directory.parent / f"{directory.name}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: in database\nNo space left on device [os_error_code='28']")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
    with pytest.raises(RunFolderError, match="cannot write .*learner/1: no space left on device"):
        run_folder.save_learner(tmp_path, _learner(), 1)
    assert not list((tmp_path / "learner").iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="gone/metrics.csv: no such file or directory"):
        run_folder.write_metrics(tmp_path / "gone", ("a",), (0,), np.arange(0), {})


def test_learner_under_a_file_is_one_sentence(tmp_path):
    (tmp_path / "learner").touch()
    with pytest.raises(RunFolderError, match="cannot write") as error:
        run_folder.save_learner(tmp_path, _learner(), 1)
    _one_sentence(error)
