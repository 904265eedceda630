"""Cross-fitted utilities: two plain fits, and the truth of games in which it can be enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import envs
from marl_kl.config import TrustRegionConfig
from marl_kl.core import cross_fitting
from marl_kl.core.cross_fitting import UtilityAverage, cross_fit, halves, merged
from marl_kl.core.policies import make_actor
from marl_kl.core.trust_region import AgentBatch
from tests.support import jitted

NUM_ENVS, LENGTH = 4, 12
RADIUS = 0.01


def problem(spec, config, seed=0):
    rng = np.random.default_rng(seed)
    actor = make_actor(spec, config)
    params = jax.tree.map(lambda leaf: leaf[0], jitted.init_actors(jax.random.key(seed), spec, config))
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(0, 0.3, leaf.shape)), params)
    size = NUM_ENVS * LENGTH
    obs, mask = jnp.asarray(rng.normal(size=(size, 3))), jnp.broadcast_to(spec.action_mask[0], (size, spec.action_size))
    action = actor.distribution(actor.outputs(params, obs), mask).sample(jax.random.key(seed + 1))
    return actor, params, AgentBatch(obs, action, mask, jnp.asarray(rng.normal(size=size)), None)


@pytest.mark.parametrize("rows", [NUM_ENVS, NUM_ENVS * LENGTH])
def test_an_environment_is_in_one_half(rows):
    env = np.arange(rows) // (rows // NUM_ENVS)
    split = halves({"env": jnp.asarray(env), "row": jnp.arange(2 * rows).reshape(rows, 2)})
    np.testing.assert_array_equal(split["env"] >= NUM_ENVS // 2, np.repeat([[False], [True]], rows // 2, axis=1))
    np.testing.assert_array_equal(merged(split["row"]), np.arange(2 * rows).reshape(rows, 2))


@pytest.mark.slow
def test_a_fit_is_two_plain_fits(float64):
    """Each half's direction is that of the plain step on its samples; signal and curvatures by definition."""
    spec = envs.EnvSpec("c", ("a",), (3,), (2,), "continuous", 3, 10)
    config = TrustRegionConfig(hidden_sizes=(5,), cg_iters=100, cg_tol=1e-24)
    actor, params, batch = problem(spec, config)
    subset = jnp.arange(0, batch.weight.size // 2, 2)
    split = halves(batch)._replace(subset=subset)
    fit = jitted.cross_fit(actor, config, params, split)

    first = np.arange(batch.weight.size) < batch.weight.size // 2
    parts = [jax.tree.map(lambda leaf: leaf[rows], batch)._replace(subset=subset) for rows in (first, ~first)]
    plain = [jitted.propose(actor, config, params, part) for part in parts]
    theta, unravel = ravel_pytree(params)

    def log_prob(t, part):
        return actor.distribution(actor.outputs(unravel(t), part.obs), part.action_mask).log_prob(part.action)

    def kl(t, part):
        old, new = (actor.distribution(actor.outputs(unravel(x), part.obs), part.action_mask) for x in (theta, t))
        return jnp.mean(old.kl(new))

    gradient = jax.jit(jax.grad(lambda t, part: jnp.mean(part.weight * log_prob(t, part))))
    hessian = jax.jit(jax.hessian(kl))
    g = [gradient(theta, part) for part in parts]
    fisher = [hessian(theta, part) for part in (*parts, batch)]
    x = [proposal.direction for proposal in plain]
    mean = (x[0] + x[1]) / 2
    np.testing.assert_allclose(fit.directions, x, atol=1e-9)
    np.testing.assert_allclose(fit.signal, (g[1] @ x[0] + g[0] @ x[1]) / 2, rtol=1e-9)
    np.testing.assert_allclose(fit.curvature, mean @ fisher[2] @ mean, rtol=1e-9)
    np.testing.assert_allclose(fit.held_out_curvature, [x[0] @ fisher[1] @ x[0], x[1] @ fisher[0] @ x[1]], rtol=1e-9)
    np.testing.assert_allclose(fit.in_sample, (g[0] @ x[0] + g[1] @ x[1]) / 2, rtol=1e-9)
    np.testing.assert_allclose(fit.signal_fraction, fit.signal / fit.in_sample)

    trial = jitted.held_out_trial(actor, params, split, fit, jnp.asarray(RADIUS))
    ratio, divergence = np.zeros(batch.weight.shape), []
    for rows, part, direction, curvature in ((first, parts[0], x[1], 1), (~first, parts[1], x[0], 0)):
        stepped = theta + np.sqrt(2 * RADIUS / fit.held_out_curvature[curvature]) * direction
        ratio[rows] = log_prob(stepped, part) - log_prob(theta, part)
        divergence.append(kl(stepped, part))
    np.testing.assert_allclose(trial.log_ratio, ratio, atol=1e-9)
    np.testing.assert_allclose(trial.kl, np.mean(divergence), rtol=1e-7)
    np.testing.assert_allclose(trial.gain, np.mean((np.exp(ratio) - 1) * batch.weight), rtol=1e-7)


@pytest.mark.slow
def test_signal_is_unbiased_where_the_plain_slope_is_not(float64):
    """A bandit of three arms with noisy rewards: its true gradient g* and Fisher matrix F are sums over the arms.

    Mean over 4,000 batches of 16 samples: of the signal, g*'(F + damping)^-1 g*; of the plain slope, as much again and
    more, which is noise. The latter is trace((F + damping)^-1 covariance(g)), also enumerated.
    """
    spec = envs.EnvSpec("d", ("a",), (1,), (3,), "discrete", 1, 1)
    config = TrustRegionConfig(hidden_sizes=(3,), cg_iters=50, cg_tol=1e-24, cg_subsample=1.0)
    actor = make_actor(spec, config)
    params = jax.tree.map(lambda leaf: leaf[0] + 0.1, jitted.init_actors(jax.random.key(0), spec, config))
    theta, unravel = ravel_pytree(params)
    size, noise, arms = 16, 2.0, jnp.asarray([1.0, 0.0, -0.5])
    obs, mask = jnp.ones((size, 1)), jnp.ones((size, 3), bool)

    def log_probs(t):
        return actor.distribution(actor.outputs(unravel(t), obs[:1]), mask[:1]).log_prob(jnp.arange(3))

    scores, p = jax.jacobian(log_probs)(theta), jnp.exp(log_probs(theta))
    gradient = (p * arms) @ scores
    damped = jnp.einsum("a,ai,aj", p, scores, scores) + config.cg_damping * jnp.eye(len(theta))
    second = jnp.einsum("a,a,ai,aj", p, arms**2 + noise**2, scores, scores)
    covariance = (second - jnp.outer(gradient, gradient)) / size
    truth = gradient @ jnp.linalg.solve(damped, gradient)
    bias = jnp.trace(jnp.linalg.solve(damped, covariance))

    @jax.jit
    @jax.vmap
    def sampled(key):
        key_action, key_noise = jax.random.split(key)
        action = jax.random.choice(key_action, 3, (size,), p=p)
        reward = arms[action] + noise * jax.random.normal(key_noise, (size,))
        batch = AgentBatch(obs, action, mask, reward, None)
        fit = cross_fit(actor, config, params, halves(batch))
        return fit.signal, jitted.propose(actor, config, params, batch).slope

    def standard_errors_from(expected, values):
        return (values.mean() - expected) / (values.std(ddof=1) / np.sqrt(len(values)))

    signal, slope = map(np.asarray, sampled(jax.random.split(jax.random.key(1), 4000)))
    assert abs(standard_errors_from(truth, signal)) < 4
    assert abs(standard_errors_from(truth + bias, slope)) < 4
    assert bias > truth and standard_errors_from(truth, slope) > 20


def averaged(utilities, smoothing):
    average = UtilityAverage.empty(utilities.shape[1], jnp.asarray(utilities).dtype)
    for utility in utilities:
        average = average.updated(jnp.asarray(utility), smoothing)
    return average


def test_smoothing_is_an_average_with_exponential_weights(float64):
    utilities = np.random.default_rng(0).normal(size=(6, 3))
    utilities[2, 1] = np.nan
    known = np.nan_to_num(utilities)
    weight = 0.7 ** np.arange(5, -1, -1)
    weight /= weight.sum()
    mean = weight @ known
    noise = (weight @ (known - mean) ** 2) / (1 - np.sum(weight**2)) * np.sum(weight**2)
    by_chance = noise.mean() * -2 * np.log(0.05) / 2  # the quantile of chi-squared with 2 degrees of freedom
    kept = max(0.0, 1 - by_chance / mean.var(ddof=1))
    expected = mean.mean() + kept * (mean - mean.mean())
    np.testing.assert_allclose(averaged(utilities, 0.7).shrunk(0.7), expected, rtol=1e-10)
    np.testing.assert_array_equal(averaged(utilities, 0.0).shrunk(0.0), known[-1])


@pytest.mark.parametrize("num_agents", [2, 4, 9])
def test_differences_are_believed_as_far_as_they_exceed_their_noise(float64, num_agents):
    """Over 2,000 teams: of those that only differ by noise 95 % get equal utilities, real differences are kept."""
    rng = np.random.default_rng(0)

    def spreads(true):
        drawn = true + rng.normal(size=(2000, 40, num_agents))
        shrunk = jax.jit(jax.vmap(lambda rows: averaged(rows, 0.95).shrunk(0.95)))(drawn)
        return np.std(shrunk, axis=1), np.std(true)

    by_noise, _ = spreads(np.zeros(num_agents))
    assert 0.01 < np.mean(by_noise > 1e-12) < 0.09
    found, true = spreads(3.0 * np.arange(num_agents))
    assert found.mean() > 0.95 * true


def test_one_agent_and_the_first_update():
    np.testing.assert_array_equal(averaged(np.full((3, 1), 2.0), 0.9).shrunk(0.9), 2.0)
    np.testing.assert_allclose(averaged(np.array([[1.0, 2.0, 6.0]]), 0.9).shrunk(0.9), 3.0, rtol=1e-6)


def test_without_a_predicted_gain_the_signal_fraction_is_zero():
    fit = cross_fitting.CrossFit(*jnp.zeros(3), jnp.zeros((2, 4)), jnp.zeros(2), ())
    assert fit.signal_fraction == 0
