"""Distributions against distrax, scipy and dense derivatives, with and without masks."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from marl_kl.core.distributions import Categorical, Gaussian, MultiCategorical

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


@pytest.mark.parametrize("family", ["gaussian", "categorical", "multi"])
def test_masked_entries_contribute_exactly_nothing(family):
    """Whatever stands in masked entries, results and gradients are the same bits."""
    mask = MASK
    if family == "multi":
        p, q = multi_categoricals(3, (6,))
        mask = p.mask.reshape(p.logits.shape)
        outputs, action = (p.logits,), p.sample(jax.random.key(0))
        build = lambda o: MultiCategorical(*o, p.mask)  # noqa: E731
    elif family == "gaussian":
        p, q = (d._replace(mask=MASK) for d in gaussians(3, 5))
        outputs, action = (p.mean, p.log_std), p.sample(jax.random.key(0))
        build = lambda o: Gaussian(*o, MASK)  # noqa: E731
    else:
        p, q = categoricals(3, MASK)
        outputs, action = (p.logits,), p.sample(jax.random.key(0))
        build = lambda o: Categorical(*o, MASK)  # noqa: E731
    garbage = tuple(jnp.where(mask, x, 3.0 * x + 1.0) for x in outputs)
    for measure in (lambda d: d.kl(q), lambda d: q.kl(d), lambda d: d.entropy(), lambda d: d.log_prob(action)):
        np.testing.assert_array_equal(measure(build(outputs)), measure(build(garbage)))
        gradient = jax.grad(lambda o: jnp.sum(measure(build(o))))(outputs)
        for leaf in gradient:
            np.testing.assert_array_equal(jnp.where(mask, 0.0, leaf), 0.0)
    tangent = tuple(jnp.ones_like(x) for x in outputs)
    product = p.fisher_product(tangent if family == "gaussian" else tangent[0])
    for leaf in jax.tree.leaves(product):
        np.testing.assert_array_equal(jnp.where(mask, 0.0, leaf), 0.0)


@pytest.mark.parametrize("family", ["gaussian", "categorical", "multi"])
def test_fisher_product_is_the_hessian_of_the_kl(family, float64):
    if family == "multi":
        p = multi_categoricals(4)[0]
        outputs, build = p.logits, lambda o: MultiCategorical(o, p.mask)
    elif family == "gaussian":
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


@pytest.mark.parametrize("family", ["categorical", "multi"])
def test_small_divergences_of_choices_keep_their_digits(family):
    """float32 against float64, from a KL of about 1e-2 to one of about 1e-9; choices of probability 0 included."""
    logits = np.array([0.3, -0.5, 1.0, -200.0, 0.2, 0.1])
    for size in (1e-1, 1e-2, 1e-3, 3e-4, 1e-4):
        change = size * np.array([1.0, -0.4, 0.2, 300.0, 0.7, -0.9])
        found = []
        for dtype in (np.float32, np.float64):
            with jax.enable_x64(dtype is np.float64):
                p, q = (jnp.asarray(x, dtype) for x in (logits, logits + change))
                if family == "categorical":
                    p, q = (Categorical(x, jnp.ones(6, bool)) for x in (p, q))
                else:
                    p, q = (MultiCategorical(x.reshape(2, 3), jnp.ones(6, bool)) for x in (p, q))
                found.append(float(p.kl(q)))
        np.testing.assert_allclose(found[0], found[1], rtol=1e-2)


def multi_categoricals(seed, batch=()):
    """Three sub-actions of 3, 2 and 0 available choices among 4."""
    mask = jnp.array([[True, True, False, True], [True, False, True, False], [False] * 4]).reshape(-1)
    logits = np.random.default_rng(seed).normal(0, 2, (2, *batch, 3, 4))
    return tuple(MultiCategorical(jnp.asarray(part), jnp.broadcast_to(mask, (*batch, 12))) for part in logits)


def test_multi_discrete_agrees_with_the_enumeration_of_all_joint_choices(float64):
    p, q = multi_categoricals(0)
    joint = jnp.asarray([(i, j, 0) for i in (0, 1, 3) for j in (0, 2)])
    log_p, log_q = (jax.vmap(lambda a, d=d: d.log_prob(a))(joint) for d in (p, q))
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_p)), 1.0, rtol=1e-14)
    np.testing.assert_allclose(p.entropy(), -jnp.sum(jnp.exp(log_p) * log_p), rtol=1e-13)
    np.testing.assert_allclose(p.kl(q), jnp.sum(jnp.exp(log_p) * (log_p - log_q)), rtol=1e-13)
    assert tuple(p.mode().tolist()) == tuple(joint[jnp.argmax(log_p)].tolist())
    samples = np.asarray(jax.vmap(p.sample)(jax.random.split(jax.random.key(0), 20_000)))
    seen = np.array([(samples == row).all(1).mean() for row in np.asarray(joint)])
    assert seen.sum() == 1.0, "an unavailable choice was taken"
    np.testing.assert_allclose(seen, jnp.exp(log_p), atol=4 * np.sqrt(0.25 / 20_000))


def test_multi_discrete_with_one_sub_action_is_discrete():
    """Bit for bit."""
    one = categoricals(5, MASK)
    multi = tuple(MultiCategorical(d.logits[:, None], jnp.broadcast_to(MASK, (6, 5))) for d in one)
    tangent = jnp.asarray(np.random.default_rng(6).normal(size=(6, 5)))
    action = one[0].sample(jax.random.key(0))
    pairs = (
        (multi[0].sample(jax.random.key(0))[:, 0], action),
        (multi[0].mode()[:, 0], one[0].mode()),
        (multi[0].log_prob(action[:, None]), one[0].log_prob(action)),
        (multi[0].entropy(), one[0].entropy()),
        (multi[0].kl(multi[1]), one[0].kl(one[1])),
        (multi[0].fisher_product(tangent[:, None])[:, 0], one[0].fisher_product(tangent)),
    )
    for ours, expected in pairs:
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)
