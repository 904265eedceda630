"""Recurrent teams: the scan against a plain loop, Fisher products through time, memory that ends with its episode."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import envs
import marl_kl
from benchmarks.plain_hatrpo import plain_update
from envs.base import Drawing, EnvSpec
from marl_kl.analysis.bodies import mujoco_check
from marl_kl.analysis.rendering import recording
from marl_kl.core import (
    agent_updates,
    algorithms,
    evaluation,
    networks,
    on_policy,
    rollout,
    trainer,
    trust_region,
)
from marl_kl.core import critic as critics
from marl_kl.core.networks import one_step
from marl_kl.core.policies import init_actors, init_obs_moments, make_actor
from marl_kl.core.trainer import make_train
from marl_kl.core.trust_region import AgentBatch
from marl_kl.core.types import Batch, Sequences
from marl_kl.storage import array_trees, loading
from tests.support import random_run
from tests.support.counting_env import counting_env
from tests.support.recall_env import recall_env

ROWS, STEPS, WIDTH = 4, 5, 3


def config_of(config_class=marl_kl.TrustRegionConfig, **fields):
    small = {"hidden_sizes": (4,), "recurrent_size": WIDTH, "num_envs": ROWS, "rollout_length": 8, "eval_episodes": 3}
    return config_class(**{**small, "recurrent": True, "critic_minibatches": 2, **fields})


def drawn(rng, init, *args):
    """Random numbers in the shapes of `init(key, *args)`, which is not compiled."""
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), *args))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.6, leaf.shape)), shapes)


def random_sequences(rng, size, axes=(ROWS,), steps=STEPS):
    """With episodes that begin inside."""
    resets = rng.random((*axes, steps)) < 0.3
    resets.reshape(-1)[1] = True
    inputs, memory = rng.normal(size=(*axes, steps, size)), rng.normal(size=(*axes, WIDTH))
    return Sequences(jnp.asarray(inputs), jnp.asarray(resets), jnp.asarray(memory))


def as_flax_cell(gru):
    """Our parameters in flax's names."""
    inputs, states = (jnp.split(x, 3, axis=-1) for x in (gru["inputs"]["kernel"], gru["kernel"]))
    biases = jnp.split(gru["inputs"]["bias"], 3)
    cell = {f"i{gate}": {"kernel": k, "bias": b} for gate, k, b in zip("rzn", inputs, biases)}
    cell |= {f"h{gate}": {"kernel": k} for gate, k in zip("rzn", states)}
    cell["hn"]["bias"] = gru["bias"]
    return {"params": cell}


def test_the_scan_equals_a_loop_over_flaxs_cell_with_resets(float64):
    rng = np.random.default_rng(0)
    network = networks.Recurrent((4,), WIDTH, "tanh", networks.GaussianNetwork((), 2, "tanh", 0.5))
    params = drawn(rng, networks.init_params, network, 6)
    seen = random_sequences(rng, 6, (2, ROWS))
    (mean, log_std), memory = jax.jit(network.apply)(params, seen)

    inner = params["params"]
    features = jnp.tanh(seen.inputs @ inner["Dense_0"]["kernel"] + inner["Dense_0"]["bias"])
    cell, state = nn.GRUCell(WIDTH, dtype=jnp.float64), seen.hidden
    for t in range(STEPS):
        state = jnp.where(seen.resets[..., t, None], 0.0, state)
        state, _ = cell.apply(as_flax_cell(inner["gru"]), state, features[..., t, :])
        output = inner["head"]["mean"]["output"]
        np.testing.assert_allclose(memory[..., t, :], state, rtol=1e-12)
        np.testing.assert_allclose(mean[..., t, :], state @ output["kernel"] + output["bias"], rtol=1e-12)
    np.testing.assert_array_equal(log_std, jnp.broadcast_to(inner["head"]["log_std"], mean.shape))


