"""The exact games: the protocol's contract, payoffs by enumeration, and the two-peak game's closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

import envs
from envs import games

RAGGED = np.random.default_rng(0).normal(size=(2, 3, 4))
GENERAL_SUM = np.random.default_rng(1).normal(size=(3, 2, 2))
GAMES = {
    "sparse": ("matrix_game", {}),
    "ragged": ("matrix_game", {"payoff": RAGGED}),
    "general_sum": ("matrix_game", {"payoff": GENERAL_SUM, "per_agent": True}),
    "two_peaks": ("two_peaks", {}),
    "bilinear": ("bilinear", {}),
    "bounded": ("bilinear", {"bound": 0.5}),
    "digits": ("digits", {"payoff": RAGGED, "digits_of": (1, 2)}),
    "parameter_sharing": ("parameter_sharing", {}),
}
KEY = jax.random.key(0)


def joint_actions(env):
    """[prod k_i, N] int32: every joint action of a discrete game."""
    return np.array(list(itertools.product(*map(range, env.spec.action_sizes))), np.int32)


def rewards(env, actions):
    """[M, N] rewards of M joint actions, each in the first step of an episode."""

    def pay(action):
        return env.step(KEY, env.reset(KEY, env.params)[0], action, env.params)[1].reward

    return np.asarray(jax.jit(jax.vmap(pay))(jnp.asarray(actions)))


def payoff_by_hand(env, action):
    """The reward (a number or one per agent) of one joint action, in plain Python."""
    if env.spec.name == "matrix_game":
        return np.asarray(env.params)[tuple(action)]
    if env.spec.name == "parameter_sharing":
        half = len(action) // 2
        first, second = set(action[:half].tolist()), set(action[half:].tolist())
        return float((first, second) in (({0}, {1}), ({1}, {0})))
    if env.spec.name == "digits":
        chosen = [digit for row, own in zip(action, env.spec.sub_actions) for digit in row[: len(own)]]
        return np.asarray(env.params)[tuple(chosen)]
    if env.spec.action_low is not None:
        action = np.clip(action, *(np.array(end) for end in (env.spec.action_low, env.spec.action_high)))
    a1, a2 = map(float, action[:, 0])
    return a1 * a2 if env.spec.name == "bilinear" else two_peaks_reward(a1, a2)


def random_action(env, key):
    spec = env.spec
    if spec.action_kind == "continuous":
        return 3 * jax.random.normal(key, (spec.num_agents, spec.action_size))
    if spec.action_kind == "multi_discrete":
        choices = spec.action_mask.reshape(*spec.action_shape, -1).sum(-1)
        return jax.random.randint(key, spec.action_shape, 0, np.maximum(choices, 1))
    return jax.random.randint(key, (spec.num_agents,), 0, jnp.asarray(spec.action_sizes))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("case", GAMES)
def test_contract(case, steps):
    name, options = GAMES[case]
    env = envs.make(name, steps=steps, **options)
    spec = env.spec
    n = spec.num_agents
    assert (spec.name, spec.episode_length, spec.state_size) == (name, steps, 1)
    assert hash(spec) == hash(envs.make(name, steps=steps, **options).spec)
    assert spec.team_reward == (case != "general_sum")

    def episode(key, params):
        env_state, first = env.reset(key, params)

        def body(env_state, key):
            action = random_action(env, key)
            env_state, timestep = env.step(key, env_state, action, params)
            return env_state, (action, timestep)

        return first, *jax.lax.scan(body, env_state, jax.random.split(key, steps))[1]

    first, actions, trace = jax.jit(jax.vmap(episode, in_axes=(0, None)))(jax.random.split(KEY, 3), env.params)
    want = {
        "obs": ((n, 1), "float32"),
        "state": ((1,), "float32"),
        "reward": ((n,), "float32"),
        "terminated": ((), "bool"),
        "truncated": ((), "bool"),
        "action_mask": ((n, spec.action_size), "bool"),
    }
    for field, (shape, dtype) in want.items():
        after_reset, after_step = getattr(first, field), getattr(trace, field)
        assert (after_reset.shape, after_reset.dtype.name) == ((3, *shape), dtype), field
        assert (after_step.shape, after_step.dtype.name) == ((3, steps, *shape), dtype), field
    assert not first.reward.any() and not first.terminated.any() and not first.truncated.any()
    assert (trace.obs == 1).all() and (trace.state == 1).all() and np.isfinite(trace.reward).all()
    np.testing.assert_array_equal(trace.action_mask, np.broadcast_to(spec.action_mask, trace.action_mask.shape))
    for index in np.ndindex(3, steps):
        by_hand = payoff_by_hand(env, np.asarray(actions[index]))
        np.testing.assert_allclose(trace.reward[index], np.broadcast_to(by_hand, n), rtol=1e-5, atol=1e-6)
    if spec.team_reward:
        np.testing.assert_array_equal(trace.reward, np.broadcast_to(trace.reward[..., :1], trace.reward.shape))
    last = np.arange(steps) == steps - 1
    np.testing.assert_array_equal(trace.terminated, np.broadcast_to(last & (steps == 1), (3, steps)))
    np.testing.assert_array_equal(trace.truncated, np.broadcast_to(last & (steps > 1), (3, steps)))


@pytest.mark.parametrize("num_agents, num_actions, rewarded", [(4, 3, (1, 2, 0, 1)), (2, 2, (1, 0)), (1, 1, (0,))])
def test_sparse_game_rewards_one_joint_action(num_agents, num_actions, rewarded):
    env = envs.make("matrix_game", num_agents=num_agents, num_actions=num_actions)
    actions = joint_actions(env)
    assert len(actions) == num_actions**num_agents
    want = (actions == rewarded).all(axis=1, keepdims=True)
    np.testing.assert_array_equal(rewards(env, actions), np.broadcast_to(want, actions.shape))
    assert dict(env.spec.metadata)["rewarded_joint_action"] == " ".join(map(str, rewarded))


@settings(max_examples=8, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), per_agent=st.booleans(), seed=st.integers(0, 99))
def test_payoff_is_looked_up(shape, per_agent, seed):
    n = len(shape)
    payoff = np.random.default_rng(seed).normal(size=shape + [n] * per_agent).astype(np.float32)
    env = envs.make("matrix_game", payoff=payoff, per_agent=per_agent)
    assert env.spec.action_sizes == tuple(shape)
    assert env.spec.action_mask.sum(axis=1).tolist() == shape
    want = payoff.reshape(-1, n) if per_agent else np.repeat(payoff.reshape(-1, 1), n, axis=1)
    np.testing.assert_array_equal(rewards(env, joint_actions(env)), want)


def test_payoff_can_be_swept_under_one_vmap():
    env = envs.make("matrix_game", payoff=RAGGED)
    payoffs = np.random.default_rng(2).normal(size=(5, *RAGGED.shape)).astype(np.float32)
    action = jnp.array([1, 2, 3])

    def play(payoff):
        return env.step(KEY, env.reset(KEY, payoff)[0], action, payoff)[1].reward[0]

    np.testing.assert_array_equal(jax.vmap(play)(payoffs), payoffs[:, 1, 2, 3])
    with pytest.raises(AssertionError, match="shape"):
        play(payoffs[0, :1])


@pytest.mark.parametrize("action", [(2, 0, 0), (0, 3, 0), (0, 0, 4), (0, 0, -1)])
def test_unavailable_choice_pays_nan(action):
    env = envs.make("matrix_game", payoff=RAGGED)
    assert np.isnan(rewards(env, np.array([action], np.int32))).all()


def test_digits_are_the_matrix_game_of_its_players():
    """Every joint choice pays what it pays there; agents with fewer digits pad with 0 and anything else pays NaN."""
    env, players = envs.make("digits"), envs.make("matrix_game", num_agents=3)
    assert env.spec.sub_actions == ((3, 3), (3,)) and dict(env.spec.metadata)["rewarded_digits"] == "1 2 0"
    np.testing.assert_array_equal(env.params, players.params)
    of_players = joint_actions(players)
    padded = np.concatenate([of_players, np.zeros_like(of_players[:, :1])], axis=1).reshape(-1, 2, 2)
    np.testing.assert_array_equal(rewards(env, padded)[:, 0], rewards(players, of_players)[:, 0])
    for wrong in ([[1, 2], [0, 1]], [[3, 2], [0, 0]], [[1, -1], [0, 0]]):
        assert np.isnan(rewards(env, np.array([wrong], np.int32))).all()


@pytest.mark.parametrize("num_agents", [2, 4, 6])
def test_parameter_sharing_pays_opposite_halves(num_agents):
    env = envs.make("parameter_sharing", num_agents=num_agents)
    half = num_agents // 2
    winning = {(0,) * half + (1,) * half, (1,) * half + (0,) * half}
    actions = joint_actions(env)
    want = [[float(tuple(action) in winning)] * num_agents for action in actions.tolist()]
    np.testing.assert_array_equal(rewards(env, actions), want)


@pytest.mark.parametrize("name", ["bilinear", "two_peaks"])
def test_continuous_payoffs_are_unclipped(name):
    env = envs.make(name)
    actions = np.stack(np.meshgrid(*2 * [np.linspace(-20, 20, 41)], indexing="ij"), -1).reshape(-1, 2, 1)
    want = [payoff_by_hand(env, action) for action in actions]
    np.testing.assert_allclose(rewards(env, actions.astype(np.float32))[:, 0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("matrix_game", {"steps": 0}, "steps=0; it must be an integer >= 1"),
        ("bilinear", {"steps": 1.5}, "steps=1.5; it must be an integer"),
        ("two_peaks", {"steps": -1}, "steps=-1; it must be an integer"),
        ("matrix_game", {"num_agents": 0}, "num_agents=0; it must be"),
        ("matrix_game", {"num_actions": 0}, "num_actions=0; it must be"),
        ("matrix_game", {"num_agents": 40}, "3\\^40 entries; at most"),
        ("matrix_game", {"payoff": 3.0}, "at least one agent"),
        ("matrix_game", {"payoff": np.zeros((2, 0))}, "at least one agent and one action"),
        ("matrix_game", {"payoff": [[1, 2], [3]]}, "not an array of numbers"),
        ("matrix_game", {"payoff": "high"}, "not an array of numbers"),
        ("matrix_game", {"payoff": [[0, np.nan], [0, 0]]}, "not finite in float32 at 1 entries, first at \\[0, 1\\]"),
        ("matrix_game", {"payoff": [0.0, 1e300]}, "not finite in float32"),
        ("matrix_game", {"payoff": np.zeros((2, 2)), "num_agents": 3}, "is a game of 2 agents, but num_agents=3"),
        ("matrix_game", {"payoff": np.zeros((2, 2, 2)), "num_agents": 2}, "per_agent=True reads its last axis"),
        ("matrix_game", {"payoff": np.zeros((2, 3)), "num_actions": 3}, "has \\[2, 3\\] actions, but num_actions=3"),
        ("matrix_game", {"payoff": np.zeros((2, 2, 3)), "per_agent": True}, "one reward for each of 2 agents"),
        ("matrix_game", {"per_agent": True}, "needs a payoff"),
        ("digits", {"digits_of": ()}, r"digits_of=\(\); it must be a number of digits per agent"),
        ("digits", {"digits_of": (2, 0)}, "digits_of=0; it must be an integer >= 1"),
        ("digits", {"digits_of": (20, 20)}, "sum of digits_of=40 with num_choices=3 is a payoff of 3\\^40 entries"),
        ("digits", {"payoff": np.zeros((2, 2))}, r"shape \[2, 2\]; for digits_of=\(2, 1\) it must have 3 axes"),
        ("digits", {"payoff": np.zeros((2, 2, 3)), "num_choices": 2}, "digits of other sizes than num_choices=2"),
        ("bilinear", {"bound": -1}, "bound=-1; it must be a finite number > 0, or None"),
        ("bilinear", {"bound": "wide"}, "bound='wide'; it must be"),
        ("parameter_sharing", {"num_agents": 3}, "num_agents=3; it must be even"),
        ("parameter_sharing", {"num_agents": 0}, "num_agents=0; it must be"),
        ("bilinear", {"num_agents": 2}, "unknown option 'num_agents'; accepted: steps"),
    ],
)
def test_bad_input_gives_a_one_line_error(name, options, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        envs.make(name, **options)
    message = str(raised.value)
    assert message.startswith(f"env '{name}'") and "\n" not in message


def two_peaks_reward(a1, a2, std=0.0):
    """The printed formula in scipy, every peak widened by `std`."""
    wide, narrow, one = np.hypot(3, std), np.hypot(1, std), np.hypot(1, std)
    high = 10 * norm.pdf(a1, 5, one) * norm.pdf(a2, 5, wide)
    low = 5.3 * norm.pdf(a1, 1, narrow) * norm.pdf(a2, 1, narrow)
    return high + 0.1 * a1 + low


def gaussian_grid(mean, num_nodes=40):
    """Gauss-Hermite nodes [num_nodes**2, 2, 1] and weights for unit-variance Gaussians around `mean`."""
    x, w = np.polynomial.hermite_e.hermegauss(num_nodes)
    nodes = np.stack(np.meshgrid(mean[0] + x, mean[1] + x, indexing="ij"), -1).reshape(-1, 2, 1)
    return nodes.astype(np.float32), np.outer(w, w).ravel() / (2 * np.pi)


@pytest.mark.parametrize("start, mean, value", [((0.0, 0.0), (1.60, 1.02), 0.554), ((5.0, 5.0), (5.62, 5.00), 0.885)])
def test_two_peaks_optima_under_unit_variance(start, mean, value):
    found = minimize(lambda mu: -two_peaks_reward(*mu, std=1.0), start, tol=1e-10)
    np.testing.assert_allclose(found.x, mean, atol=0.005)
    np.testing.assert_allclose(-found.fun, value, atol=0.0005)
    assert (np.linalg.eigvalsh(found.hess_inv) > 0).all()
    nodes, weights = gaussian_grid(found.x)
    by_quadrature = weights @ rewards(envs.make("two_peaks"), nodes)[:, 0]
    np.testing.assert_allclose(by_quadrature, -found.fun, atol=1e-5)
    np.testing.assert_allclose(games.two_peaks_expectation(found.x, 1.0), -found.fun, atol=1e-6)


def test_two_peaks_slope_has_no_end():
    """Both peaks are local: far enough along agent 1's slope every expected reward is exceeded."""
    assert two_peaks_reward(9.0, 5.0, std=1.0) > two_peaks_reward(5.62, 5.0, std=1.0)
    assert two_peaks_reward(7.0, 5.0, std=1.0) < two_peaks_reward(5.62, 5.0, std=1.0)


def test_the_spec_notes_the_options_that_make_it_again():
    env = envs.make("matrix_game", payoff=[[1, 0], [0, 2.5]], steps=3)
    assert env.spec.options == (("payoff", ((1, 0), (0, 2.5))), ("steps", 3))
    again = envs.make(env.spec.name, **dict(env.spec.options))
    assert again.spec == env.spec and np.array_equal(again.params, env.params)
    assert envs.make("matrix_game").spec.options == ()
    assert envs.make("matrix_game", payoff=np.eye(2)).spec.options is None
    assert envs.make("matrix_game", steps=1).spec == envs.make("matrix_game").spec
