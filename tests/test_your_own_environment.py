"""docs/your_own_environment.md: its code runs, keeps the contract and trains."""

import re
from pathlib import Path

import numpy as np
import pytest

import envs
import marl_kl

PAGE = (Path(__file__).parents[1] / "docs" / "your_own_environment.md").read_text()
GAME, CHECKING, TRAINING, PENDULUM = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


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


def test_the_training_call_is_one_that_train_takes(monkeypatch, page):
    taken = {}
    monkeypatch.setattr(marl_kl, "train", lambda env, algorithm, **options: taken.update(env=env, **options))
    exec(TRAINING, dict(page))
    assert taken.pop("env") is page["orchard"]
    marl_kl.TrustRegionConfig(total_env_steps=taken["total_env_steps"])


@pytest.mark.parametrize("name", ["orchard", "pendulum"])
def test_two_updates(page, name):
    result = marl_kl.train(
        page[name], "hatrpo", total_env_steps=64, num_envs=4, rollout_length=8, hidden_sizes=(8,), eval_episodes=2,
        critic_epochs=1, chunk_updates=2, progress="none",
    )  # fmt: skip
    assert result.metrics["kl_total"].shape == (1, 2) and np.isfinite(result.metrics["kl_total"]).all()
    assert not result.failures and np.isfinite(result.evaluation.episode_return).all()


def test_the_games_rules(page):
    """One apple, picked alone and then together; a picked one cannot be picked again."""
    orchard, module = page["orchard"], page
    state, _ = orchard.reset(module["jax"].random.key(0), ())
    place = module["jnp"].array([2, 1])
    state = state._replace(inner=module["Orchard"](place, module["jnp"].arange(5) == 2))
    pick, right = module["PICK"], module["RIGHT"]
    _, alone = orchard.step(module["jax"].random.key(1), state, module["jnp"].array([pick, right]), ())
    np.testing.assert_allclose(alone.reward, 0.2)
    assert alone.terminated and not alone.truncated and not alone.action_mask[0, pick]
    state = state._replace(inner=state.inner._replace(place=module["jnp"].array([2, 2])))
    _, together = orchard.step(module["jax"].random.key(1), state, module["jnp"].array([pick, right]), ())
    np.testing.assert_allclose(together.reward, 1.0)
    assert envs.EnvSpec is type(orchard.spec)