@pytest.mark.slow
def test_a_gru_starts_orthogonal_part_by_part():
    network = networks.Recurrent((5,), 6, "tanh", networks.CategoricalNetwork((), 2, "tanh"))
    gru = networks.init_params(jax.random.key(0), network, 3)["params"]["gru"]
    for kernel in (gru["kernel"], gru["inputs"]["kernel"]):
        for part in jnp.split(kernel, 3, axis=1):
            rows = part if len(part) < part.shape[1] else part.T
            np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-5)


SEVERAL = EnvSpec("s", ("a",), (3,), (6,), "multi_discrete", 3, 10, sub_actions=((3, 2),))


def problem(config):
    """One agent with random parameters on a random batch with masks."""
    rng = np.random.default_rng(1)
    actor = make_actor(SEVERAL, config)
    params = jax.tree.map(lambda leaf: leaf[0], drawn(rng, init_actors, SEVERAL, config))
    seen = random_sequences(rng, 3)
    mask = np.broadcast_to(SEVERAL.action_mask[0], (ROWS, STEPS, SEVERAL.action_size)).copy()
    mask[rng.random((ROWS, STEPS)) < 0.5, 1] = False
    action = mask.reshape(ROWS, STEPS, *SEVERAL.action_shape[1:], -1).argmax(-1)
    weight = rng.normal(size=(ROWS, STEPS))
    return actor, params, AgentBatch(seen, *map(jnp.asarray, (action, mask, weight)), None)


@pytest.mark.slow
def test_the_step_is_that_of_the_fisher_matrix_through_time(float64):
    """Products, direction and curvature against the dense Hessian of the mean KL; the step keeps the threshold."""
    config = config_of(cg_subsample=1.0, cg_iters=200, cg_tol=1e-24)
    actor, params, batch = problem(config)
    theta, unravel = ravel_pytree(params)
    old = actor.distribution(actor.outputs(params, batch.obs), batch.action_mask)

    def new(t):
        return actor.distribution(actor.outputs(unravel(t), batch.obs), batch.action_mask)

    def kl(t):
        return jnp.mean(old.kl(new(t)))

    def surrogate(t):
        return jnp.mean(jnp.exp(new(t).log_prob(batch.action) - old.log_prob(batch.action)) * batch.weight)

    @jax.jit
    def ours(params):
        matvec = trust_region.fisher_product(
            lambda t: actor.outputs(unravel(t), batch.obs),
            theta,
            lambda outputs, v: actor.distribution(outputs, batch.action_mask).fisher_product(v),
            batch.weight.size,
        )
        proposal = trust_region.propose(actor, config, params, batch)
        moved = trust_region.line_search(actor, config, params, batch, proposal, jnp.asarray(0.05))
        return jax.vmap(matvec, out_axes=1)(jnp.eye(len(theta))), proposal, moved

    fisher, gradient = jax.jit(lambda t: (jax.hessian(kl)(t), jax.grad(surrogate)(t)))(theta)
    dense, proposal, moved = ours(params)
    np.testing.assert_allclose(dense, fisher, atol=1e-12)
    expected = jnp.linalg.solve(fisher + config.cg_damping * jnp.eye(len(theta)), gradient)
    np.testing.assert_allclose(proposal.direction, expected, atol=1e-9)
    np.testing.assert_allclose(proposal.curvature, expected @ fisher @ expected, rtol=1e-9)
    assert moved.step_fraction > 0 and 0.01 < moved.outcome.kl <= 0.05
    np.testing.assert_allclose(moved.outcome.kl, kl(ravel_pytree(moved.params)[0]), rtol=1e-9)


