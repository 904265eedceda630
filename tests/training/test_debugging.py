"""Training under the settings with which people search for mistakes."""

import jax
import numpy as np
import pytest

from marl_kl.core import rollout
from tests.support import small_run
from tests.support.counting_env import counting_env

TINY = {"num_envs": 2, "rollout_length": 2, "hidden_sizes": (2,), "critic_minibatches": 1, "eval_episodes": 2}


def test_no_metric_is_nan_while_jax_searches_for_nans():
    episodes = rollout.Episodes(*np.zeros((5, 3), np.float32))
    with jax.debug_nans(True):
        metrics = rollout.episode_metrics(episodes)
    assert metrics["episode_return"] == metrics["episode_length"] == 0
    assert np.isnan(rollout.episode_metrics(episodes)["episode_return"])


@pytest.mark.slow
def test_a_search_for_nans_finds_those_of_the_environment_alone():
    fields = {**TINY, "total_env_steps": 8, "eval_interval": 0}
    with jax.debug_nans(True):
        assert not small_run.train(counting_env(), "happo", **fields).failures
        with pytest.raises(FloatingPointError):
            small_run.train(counting_env(nan_start_above=0.0), "happo", **fields)


@pytest.mark.rare
def test_without_jit_a_run_is_the_same_to_rounding():
    fields = {**TINY, "total_env_steps": 4, "eval_interval": 0, "critic_epochs": 1, "actor_epochs": 1}
    compiled = small_run.train(counting_env(), "happo", **fields)
    with jax.disable_jit():
        eager = small_run.train(counting_env(), "happo", **fields)
    for name, values in compiled.metrics.items():
        np.testing.assert_allclose(eager.metrics[name], values, rtol=1e-2, atol=1e-4, err_msg=name)
    assert eager.evaluation.episode_return == pytest.approx(compiled.evaluation.episode_return, rel=1e-3)
