"""`jax_enable_x64` changes what arrays are by default, not what is trained: everything stays float32, in every algorithm."""

import jax
import jax.numpy as jnp
import pytest

import envs
import marl_kl
from marl_kl.core import algorithms, evaluation
from tests.support.grids import slow_unless
from tests.support.kinds_env import KINDS, kinds_env

CASES = dict.fromkeys(
    [
        *((name, "discrete", True) for name in algorithms.names(marl_kl.OnPolicyConfig)),
        *((name, kind, kind == "continuous") for name in ("hatrpo_w", "ippo") for kind in KINDS),
    ]
)
"""(algorithm, kind of action, recurrent): every algorithm once, one of each family with all kinds."""


def config_of(algorithm, kind="continuous", recurrent=False, **fields):
    return algorithms.get(algorithm).config_class(
        num_envs=4, rollout_length=8, hidden_sizes=(8,), critic_minibatches=1, squash=kind == "squashed",
        recurrent=recurrent, recurrent_critic=recurrent, eval_episodes=2, **fields,
    )  # fmt: skip


def dtypes(tree):
    return {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def check_float32(env, algorithm, config):
    """Traced, not compiled: an update keeps every dtype, and nothing learned or reported is float64."""
    train = marl_kl.make_train(env, algorithm, config)
    state = jax.eval_shape(train.init, jax.random.key(0))
    new, metrics = jax.eval_shape(train.update, state)
    assert dtypes(state) == dtypes(new)
    assert jnp.float64 not in dtypes((new.learner, metrics)).values()
    episodes = jax.eval_shape(evaluation.make_evaluate(env, config), jax.random.key(0), state.learner)
    assert set(dtypes(episodes).values()) == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("algorithm", "kind", "recurrent"),
    slow_unless({("hatrpo_w", "continuous", True), ("mappo", "discrete", True)}, CASES),
)
def test_every_algorithm_and_kind_of_action(algorithm, kind, recurrent, float64):
    check_float32(kinds_env(kind), algorithm, config_of(algorithm, kind, recurrent))


@pytest.mark.parametrize(
    ("algorithm", "fields"),
    [
        ("hatrpo_w", {"utility": "cross_fitted", "utility_smoothing": 0.9}),
        ("hatrpo_w", {"utility": "measured"}),
        ("hatrpo", {"share_parameters": True, "line_search": "geometric"}),
        ("happo", {"actor_lr_final_fraction": 0.0, "critic_lr_final_fraction": 0.5}),
    ],
)
def test_options_of_algorithms(algorithm, fields, float64):
    check_float32(kinds_env("continuous"), algorithm, config_of(algorithm, **fields))


@pytest.mark.slow
@pytest.mark.parametrize("name", algorithms.names(marl_kl.OffPolicyConfig))
@pytest.mark.parametrize("kind", ["squashed", "discrete", "multi_discrete"])
def test_off_policy(name, kind, float64):
    config = marl_kl.OffPolicyConfig(
        num_envs=4,
        rollout_length=8,
        hidden_sizes=(8,),
        warmup_steps=0,
        replay_size=64,
        minibatch_size=8,
        eval_episodes=2,
    )
    check_float32(kinds_env(kind), name, config)


@pytest.mark.parametrize("name", ["matrix_game", "bilinear", "digits", "two_peaks", "paxmen_5"])
def test_games(name, float64):
    check_float32(envs.make(name), "hatrpo_w", config_of("hatrpo_w"))


@pytest.mark.physics
@pytest.mark.parametrize(
    ("engine", "backend"),
    [pytest.param("brax", "spring", marks=pytest.mark.slow), pytest.param("mjx", None, marks=pytest.mark.rare)],
)
def test_bodies(engine, backend, float64):
    env = envs.make("reacher_2x1", engine=engine, backend=backend)
    check_float32(env, "hatrpo_w", config_of("hatrpo_w"))


@pytest.mark.slow
def test_it_trains(float64):
    config = config_of("hatrpo_w", total_env_steps=64)
    assert not marl_kl.train(kinds_env("continuous"), "hatrpo_w", config=config, progress="none").failures