@pytest.mark.slow
def test_one_recurrent_agent_is_trpo_and_ppo(float64):
    """HATRPO's step is the plain update through time, HAPPO's is MAPPO's; the allocators: tests/core/test_schemes.py."""
    config = config_of(cg_subsample=1.0, cg_tol=0.0, cg_iters=4, line_search_steps=3, line_search="geometric")
    actor, params, batch = problem(config)
    actors, batch = jax.tree.map(lambda leaf: leaf[None], (params, Batch(*batch[:4])))
    budget = jnp.array([config.kl_budget])
    plain, spent, _ = jax.jit(lambda *data: plain_update(actor, config, *data, [0], budget))(actors, batch)
    assert spent[0] > 0.1 * config.kl_budget

    def updated(name, config):
        algorithm = algorithms.get(name).build(actor, config)
        return jax.jit(algorithm.update)(jax.random.key(0), actors, algorithm.init(actors), batch)[0]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), updated("hatrpo", config), plain)
    happo, mappo = (updated(name, config_of(marl_kl.FirstOrderConfig)) for name in ("happo", "mappo"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), happo, mappo)


TEAM = EnvSpec("team", ("a", "b"), (3, 3), (2, 2), "continuous", 4, 10)


def team_problem(config, steps):
    rng = np.random.default_rng(2)
    seen = random_sequences(rng, 3, (2, ROWS), steps)
    action, advantage = rng.normal(size=(2, ROWS, steps, 2)), rng.normal(size=(ROWS, steps))
    mask, advantage = jnp.ones((2, ROWS, steps, 2), bool), jnp.broadcast_to(advantage, (2, ROWS, steps))
    batch = Batch(seen, jnp.asarray(action), mask, advantage)
    return make_actor(TEAM, config), drawn(rng, init_actors, TEAM, config), batch


def improved(name, actor, config, actors, batch):
    algorithm = algorithms.get(name).build(actor, config)
    update = jax.jit(lambda actors, batch: algorithm.update(jax.random.key(3), actors, algorithm.init(actors), batch))
    actors, _, metrics = update(actors, batch)
    return actors, metrics


class AtOnce:
    """A recurrent network as a feed-forward one that begins an episode with every sample."""

    def __init__(self, network):
        self.network = network

    def apply(self, params, inputs):
        nothing = networks.initial_carry(self.network, inputs.shape[:-1])
        return jax.tree.map(lambda leaf: leaf[..., 0, :], self.network.apply(params, one_step(inputs, nothing))[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, fields", [("hatrpo_g", {"cg_subsample": 0.5}), ("happo", {"actor_minibatches": 2, "clip_eps": 0.01})]
)
def test_sequences_of_one_step_are_samples(name, fields, float64):
    """Rows, subsets, minibatches and means: the update of the same network without time."""
    config = config_of(algorithms.get(name).config_class, **fields)
    actor, actors, batch = team_problem(config, steps=1)
    batch = batch._replace(obs=batch.obs._replace(hidden=jnp.zeros((2, ROWS, WIDTH))))
    flat = Batch(*(leaf[:, :, 0] for leaf in (batch.obs.inputs, *batch[1:4])))
    through_time = improved(name, actor, config, actors, batch)
    at_once = improved(name, actor._replace(network=AtOnce(actor.network)), config, actors, flat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10), through_time, at_once)
    assert through_time[1]["kl_total"] > 0


@pytest.mark.slow
def test_padding_changes_nothing(float64):
    """Wider observations and actions of zeros: the same direction to rounding, and zeros where nothing is."""
    config = config_of(cg_subsample=0.5, cg_iters=4)
    wide_spec = EnvSpec("wide", ("a", "b"), (3, 5), (2, 3), "continuous", 4, 10)
    actor, actors, batch = team_problem(config, STEPS)
    shapes = jax.eval_shape(lambda: init_actors(jax.random.key(0), wide_spec, config))
    corner = lambda array: tuple(slice(n) for n in array.shape)  # noqa: E731
    grow = lambda x, n: jnp.concatenate([x, jnp.zeros((*x.shape[:-1], n), x.dtype)], -1)  # noqa: E731
    wide_actors = jax.tree.map(lambda small, big: jnp.zeros(big.shape).at[corner(small)].set(small), actors, shapes)
    obs = batch.obs._replace(inputs=grow(batch.obs.inputs, 2))
    wide = Batch(obs, grow(batch.action, 1), grow(batch.action_mask, 1), batch.advantage)

    def direction(actor, actors, batch):
        params, *of_agent = jax.tree.map(lambda leaf: leaf[1], (actors, *batch))
        proposal = trust_region.propose(actor, config, params, AgentBatch(*of_agent, jnp.array([3, 1])))
        return ravel_pytree(params)[1](proposal.direction), proposal.slope, proposal.curvature

    direction = jax.jit(direction, static_argnums=0)
    found, *numbers = direction(actor, actors, batch)
    wide_found, *wide_numbers = direction(make_actor(wide_spec, config), wide_actors, wide)
    np.testing.assert_allclose(wide_numbers, numbers, rtol=1e-7)

    def check(small, big):
        np.testing.assert_allclose(big[corner(small)], small, atol=1e-9)
        np.testing.assert_array_equal(big.at[corner(small)].set(0.0), 0.0)

    jax.tree.map(check, found, wide_found)


