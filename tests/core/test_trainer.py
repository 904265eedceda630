"""The training loop's promises: the same seed gives the same numbers, alone or in a batch, in chunks or whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
import marl_kl
from marl_kl.core import algorithms
from marl_kl.results import WATCHED
from tests.core.test_contracts import agent_metrics_of
from tests.support.counting_env import counting_env
from tests.support.grids import slow_unless


def small(config_class=marl_kl.TrustRegionConfig, **fields):
    return config_class(**{"hidden_sizes": (8,), "num_envs": 4, "rollout_length": 8, "critic_minibatches": 2, **fields})


def keys(seeds):
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def compiled(train, updates):
    """`keys -> (state, metrics)`: all updates in one scan, vmapped over keys."""

    def one(key):
        return jax.lax.scan(lambda state, _: train.update(state), train.init(key), None, updates)

    return jax.jit(jax.vmap(one))


def run(train, seeds, updates):
    return compiled(train, updates)(keys(seeds))


def check_contract(algorithm, env, config, state, metrics):
    """Finite, right shapes, budget kept, the documented metrics and no others; metrics [seed, update, ...]."""
    agent_metrics = agent_metrics_of(algorithm)
    assert set(metrics) == {*algorithms.get(algorithm).team_metrics, *agent_metrics, "nonfinite"}
    seeds_and_updates = metrics["kl_total"].shape
    for name, values in metrics.items():
        trailing = (env.spec.num_agents,) if name in agent_metrics else (len(WATCHED),) if name == "nonfinite" else ()
        assert values.shape == (*seeds_and_updates, *trailing), name
        assert np.all(np.isfinite(values)), name
    assert np.all(metrics["kl_total"] <= getattr(config, "kl_budget", np.inf))
    assert not np.any(metrics["nonfinite"]) and np.all(state.healthy)


SEEDS, UPDATES = tuple(range(6)), 6
FIRST_ORDER = small(marl_kl.FirstOrderConfig)
"""HAPPO compiles faster; the same of trust-region steps is tested in tests/training."""


@pytest.fixture(scope="module")
def together():
    """State and metrics of `SEEDS`, trained in one batch."""
    return run(marl_kl.make_train(counting_env(), "happo", FIRST_ORDER), SEEDS, UPDATES)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_alone_and_in_a_batch(together):
    alone = compiled(marl_kl.make_train(counting_env(), "happo", FIRST_ORDER), UPDATES)
    for seed in (3, 5):
        of_batch = jax.tree.map(lambda leaf: leaf[seed : seed + 1], together[1])
        jax.tree.map(assert_same_up_to_rounding, alone(keys([seed]))[1], of_batch)


def assert_same_up_to_rounding(a, b):
    np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_one_trace_whatever_the_numbers():
    """Numeric hyperparameters sweep under one vmap, and a traced value gives what a fixed one does."""
    env = counting_env()
    budgets = jnp.array([0.01, 0.05])

    def kl(budget):
        train = marl_kl.make_train(env, "hatrpo", small(kl_budget=budget))
        return train.update(train.init(jax.random.key(0)))[1]["kl_total"]

    swept = jax.jit(jax.vmap(kl))(budgets)
    assert swept[0] < swept[1]
    np.testing.assert_allclose(jax.jit(lambda: kl(0.05))(), swept[1], rtol=1e-3)


@pytest.mark.slow
def test_a_nan_in_one_seed_leaves_the_others_alone(together):
    """Episodes that start above a bound pay NaN: one seed meets it and keeps its last finite parameters."""
    bound = 0.97
    train = marl_kl.make_train(counting_env(nan_start_above=bound), "happo", FIRST_ORDER)
    state, metrics = run(train, SEEDS, UPDATES)
    clean_state, _ = together
    hit = np.any(np.asarray(metrics["nonfinite"]), axis=(1, 2))
    assert 0 < hit.sum() < len(SEEDS), "choose another bound"
    np.testing.assert_array_equal(~hit, state.healthy)
    for leaf, clean_leaf in zip(jax.tree.leaves(state.learner), jax.tree.leaves(clean_state.learner)):
        assert np.all(np.isfinite(leaf))
        np.testing.assert_array_equal(np.asarray(leaf)[~hit], np.asarray(clean_leaf)[~hit])
    assert np.any(metrics["nonfinite"][hit][..., WATCHED.index("reward")])


@pytest.mark.slow
def test_mixed_motives_have_a_value_per_agent():
    """Without a team reward each agent's advantage is its own."""
    env = counting_env(team_reward=False)
    train = marl_kl.make_train(env, "mappo", small(marl_kl.FirstOrderConfig))
    state, metrics = jax.jit(lambda key: train.update(train.init(key)))(jax.random.key(0))
    assert state.learner.critic.moments.mean.shape == (2,)
    assert state.learner.critic.moments.mean[0] > 1 and abs(state.learner.critic.moments.mean[1]) < 1
    assert np.all(np.isfinite(metrics["kl"]))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("recurrent", slow_unless({False}, [False, True]))
