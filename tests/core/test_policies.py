"""Actors: their start, their distributions, and squashed actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from marl_kl.config import FirstOrderConfig, TrustRegionConfig
from marl_kl.core.distributions import Categorical, Gaussian, MultiCategorical
from marl_kl.core.policies import make_actor
from marl_kl.core.trainer import make_train
from tests.support import jitted
from tests.support.kinds_env import kinds_env


def test_each_agent_starts_at_its_true_size():
    """Padding does not change an agent's start: norms of an orthogonal matrix, zeros where padded."""
    env = envs.make("matrix_game", payoff=np.zeros((2, 4, 3)))
    config = TrustRegionConfig(hidden_sizes=(8,))
    params = jitted.init_actors(jax.random.key(0), env.spec, config)["params"]["logits"]
    kernel = params["output"]["kernel"]
    for agent, size in enumerate((2, 4, 3)):
        real = kernel[agent, :, :size]
        np.testing.assert_allclose(real.T @ real, 1e-4 * np.eye(size), atol=1e-7)
        np.testing.assert_array_equal(kernel[agent, :, size:], 0.0)


def test_an_agents_start_does_not_depend_on_its_team():
    """But for rounding, whose order may change with the shape of the compiled program."""
    config = TrustRegionConfig(hidden_sizes=(8,))
    spec = envs.make("matrix_game", payoff=np.zeros((2, 2))).spec
    wide = envs.make("matrix_game", payoff=np.zeros((2, 5))).spec
    alone, padded = (
        jitted.init_actors(jax.random.key(0), s, config)["params"]["logits"]["output"]["kernel"] for s in (spec, wide)
    )
    np.testing.assert_allclose(alone[0], padded[0, :, :2], atol=1e-8)


def test_actor_kind_follows_the_environment():
    config = TrustRegionConfig(hidden_sizes=(8,))
    assert make_actor(envs.make("bilinear").spec, config).family is Gaussian
    assert make_actor(envs.make("matrix_game").spec, config).family is Categorical
    assert make_actor(envs.make("digits").spec, config).family is MultiCategorical


@pytest.mark.slow
def test_a_squashed_density_integrates_to_one_and_has_the_kl_of_the_unsquashed_one(float64):
    """Change of variables, by quadrature over the actions that the environment gets."""
    actor = make_actor(kinds_env("squashed").spec, TrustRegionConfig(squash=True))
    low, high = actor.action_range.low[2][1], actor.action_range.high[2][1]
    one = jnp.ones(1, bool)
    p, q = Gaussian(jnp.array([0.3]), jnp.array([-0.5]), one), Gaussian(jnp.array([-0.2]), jnp.array([-0.1]), one)

    def squashed(u):
        return actor.env_action(jnp.zeros((3, 3)).at[2, 1].set(u))[2, 1]

    def density(d, action):
        share = (action - low) / (high - low)
        u = jnp.arctanh(2 * share - 1)
        return jnp.exp(d.log_prob(u[None])) / jax.grad(squashed)(u)

    nodes, weights = np.polynomial.legendre.leggauss(400)
    actions, weights = low + 0.5 * (nodes + 1) * (high - low), 0.5 * weights * (high - low)
    of_p, of_q = (jax.vmap(lambda a, d=d: density(d, a))(actions) for d in (p, q))
    np.testing.assert_allclose(weights @ of_p, 1.0, rtol=1e-9)
    np.testing.assert_allclose(weights @ (of_p * jnp.log(of_p / of_q)), p.kl(q), rtol=1e-8)
    # the ratio, too, is that of the unsquashed samples
    u = jnp.array([0.7])
    ratio = density(p, squashed(u[0])) / density(q, squashed(u[0]))
    np.testing.assert_allclose(jnp.log(ratio), p.log_prob(u) - q.log_prob(u), rtol=1e-10)


def test_squashed_actions_stay_in_the_control_range():
    env = kinds_env("squashed")
    actor = make_actor(env.spec, TrustRegionConfig(squash=True))
    low, high = env.spec.action_range
    for u, expected in ((0.0, (low + high) / 2), (50.0, high), (-50.0, low), (np.inf, high)):
        np.testing.assert_allclose(actor.env_action(jnp.full((3, 3), u)), expected, atol=1e-6)
    slope = jax.grad(lambda u: jnp.sum(actor.env_action(u)))
    assert np.all(np.isfinite(slope(jnp.full((3, 3), 1e4))))
    assert make_actor(env.spec, TrustRegionConfig()).env_action(7.0) == 7.0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("matrix_game", "squash=True; env 'matrix_game' has discrete actions: it must be False"),
        ("digits", "squash=True; env 'digits' has multi_discrete actions: it must be False"),
        ("bilinear", "squash=True; env 'bilinear' has unbounded actions"),
    ],
)
def test_squashing_other_actions_gives_a_one_line_error(name, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make_train(envs.make(name), "mappo", FirstOrderConfig(squash=True))
    assert "\n" not in str(error.value)