def test_a_subset_is_of_whole_rollouts():
    assert agent_updates.fisher_subset(jax.random.key(0), ROWS, 0.01).shape == (1,)
    assert agent_updates.fisher_subset(jax.random.key(0), ROWS, 0.5).shape == (2,)


# In training


def test_stored_actions_have_the_log_probabilities_they_were_sampled_with():
    """Step by step with a memory that is zeroed where episodes end, in a rollout that begins within episodes."""
    env, config = counting_env(episode_length=5), config_of()
    actor = make_actor(env.spec, config)
    actors = drawn(np.random.default_rng(5), init_actors, env.spec, config)
    learner = trainer.Learner(actors, (), init_obs_moments(env.spec, config), (), ())

    @jax.jit
    def two_rollouts(key):
        env_batch = rollout.init_env_batch(key, env, ROWS, actor.initial_carry((2, ROWS)))
        roll = lambda env_batch: rollout.rollout(key, env, actor, actors, learner.obs_moments, env_batch, 8)  # noqa: E731
        before, _ = roll(env_batch)
        after, trajectory = roll(before)
        state = trainer.TrainState(key, learner, before, jnp.ones((), bool))
        batch = on_policy.make_batch(actor, state, trajectory, jnp.ones((8, ROWS, 1)), 2)
        together = actor.distribution(actor.team_outputs(actors, batch.obs), batch.action_mask)
        return before.hidden, after.hidden, trajectory, batch, together.log_prob(batch.action)

    @jax.jit
    def moment(obs, mask, action, memory):
        policy, memory = rollout.policy_step(actor, actors, learner.obs_moments, obs, mask, memory)
        return policy.log_prob(jnp.swapaxes(action, 0, 1)), memory

    memory, last_memory, trajectory, batch, log_probs = two_rollouts(jax.random.key(0))
    assert memory.shape == (2, ROWS, WIDTH) and np.all(np.any(memory != 0, axis=-1))
    assert batch.advantage.shape == (2, ROWS, 8)
    for t in range(8):
        sampled, memory = moment(trajectory.obs[t], trajectory.action_mask[t], trajectory.action[t], memory)
        np.testing.assert_allclose(log_probs[:, :, t], sampled, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(batch.obs.resets[:, :, t], t > 0 and (8 + t) % 5 == 0)
        memory = memory * (1 - np.asarray(trajectory.done[t], np.float32))[:, None]
    np.testing.assert_allclose(last_memory, memory, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("critic_input", ["state", "observation"])
def test_a_recurrent_critic_evaluates_successors_with_the_hidden_state_of_their_episode(critic_input, float64):
    """Where the episode goes on: the next step's value, across rollouts too; where it is cut: its own last state's."""
    rng = np.random.default_rng(3)
    config = config_of(recurrent_critic=True)
    one = critics.make_critic(config, 1)
    critic = one if critic_input == "state" else critics.IndependentCritics(one, 2)
    agents = () if critic_input == "state" else (2,)
    state = drawn(rng, critic.init, 3)
    state = state._replace(moments=state.moments._replace(variance=jnp.exp(state.moments.variance)))
    states = jnp.asarray(rng.normal(size=(2 * STEPS + 1, ROWS, *agents, 3)))
    done = jnp.asarray(rng.random((2 * STEPS, ROWS)) < 0.3).at[STEPS - 1].set(jnp.array([True, False, False, True]))
    successors = jnp.where(done.reshape(*done.shape, *(1 for _ in agents), 1), 9.0, states[1:])
    estimate = jax.jit(critic.estimate)
    start = critic.initial_carry((*agents, ROWS))
    first = estimate(state, states[:STEPS], successors[:STEPS], done[:STEPS], start)
    second = estimate(state, states[STEPS:-1], successors[STEPS:], done[STEPS:], first.hidden)
    value = jnp.concatenate([first.value, second.value])
    next_value = jnp.concatenate([first.next_value, second.next_value])
    goes_on = ~np.asarray(done[:-1])
    np.testing.assert_allclose(next_value[:-1][goes_on], value[1:][goes_on], rtol=1e-10)

    @jax.jit
    def by_hand(lone, x, memory):
        seen = one_step(x, memory)
        return one.value(lone, seen)[:, 0, 0], one.network.apply(lone.params, seen)[1][:, 0]

    for agent in range(len(agents) + 1 if agents else 1):
        mine = (lambda x: x[:, :, agent]) if agents else (lambda x: x)
        lone = jax.tree.map(lambda leaf: leaf[agent], state) if agents else state
        memory = jnp.zeros((ROWS, WIDTH))
        for t in range(2 * STEPS):
            expected, after = by_hand(lone, mine(states)[t], memory)
            np.testing.assert_allclose(value[t, :, agent], expected, rtol=1e-9)
            np.testing.assert_allclose(next_value[t, :, agent], by_hand(lone, mine(successors)[t], after)[0], rtol=1e-9)
            memory = jnp.where(done[t][:, None], 0.0, after)
        np.testing.assert_allclose(second.hidden[agent] if agents else second.hidden, memory, rtol=1e-9)


@pytest.mark.slow
def test_a_recurrent_critic_remembers_the_first_observation():
    """The state shows its sign in the first step only; every later value is that sign. Two agents' critic is one."""
    fields = {"num_envs": 16, "critic_epochs": 100, "critic_lr": 1e-2, "value_clip": np.inf}
    config = config_of(recurrent_critic=True, recurrent_size=8, **fields)
    critic = critics.IndependentCritics(critics.make_critic(config, 1), 1)
    sign = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (2, 16)), jnp.float32)
    inputs = jnp.zeros((2, 16, STEPS, 1)).at[:, :, 0, 0].set(sign)
    seen = Sequences(inputs, jnp.zeros(inputs.shape[:-1], bool), critic.initial_carry((2, 16)))
    target = jnp.broadcast_to(100 * sign.T[:, None], (16, STEPS, 2))

    @jax.jit
    def fitted(key):
        state, _ = critic.fit(key, config, critic.init(key, 1), seen, target)
        return critic.critic.value(jax.tree.map(lambda leaf: leaf[0], state), seen)

    value = jnp.moveaxis(fitted(jax.random.key(0))[..., 0], 0, -1)
    assert critics.explained_variance(value, target) > 0.95


