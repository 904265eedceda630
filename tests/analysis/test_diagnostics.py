"""Diagnostics: every quantity a run has, and advice exactly where a threshold is crossed."""

import dataclasses
import io

import numpy as np
import pytest

from marl_kl.analysis import diagnostics
from marl_kl.results import Failure
from tests.support import synthetic


def _result(**metrics):
    """A run that spends 90 % of its budget; `metrics` are constants."""
    result = synthetic.result(num_seeds=3)
    shape = result.metrics["kl_total"].shape
    result.metrics["kl_total"][:] = 0.9 * result.config.kl_budget
    result.metrics.update({name: np.full(shape, value) for name, value in metrics.items()})
    return result


@pytest.mark.parametrize(
    "metric, good, bad, word",
    [
        ("explained_variance", 0.01, -0.01, "critic"),
        ("factor_max", 99, 101, "larger batch"),
        ("clip_fraction", 0.49, 0.51, "actor_epochs"),
    ],
)
def test_advice_is_given_where_a_threshold_is_crossed(metric, good, bad, word):
    assert diagnostics.advice(_result(**{metric: good})) == []
    (line,) = diagnostics.advice(_result(**{metric: bad}))
    assert word in line and f"{bad:.2g}" in line


def test_an_overestimating_critic_is_reported():
    """Against the best episodes' return over the discount's horizon: 100 env steps of -2 each, or two episodes of them."""
    shape = (3, 10)
    result = _result()
    metrics = {"episode_return": np.full(shape, -100.0), "episode_length": np.full(shape, 50.0)}
    result = dataclasses.replace(result, metrics=metrics, env_steps=result.env_steps[:10])
    for q, is_reported in ((-390.0, False), (390.0, False), (410.0, True)):
        result.metrics["q_mean"] = np.full(shape, q)
        result.metrics["q_mean"][:, 0] = np.nan
        lines = diagnostics.advice(result)
        assert len(lines) == is_reported and all("the critic overestimates: use matd3" in line for line in lines)


def test_kl_far_below_the_budget_at_the_end_is_reported_and_shown():
    result = _result()
    result.metrics["kl_total"][:, :15] = 0
    assert diagnostics.advice(result) == [], "only the end counts"
    result.metrics["kl_total"][:, 15:] = 0.59 * result.config.kl_budget
    (line,) = diagnostics.advice(result)
    assert line.startswith("KL spent / budget 0.59 at the end")
    assert "! KL spent / budget 0.59" in diagnostics.figure(result).get_supxlabel()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_agents, num_updates", [(1, 1), (4, 30), (17, 450)])
def test_the_figure_has_a_panel_per_quantity(num_agents, num_updates):
    result = synthetic.result(
        num_seeds=2, num_agents=num_agents, num_updates=num_updates, failures=[Failure(1, 0, "value")]
    )
    result.metrics["entropy"] = np.ones((2, num_updates, num_agents))
    result.metrics["episode_length"] = result.metrics["episode_return"]  # NaN before the first episode's end
    figure = diagnostics.figure(result)
    figure.savefig(io.BytesIO())
    titles = [axes.get_title(loc="left").removeprefix("! ") for axes in figure.axes if axes.axison]
    assert titles == ["value loss", "entropy of each agent (nats)", "KL spent / budget", "episode length (env steps)"]


def test_without_a_healthy_seed_there_is_nothing_to_draw():
    assert not diagnostics.has_diagnostics(synthetic.result(num_seeds=1, failures=[Failure(0, 0, "value")]))
