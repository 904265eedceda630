"""The theory of sequential trust-region updates, checked exactly in numpy (float64) on small games.

Kuba et al. 2022, "Trust Region Policy Optimisation in Multi-Agent Reinforcement Learning": Lemma 1, Proposition 1,
Proposition 2, Algorithm 1 with Theorems 2 and 3, and the bilinear game. Nothing here uses the trainer:
rewards come from `envs` where a game exists there, everything else is enumeration, linear solves and quadrature.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

import envs

KEY = jax.random.key(0)
SMALLEST_PROBABILITY = 1e-30


class Game(NamedTuple):
    """A cooperative Markov game: reward [S, k_1, ..., k_n], transition [S, k_1, ..., k_n, S], start [S]."""

    reward: np.ndarray
    transition: np.ndarray
    start: np.ndarray
    gamma: float

    @property
    def action_sizes(self):
        return self.reward.shape[1:]


def random_policy(rng, num_states, num_actions):
    """[S, k], every action possible."""
    return 0.9 * rng.dirichlet(np.ones(num_actions), size=num_states) + 0.1 / num_actions


def random_game(rng, num_states, action_sizes, gamma):
    """A random game and two random joint policies for it (one [S, k_i] array per agent)."""
    shape = (num_states, *action_sizes)
    game = Game(
        reward=rng.normal(size=shape),
        transition=rng.dirichlet(np.ones(num_states), size=shape),
        start=np.full(num_states, 1 / num_states),
        gamma=gamma,
    )
    old, new = ([random_policy(rng, num_states, k) for k in action_sizes] for _ in range(2))
    return game, old, new


def joint_policy(policies):
    """[S, k_1, ..., k_n] probability of every joint action."""
    joint = policies[0]
    for policy in policies[1:]:
        joint = joint[..., None] * policy.reshape(len(policy), *[1] * (joint.ndim - 1), -1)
    return joint


def over_actions(weights, values):
    """[S, ...] sum of weights * values over all joint actions; `values` may have further axes."""
    num_states = len(weights)
    flat = values.reshape(num_states, weights[0].size, -1)
    return np.einsum("sa,sax->sx", weights.reshape(num_states, -1), flat)


def evaluate(game, policies):
    """V [S], Q [S, k_1, ..., k_n], visitation [S] (sum of gamma^t P(s_t = s)) and the return, by linear solves."""
    joint = joint_policy(policies)
    reward, transition = over_actions(joint, game.reward)[:, 0], over_actions(joint, game.transition)
    system = np.eye(len(reward)) - game.gamma * transition
    value = np.linalg.solve(system, reward)
    visits = np.linalg.solve(system.T, game.start)
    return value, game.reward + game.gamma * game.transition @ value, visits, game.start @ value


class MultiAgentQ:
    """Q(s, a^{subset}): the other agents' actions averaged out under `policies`, by enumeration."""

    def __init__(self, q, policies):
        self.q, self.policies, self.action_sizes = q, policies, q.shape[1:]

    def value(self, state, chosen):
        """`chosen`: {agent: action} of the subset; all of Q's other agents follow their policies."""
        free = [[chosen[i]] if i in chosen else range(k) for i, k in enumerate(self.action_sizes)]
        others = [i for i in range(len(free)) if i not in chosen]
        return sum(
            self.q[(state, *action)] * np.prod([self.policies[i][state, action[i]] for i in others])
            for action in itertools.product(*free)
        )

    def advantage(self, state, given, agent, action):
        """A^{agent}(s, a^{given}, a^{agent}) = Q(s, a^{given}, a^{agent}) - Q(s, a^{given})."""
        return self.value(state, {**given, agent: action}) - self.value(state, given)


