"""The critic's loss against optax, its change of units, and what a fit must achieve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from marl_kl.core import critic as critics
from marl_kl.core.normalizers import Moments


def test_value_clipping_takes_the_worse_of_the_two():
    """Within the clip nothing changes; beyond it a value that ran ahead has no gradient, one that ran away has."""
    loss = lambda v, target: critics.clipped_huber(v, 0.0, target, 0.2, 10.0)  # noqa: E731
    np.testing.assert_allclose(loss(0.1, 1.0), 0.5 * 0.9**2, rtol=1e-6)
    np.testing.assert_allclose(loss(0.5, 1.0), 0.5 * 0.8**2, rtol=1e-6)
    assert jax.grad(loss)(0.5, 1.0) == 0
    assert jax.grad(loss)(0.5, -1.0) > 0
    np.testing.assert_allclose(critics.clipped_huber(0.5, 0.0, 1.0, jnp.inf, 10.0), 0.5 * 0.5**2, rtol=1e-6)


def test_a_change_of_units_keeps_every_value(float64):
    critic = critics.make_critic(marl_kl.OnPolicyConfig(hidden_sizes=(8,)), 2)
    state = critic.init(jax.random.key(0), 3)
    states = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    old = Moments(jnp.array(5.0), jnp.array([1.0, -2.0]), jnp.array([4.0, 0.25]))
    new = Moments(jnp.array(9.0), jnp.array([7.0, 0.5]), jnp.array([100.0, 3.0]))
    before = critic.value(state._replace(moments=old), states)
    rescaled = critics.rescale_output(state.params, old, new)
    after = critic.value(state._replace(params=rescaled, moments=new), states)
    np.testing.assert_allclose(after, before, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_a_critic_learns_values_of_any_scale(scale):
    config = marl_kl.OnPolicyConfig(hidden_sizes=(32,), num_envs=8, rollout_length=32)
    critic = critics.make_critic(config, 1)
    state = critic.init(jax.random.key(0), 3)
    states = jnp.asarray(np.random.default_rng(0).normal(size=(256, 3)), jnp.float32)
    target = scale * (5 + jnp.sin(states[:, :1]) + states[:, 1:2])
    fit = jax.jit(lambda key, state: critics.fit(key, config, critic, state, states, target))
    for key in jax.random.split(jax.random.key(1), 30):
        state, loss = fit(key, state)
    assert critics.explained_variance(critic.value(state, states), target) > 0.9
    assert np.isfinite(loss)


def test_the_gradient_that_the_critics_adam_sees_is_bounded_by_the_limit():
    """After one step from nothing Adam's first moment is a tenth of it."""
    states = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)
    target = jnp.sin(states[:, :1]) + states[:, 1:2]
    fields = {"hidden_sizes": (8,), "num_envs": 8, "rollout_length": 8, "critic_epochs": 1, "critic_minibatches": 1}

    @jax.jit
    def first_moment(limit):
        config = marl_kl.OnPolicyConfig(critic_max_grad_norm=limit, **fields)
        critic = critics.make_critic(config, 1)
        state, _ = critics.fit(jax.random.key(1), config, critic, critic.init(jax.random.key(0), 3), states, target)
        return state.opt_state[1][0].mu

    norm = lambda tree: np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))  # noqa: E731
    free = first_moment(jnp.array(1e6))
    for share in (0.01, 0.5, 0.99):
        bounded = first_moment(jnp.array(share * 10 * norm(free)))
        np.testing.assert_allclose(norm(bounded), share * norm(free), rtol=1e-5)
        expected = jax.tree.map(lambda leaf: share * leaf, free)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), bounded, expected)


def test_explained_variance():
    target = jnp.asarray(np.random.default_rng(0).normal(size=(100, 2)))
    np.testing.assert_allclose(critics.explained_variance(target, target), 1.0)
    np.testing.assert_allclose(critics.explained_variance(jnp.zeros_like(target), target), 0.0, atol=1e-6)
    assert critics.explained_variance(target, jnp.ones_like(target)) == 0.0


@pytest.mark.slow
def test_independent_critics_learn_from_their_own_agents_only():
    """Three critics are three lone ones, each on its agent's data; one for all values every agent's inputs alike."""
    config = marl_kl.OnPolicyConfig(hidden_sizes=(8,), num_envs=8, rollout_length=8)
    one = critics.make_critic(config, 1)
    three, shared = (critics.IndependentCritics(one, num_critics) for num_critics in (3, 1))
    rng = np.random.default_rng(0)
    inputs, targets = (jnp.asarray(rng.normal(size=(64, 3, *size)), jnp.float32) for size in ((5,), ()))
    start = three.init(jax.random.key(0), 5)
    got, _ = three.fit(jax.random.key(1), config, start, inputs, targets)
    values = three.value(got, inputs)
    assert values.shape == (64, 3)
    for i, key in enumerate(jax.random.split(jax.random.key(1), 3)):
        mine = jax.tree.map(lambda leaf: leaf[i], start)
        alone, _ = one.fit(key, config, mine, inputs[:, i], targets[:, i, None])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), got, alone)
        np.testing.assert_allclose(values[:, i], one.value(alone, inputs[:, i])[:, 0], rtol=1e-4, atol=1e-5)
    first = jax.tree.map(lambda leaf: leaf[:1], got)
    of_all, lone = shared.value(first, inputs), jax.tree.map(lambda leaf: leaf[0], first)
    for i in range(3):
        np.testing.assert_allclose(of_all[:, i], one.value(lone, inputs[:, i])[:, 0], rtol=1e-4, atol=1e-5)
