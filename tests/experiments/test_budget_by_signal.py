"""The budget that follows the signal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from experiments import budget_by_signal
from experiments.budget_by_signal import CEILING, SCHEDULES, SIZES, SMALLEST, budget_of, config_of


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
