"""docs/your_own_environment.md: its environments keep the contract and train (its code runs in tests/docs)."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl

PAGE = (Path(__file__).parents[2] / "docs" / "your_own_environment.md").read_text()
GAME, CHECKING, _, PENDULUM, *_ = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page():
    """The names that the page defines."""
    names = {}
    exec(GAME, names)
    exec(CHECKING, names)
    exec(PENDULUM, names)
    return names


def test_the_examples_are_short():
    assert all(len(block.splitlines()) < 60 for block in (GAME, PENDULUM))


@pytest.mark.slow
def test_two_updates(page):
    config = marl_kl.TrustRegionConfig(
        num_envs=4, rollout_length=8, hidden_sizes=(8,), critic_epochs=1, critic_minibatches=1
    )
    train = marl_kl.make_train(page["orchard"], "hatrpo_w", config)
    run = jax.jit(lambda key: jax.lax.scan(lambda state, _: train.update(state), train.init(key), None, 2)[1])
    metrics = run(jax.random.key(0))
    for value in ("value_loss", "kl"):
        assert len(metrics[value]) == 2 and np.isfinite(metrics[value]).all(), value
    assert np.max(metrics["kl"]) > 0


def test_the_games_rules(page):
    """One apple, picked alone and then together; a picked one cannot be picked again."""
    orchard = page["orchard"]
    state, _ = orchard.reset(jax.random.key(0), ())
    place = jnp.array([2, 1])
    state = state._replace(inner=page["Orchard"](place, jnp.arange(5) == 2))
    pick, right = page["PICK"], page["RIGHT"]
    _, alone = orchard.step(jax.random.key(1), state, jnp.array([pick, right]), ())
    np.testing.assert_allclose(alone.reward, 0.2)
    assert alone.terminated and not alone.truncated and not alone.action_mask[0, pick]
    state = state._replace(inner=state.inner._replace(place=jnp.array([2, 2])))
    _, together = orchard.step(jax.random.key(1), state, jnp.array([pick, right]), ())
    np.testing.assert_allclose(together.reward, 1.0)
