"""PettingZoo's interface: a parallel environment of Python objects, played by compiled programs."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from tests.support import small_run


class Walk:
    """Agents walk by what they choose, with noise; b leaves after 3 steps, and at 5 or more a ends the task.

    Both lists count what Python did: environments made, and resets.
    """

    metadata = {"name": "walk"}
    possible_agents = ("a", "b")
    made, resets = [], []

    def __init__(self, limit=100):
        self.limit = limit
        Walk.made.append(self)

    def action_space(self, agent):
        return SimpleNamespace(n=3 if agent == "a" else 2)

    def _observed(self):
        for agent in self.agents_before:
            mask = np.array([1, 1, 0] if agent == "a" else [1, 1], np.int8)
            yield agent, {"observation": np.array([self.at[agent], self.t]), "action_mask": mask}

    def reset(self, seed=None):
        Walk.resets.append(seed)
        self.rng, self.t, self.agents = np.random.default_rng(seed), 0, ["a", "b"]
        self.agents_before = self.agents
        self.at = {agent: self.rng.uniform() for agent in self.agents}
        return dict(self._observed()), {}

    def step(self, actions):
        assert set(actions) == set(self.agents) and all(type(choice) is int for choice in actions.values())
        self.t += 1
        for agent, choice in actions.items():
            self.at[agent] += choice + 0.1 * self.rng.normal()
        self.agents_before = self.agents
        terminated = {"a": self.at["a"] >= 5, "b": self.at["a"] >= 5 or self.t >= 3}
        truncated = dict.fromkeys(self.agents_before, self.t >= self.limit)
        rewards = {agent: self.at[agent] for agent in self.agents_before}
        self.agents = [agent for agent in self.agents_before if not (terminated[agent] or truncated[agent])]
        if terminated["a"] or self.t >= self.limit:
            self.agents = []
        ends = {agent: bool(terminated[agent]) for agent in self.agents_before}
        return dict(self._observed()), rewards, ends, truncated, {}


@pytest.fixture(autouse=True)
def nothing_counted():
    Walk.made.clear()
    Walk.resets.clear()


def walk(**options):
    return envs.from_pettingzoo(Walk, 6, **options)


def rollout(env, key, actions):
    """Time steps [E, T, ...] of two environments under actions [T, N], without resets."""

    def game(key):
        def step(env_state, action):
            return env.step(key, env_state, action, ())

        env_state, first = env.reset(key, ())
        return first, jax.lax.scan(step, env_state, actions)[1]

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(game))(jax.random.split(key)))


def test_it_keeps_the_contract():
    env = walk()
    envs.check(env, steps=20, num_envs=2)
    spec = env.spec
    assert (spec.name, spec.agents, spec.action_sizes, spec.observation_sizes) == ("walk", ("a", "b"), (3, 2), (2, 2))
    assert (spec.state_size, spec.episode_length, spec.team_reward) == (4, 6, False)


@pytest.mark.parametrize("limit", [100, 4])
def test_plays_as_python_does(limit):
    """Both environments under the same actions, until they end: by the task, by their own limit, or by ours."""
    env = envs.from_pettingzoo(lambda: Walk(limit), 6)
    actions = np.array([[1, 0], [1, 1], [0, 1], [1, 0], [0, 0], [0, 0]])
    first, steps = rollout(env, jax.random.key(0), jnp.asarray(actions))
    seeds = [jax.random.randint(key, (), 0, 2**31 - 1, jnp.int32) for key in jax.random.split(jax.random.key(0))]
    for game, seed in enumerate(seeds):
        other = Walk(limit)
        observed, _ = other.reset(int(seed))
        np.testing.assert_allclose(first.obs[game], [observed[a]["observation"] for a in "ab"], rtol=1e-6)
        np.testing.assert_array_equal(first.action_mask[game], [[True, True, False], [True, True, False]])
        for t, action in enumerate(actions):
            alive = set(other.agents)
            observed, reward, terminated, truncated, _ = other.step(
                {a: int(c) for a, c in zip("ab", action) if a in alive}
            )
            seen = [observed[a]["observation"] if a in alive else [0, 0] for a in "ab"]
            np.testing.assert_allclose(steps.obs[game, t], seen, rtol=1e-6)
            np.testing.assert_allclose(steps.reward[game, t], [reward.get(a, 0) for a in "ab"], rtol=1e-6)
            np.testing.assert_array_equal(steps.alive[game, t], [a in other.agents for a in "ab"])
            done = not other.agents
            assert steps.truncated[game, t] == (done and any(truncated.values()) or t == 5 and not done)
            assert steps.terminated[game, t] == (done and not any(truncated.values()))
            if done:
                break


def test_a_state_that_is_stepped_again_is_replayed_and_one_that_continues_is_not():
    actions = jnp.asarray([[1, 0], [0, 1], [1, 1]])
    first = rollout(walk(), jax.random.key(0), actions)
    assert len(Walk.resets) == 1 + 2
    again = rollout(walk(cached=0), jax.random.key(0), actions)
    assert len(Walk.resets) > 1 + 2 + 1 + 2
    jax.tree.map(np.testing.assert_array_equal, again, first)
    env = walk()
    env_state, _ = env.reset(jax.random.key(3), ())
    one, other = (env.step(jax.random.key(0), env_state, jnp.asarray([1, 1]), ()) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_training_resumes_with_the_same_bits(tmp_path):
    fields = {"algorithm": "happo", "seeds": 2, "chunk_updates": 1, "eval_interval": 0}
    whole = small_run.train(walk(), total_env_steps=128, **fields)
    small_run.train(walk(), total_env_steps=64, out=tmp_path / "run", **fields)
    resumed = small_run.train(walk(), total_env_steps=128, out=tmp_path / "run", resume=True, **fields)
    for metric, values in whole.metrics.items():
        np.testing.assert_array_equal(resumed.metrics[metric], values, err_msg=metric)


def test_a_wrong_length_is_one_line():
    with pytest.raises(ValueError, match="env 'walk': episode_length=0; it must be an integer >= 1"):
        envs.from_pettingzoo(Walk, 0)
