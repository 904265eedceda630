"""Fisher product against the dense Hessian, conjugate gradient against a direct solve, the line search's promises."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import envs
from marl_kl.config import TrustRegionConfig
from marl_kl.core import trust_region
from marl_kl.core.policies import make_actor
from marl_kl.core.trust_region import AgentBatch, conjugate_gradient, fisher_product
from tests.support import jitted
from tests.support.grids import slow_unless

BATCH = 40
CONTINUOUS = envs.EnvSpec("c", ("a",), (3,), (2,), "continuous", 3, 10)
DISCRETE = envs.EnvSpec("d", ("a",), (3,), (4,), "discrete", 3, 10)
SEVERAL = envs.EnvSpec("s", ("a",), (3,), (6,), "multi_discrete", 3, 10, sub_actions=((3, 2),))


def problem(spec, config, masked=False, seed=0):
    """One agent with random parameters on a random batch."""
    rng = np.random.default_rng(seed)
    actor = make_actor(spec, config)
    params = jax.tree.map(lambda leaf: leaf[0], jitted.init_actors(jax.random.key(seed), spec, config))
    # far from the tiny initial output layer, where everything would be linear
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(0, 0.3, leaf.shape)), params)
    obs = jnp.asarray(rng.normal(size=(BATCH, 3)))
    mask = np.ones((BATCH, spec.action_size), bool)
    if masked:
        mask[np.arange(BATCH), rng.integers(0, spec.action_size, BATCH)] = False
    mask = jnp.asarray(mask & spec.action_mask)
    action = actor.distribution(actor.outputs(params, obs), mask).sample(jax.random.key(seed + 1))
    return actor, params, AgentBatch(obs, action, mask, jnp.asarray(rng.normal(size=BATCH)), None)


def mean_kl(actor, params, batch):
    theta, unravel = ravel_pytree(params)
    old = actor.distribution(actor.outputs(params, batch.obs), batch.action_mask)

    def kl(t):
        return jnp.mean(old.kl(actor.distribution(actor.outputs(unravel(t), batch.obs), batch.action_mask)))

    return theta, kl


CASES = pytest.mark.parametrize(
    ("spec", "masked"),
    slow_unless(
        lambda case: case == (DISCRETE, True),
        [(CONTINUOUS, False), (CONTINUOUS, True), (DISCRETE, False), (DISCRETE, True), (SEVERAL, True)],
    ),
)


@CASES
def test_fisher_product_equals_the_dense_hessian_of_the_kl(spec, masked, float64):
    actor, params, batch = problem(spec, TrustRegionConfig(hidden_sizes=(5, 4)), masked)
    theta, kl = mean_kl(actor, params, batch)
    hessian = jax.jit(jax.hessian(kl))(theta)
    _, unravel = ravel_pytree(params)
    product = fisher_product(
        lambda t: actor.outputs(unravel(t), batch.obs),
        theta,
        lambda outputs, v: actor.distribution(outputs, batch.action_mask).fisher_product(v),
        BATCH,
    )
    dense = jax.jit(jax.vmap(product, out_axes=1))(jnp.eye(len(theta)))
    np.testing.assert_allclose(dense, hessian, atol=1e-12)


@CASES
def test_proposal_equals_a_direct_solve(spec, masked, float64):
    """Gradient, natural-gradient direction, slope and curvature against dense linear algebra."""
    config = TrustRegionConfig(hidden_sizes=(5, 4), cg_subsample=1.0, cg_iters=200, cg_tol=1e-24)
    actor, params, batch = problem(spec, config, masked)
    theta, kl = mean_kl(actor, params, batch)
    _, unravel = ravel_pytree(params)

    def surrogate(t):
        old, new = (actor.distribution(actor.outputs(unravel(x), batch.obs), batch.action_mask) for x in (theta, t))
        return jnp.mean((jnp.exp(new.log_prob(batch.action) - old.log_prob(batch.action)) - 1) * batch.weight)

    fisher, gradient = jax.jit(jax.hessian(kl))(theta), jax.jit(jax.grad(surrogate))(theta)
    expected = jnp.linalg.solve(fisher + config.cg_damping * jnp.eye(len(theta)), gradient)
    proposal = jitted.propose(actor, config, params, batch)
    np.testing.assert_allclose(proposal.direction, expected, atol=1e-9)
    np.testing.assert_allclose(proposal.slope, gradient @ expected, rtol=1e-9)
    np.testing.assert_allclose(proposal.curvature, expected @ fisher @ expected, rtol=1e-9)
    np.testing.assert_allclose(proposal.gain(0.01), gradient @ (proposal.scale(0.01) * expected), rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 12), damping=st.floats(0.01, 1.0))
def test_conjugate_gradient_equals_a_direct_solve(seed, size, damping):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    matrix, b = root @ root.T / size, rng.normal(size=size)
    with jax.enable_x64(True):
        x = conjugate_gradient(lambda v: jnp.asarray(matrix) @ v, jnp.asarray(b), 5 * size, 1e-26, damping)
    np.testing.assert_allclose(x, np.linalg.solve(matrix + damping * np.eye(size), b), atol=1e-8)


def test_conjugate_gradient_of_nothing_is_nothing():
    np.testing.assert_array_equal(conjugate_gradient(lambda v: v, jnp.zeros(4)), 0.0)


def test_conjugate_gradient_stops_by_its_residual_whatever_the_scale():
    matrix = jnp.diag(jnp.array([1.0, 2.0, 3.0, 4.0]))
    for scale in (1e-6, 1.0, 1e6):
        b = scale * jnp.ones(4)
        loose = conjugate_gradient(lambda v: matrix @ v, b, 50, tol=1e-2)
        residual = b - matrix @ loose
        assert 0 < residual @ residual <= 1e-2 * (b @ b)


@CASES
def test_kl_of_the_full_step_tends_to_the_radius(spec, masked, float64):
    config = TrustRegionConfig(hidden_sizes=(5, 4), cg_subsample=1.0)
    actor, params, batch = problem(spec, config, masked)
    proposal = jitted.propose(actor, config, params, batch)
    errors = []
    for radius in (1e-2, 1e-4, 1e-6):
        kl = trust_region.trial(actor, params, batch, proposal, jnp.asarray(radius)).kl
        errors.append(abs(float(kl) / radius - 1))
    assert errors[2] < 1e-2 and errors[2] < errors[0]


@CASES
def test_an_accepted_step_satisfies_its_conditions(spec, masked, float64):
    config = TrustRegionConfig(hidden_sizes=(5, 4))
    for seed in range(5):
        actor, params, batch = problem(spec, config, masked, seed)
        proposal = jitted.propose(actor, config, params, batch)
        moved = jitted.line_search(actor, config, params, batch, proposal, jnp.asarray(0.05))
        assert moved.step_fraction > 0
        theta, kl = mean_kl(actor, params, batch)
        new_theta = ravel_pytree(moved.params)[0]
        np.testing.assert_allclose(moved.outcome.kl, kl(new_theta), rtol=1e-9)
        assert moved.outcome.kl <= 0.05
        assert moved.outcome.gain >= config.accept_ratio * moved.step_fraction * proposal.gain(0.05) > 0
        step = moved.step_fraction * proposal.scale(0.05) * proposal.direction
        np.testing.assert_allclose(new_theta - theta, step, atol=1e-12)


def test_the_line_search_takes_the_first_fraction_that_passes(float64):
    config = TrustRegionConfig(hidden_sizes=(5, 4), cg_subsample=1.0, backtrack_coef=0.5, line_search="geometric")
    actor, params, batch = problem(CONTINUOUS, config)
    proposal = jitted.propose(actor, config, params, batch)
    steep = proposal._replace(curvature=proposal.curvature / 10)  # a step sqrt(10) times too long
    threshold = jnp.asarray(0.01)
    moved = jitted.line_search(actor, config, params, batch, steep, threshold)
    expected = None
    for j in range(config.line_search_steps):
        tried = trust_region.trial(actor, params, batch, steep, threshold * 0.25**j)
        if tried.kl <= threshold and tried.gain >= 0.5 * 0.5**j * steep.gain(threshold):
            expected = 0.5**j
            break
    assert expected is not None and expected < 1
    np.testing.assert_allclose(moved.step_fraction, expected)


def searched(kl_of, gain_of=lambda fraction: fraction, **fields):
    """A matched line search whose KL and gain are functions of the fraction of the full step; threshold and predicted
    gain are 1. Returns the accepted fraction and those that were tried."""
    tried = []
    actor = SimpleNamespace(
        outputs=lambda params, obs: params,
        distribution=lambda outputs, mask: SimpleNamespace(entropy=lambda: jnp.zeros(1)),
    )

    def assess(actor, batch, old_outputs, new_outputs):
        fraction = new_outputs[0]
        if not isinstance(fraction, jax.core.Tracer):  # else it is asked for shapes only
            tried.append(float(fraction))
        return trust_region.Outcome(new_outputs, jnp.asarray(kl_of(fraction)), jnp.asarray(gain_of(fraction)))

    one = jnp.ones(())
    proposal = trust_region.Proposal(direction=jnp.ones(1), slope=one, curvature=2 * one, outputs=jnp.zeros(1))
    batch = AgentBatch(jnp.zeros(1), jnp.zeros(1), jnp.ones((1, 1), bool), jnp.ones(1), None)
    config = TrustRegionConfig(line_search="kl_matched", **fields)
    with jax.disable_jit():
        step = jitted.line_search(actor, config, jnp.zeros(1), batch, proposal, one, assess)
    np.testing.assert_array_equal(step.params, step.step_fraction)
    return float(step.step_fraction), tried


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.3, 20.0), cubic=st.floats(0.0, 3.0))
def test_a_matched_line_search_spends_its_threshold(scale, cubic):
    """KL = scale f^2 (1 + cubic f), as the next order of a real one: three tries are mostly enough."""
    fraction, tried = searched(lambda f: scale * f**2 * (1 + cubic * f))
    assert 0.95 <= scale * fraction**2 * (1 + cubic * fraction) <= 1 and fraction == tried[-1]
    assert len(tried) <= 5 and (cubic > 0 or len(tried) <= 2)


@pytest.mark.parametrize(
    "kl_of, gain_of, accepted, tried",
    [
        # beyond 0.5 no gain: as the geometric search, whose accepted step is taken though its KL is small
        (lambda f: f**2, lambda f: jnp.where(f > 0.5, 0.0, f), 0.8**4, [0.8**j for j in range(5)]),
        # a longer step has no gain: back to the one that had
        (lambda f: 0.5 * f**2, lambda f: jnp.where(f > 1, 0.0, f), 1.0, [1, 0.99 * 2**0.5, 0.8 * 0.99 * 2**0.5]),
        # hardly any KL: not more than twice the step that the model proposes
        (lambda f: 1e-3 * f**2, lambda f: f, 2.0, [1, 2]),
        # no KL to match: as the geometric search, until there is one
        (lambda f: jnp.where(f > 0.7, jnp.nan, f**2), lambda f: f, 0.64, [1, 0.8, 0.64, 0.99, 0.792]),
        (lambda f: jnp.asarray(5.0), lambda f: f, 0.0, None),
        (lambda f: f**2, lambda f: -f, 0.0, [0.8**j for j in range(10)]),
    ],
)
def test_fractions_that_a_matched_line_search_tries(kl_of, gain_of, accepted, tried):
    found, seen = searched(kl_of, gain_of)
    np.testing.assert_allclose(found, accepted, rtol=1e-6)
    if tried is None:
        assert len(seen) == TrustRegionConfig().line_search_steps
    else:
        np.testing.assert_allclose(seen, tried, rtol=1e-6)


@pytest.mark.parametrize("weight", slow_unless({0.0}, [0.0, np.nan, np.inf]))
def test_without_a_usable_gradient_the_agent_stays(weight):
    config = TrustRegionConfig(hidden_sizes=(5, 4))
    actor, params, batch = problem(CONTINUOUS, config)
    batch = batch._replace(weight=jnp.full(BATCH, weight))
    proposal = jitted.propose(actor, config, params, batch)
    moved = jitted.line_search(actor, config, params, batch, proposal, jnp.asarray(0.05))
    jax.tree.map(np.testing.assert_array_equal, moved.params, params)
    assert moved.step_fraction == moved.outcome.kl == moved.outcome.gain == 0
    np.testing.assert_array_equal(moved.outcome.log_ratio, 0.0)
    assert np.isfinite(moved.entropy)


def test_a_step_that_breaks_its_promises_is_undone():
    """A threshold of 0, and a direction that goes downhill."""
    config = TrustRegionConfig(hidden_sizes=(5, 4))
    actor, params, batch = problem(CONTINUOUS, config)
    proposal = jitted.propose(actor, config, params, batch)
    downhill = proposal._replace(direction=-proposal.direction)
    for tried, threshold in ((proposal, 0.0), (downhill, 0.05)):
        moved = jitted.line_search(actor, config, params, batch, tried, jnp.asarray(threshold))
        jax.tree.map(np.testing.assert_array_equal, moved.params, params)
        assert moved.step_fraction == 0


@pytest.mark.slow
def test_full_batch_curvature_keeps_a_subsampled_step_near_its_radius():
    """Solved on few samples a direction looks flatter than it is; its length must come from the full batch."""
    config = TrustRegionConfig(hidden_sizes=(16, 16), cg_damping=1e-3)
    actor, params, batch = problem(CONTINUOUS, config)
    batch = batch._replace(subset=jnp.arange(4))
    proposal = jitted.propose(actor, config, params, batch)
    kl = trust_region.trial(actor, params, batch, proposal, jnp.asarray(1e-4)).kl
    np.testing.assert_allclose(kl, 1e-4, rtol=0.2)
