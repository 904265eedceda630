"""Figures of a run: drawn for all sizes of runs, with labels, without failed seeds."""

import io
import warnings

import numpy as np
import pytest

from marl_kl.analysis import run_figures
from marl_kl.results import Failure
from tests.support import synthetic


def _texts(figure) -> str:
    figure.savefig(io.BytesIO(), format="png")
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("num_seeds, num_agents, num_updates", [(1, 1, 1), (2, 2, 30), (4, 4, 30), (8, 17, 450)])
def test_both_figures_of_runs_of_many_shapes(num_seeds, num_agents, num_updates):
    result = synthetic.result(num_seeds=num_seeds, num_agents=num_agents, num_updates=num_updates)
    seeds = "seed 0" if num_seeds == 1 else f"{num_seeds} seeds"
    title = f"HATRPO-W on legs (spring), {seeds}"
    curve = _texts(run_figures.learning_curve(result))
    assert title in curve and "env steps per seed" in curve and ("bootstrap" in curve) == (num_seeds >= 3)
    share = _texts(run_figures.kl_share(result))
    assert title in share and "minus an equal share" in share
    assert all(agent in share for agent in result.spec.agents)


def test_heat_map_shows_the_deviation_from_an_equal_share_and_fades_what_was_not_spent():
    result = synthetic.result(num_updates=450)
    figure = run_figures.kl_share(result)
    image = figure.axes[0].collections[0].get_array()
    share = 100 * result.metrics["kl_threshold"].mean(axis=0) / result.config.kl_budget
    assert image.shape == (4, 150)
    np.testing.assert_allclose(image[:, 7], share[21:24].mean(axis=0) - 25, rtol=1e-5)
    np.testing.assert_allclose(image.sum(axis=0), 0, atol=1e-3)
    mesh = figure.axes[0].collections[0]
    assert mesh.norm.vmin == -mesh.norm.vmax, "white is an equal share"
    result.metrics["kl"][:, 30:60, 2] = 0
    alpha = run_figures.kl_share(result).axes[0].collections[0].get_alpha()
    assert (alpha[2, 10:20] == 0).all() and (alpha[[0, 1, 3], 10:20] > 0.5).all()


def test_thick_line_is_the_interquartile_mean_of_the_seeds_evaluations():
    result = synthetic.result(num_seeds=8, num_evaluations=6)
    lines = run_figures.learning_curve(result).axes[0].get_lines()
    thick = max(lines, key=lambda line: line.get_linewidth())
    scores = np.sort(result.evaluation.episode_return.astype(np.float64).mean(axis=-1), axis=0)
    np.testing.assert_allclose(thick.get_ydata(), scores[2:6].mean(axis=0))


def test_failed_seeds_are_left_out_and_named():
    healthy = synthetic.result(num_seeds=4)
    healthy.metrics["kl_threshold"][2] = np.nan
    healthy.metrics["episode_return"][2] = np.nan
    failed = synthetic.result(num_seeds=4, failures=[Failure(2, 16, "reward")])
    failed.metrics.update(healthy.metrics)
    for draw in (run_figures.learning_curve, run_figures.kl_share):
        assert "left out: seed 2 (reward not finite in update 17)" in _texts(draw(failed))
    image = run_figures.kl_share(failed).axes[0].collections[0].get_array()
    assert np.isfinite(image).all()


def test_when_every_seed_failed_the_figures_say_so():
    result = synthetic.result(num_seeds=2, failures=[Failure(0, 3, "value"), Failure(1, 4, "actor")])
    for draw in (run_figures.learning_curve, run_figures.kl_share):
        assert "all seeds failed" in _texts(draw(result))


def test_a_run_without_a_finished_episode_still_has_a_picture():
    result = synthetic.result()
    result.metrics["episode_return"][:] = np.nan
    assert "training" not in _texts(run_figures.learning_curve(result))


def test_algorithms_without_kl_have_no_kl_share():
    result = synthetic.result(kl=False)
    assert not run_figures.has_kl_share(result)
    with pytest.raises(ValueError, match="'hatrpo_w' reports no KL"):
        run_figures.kl_share(result)


def test_without_thresholds_the_kl_spent_is_drawn():
    result = synthetic.result()
    del result.metrics["kl_threshold"]
    assert "KL spent by each agent" in _texts(run_figures.kl_share(result))