def test_the_advantages_of_a_batch_are_those_of_its_steps():
    """Observations, actions and advantages [N, E, T] of a rollout [T, E]: each advantage tells its step and environment."""
    config = marl_kl.TrustRegionConfig(
        recurrent=True, num_envs=3, rollout_length=4, hidden_sizes=(4,), recurrent_size=4
    )
    env, key = recall_env(), jax.random.key(0)
    train, actor = make_train(env, "hatrpo", config), make_actor(env.spec, config)
    state = jax.jit(train.init)(key)
    learner = state.learner
    _, trajectory = jax.jit(rollout.rollout, static_argnums=(1, 2, 6))(
        key, env, actor, learner.actors, learner.obs_moments, state.env_batch, 4
    )
    advantage = jnp.arange(12.0).reshape(4, 3, 1)
    batch = on_policy.make_batch(actor, state, trajectory, advantage, 2)
    expected = (advantage[..., 0].T - 5.5) / np.std(np.arange(12))
    np.testing.assert_allclose(batch.advantage, np.stack([expected, expected]), rtol=1e-5)
    np.testing.assert_array_equal(batch.action, jnp.moveaxis(trajectory.action, (0, 1, 2), (2, 1, 0)))


@functools.cache
def compiled(name, **fields):
    """init and update of three seeds on the recall task."""
    config_class = algorithms.get(name).config_class
    speed = {"kl_budget": 0.1, "cg_subsample": 0.5} if config_class is marl_kl.TrustRegionConfig else {"actor_lr": 5e-3}
    sizes = {"hidden_sizes": (8,), "recurrent_size": 8, "num_envs": 64, "rollout_length": 7}
    train = make_train(recall_env(), name, config_of(config_class, **sizes, **speed, **fields))
    return jax.jit(jax.vmap(train.init)), jax.jit(jax.vmap(train.update))


