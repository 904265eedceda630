"""The budget that follows the signal, and the measure of how soon a return is reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from experiments import budget_by_signal
from experiments.budget_by_signal import CEILING, SCHEDULES, SIZES, SMALLEST, budget_of, config_of
from experiments.methods import first_reached, pace


@pytest.mark.parametrize(
    "signal, expected", [(0.01, 0.04 * CEILING), (-0.2, SMALLEST), (0.0, SMALLEST), (3.0, 4 * CEILING)]
)
def test_the_budget_is_the_ceiling_times_the_signal(signal, expected):
    np.testing.assert_allclose(budget_of(jnp.asarray(signal), 4), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.studies
def test_a_fixed_schedule_trains_as_usual_and_a_scaled_one_spends_what_the_signal_allows():
    world = SIZES["smoke"]["game"]
    config = config_of(world, SCHEDULES["fixed"])
    fixed = budget_by_signal.play(world, SCHEDULES["fixed"])
    usual = marl_kl.train(world.env(), "hatrpo", config=config, seeds=range(world.seeds), progress="none")
    np.testing.assert_allclose(fixed["kl"], usual.metrics["kl_total"].mean(1), rtol=1e-3)
    np.testing.assert_allclose(fixed["final"], usual.metrics["episode_return"][:, -1:].mean(1), rtol=1e-3)
    scaled = budget_by_signal.play(world, SCHEDULES["signal"])
    assert scaled["budget"][0] < 2 * SMALLEST, "no signal has been measured before the first update"
    assert (scaled["kl"] <= scaled["budget"].mean() * 4).all() and (scaled["kl"] > 0).all()
    falling = budget_by_signal.play(world, SCHEDULES["falling"], scaled)
    np.testing.assert_allclose(falling["budget"][0], 2 * scaled["kl"].mean(), rtol=1e-4)
    assert (np.diff(falling["budget"]) < 0).all()
    jax.clear_caches()


def test_a_level_is_reached_between_two_points():
    x = np.array([10.0, 20.0, 30.0, 40.0])
    curves = np.array([[0, 2, 1, 4], [5, 5, 5, 5], [0, 0, 0, 1], [np.nan, 4, 0, 0]])
    np.testing.assert_allclose(first_reached(x, curves, 3.0), [30 + 10 * 2 / 3, 10, 40, 20])


def test_pace_is_the_ratio_of_env_steps_to_the_same_return():
    """A method that learns along the same line twice as fast takes half of the env steps."""
    env_steps = np.linspace(1, 100, 100)
    shift = np.arange(4.0)[:, None]
    slow = {"env_steps": env_steps, "returns": env_steps + shift, "final": 100 + shift[:, 0]}
    fast = {"returns": 2 * env_steps + shift}
    found = pace(fast, slow)
    level = 0.9 * 101.5
    np.testing.assert_allclose(found.value, (level - 1.5) / ((level - 1.5) / 2), rtol=1e-6)
    assert found.low <= found.value <= found.high
