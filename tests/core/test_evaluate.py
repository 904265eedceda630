"""Evaluation: stochastic policies, and the keys of its episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from marl_kl.core import evaluation
from marl_kl.core.trainer import make_train
from tests.support.counting_env import counting_env


@pytest.mark.slow
def test_a_sampling_team_pays_the_cost_of_its_noise():
    """The reward falls by the first agent's squared action / 100: 0.01 std^2 per step more than the mode's, five steps;
    four standard errors are 0.002."""
    env = counting_env()
    config = marl_kl.OnPolicyConfig(hidden_sizes=(4,), init_std=1.0, eval_episodes=4096)
    learner = (
        make_train(env, "hatrpo", marl_kl.TrustRegionConfig(hidden_sizes=(4,), init_std=1.0))
        .init(jax.random.key(0))
        .learner
    )
    play = {stochastic: jax.jit(evaluation.make_evaluate(env, config, stochastic)) for stochastic in (False, True)}
    mode, sampled = (np.asarray(play[stochastic](jax.random.key(1), learner).episode_return) for stochastic in play)
    assert np.mean(mode - sampled) == pytest.approx(0.05, abs=0.002)
    assert len(np.unique(sampled)) > 4000 and not np.array_equal(sampled, play[True](jax.random.key(2), learner)[0])


def test_keys_are_per_seed_and_update_and_fresh_ones_are_others():
    same = evaluation.keys((3, 8), 5)
    np.testing.assert_array_equal(jax.random.key_data(same), jax.random.key_data(evaluation.keys((3, 8), (5, 5))))
    all_keys = [evaluation.keys((3, 8), updates, fresh) for updates in (5, (6, 7)) for fresh in (False, True)]
    data = jax.random.key_data(jnp.concatenate(all_keys))
    assert len(np.unique(data, axis=0)) == 8