def learned_return(updates=25, **fields):
    """[seed] mean return of the last five updates."""
    init, update = compiled("hatrpo", **fields)
    state = init(jax.vmap(jax.random.key)(jnp.arange(3)))
    returns = []
    for _ in range(updates):
        state, metrics = update(state)
        returns.append(metrics["episode_return"])
        assert np.all(state.healthy) and np.all(metrics["kl_total"] <= 0.1)
    return np.mean(returns[-5:], axis=0)


OF_ALL = {"share_parameters": True, "actor_minibatches": 2, "recurrent_critic": True}


@pytest.mark.slow
def test_recurrent_policies_learn_to_recall():
    assert np.all(learned_return() > 0.95)


def test_the_last_observation_does_not_show_the_cues():
    """So that all a policy without a hidden state can do is to guess."""
    env = recall_env()
    step = jax.jit(env.step)
    cues, last = [], []
    for key in jax.random.split(jax.random.key(0), 8):
        state, timestep = env.reset(key, ())
        cues.append(timestep.obs[:, 0].tolist())
        for _ in range(2):
            state, timestep = step(key, state, jnp.zeros(2, jnp.int32), ())
        last.append(timestep.obs.tolist())
    assert len(set(map(tuple, cues))) > 2 and all(obs == last[0] for obs in last)


@pytest.mark.slow
def test_a_resumed_recurrent_run_equals_an_uninterrupted_one():
    """Bit for bit, within episodes: the memories of actors and critic are stored with the rest."""
    init, update = compiled("mappo", **OF_ALL)
    state, metrics = update(init(jax.vmap(jax.random.key)(jnp.arange(3))))
    stored = array_trees.flatten_tree(state)
    assert all(np.any(stored[name]) for name in ("env_batch.hidden", "critic_hidden"))
    resumed = update(jax.tree.map(jnp.asarray, array_trees.restore_tree(state, stored, "memory")))
    assert array_trees.digest(resumed) == array_trees.digest(update(state))
    without = state._replace(env_batch=state.env_batch._replace(hidden=jnp.zeros_like(state.env_batch.hidden)))
    assert array_trees.digest(update(without)) != array_trees.digest(resumed)


def test_feed_forward_checkpoints_have_no_hidden_state():
    state = jax.eval_shape(make_train(counting_env(), "hatrpo", marl_kl.TrustRegionConfig()).init, jax.random.key(0))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert not any("memory" in path for path in paths)


# Looking at a trained team


def remembering_run(env):
    """A stored team of random parameters, and its learner."""
    config = config_of(recurrent_size=6)
    learner = random_run.learner(env.spec, 0, config)
    actors = jax.tree.map(lambda leaf: 4 * leaf, learner.actors)
    learner = learner._replace(actors=actors)
    stored = jax.tree.map(lambda leaf: leaf[None], learner)
    return loading.Run(None, env.spec, "hatrpo_w", config, (0,), stored, 0), learner


