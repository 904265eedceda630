"""The tables of a run folder: pandas reads back exactly what was written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import marl_kl
from marl_kl.results import Evaluation
from marl_kl.storage import run_tables, stored_runs
from marl_kl.storage.files import RunFolderError
from tests.support import synthetic


def test_metrics_read_back_exactly_by_pandas(tmp_path):
    result = synthetic.result(num_seeds=2, num_agents=3, num_updates=7)
    metrics = result.metrics | {
        "count": np.arange(14).reshape(2, 7),
        "flag": np.eye(2, 7, dtype=bool),
        "extremes": np.full((2, 7), [np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 0.1, -0.0], np.float32),
        "double": np.random.default_rng(0).normal(size=(2, 7)),
    }
    env_steps = np.arange(1, 8) * 10**12
    run_tables.write_metrics(tmp_path, result.spec.agents, (4, 9), env_steps, metrics)
    frame = pd.read_csv(tmp_path / "metrics.csv")
    assert list(frame["seed"]) == [4, 9] * 7
    assert list(frame["update"]) == [update for update in range(1, 8) for _ in range(2)]
    assert list(frame["env_steps"]) == [steps for steps in env_steps for _ in range(2)]
    frame = frame.sort_values(["seed", "update"])
    for name, values in metrics.items():
        columns = [name] if values.ndim == 2 else [f"{name}[{agent}]" for agent in result.spec.agents]
        read = frame[columns].to_numpy().reshape(values.shape)
        np.testing.assert_array_equal(read.astype(values.dtype), values, err_msg=name)
    assert list(frame.columns[:4]) == ["seed", "update", "env_steps", "episode_return"]
    assert "kl[hip_1+ankle_1]" in frame.columns


def test_wall_clock_is_a_column_where_it_is_known(tmp_path, finished):
    out, result = finished
    frame = pd.read_csv(out / "metrics.csv")
    assert list(frame.columns[:4]) == ["seed", "update", "env_steps", "wall_time_s"]
    per_update = frame.groupby("update")["wall_time_s"]
    assert (per_update.nunique() == 1).all() and (np.diff(per_update.first()) > 0).all()
    assert 0 < frame["wall_time_s"].iloc[0] and frame["wall_time_s"].iloc[-1] <= sum(result.timing) * (1 + 1e-6)
    stored = stored_runs.read_result(out)
    np.testing.assert_allclose(stored.wall_time_s, result.wall_time_s, rtol=1e-6)
    run_tables.write_metrics(tmp_path, result.spec.agents, result.seeds, result.env_steps, result.metrics)
    assert run_tables.read_metrics(tmp_path, result.spec.agents).wall_time_s is None


def test_metrics_of_a_wrong_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metric 'kl' has shape \(2, 5\); it must be \(2, 4\) or \(2, 4, 1\)"):
        run_tables.write_metrics(tmp_path, ("a",), (0, 1), np.arange(4), {"kl": np.zeros((2, 5))})


def test_a_run_of_no_updates_has_a_header(tmp_path):
    run_tables.write_metrics(tmp_path, ("a",), (0,), np.arange(0), {"kl": np.zeros((1, 0, 1))})
    assert list(pd.read_csv(tmp_path / "metrics.csv").columns) == ["seed", "update", "env_steps", "kl[a]"]


def test_evaluation_reads_back_by_pandas(tmp_path):
    returns = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    update = np.array([0, 5, 10])
    run_tables.write_evaluation(tmp_path, (4, 9), Evaluation(update, update * 10**12, returns, np.full((2, 3, 4), 7)))
    frame = pd.read_csv(tmp_path / "evaluation.csv").set_index(["seed", "update", "episode"])
    assert frame.loc[(9, 5, 2), "episode_return"].astype(np.float32) == returns[1, 1, 2]
    assert frame.loc[(9, 10, 0), "env_steps"] == 10 * 10**12
    assert (frame["episode_length"] == 7).all() and len(frame) == 24


def test_a_written_file_reads_back_the_same(tmp_path):
    result = synthetic.result(num_seeds=2, num_agents=3, num_updates=7, num_evaluations=3)
    env_steps = np.arange(1, 8) * 10**12
    run_tables.write_metrics(tmp_path, result.spec.agents, (4, 9), env_steps, result.metrics)
    run_tables.write_evaluation(tmp_path, (4, 9), result.evaluation)
    stored = run_tables.read_metrics(tmp_path, result.spec.agents)
    assert stored.seeds == (4, 9) and stored.values.keys() == result.metrics.keys()
    np.testing.assert_array_equal(stored.env_steps, env_steps)
    for name, values in result.metrics.items():
        np.testing.assert_array_equal(stored.values[name].astype(values.dtype), values, err_msg=name)
    seeds, evaluation = run_tables.read_evaluation(tmp_path)
    assert seeds == (4, 9)
    for name, values in result.evaluation._asdict().items():
        np.testing.assert_array_equal(getattr(evaluation, name).astype(values.dtype), values, err_msg=name)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: text.replace("seed,", "sead,"), "it lacks 'seed'"),
        (lambda text: text.replace("kl[hip_2+ankle_2]", "kl[x]"), "it lacks 'kl.hip_2.ankle_2.'"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "its seeds have different numbers of rows"),
        (lambda text: "", "is damaged"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, damage, message):
    result = synthetic.result(num_seeds=2, num_agents=3, num_updates=7)
    run_tables.write_metrics(tmp_path, result.spec.agents, (4, 9), result.env_steps, result.metrics)
    path = tmp_path / "metrics.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(RunFolderError, match=message) as caught:
        run_tables.read_metrics(tmp_path, result.spec.agents)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_curves_of_a_sweep_are_read_back_and_end_where_their_settings_do(tmp_path):
    returns = np.arange(24.0).reshape(2, 3, 4)
    returns[1, :, 2:] = np.nan
    env_steps = np.array([[10, 20, 30, 40], [50, 100, 100, 100]])
    metrics = {"episode_return": returns, "kl": np.zeros((2, 3, 4, 5))}
    run_tables.write_curves(tmp_path, (7, 8, 9), env_steps, metrics)
    assert len(pd.read_csv(tmp_path / "curves.csv")) == 3 * 4 + 3 * 2
    steps, curves = run_tables.read_curves(tmp_path, (7, 8, 9))
    np.testing.assert_array_equal(steps, env_steps)
    assert list(curves) == ["episode_return"]
    np.testing.assert_array_equal(curves["episode_return"], returns)
    with pytest.raises(RunFolderError, match="does not hold the curves of the seeds"):
        run_tables.read_curves(tmp_path, (7, 8))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="gone/metrics.csv: no such file or directory"):
        run_tables.write_metrics(tmp_path / "gone", ("a",), (0,), np.arange(0), {})


def test_a_result_is_the_same_table(finished):
    out, result = finished
    stored, table = pd.read_csv(out / "metrics.csv"), result.to_dataframe()
    assert list(table) == list(stored)
    np.testing.assert_allclose(table.to_numpy(float), stored.to_numpy(float), rtol=1e-6)


def test_a_result_is_one_line_and_a_picture(finished):
    """A notebook's cell that ends in it."""
    out, result = finished
    assert repr(result).startswith(
        "TrainResult(hatrpo_w on counting, 2 seeds, 320 env steps each, mean evaluation return "
    )
    assert len(repr(result)) < 300 and result.plot()._repr_png_().startswith(b"\x89PNG")
    updates = int(result.metrics["kl"].shape[1])
    expected = f"Run(hatrpo_w on counting, 2 seeds, last policies of {updates} updates, path={str(out)!r})"
    assert repr(marl_kl.load(out)) == expected
