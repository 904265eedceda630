"""The theory of sequential trust-region updates, checked exactly in numpy (float64) on small games.

Kuba et al. 2022, "Trust Region Policy Optimisation in Multi-Agent Reinforcement Learning": Lemma 1, Proposition 1,
Proposition 2, Algorithm 1 with Theorems 2 and 3, and the bilinear game. Nothing here uses the trainer: rewards come
from `envs` where a game exists there, everything else is enumeration, linear solves and quadrature; Markov games and
Algorithm 1 are those of `experiments.tabular`.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import envs
from experiments import tabular
from experiments.tabular import (
    algorithm_1_iteration,
    evaluate,
    expected_advantage,
    exploitability,
    penalised_argmax,
    random_game,
    random_policy,
)

KEY = jax.random.key(0)


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


def test_best_policy_within_keeps_the_radius_when_a_lost_action_is_best():
    policy, gap = np.array([[1 - 1e-25, 1e-25]]), np.array([[1.0, 0.0]])
    for radius in (0.1, 2.0, 60.0):
        best, _ = tabular.best_policy_within(policy, gap, radius)
        kl = (policy * (np.log(policy) - np.log(best))).sum()
        assert kl <= radius * (1 + 1e-6) and kl > 0.5 * radius


def penalised_objective(new, policy, advantage, visits, penalty):
    kl = (policy * np.log(policy / new)).sum(axis=-1)
    return visits @ (new * advantage).sum(axis=-1) - penalty * kl.max()


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


@pytest.mark.slow
@pytest.mark.parametrize("action_sizes, gamma", [((2, 2), 0.3), ((2, 3, 2), 0.1)])
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


@pytest.mark.parametrize("method", ["hatrpo", "hatrpo_w", "hatrpo_g", "hatrpo_n"])
def test_budgeted_iteration_keeps_the_budget_and_its_bound(method):
    """The gain in return is at least the bound of Theorem 2, whatever the allocation; in one state it is L."""
    rng = np.random.default_rng(1)
    for num_states, gamma in ((3, 0.5), (1, 0.0)):
        game, policies, _ = random_game(rng, num_states, (2, 3, 2), gamma)
        for budget in (1e-3, 0.3):
            allocator = tabular.allocator_of(method)
            done = tabular.budgeted_iteration(game, policies, allocator, budget, jax.random.key(1))
            real = evaluate(game, done.policies)[-1] - evaluate(game, policies)[-1]
            spent = sum((old * np.log(old / new)).sum(-1).max() for old, new in zip(policies, done.policies))
            assert spent <= budget * (1 + 1e-4) and done.thresholds.min() >= 0
            assert real >= done.guaranteed - 1e-9
            if num_states == 1:
                np.testing.assert_allclose(real, done.gain, atol=1e-10)
        np.testing.assert_allclose(done.gain, done.predicted, rtol=0.5)


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