def test_evaluation_recording_and_loaded_policies_carry_the_hidden_state():
    """Episodes of four steps by hand: the policy is given what it returned, and begins each with nothing."""
    env = recall_env(steps=4)
    body = env._replace(drawing=Drawing(None, lambda state: state.inner.cues, None, 0.1))
    run, learner = remembering_run(env)
    policy, reset, step = run.policy(), jax.jit(env.reset), jax.jit(env.step)

    def by_hand(key):
        env_state, timestep = reset(key, ())
        state, total = policy.initial_state(), 0.0
        for _ in range(4):
            actions, state = policy(timestep.obs, state)
            env_state, timestep = step(key, env_state, actions, ())
            total += float(timestep.reward[0])
        return total

    key = jax.random.key(5)
    key_reset, _ = jax.random.split(key)
    scores = jax.jit(evaluation.make_evaluate(env, run.config))(key, learner)
    np.testing.assert_allclose(scores.episode_return, [by_hand(k) for k in jax.random.split(key_reset, 3)])
    recorded = recording.record(body, run.config, learner, key, 10)
    np.testing.assert_allclose(recorded.episode_return[-1], by_hand(key_reset))
    assert recorded.ended == "truncated" and len(recorded.states) == 5


@pytest.mark.slow
def test_a_recurrent_team_in_the_c_engine_carries_its_hidden_state():
    """Two episodes of six steps by hand, with a loaded policy; the controls are what the agents chose, clipped."""
    env = envs.make("hopper_3x1", episode_length=6)
    run, learner = remembering_run(env)
    there, policy = mujoco_check.counterpart(env), run.policy()
    scores = mujoco_check.evaluate_team(there, env, run.config, learner, seed=5, num_episodes=2)
    for episode, start in enumerate(np.random.SeedSequence(5).generate_state(2)):
        world = there.make()
        observed, _ = world.reset(seed=int(start))
        state, total, ended = policy.initial_state(), 0.0, False
        while not ended:
            actions, state = policy(env.wiring.observe(observed.astype(np.float32)), state)
            observed, reward, terminated, truncated, _ = world.step(there.rescale(env.wiring.controls(actions)))
            total, ended = total + reward, terminated or truncated
        np.testing.assert_allclose(scores.episode_return[episode], total, rtol=1e-4)
        world.close()
    assert np.any(state)


def test_a_loaded_recurrent_policy_checks_the_shape_of_its_state():
    run, _ = remembering_run(recall_env())
    policy = run.policy()
    state = policy.initial_state()
    assert state.shape == (2, 6) and not np.any(state)
    samples = [policy(np.zeros((2, 2)), state, key=jax.random.key(i))[0].tolist() for i in range(8)]
    assert len({tuple(sample) for sample in samples}) > 1
    with pytest.raises(ValueError, match=r"state has shape \(3,\); policy.initial_state\(\) has \(2, 6\)"):
        policy(np.zeros((2, 2)), np.zeros(3))


@pytest.mark.parametrize(
    "config_class, fields, message",
    [
        (
            marl_kl.OnPolicyConfig,
            {"recurrent_critic": True},
            "critic_minibatches=8 does not divide num_envs=4; it must if the network is recurrent",
        ),
        (marl_kl.FirstOrderConfig, {"recurrent": True, "actor_minibatches": 8}, "actor_minibatches=8 does not divide"),
        (marl_kl.OnPolicyConfig, {"recurrent_size": 0}, "recurrent_size=0; it must be an integer > 0"),
    ],
)
def test_minibatches_of_recurrent_networks_are_whole_rollouts(config_class, fields, message):
    same = {"num_envs": 4, "rollout_length": 8, "critic_minibatches": 8}
    with pytest.raises(ValueError, match=message):
        config_class(**same, **fields)
    feed_forward = {name: value for name, value in fields.items() if name == "actor_minibatches"}
    assert config_class(**same, **feed_forward).batch_size == 32
