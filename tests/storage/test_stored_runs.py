"""A run back from its folder is the result that `train` returned."""

import json

import numpy as np
import pytest

from marl_kl.storage import stored_runs
from marl_kl.storage.files import RunFolderError
from tests.support.stored_runs import store


@pytest.fixture(scope="module")
def trained(finished):
    return finished[1]


def test_numbers_and_names_are_those_of_the_run(trained):
    stored = stored_runs.read_result(trained.out)
    for name in ("spec", "algorithm", "config", "seeds", "failures", "out"):
        assert getattr(stored, name) == getattr(trained, name), name
    # the last evaluation came after the last checkpoint's timing
    assert stored.timing.train == pytest.approx(trained.timing.train) and stored.timing.compile > 0
    np.testing.assert_array_equal(stored.env_steps, trained.env_steps)
    assert stored.metrics.keys() == trained.metrics.keys()
    for name, values in trained.metrics.items():
        np.testing.assert_array_equal(stored.metrics[name].astype(values.dtype), values, err_msg=name)
    for name, values in trained.evaluation._asdict().items():
        np.testing.assert_array_equal(getattr(stored.evaluation, name).astype(values.dtype), values, err_msg=name)


def test_curves_are_means_over_episodes(trained):
    steps, returns = stored_runs.evaluation_curve(trained)
    np.testing.assert_array_equal(steps, [0, 128, 256, 320])
    np.testing.assert_allclose(returns, trained.evaluation.episode_return.astype(np.float64).mean(-1))
    assert stored_runs.training_curve(trained)[1].shape == (2, 10)


def test_a_run_without_checkpoint_has_no_times_and_one_without_updates_no_curve(tmp_path):
    run = store(tmp_path / "run", np.zeros((2, 3)))
    assert np.isnan(stored_runs.read_result(run).timing).all()
    (run / "metrics.csv").unlink()
    result = stored_runs.read_result(run)
    assert result.metrics == {} and stored_runs.training_curve(result)[1].shape == (2, 0)


def test_tables_of_other_seeds_are_refused(tmp_path):
    run = store(tmp_path / "run", np.zeros((2, 3)))
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(document | {"seeds": [0, 5]}))
    with pytest.raises(RunFolderError, match=r"evaluation.csv is damaged: its seeds are \(0, 1\), those of run.json"):
        stored_runs.read_result(run)