@st.composite
def games_and_orders(draw):
    """(rng, number of states, number of actions per agent, order, number m of agents in the order that matter)."""
    action_sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    n = len(action_sizes)
    order = draw(st.permutations(range(n)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng, draw(st.integers(1, 2)), action_sizes, tuple(order), draw(st.integers(1, n))


@settings(max_examples=30, deadline=None)
@given(games_and_orders())
def test_lemma_1_advantage_decomposition(case):
    """A^{i_1..i_m}(s, a) = sum_j A^{i_j}(s, a^{i_1..i_{j-1}}, a^{i_j}), for any order of any subset."""
    rng, num_states, action_sizes, order, m = case
    game, policies, _ = random_game(rng, num_states, action_sizes, gamma=0.9)
    value, q, _, _ = evaluate(game, policies)
    multi = MultiAgentQ(q, policies)
    subset = order[:m]
    for state in range(num_states):
        action = {i: int(rng.integers(action_sizes[i])) for i in subset}
        prefixes = [{i: action[i] for i in subset[:j]} for j in range(m)]
        parts = sum(multi.advantage(state, prefixes[j], i, action[i]) for j, i in enumerate(subset))
        np.testing.assert_allclose(multi.value(state, action) - value[state], parts, atol=1e-10)


def compound_factor_estimate(advantage, old, new, order, m):
    """Proposition 2, right-hand side: E_{a~old}[(r_{i_m} - 1) prod_{j<m} r_{i_j} A(a)], r_i = new_i / old_i.

    One state: `advantage` is [k_1, ..., k_n], `old` and `new` hold one [k_i] distribution per agent.
    """
    total = 0.0
    for action in np.ndindex(advantage.shape):
        probability = np.prod([old[i][a] for i, a in enumerate(action)])
        ratio = [new[i][a] / old[i][a] for i, a in enumerate(action)]
        factor = np.prod([ratio[i] for i in order[: m - 1]])
        total += probability * (ratio[order[m - 1]] - 1) * factor * advantage[action]
    return total


def sequential_advantage(multi, state, new, order, m):
    """Proposition 2, left-hand side: E[A^{i_m}(s, a^{i_1..i_{m-1}}, a^{i_m})], the agents i_1..i_m playing `new`."""
    moved, agent = order[: m - 1], order[m - 1]
    total = 0.0
    for actions in itertools.product(*(range(multi.action_sizes[i]) for i in order[:m])):
        probability = np.prod([new[i][a] for i, a in zip(order, actions)])
        given_actions = dict(zip(moved, actions))
        total += probability * multi.advantage(state, given_actions, agent, actions[-1])
    return total


@settings(max_examples=25, deadline=None)
@given(games_and_orders())
def test_proposition_2_compound_factor(case):
    rng, num_states, action_sizes, order, m = case
    game, old, new = random_game(rng, num_states, action_sizes, gamma=0.9)
    value, q, _, _ = evaluate(game, old)
    multi = MultiAgentQ(q, old)
    for state in range(num_states):
        old_here, new_here = ([policy[state] for policy in policies] for policies in (old, new))
        estimate = compound_factor_estimate(q[state] - value[state], old_here, new_here, order, m)
        np.testing.assert_allclose(estimate, sequential_advantage(multi, state, new_here, order, m), atol=1e-10)


def stage_rewards(env, actions):
    """[M] float64 team rewards of M joint actions of a one-step game."""

    def pay(action):
        return env.step(KEY, env.reset(KEY, env.params)[0], action, env.params)[1].reward[0]

    return np.asarray(jax.jit(jax.vmap(pay))(jnp.asarray(actions)), np.float64)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_compound_factor_terms_add_up_to_the_gain_of_a_matrix_game(order):
    """Lemma 1 with Proposition 2 in `matrix_game`: the sum of all agents' terms is J(new) - J(old), in any order."""
    rng = np.random.default_rng(3)
    env = envs.make("matrix_game", payoff=rng.normal(size=(2, 3, 4)))
    sizes = env.spec.action_sizes
    payoff = stage_rewards(env, np.array(list(np.ndindex(sizes)), np.int32)).reshape(sizes)
    old, new = ([random_policy(rng, 1, k)[0] for k in sizes] for _ in range(2))

    def expected(policies):
        return np.einsum("ijk,i,j,k", payoff, *policies)

    terms = [compound_factor_estimate(payoff - expected(old), old, new, order, m) for m in (1, 2, 3)]
    np.testing.assert_allclose(sum(terms), expected(new) - expected(old), atol=1e-10)


# Algorithm 1: multi-agent policy iteration with monotonic improvement.


def kl_at(policy, gap, slack):
    """KL(p || q) per state [S] for q proportional to p / (slack + gap), slack [S]; stable for large slack."""
    tilt = gap / slack[:, None]
    return (policy * np.log1p(tilt)).sum(-1) + np.log1p(-(policy * tilt / (1 + tilt)).sum(-1))


def best_policy_within(policy, gap, radius):
    """argmax_q <q, A> s.t. KL(p || q) <= radius in every state, and d max / d radius; `gap` = max A - A, [S, k].

    Stationarity gives q_a = mu p_a / (slack + gap_a); the KL falls in slack, so bisect on its logarithm.
    """
    scale = gap.max(axis=-1)
    low, high = np.log(1e-40 * scale), np.log(1e14 * scale)
    for _ in range(58):
        middle = (low + high) / 2
        inside = kl_at(policy, gap, np.exp(middle)) <= radius
        low, high = np.where(inside, low, middle), np.where(inside, middle, high)
    unnormalised = policy / (np.exp(high)[:, None] + gap)
    multiplier = 1 / unnormalised.sum(axis=-1)
    # Exact policies stay positive, so that an action can come back; floats underflow to 0 and would be stuck there.
    return np.maximum(multiplier[:, None] * unnormalised, SMALLEST_PROBABILITY), multiplier


def penalised_argmax(policy, advantage, visits, penalty):
    """argmax_q sum_s visits_s <q_s, A_s> - penalty max_s KL(p_s || q_s), one step of Algorithm 1, [S, k].

    All states may use the largest KL d, so the problem is concave in d alone: sum_s visits_s mu_s(d) = penalty.
    """
    gap = advantage.max(axis=-1, keepdims=True) - advantage
    matters = gap.max(axis=-1) > 1e-12
    if not matters.any():
        return policy

    def slope(log_radius):
        _, multiplier = best_policy_within(policy[matters], gap[matters], np.exp(log_radius))
        return np.log(visits[matters] @ multiplier) - np.log(penalty)

    smallest, largest = np.log(1e-12), np.log(20.0)
    if slope(smallest) <= 0:
        return policy
    log_radius = largest if slope(largest) >= 0 else brentq(slope, smallest, largest, xtol=1e-6)
    new = policy.copy()
    new[matters], _ = best_policy_within(policy[matters], gap[matters], np.exp(log_radius))
    return new


def penalised_objective(new, policy, advantage, visits, penalty):
    kl = (policy * np.log(policy / new)).sum(axis=-1)
    return visits @ (new * advantage).sum(axis=-1) - penalty * kl.max()


def expected_advantage(advantage, old, new, moved, agent):
    """[S, k_agent]: A^{i_m}, its predecessors `moved` playing `new`, for each action of `agent`; mean 0 under `old`.

    Unlike MultiAgentQ this averages axis by axis: it is called thousands of times.
    """
    n = len(old)
    total = advantage
    for i in reversed(range(n)):
        if i != agent:
            weights = (new if i in moved else old)[i]
            shape = [len(weights)] + [1] * (total.ndim - 1)
            shape[i + 1] = -1
            total = (total * weights.reshape(shape)).sum(axis=i + 1, keepdims=True)
    total = total.reshape(len(old[agent]), -1)
    return total - (old[agent] * total).sum(axis=-1, keepdims=True)


def algorithm_1_iteration(game, policies, order):
    """One iteration: C = 4 gamma max|A| / (1 - gamma)^2, then each agent in turn maximises L - C max_s KL."""
    value, q, visits, _ = evaluate(game, policies)
    advantage = q - value.reshape(-1, *[1] * len(policies))
    penalty = 4 * game.gamma * np.abs(advantage).max() / (1 - game.gamma) ** 2
    new = list(policies)
    for m, agent in enumerate(order):
        own = expected_advantage(advantage, policies, new, set(order[:m]), agent)
        new[agent] = penalised_argmax(policies[agent], own, visits, penalty)
    return new


def exploitability(game, policies):
    """The most that any one agent could add to the return by deviating alone: 0 in a Nash equilibrium."""
    num_states = len(game.start)
    value = evaluate(game, policies)[-1]
    gains = []
    for agent, k in enumerate(game.action_sizes):
        for choice in itertools.product(range(k), repeat=num_states):
            deviation = [*policies[:agent], np.eye(k)[list(choice)], *policies[agent + 1 :]]
            gains.append(evaluate(game, deviation)[-1] - value)
    return max(gains)


@settings(max_examples=10, deadline=None)
@given(games_and_orders())
def test_expected_advantage_is_that_of_proposition_2(case):
    rng, num_states, action_sizes, order, m = case
    game, old, new = random_game(rng, num_states, action_sizes, gamma=0.9)
    value, q, _, _ = evaluate(game, old)
    agent = order[m - 1]
    fast = expected_advantage(q - value.reshape(-1, *[1] * len(old)), old, new, set(order[: m - 1]), agent)
    multi = MultiAgentQ(q, old)
    for state, action in np.ndindex(fast.shape):
        playing = [policy[state] for policy in new]
        playing[agent] = np.eye(action_sizes[agent])[action]
        enumerated = sequential_advantage(multi, state, playing, order, m)
        np.testing.assert_allclose(fast[state, action], enumerated, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_penalised_argmax_beats_its_neighbours(seed):
    """The problem is concave, so beating every nearby policy is being the maximum."""
    rng = np.random.default_rng(seed)
    policy, advantage, visits = random_policy(rng, 3, 3), rng.normal(size=(3, 3)), rng.dirichlet(np.ones(3)) * 1.5
    penalty = float(np.exp(rng.uniform(-2, 3)))
    best = penalised_argmax(policy, advantage, visits, penalty)
    np.testing.assert_allclose(best.sum(axis=-1), 1, atol=1e-12)
    reached = penalised_objective(best, policy, advantage, visits, penalty)
    assert reached > penalised_objective(policy, policy, advantage, visits, penalty)
    for step in (1e-1, 1e-2, 1e-3):
        others = ((1 - step) * best + step * random_policy(rng, 3, 3) for _ in range(20))
        assert max(penalised_objective(other, policy, advantage, visits, penalty) for other in others) <= reached + 1e-9


@pytest.mark.parametrize("action_sizes, gamma", [((2, 2), 0.3), ((2, 2, 2), 0.2), ((2, 3, 2), 0.1)])
def test_algorithm_1_improves_to_a_nash_equilibrium(action_sizes, gamma):
    """Three states; small discounts, because C grows like 1 / (1 - gamma)^2 and shrinks every step accordingly."""
    rng = np.random.default_rng(0)
    game, policies, _ = random_game(rng, 3, action_sizes, gamma)
    at_start = exploitability(game, policies)
    returns = [evaluate(game, policies)[-1]]
    for _ in range(120):
        policies = algorithm_1_iteration(game, policies, rng.permutation(len(action_sizes)).tolist())
        returns.append(evaluate(game, policies)[-1])
    assert np.diff(returns).min() > -1e-12, "Theorem 2: the return never falls"
    assert returns[-1] > returns[0] + 0.5
    assert exploitability(game, policies) < 0.01 * at_start, "Theorem 3: no agent gains by deviating alone"


@pytest.mark.parametrize("num_agents", [2, 4, 6])
def test_proposition_1_price_of_a_shared_policy(num_agents):
    """The best shared policy earns 2 / 2^n of the optimum: E(p) = 2 (p (1 - p))^{n/2}, largest at p = 1/2."""
    env = envs.make("parameter_sharing", num_agents=num_agents)
    actions = np.array(list(itertools.product((0, 1), repeat=num_agents)), np.int32)
    rewards = stage_rewards(env, actions)
    ones = actions.sum(axis=1)

    def shared(p):
        return rewards @ (p**ones * (1 - p) ** (num_agents - ones))

    p = np.linspace(0, 1, 11)
    np.testing.assert_allclose([shared(x) for x in p], 2 * (p * (1 - p)) ** (num_agents // 2), atol=1e-12)
    best = minimize_scalar(lambda x: -shared(x), bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    grid = max(shared(x) for x in np.linspace(0, 1, 1001))
    assert rewards.max() == 1
    np.testing.assert_allclose([-best.fun, grid, shared(0.5)], 2 / 2**num_agents, rtol=1e-9)


class BilinearTeam:
    """Unit-variance Gaussian policies in `bilinear`; expectations by Gauss-Hermite quadrature of the env's reward."""

    def __init__(self, mean, num_nodes=24):
        x, w = np.polynomial.hermite_e.hermegauss(num_nodes)
        self.mean = np.asarray(mean)
        self.noise = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
        self.weights = np.outer(w, w).ravel() / (2 * np.pi)
        self.actions = self.mean + self.noise
        self.rewards = stage_rewards(envs.make("bilinear"), self.actions[..., None].astype(np.float32))

    def value(self):
        return self.weights @ self.rewards

    def gradient(self, agent, factor=1.0):
        """E[factor A d log pi_agent / d mu_agent]; the Fisher information of mu is 1, so also the natural gradient."""
        advantage = self.rewards - self.value()
        return self.weights @ (factor * advantage * self.noise[:, agent])

    def ratio(self, agent, new_mean):
        a = self.actions[:, agent]
        return np.exp(((a - self.mean[agent]) ** 2 - (a - new_mean) ** 2) / 2)


def trust_region_step(gradient, kl_threshold):
    """The exact step: KL between unit-variance Gaussians is (change of mean)^2 / 2."""
    return np.sqrt(2 * kl_threshold) * np.sign(gradient)


def test_bilinear_game_falls_simultaneously_and_rises_sequentially():
    """mu = (-1/4, 1/4), delta = 1/2 per agent: E[r] = mu1 mu2 goes from -1/16 to -9/16, or to 15/16 in sequence."""
    start, kl_threshold = np.array([-0.25, 0.25]), 0.5
    team = BilinearTeam(start)
    np.testing.assert_allclose(team.value(), -1 / 16, atol=1e-5)
    gradient = np.array([team.gradient(agent) for agent in (0, 1)])
    np.testing.assert_allclose(gradient, start[::-1], atol=1e-5)

    simultaneous = BilinearTeam(start + trust_region_step(gradient, kl_threshold))
    np.testing.assert_allclose(simultaneous.value(), -9 / 16, atol=1e-5)

    for first, second in ((0, 1), (1, 0)):
        mean = start.copy()
        mean[first] += trust_region_step(gradient[first], kl_threshold)
        # The second agent sees only samples of the old team, weighted by the compound factor.
        after_first = team.gradient(second, factor=team.ratio(first, mean[first]))
        np.testing.assert_allclose(after_first, mean[first], atol=1e-5)
        mean[second] += trust_region_step(after_first, kl_threshold)
        np.testing.assert_allclose(BilinearTeam(mean).value(), 15 / 16, atol=1e-5)