def test_advantages_are_standardised_over_the_samples_of_a_network(shared, recurrent, monkeypatch):
    """Agent 0 is paid, agent 1 is not: alone each has deviation 1, in one network they keep their proportions."""
    seen = lambda key, actors, state, batch: (actors, state, {"advantage": batch.advantage})  # noqa: E731
    entry = algorithms.get("mappo")
    watching = entry._replace(build=lambda actor, config: marl_kl.core.types.Algorithm(lambda actors: (), seen))
    monkeypatch.setattr(algorithms, "get", lambda name: watching)
    fields = {"share_parameters": shared, "recurrent": recurrent, "recurrent_size": 4}
    train = marl_kl.make_train(counting_env(team_reward=False), "mappo", small(marl_kl.FirstOrderConfig, **fields))
    advantage = jax.jit(lambda key: train.update(train.init(key))[1]["advantage"])(jax.random.key(0))
    assert advantage.shape == (2, 4, 8) if recurrent else (2, 32)
    groups = advantage.reshape(1 if shared else 2, -1)
    np.testing.assert_allclose(groups.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std(1), 1, atol=1e-5)
    if shared:
        assert advantage[0].std() > 1.2 * advantage[1].std()


@pytest.mark.slow
def test_observation_moments_can_be_left_alone():
    def count(normalize):
        config = small(marl_kl.FirstOrderConfig, normalize_observations=normalize)
        train = marl_kl.make_train(counting_env(), "mappo", config)
        return jax.jit(lambda key: train.update(train.init(key))[0].learner.obs_moments.count)(jax.random.key(0))

    assert count(False) == 0 < count(True)


def test_a_config_of_another_class_is_refused():
    with pytest.raises(ValueError, match="needs a TrustRegionConfig"):
        marl_kl.make_train(counting_env(), "hatrpo", marl_kl.Config())


def learned_return(algorithm, env, seeds=5, updates=150, last=10, **fields):
    config_class = algorithms.get(algorithm).config_class
    speed = {"kl_budget": 0.1} if config_class is marl_kl.TrustRegionConfig else {"actor_lr": 5e-3, "clip_eps": 0.4}
    config = small(config_class, **{"num_envs": 64, "rollout_length": 1, "hidden_sizes": (16,), **speed, **fields})
    state, metrics = run(marl_kl.make_train(env, algorithm, config), range(seeds), updates)
    check_contract(algorithm, env, config, state, metrics)
    return np.asarray(metrics["episode_return"])[:, -last:].mean(1)


LEARN_BELOW = ("hatrpo", "hatrpo_g", "hatrpo_n", "mappo")
"""Algorithms that learn other games below."""


@pytest.mark.parametrize(
    "algorithm", slow_unless((), [name for name in algorithms.names(marl_kl.OnPolicyConfig) if name not in LEARN_BELOW])
)
def test_the_sparse_matrix_game_is_solved(algorithm):
    """99 % of the maximum on the 4-agent game with a single rewarded joint action of 81, every one of 5 seeds.

    The settings are those of `learned_return`: 150 updates of 64 games, networks of 16 units, a joint KL budget of 0.1,
    or Adam with a step size of 5e-3, 5 epochs and a clip of 0.4. (`experiments/matrix_game.py` has harder games, and
    its searched settings reach 99 % with fewer steps, though not with every seed.) Neighbours need different
    actions: the independent learners, who share one network here, must use their ids.
    """
    fields = {"share_parameters": True} if algorithm == "ippo" else {}
    assert np.all(learned_return(algorithm, envs.make("matrix_game"), **fields) >= 0.99)


@pytest.mark.slow
def test_the_bilinear_game_rises():
    """r = a1 a2 from the policies' start around 0: sequential trust-region steps find a sign and leave the saddle."""
    assert np.all(learned_return("hatrpo_g", envs.make("bilinear"), updates=60) > 1.0)


@pytest.mark.slow
def test_several_digits_an_agent_are_learned():
    """The sparse matrix game again, two of its four players to an agent."""
    assert np.all(learned_return("hatrpo_w", envs.make("digits", digits_of=(2, 2))) >= 0.99)


@pytest.mark.slow
def test_squashed_policies_find_the_edge_of_the_control_range():
    """r = a1 a2 within [-2, 2], where 4 is the most: near it, never above, whichever sign."""
    env = envs.make("bilinear", bound=2.0)
    got = learned_return("hatrpo", env, squash=True)
    assert np.all((got > 3.5) & (got <= 4.0))


@pytest.mark.slow
@pytest.mark.parametrize(("share", "algorithm"), [(False, "mappo"), (True, "hatrpo")])
def test_proposition_1(share, algorithm):
    """Separate networks reach 1; the best policy shared by agents that do not know who they are earns 2 / 2^4."""
    fields = {"share_parameters": share, "agent_ids": False, "last": 100 if share else 10}
    got = learned_return(algorithm, envs.make("parameter_sharing"), **fields)
    if share:
        four_standard_errors = 4 * np.sqrt(0.125 * 0.875 / (5 * 100 * 64))
        assert 0.1 < got.mean() <= 0.125 + four_standard_errors
    else:
        assert np.all(got >= 0.99)
