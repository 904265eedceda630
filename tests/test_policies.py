"""Distributions against distrax, scipy and dense derivatives, with and without masks."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import envs
from marl_kl.config import TrustRegionConfig
from marl_kl.policies import Categorical, Gaussian, init_actors, make_actor

MASK = jnp.array([True, True, False, True, False])


def gaussians(seed, size=3):
    mean, other_mean, log_std, other_log_std = np.random.default_rng(seed).normal(0, 0.7, (4, 6, size))
    mask = jnp.ones(size, bool)
    return Gaussian(jnp.asarray(mean), jnp.asarray(log_std), mask), Gaussian(
        jnp.asarray(other_mean), jnp.asarray(other_log_std), mask
    )


def categoricals(seed, mask):
    logits, other = np.random.default_rng(seed).normal(0, 2, (2, 6, len(mask)))
    return Categorical(jnp.asarray(logits), mask), Categorical(jnp.asarray(other), mask)


def test_gaussian_agrees_with_distrax_and_scipy(float64):
    p, q = gaussians(0)
    as_distrax = [distrax.MultivariateNormalDiag(d.mean, jnp.exp(d.log_std)) for d in (p, q)]
    action = p.sample(jax.random.key(0))
    np.testing.assert_allclose(p.log_prob(action), as_distrax[0].log_prob(action), rtol=1e-12)
    np.testing.assert_allclose(p.entropy(), as_distrax[0].entropy(), rtol=1e-12)
    np.testing.assert_allclose(p.kl(q), as_distrax[0].kl_divergence(as_distrax[1]), rtol=1e-10)
    expected = scipy.stats.norm(p.mean, np.exp(p.log_std)).logpdf(action).sum(-1)
    np.testing.assert_allclose(p.log_prob(action), expected, rtol=1e-12)


def test_categorical_agrees_with_distrax(float64):
    p, q = categoricals(0, jnp.ones(5, bool))
    as_distrax = [distrax.Categorical(logits=d.logits) for d in (p, q)]
    action = p.sample(jax.random.key(0))
    np.testing.assert_allclose(p.log_prob(action), as_distrax[0].log_prob(action), rtol=1e-12)
    np.testing.assert_allclose(p.entropy(), as_distrax[0].entropy(), rtol=1e-12)
    np.testing.assert_allclose(p.kl(q), as_distrax[0].kl_divergence(as_distrax[1]), rtol=1e-12)


def test_masked_choices_equal_the_smaller_distribution(float64):
    p, q = categoricals(1, MASK)
    available = np.flatnonzero(MASK)
    small_p, small_q = (distrax.Categorical(logits=d.logits[:, available]) for d in (p, q))
    np.testing.assert_allclose(p.kl(q), small_p.kl_divergence(small_q), rtol=1e-12)
    np.testing.assert_allclose(p.entropy(), small_p.entropy(), rtol=1e-12)
    choice = jnp.full(6, available[2])
    np.testing.assert_allclose(p.log_prob(choice), small_p.log_prob(jnp.full(6, 2)), rtol=1e-12)


def test_unavailable_choices_are_never_taken():
    p, _ = categoricals(2, MASK)
    likely = p._replace(logits=jnp.where(MASK, p.logits, 50.0))
    samples = jax.vmap(likely.sample)(jax.random.split(jax.random.key(0), 2000))
    assert set(np.unique(samples)) <= set(np.flatnonzero(MASK))
    assert np.all(np.asarray(MASK)[likely.mode()])


@pytest.mark.parametrize("family", ["gaussian", "categorical"])
def test_masked_entries_contribute_exactly_nothing(family):
    """Whatever stands in masked entries, results and gradients are the same bits."""
    if family == "gaussian":
        p, q = (d._replace(mask=MASK) for d in gaussians(3, 5))
        outputs, action = (p.mean, p.log_std), p.sample(jax.random.key(0))
        build = lambda o: Gaussian(*o, MASK)  # noqa: E731
    else:
        p, q = categoricals(3, MASK)
        outputs, action = (p.logits,), p.sample(jax.random.key(0))
        build = lambda o: Categorical(*o, MASK)  # noqa: E731
    garbage = tuple(jnp.where(MASK, x, 3.0 * x + 1.0) for x in outputs)
    for measure in (lambda d: d.kl(q), lambda d: q.kl(d), lambda d: d.entropy(), lambda d: d.log_prob(action)):
        np.testing.assert_array_equal(measure(build(outputs)), measure(build(garbage)))
        gradient = jax.grad(lambda o: jnp.sum(measure(build(o))))(outputs)
        for leaf in gradient:
            np.testing.assert_array_equal(jnp.where(MASK, 0.0, leaf), 0.0)
    tangent = tuple(jnp.ones_like(x) for x in outputs)
    product = p.fisher_product(tangent if family == "gaussian" else tangent[0])
    for leaf in jax.tree.leaves(product):
        np.testing.assert_array_equal(jnp.where(MASK, 0.0, leaf), 0.0)


@pytest.mark.parametrize("family", ["gaussian", "categorical"])
def test_fisher_product_is_the_hessian_of_the_kl(family, float64):
    if family == "gaussian":
        many = gaussians(4, 5)[0]
        p = Gaussian(many.mean[0], many.log_std[0], MASK)
        outputs, build = (p.mean, p.log_std), lambda o: Gaussian(*o, MASK)
    else:
        p = Categorical(categoricals(4, MASK)[0].logits[0], MASK)
        outputs, build = p.logits, lambda o: Categorical(o, MASK)
    flat, unravel = jax.flatten_util.ravel_pytree(outputs)
    hessian = jax.hessian(lambda t: p.kl(build(unravel(t))))(flat)
    tangent = jnp.asarray(np.random.default_rng(0).normal(size=flat.shape))
    product = jax.flatten_util.ravel_pytree(p.fisher_product(unravel(tangent)))[0]
    np.testing.assert_allclose(product, hessian @ tangent, atol=1e-10)


def test_small_divergences_keep_their_digits():
    """float32: a KL of 1e-6 from a change of scale is not lost in the subtraction."""
    p = Gaussian(jnp.zeros(1), jnp.zeros(1), jnp.ones(1, bool))
    q = p._replace(log_std=jnp.full(1, 1e-3))
    np.testing.assert_allclose(p.kl(q), 1e-6, rtol=1e-2)


def test_each_agent_starts_at_its_true_size():
    """Padding does not change an agent's start: norms of an orthogonal matrix, zeros where padded."""
    env = envs.make("matrix_game", payoff=np.zeros((2, 4, 3)))
    config = TrustRegionConfig(hidden_sizes=(8,))
    params = init_actors(jax.random.key(0), env.spec, config)["params"]["logits"]
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
        init_actors(jax.random.key(0), s, config)["params"]["logits"]["output"]["kernel"] for s in (spec, wide)
    )
    np.testing.assert_allclose(alone[0], padded[0, :, :2], atol=1e-8)


def test_actor_kind_follows_the_environment():
    config = TrustRegionConfig(hidden_sizes=(8,))
    assert make_actor(envs.make("bilinear").spec, config).family is Gaussian
    assert make_actor(envs.make("matrix_game").spec, config).family is Categorical
