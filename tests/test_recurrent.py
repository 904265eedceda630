"""Recurrent teams: the scan against a plain loop, Fisher products through time, memory that ends with its episode."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import marl_kl
from envs.types import Drawing, EnvSpec
from marl_kl import (
    algorithms, checkpoints, evaluate, loading, networks, recording, rollout, schemes, trainer, trust_region,
)  # fmt: skip
from marl_kl import critic as critics
from marl_kl.networks import one_step
from marl_kl.policies import init_actors, make_actor
from marl_kl.trainer import make_train
from marl_kl.trust_region import AgentBatch
from marl_kl.types import Batch, Sequences
from tests.counting_env import counting_env
from tests.recall_env import recall_env

ROWS, STEPS, WIDTH = 4, 5, 3


def config_of(config_class=marl_kl.TrustRegionConfig, **fields):
    small = {"hidden_sizes": (4,), "recurrent_size": WIDTH, "num_envs": ROWS, "rollout_length": 8, "eval_episodes": 3}
    return config_class(**{**small, "recurrent": True, "critic_minibatches": 2, **fields})


def random_like(tree, rng):
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.6, leaf.shape)), tree)


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
    params = random_like(networks.init_params(jax.random.key(0), network, 6), rng)
    seen = random_sequences(rng, 6, (2, ROWS))
    (mean, log_std), memory = network.apply(params, seen)

    inner = params["params"]
    features = jnp.tanh(seen.inputs @ inner["Dense_0"]["kernel"] + inner["Dense_0"]["bias"])
    cell, state = nn.GRUCell(WIDTH, dtype=jnp.float64), seen.memory
    for t in range(STEPS):
        state = jnp.where(seen.resets[..., t, None], 0.0, state)
        state, _ = cell.apply(as_flax_cell(inner["gru"]), state, features[..., t, :])
        output = inner["head"]["mean"]["output"]
        np.testing.assert_allclose(memory[..., t, :], state, rtol=1e-12)
        np.testing.assert_allclose(mean[..., t, :], state @ output["kernel"] + output["bias"], rtol=1e-12)
    np.testing.assert_array_equal(log_std, jnp.broadcast_to(inner["head"]["log_std"], mean.shape))


def test_a_gru_starts_orthogonal_part_by_part():
    network = networks.Recurrent((5,), 6, "tanh", networks.CategoricalNetwork((), 2, "tanh"))
    gru = networks.init_params(jax.random.key(0), network, 3)["params"]["gru"]
    for kernel in (gru["kernel"], gru["inputs"]["kernel"]):
        for part in jnp.split(kernel, 3, axis=1):
            rows = part if len(part) < part.shape[1] else part.T
            np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-5)


CONTINUOUS = EnvSpec("c", ("a",), (3,), (2,), "continuous", 3, 10)
DISCRETE = EnvSpec("d", ("a",), (3,), (4,), "discrete", 3, 10)


def problem(spec, config):
    """One agent with random parameters on a random batch with masks."""
    rng = np.random.default_rng(1)
    actor = make_actor(spec, config)
    params = random_like(jax.tree.map(lambda leaf: leaf[0], init_actors(jax.random.key(0), spec, config)), rng)
    seen = random_sequences(rng, 3)
    mask = np.ones((ROWS, STEPS, spec.action_size), bool)
    mask[rng.random((ROWS, STEPS)) < 0.5, 1] = False
    action = actor.distribution(actor.outputs(params, seen), jnp.asarray(mask)).sample(jax.random.key(1))
    weight = jnp.asarray(rng.normal(size=(ROWS, STEPS)))
    return actor, params, AgentBatch(seen, action, jnp.asarray(mask), weight, None)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_the_step_is_that_of_the_fisher_matrix_through_time(spec, float64):
    """Direction and curvature against the dense Hessian of the mean KL; the step keeps the threshold."""
    config = config_of(cg_subsample=1.0, cg_iters=200, cg_tol=1e-24)
    actor, params, batch = problem(spec, config)
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
        )
        proposal = trust_region.propose(actor, config, params, batch)
        moved = trust_region.move(actor, config, params, batch, proposal, jnp.asarray(0.05))
        return jax.vmap(matvec, out_axes=1)(jnp.eye(len(theta))), proposal, moved

    fisher, gradient = jax.jit(lambda t: (jax.hessian(kl)(t), jax.grad(surrogate)(t)))(theta)
    dense, proposal, moved = ours(params)
    np.testing.assert_allclose(dense, fisher, atol=1e-12)
    expected = jnp.linalg.solve(fisher + config.cg_damping * jnp.eye(len(theta)), gradient)
    np.testing.assert_allclose(proposal.direction, expected, atol=1e-9)
    np.testing.assert_allclose(proposal.curvature, expected @ fisher @ expected, rtol=1e-9)
    assert moved.step_fraction > 0 and 0.01 < moved.outcome.kl <= 0.05
    np.testing.assert_allclose(moved.outcome.kl, kl(ravel_pytree(moved.params)[0]), rtol=1e-9)


OBS_SIZES, ACTION_SIZES = (3, 2, 3), (2, 1, 2)


def team_spec(obs_sizes=OBS_SIZES, action_sizes=ACTION_SIZES):
    names = tuple(f"agent_{i}" for i in range(len(obs_sizes)))
    return EnvSpec("synthetic", names, obs_sizes, action_sizes, "continuous", 4, 100)


def team_problem(config, steps):
    rng = np.random.default_rng(2)
    spec = team_spec()
    actor = make_actor(spec, config)
    actors = jax.tree.map(lambda leaf: leaf.astype(jnp.zeros(()).dtype), init_actors(jax.random.key(0), spec, config))
    obs = random_sequences(rng, 3, (3, ROWS), steps)
    obs = obs._replace(inputs=jnp.where(spec.observation_mask[:, None, None], obs.inputs, 0.0))
    mask = jnp.broadcast_to(spec.action_mask[:, None, None], (3, ROWS, steps, 2))
    action = actor.distribution(actor.team_outputs(actors, obs), mask).sample(jax.random.key(1))
    advantage = jnp.tanh(action[0, ..., 0] + action[1, ..., 0]) + 0.3 * rng.normal(size=(ROWS, steps))
    return actor, actors, Batch(obs, action, mask, jnp.broadcast_to(advantage - advantage.mean(), (3, ROWS, steps)))


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
        nothing = networks.no_memory(self.network, inputs.shape[:-1])
        return jax.tree.map(lambda leaf: leaf[..., 0, :], self.network.apply(params, one_step(inputs, nothing))[0])


@pytest.mark.parametrize(
    "name, fields", [("hatrpo_g", {"cg_subsample": 0.5}), ("happo", {"actor_minibatches": 2, "clip_eps": 0.01})]
)
def test_sequences_of_one_step_are_samples(name, fields, float64):
    """Rows, subsets, minibatches and means: the update of the same network without time."""
    config = config_of(algorithms.get(name).config_class, **fields)
    actor, actors, batch = team_problem(config, steps=1)
    batch = batch._replace(obs=batch.obs._replace(memory=jnp.zeros((3, ROWS, WIDTH))))
    flat = Batch(*(leaf[:, :, 0] for leaf in (batch.obs.inputs, *batch[1:])))
    through_time = improved(name, actor, config, actors, batch)
    at_once = improved(name, actor._replace(network=AtOnce(actor.network)), config, actors, flat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10), through_time, at_once)
    assert through_time[1]["kl_total"] > 0


def test_padding_changes_nothing(float64):
    """Wider observations and actions of zeros: the same update to rounding, and zeros where nothing is."""
    config = config_of(cg_subsample=1.0, cg_iters=4, line_search_steps=3)
    actor, actors, batch = team_problem(config, STEPS)
    wide_spec = team_spec((*OBS_SIZES, 5), (*ACTION_SIZES, 3))  # a fourth agent sets the padded sizes only
    corner = lambda array: tuple(slice(n) for n in array.shape)  # noqa: E731
    grow = lambda x, n: jnp.concatenate([x, jnp.zeros((*x.shape[:-1], n), x.dtype)], -1)  # noqa: E731
    shapes = init_actors(jax.random.key(0), wide_spec, config)
    wide_actors = jax.tree.map(
        lambda small, big: jnp.zeros((3, *big.shape[1:])).at[corner(small)].set(small), actors, shapes
    )
    obs = batch.obs._replace(inputs=grow(batch.obs.inputs, 2))
    wide = Batch(obs, grow(batch.action, 1), grow(batch.action_mask, 1), batch.advantage)
    new, metrics = improved("hatrpo", actor, config, actors, batch)
    wide_new, wide_metrics = improved("hatrpo", make_actor(wide_spec, config), config, wide_actors, wide)
    assert metrics["kl_total"] > 0
    for key in metrics:
        np.testing.assert_allclose(wide_metrics[key], metrics[key], rtol=1e-7, atol=1e-12)

    def check(small, big):
        np.testing.assert_allclose(big[corner(small)], small, atol=1e-9)
        np.testing.assert_array_equal(big.at[corner(small)].set(0.0), 0.0)

    jax.tree.map(check, new, wide_new)


def test_a_subset_is_of_whole_rollouts():
    assert schemes._subset(jax.random.key(0), ROWS, 0.01).shape == (1,)
    assert schemes._subset(jax.random.key(0), ROWS, 0.5).shape == (2,)


# In training


def test_stored_actions_have_the_log_probabilities_they_were_sampled_with():
    """Step by step with a memory that is zeroed where episodes end, in a rollout that begins within episodes."""
    env, config = counting_env(episode_length=5), config_of()
    actor = make_actor(env.spec, config)
    state = jax.jit(make_train(env, "hatrpo", config).init)(jax.random.key(0))
    learner = state.learner
    roll = jax.jit(lambda key, worlds: rollout.rollout(key, env, actor, learner.actors, learner.obs_moments, worlds, 8))
    before, _ = roll(jax.random.key(1), state.worlds)
    after, trajectory = roll(jax.random.key(2), before)
    memory = before.memory
    assert memory.shape == (2, ROWS, WIDTH) and np.all(np.any(memory != 0, axis=-1))
    batch = trainer._batch(actor, state._replace(worlds=before), trajectory, jnp.ones((8, ROWS, 1)), 2)
    assert batch.advantage.shape == (2, ROWS, 8)
    log_probs = actor.distribution(actor.team_outputs(learner.actors, batch.obs), batch.action_mask).log_prob(batch.action)
    for t in range(8):
        seen = trajectory.obs[t], trajectory.action_mask[t]
        policy, memory = rollout.decide(actor, learner.actors, learner.obs_moments, *seen, memory)
        sampled = policy.log_prob(jnp.swapaxes(trajectory.action[t], 0, 1))
        np.testing.assert_allclose(log_probs[:, :, t], sampled, rtol=1e-5, atol=1e-6)
        begins = t > 0 and (8 + t) % 5 == 0
        np.testing.assert_array_equal(batch.obs.resets[:, :, t], begins)
        memory = memory * (1 - trajectory.done[t])[:, None]
    np.testing.assert_allclose(after.memory, memory, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("critic_sees", ["state", "observation"])
def test_a_recurrent_critic_judges_successors_by_the_memory_of_their_episode(critic_sees, float64):
    """Where the episode goes on: the next step's value, across rollouts too; where it is cut: its own last state's."""
    rng = np.random.default_rng(3)
    config = config_of(recurrent_critic=True)
    one = critics.make_critic(config, 1)
    critic = one if critic_sees == "state" else critics.IndependentCritics(one, 2)
    agents = () if critic_sees == "state" else (2,)
    state = random_like(critic.init(jax.random.key(0), 3), rng)
    state = state._replace(moments=state.moments._replace(variance=jnp.exp(state.moments.variance)))
    states = jnp.asarray(rng.normal(size=(2 * STEPS + 1, ROWS, *agents, 3)))
    done = jnp.asarray(rng.random((2 * STEPS, ROWS)) < 0.3).at[STEPS - 1].set(jnp.array([True, False, False, True]))
    successors = jnp.where(done.reshape(*done.shape, *(1 for _ in agents), 1), 9.0, states[1:])
    estimate = jax.jit(critic.estimate)
    start = critic.no_memory((*agents, ROWS))
    first = estimate(state, states[:STEPS], successors[:STEPS], done[:STEPS], start)
    second = estimate(state, states[STEPS:-1], successors[STEPS:], done[STEPS:], first.memory)
    value, next_value = (jnp.concatenate(x) for x in ((first.value, second.value), (first.next_value, second.next_value)))
    goes_on = ~np.asarray(done[:-1])
    np.testing.assert_allclose(next_value[:-1][goes_on], value[1:][goes_on], rtol=1e-10)

    @jax.jit
    def by_hand(lone, x, memory):
        seen = one_step(x, memory)
        return one.value(lone, seen)[:, 0, 0], one.network.apply(lone.params, seen)[1][:, 0]

    for agent in range(len(agents) + 1 if agents else 1):
        mine = (lambda x: x[:, :, agent]) if agents else (lambda x: x)  # noqa: B023
        lone = jax.tree.map(lambda leaf: leaf[agent], state) if agents else state  # noqa: B023
        memory = jnp.zeros((ROWS, WIDTH))
        for t in range(2 * STEPS):
            expected, after = by_hand(lone, mine(states)[t], memory)
            np.testing.assert_allclose(value[t, :, agent], expected, rtol=1e-9)
            np.testing.assert_allclose(next_value[t, :, agent], by_hand(lone, mine(successors)[t], after)[0], rtol=1e-9)
            memory = jnp.where(done[t][:, None], 0.0, after)
        np.testing.assert_allclose(second.memory[agent] if agents else second.memory, memory, rtol=1e-9)


def test_a_recurrent_critic_learns_what_was_seen_long_ago():
    """The state shows its sign in the first step only; every later value is that sign. Independent ones, one network."""
    config = config_of(recurrent_critic=True, recurrent_size=8, num_envs=16, critic_epochs=10, critic_lr=1e-2)
    critic = critics.IndependentCritics(critics.make_critic(config, 1), 1)
    sign = np.random.default_rng(0).choice([-1.0, 1.0], (16, 2))
    inputs = jnp.zeros((STEPS, 16, 2, 1), jnp.float32).at[0, ..., 0].set(sign)
    target = jnp.broadcast_to(jnp.asarray(100 * sign, jnp.float32)[:, None], (16, STEPS, 2))
    done, nothing = jnp.zeros((STEPS, 16), bool), critic.no_memory((2, 16))

    @jax.jit
    def fit(key, state):
        seen = critic.estimate(state, inputs, inputs, done, nothing).seen
        return critic.fit(key, config, state, seen, target)[0]

    state = critic.init(jax.random.key(0), 1)
    for key in jax.random.split(jax.random.key(1), 20):
        state = fit(key, state)
    value = jnp.swapaxes(critic.estimate(state, inputs, inputs, done, nothing).value, 0, 1)
    assert critics.explained_variance(value, target) > 0.95


def learned_return(name, updates=25, **fields):
    """[seed] mean return of the last five updates of the recall task."""
    config_class = algorithms.get(name).config_class
    speed = {"kl_budget": 0.1, "cg_subsample": 0.5} if config_class is marl_kl.TrustRegionConfig else {"actor_lr": 5e-3}
    sizes = {"hidden_sizes": (8,), "recurrent_size": 8, "num_envs": 64, "rollout_length": 6}
    train = make_train(recall_env(), name, config_of(config_class, **sizes, **speed, **fields))
    run = lambda key: jax.lax.scan(lambda state, _: train.update(state), train.init(key), None, updates)  # noqa: E731
    _, metrics = jax.jit(jax.vmap(run))(jax.vmap(jax.random.key)(jnp.arange(3)))
    assert not np.any(metrics["nonfinite"]) and np.all(metrics["kl_total"] <= fields.get("kl_budget", np.inf))
    return np.asarray(metrics["episode_return"])[:, -5:].mean(1)


@pytest.mark.parametrize(
    "name, fields",
    [("hatrpo", {}), ("mappo", {"share_parameters": True, "actor_minibatches": 2, "recurrent_critic": True})],
)
def test_what_must_be_remembered_is_learned(name, fields):
    assert np.all(learned_return(name, **fields) > 0.95)


def test_without_memory_it_is_not_learned():
    """The best that can be done is to guess."""
    assert np.all(learned_return("hatrpo", recurrent=False) < 0.65)


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    """Bit for bit: the memories of actors and critic are part of the checkpoint."""
    fields = {"num_envs": 4, "rollout_length": 7, "hidden_sizes": (4,), "recurrent_size": 3, "critic_minibatches": 2}
    fields |= {"recurrent": True, "recurrent_critic": True, "eval_episodes": 2, "progress": "none", "seeds": 2}
    env, out = counting_env(), tmp_path / "run"
    whole = marl_kl.train(env, "hatrpo_w", total_env_steps=28 * 4, **fields)
    marl_kl.train(env, "hatrpo_w", total_env_steps=28 * 2, out=out, **fields)
    leaves = checkpoints.load(out).state
    assert np.any(leaves["worlds.memory"]) and np.any(leaves["critic_memory"])
    resumed = marl_kl.train(env, "hatrpo_w", total_env_steps=28 * 4, out=out, resume=True, **fields)
    for name, values in whole.metrics.items():
        np.testing.assert_array_equal(resumed.metrics[name], values, err_msg=name)
    np.testing.assert_array_equal(resumed.evaluation.episode_return[:, -1], whole.evaluation.episode_return[:, -1])


def test_feed_forward_checkpoints_have_no_memory():
    state = jax.eval_shape(make_train(counting_env(), "hatrpo", marl_kl.TrustRegionConfig()).init, jax.random.key(0))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert not any("memory" in path for path in paths)


# Looking at a trained team


def remembering_run(env):
    """A stored team of random parameters, and its learner."""
    config = config_of(recurrent_size=6)
    learner = make_train(env, "hatrpo", config).init(jax.random.key(0)).learner
    learner = learner._replace(actors=random_like(learner.actors, np.random.default_rng(4)))
    learner = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), learner)
    stored = jax.tree.map(lambda leaf: np.asarray(leaf)[None], learner)
    return loading.Run(None, env.spec, "hatrpo", config, (0,), stored, 0), learner


def test_evaluation_recording_and_loaded_policies_remember():
    """Episodes of four steps by hand: the policy is given what it returned, and begins each with nothing."""
    env = recall_env(steps=4)
    drawn = env._replace(drawing=Drawing(None, lambda state: state.inner.cues, None, 0.1))
    run, learner = remembering_run(env)
    policy = run.policy()
    choices = []

    def by_hand(key):
        env_state, timestep = env.reset(key, ())
        state, total = policy.initial_state(), 0.0
        for _ in range(4):
            actions, state = policy(timestep.obs, state)
            choices.append(actions.tolist())
            env_state, timestep = env.step(key, env_state, actions, ())
            total += float(timestep.reward[0])
        return total

    key = jax.random.key(5)
    key_reset, _ = jax.random.split(key)
    scores = jax.jit(evaluate.make_evaluate(env, run.config))(key, learner)
    expected = [by_hand(k) for k in jax.random.split(key_reset, 3)]
    np.testing.assert_allclose(scores.episode_return, expected)
    recorded = recording.record(drawn, run.config, learner, key, 10)
    np.testing.assert_allclose(recorded.episode_return[-1], by_hand(key_reset))
    assert recorded.ended == "truncated" and len(recorded.poses) == 5
    assert len({tuple(choice) for choice in choices}) > 1


def test_a_loaded_policy_says_what_it_needs():
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
        (marl_kl.Config, {"recurrent_critic": True}, "critic_minibatches=8 does not divide num_envs=4, as it must where"),
        (marl_kl.FirstOrderConfig, {"recurrent": True, "actor_minibatches": 8}, "actor_minibatches=8 does not divide num"),
        (marl_kl.Config, {"recurrent_size": 0}, "recurrent_size=0; it must be an integer and a finite number > 0"),
    ],
)
def test_minibatches_of_recurrent_networks_are_whole_rollouts(config_class, fields, message):
    same = {"num_envs": 4, "rollout_length": 8, "critic_minibatches": 8}
    with pytest.raises(ValueError, match=message):
        config_class(**same, **fields)
    feed_forward = {name: value for name, value in fields.items() if name == "actor_minibatches"}
    assert config_class(**same, **feed_forward).batch_size == 32
