"""Replay, targets and updates of the off-policy algorithms against plain loops, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import envs
import marl_kl
from envs.base import EnvSpec, TimeStep, timestep_shapes
from marl_kl.core import algorithms, off_policy
from marl_kl.core.policies import make_actor
from marl_kl.core.replay import LOST, RUNNING, TERMINATED, Replay, n_step_return
from marl_kl.core.rollout import Trajectory
from tests.support.grids import slow_unless
from tests.support.kinds_env import kinds_env

FOUR = ("maddpg", "haddpg", "matd3", "hatd3")
NUM_ENVS, LENGTH, LIMIT = 3, 4, 3
"""Environments, env steps per rollout, time limit."""


def small(**fields):
    return marl_kl.OffPolicyConfig(
        **{
            "num_envs": NUM_ENVS, "rollout_length": LENGTH, "hidden_sizes": (4,), "activation": "tanh", "warmup_steps": 0,
            "replay_size": 48, "minibatch_size": 16, "n_step": 3, "gamma": 0.9, **fields,
        }
    )  # fmt: skip


def spec_of(kind="squashed", num_agents=3, team_reward=True):
    spec = kinds_env(kind).spec
    if num_agents == 1:
        return EnvSpec(
            "one", ("a",), (2,), (2,), "continuous", 2, LIMIT, team_reward,
            action_low=((-1.0, -1.0),), action_high=((1.0, 1.0),),
        )  # fmt: skip
    return EnvSpec(**{**vars(spec), "team_reward": team_reward})


class Record:
    """Random episodes, of which it keeps what a replay must know, as plain lists."""

    def __init__(self, spec, seed=0):
        self.spec, self.rng = spec, np.random.default_rng(seed)
        self.steps = [[] for _ in range(NUM_ENVS)]
        self.age = np.zeros(NUM_ENVS, int)
        self.now = [self._seen() for _ in range(NUM_ENVS)]

    def _seen(self):
        mask = self.spec.action_mask
        if self.spec.action_kind != "continuous":
            groups = mask.reshape(3, -1, self.spec.num_choices or self.spec.action_size)
            last = np.cumsum(groups[..., ::-1], -1)[..., ::-1] == 1
            mask = (groups & (last | (self.rng.random(groups.shape) < 0.5))).reshape(mask.shape)
        obs = self.rng.normal(size=self.spec.observation_mask.shape) * self.spec.observation_mask
        return obs, self.rng.normal(size=self.spec.state_size), mask

    def timestep(self):
        obs, state, mask = (np.stack(x) for x in zip(*self.now))
        nothing = np.zeros(NUM_ENVS, bool)
        return TimeStep(obs, state, np.zeros((NUM_ENVS, self.spec.num_agents)), nothing, nothing, mask)

    def rollout(self):
        """The next `LENGTH` steps as a `Trajectory`."""
        rows = [[self._step(env) for env in range(NUM_ENVS)] for _ in range(LENGTH)]
        return Trajectory(**{name: jnp.asarray([[step[name] for step in row] for row in rows]) for name in rows[0][0]})

    def _step(self, env):
        obs, state, mask = self.now[env]
        self.age[env] += 1
        terminated = self.rng.random() < 0.25
        done = terminated or self.age[env] == LIMIT
        after = self._seen()
        if self.spec.action_kind == "continuous":
            action = self.rng.uniform(-1, 1, mask.shape) * mask
        else:
            groups = mask.reshape(*self.spec.action_shape, -1)
            action = np.argmax(groups * self.rng.random(groups.shape), -1).astype(np.int32)
        reward = np.full(self.spec.num_agents, self.rng.normal())
        reward = reward if self.spec.team_reward else self.rng.normal(size=reward.shape)
        step = dict(
            obs=obs, state=state, action=action, action_mask=mask, reward=reward, terminated=terminated, done=done,
            next_obs=after[0], next_state=after[1], next_action_mask=after[2],
        )  # fmt: skip
        self.steps[env].append(step)
        self.now[env] = self._seen() if done else after
        self.age[env] *= not done
        return step

    def expected(self, state, config):
        """What a sample with this (unique) state is, by a plain loop."""
        ((env, t),) = [
            (env, t)
            for env, steps in enumerate(self.steps)
            for t, s in enumerate(steps)
            if np.allclose(s["state"], state)
        ]
        assert len(self.steps[env]) - config.replay_length <= t < len(self.steps[env]) - config.n_step
        reward, discount = np.zeros(self.spec.num_agents), 1.0
        for step in self.steps[env][t : t + config.n_step]:
            reward = reward + discount * step["reward"]
            discount *= config.gamma
            if step["done"]:
                break
        start = self.steps[env][t]
        return {
            "obs": start["obs"], "action": start["action"], "action_mask": start["action_mask"],
            "reward": reward[:1] if self.spec.team_reward else reward,
            "discount": 0.0 if step["terminated"] else discount,
            "next_obs": step["next_obs"], "next_state": step["next_state"], "next_action_mask": step["next_action_mask"],
        }  # fmt: skip


def filled(spec, config, num_rollouts, seed=0):
    """A record, a replay and its state after some rollouts."""
    record, replay = Record(spec, seed), Replay(spec, config)
    state = as_float64(replay.init(jax.tree.map(jnp.asarray, record.timestep())))
    add = jax.jit(replay.add)
    for _ in range(num_rollouts):
        state = add(state, record.rollout())
    return record, replay, state


@pytest.mark.parametrize(
    ("kind", "num_rollouts", "team_reward"),
    slow_unless(
        {("squashed", 7, True)},
        [("squashed", 7, True), ("squashed", 2, False), ("discrete", 4, True), ("multi_discrete", 9, False)],
    ),
)
def test_samples_are_those_of_a_plain_list(kind, num_rollouts, team_reward, float64):
    """Before and after the replay has turned over: n steps cut at ends, true final observations, masks."""
    spec, config = spec_of(kind, team_reward=team_reward), small()
    record, replay, state = filled(spec, config, num_rollouts)
    assert replay.num_transitions(state) == min(num_rollouts * LENGTH * NUM_ENVS, 48)
    sample = jax.jit(replay.sample)(jax.random.key(0), state, config.gamma)
    ends = set()
    for i in range(config.minibatch_size):
        expected = record.expected(sample.state[i], config)
        ends.add((expected["discount"] == 0, bool(expected["discount"] > 0.9**3)))
        for name, values in expected.items():
            if name.startswith("next") and expected["discount"] == 0:
                continue  # what follows a terminated episode does not count
            np.testing.assert_allclose(getattr(sample, name)[i], values, rtol=1e-12, err_msg=name)
    assert len(ends) > 1 and np.all(sample.known)


def test_a_lost_final_observation_is_known_to_be_lost():
    """An environment that cuts episodes more often than its time limit says: these samples do not count."""
    end = jnp.array([[RUNNING, LOST, RUNNING], [RUNNING, RUNNING, 5], [TERMINATED, RUNNING, RUNNING]])
    result = n_step_return(jnp.ones((3, 3, 1)).at[2, 1].set(jnp.nan), end, 0.5)
    np.testing.assert_array_equal(result.length, [2, 3, 1])
    np.testing.assert_allclose(result.reward[:, 0], [1.5, 1.75, 1.0])
    np.testing.assert_allclose(result.discount, [0.25, 0.125, 0.0])
    np.testing.assert_array_equal(result.end, [LOST, 5, TERMINATED])


def test_observations_are_stored_once():
    """Bytes of a transition: each observation, state and action once, and a small share of final observations."""
    sizes = dict(observation_sizes=(20, 12), action_sizes=(3, 2), state_size=27, episode_length=1000)
    bound = ((1.0,) * 3, (1.0,) * 2)
    low = tuple(tuple(-x for x in row) for row in bound)
    spec = EnvSpec("body", ("a", "b"), action_kind="continuous", action_low=low, action_high=bound, **sizes)
    config = marl_kl.OffPolicyConfig(replay_size=100_000)
    blank = {name: jnp.zeros((10, *leaf.shape), leaf.dtype) for name, leaf in timestep_shapes(spec).items()}
    shapes = jax.eval_shape(lambda: Replay(spec, config).init(TimeStep(**blank | {"alive": None})))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)) / 100_000
    seen = 20 + 12 + 27
    assert 4 * (seen + 5 + 1 + 1) < size < 4 * (1.021 * seen + 5 + 1 + 1)


# Updates against plain loops


def built(name, spec, config):
    return off_policy._compose(spec, algorithms.get(name).build, config)


def as_float64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def start(name, spec, config):
    components = built(name, spec, config)
    learner = jax.jit(lambda key: off_policy._init_learner(key, components))(jax.random.key(3))
    generator = np.random.default_rng(5)
    # larger than at the start of a run, and targets that differ from their networks
    noisy = jax.tree.map(lambda x: x + 0.3 * generator.normal(size=x.shape), as_float64(learner.critic.target_actors))
    critic = learner.critic._replace(target_actors=noisy)
    return components, as_float64(learner._replace(critic=critic))


def orders(key, components):
    """Agent orders of the steps of all actors; by index for simultaneous updates."""
    num_agents, algorithm = components.spec.num_agents, components.algorithm
    for step in range(components.config.gradient_steps // algorithm.policy_freq):
        key_order = jax.random.split(jax.random.split(jax.random.fold_in(key, step))[1])[0]
        is_sequential = algorithm.actor_update.update.__qualname__.startswith("in_random")
        yield jax.random.permutation(key_order, num_agents).tolist() if is_sequential else None


def plain_learn(key, components, learner, replay_state, orders):
    """`_learn` as loops over steps, critics and agents, with optax's own Adam."""
    config, algorithm, spec = components.config, components.algorithm, components.spec
    actor, critic = components.actor, learner.critic
    twin, delayed = algorithm.num_critics == 2, algorithm.policy_freq
    num_agents, sizes = spec.num_agents, spec.action_sizes
    num_values = 1 if spec.team_reward else num_agents
    adam = [optax.adam(rate) for rate in (config.critic_lr, config.actor_lr)]
    pick = lambda tree, *at: jax.tree.map(lambda leaf: leaf[at], tree)  # noqa: E731
    nets = {(c, v): pick(critic.params, c, v) for c in range(algorithm.num_critics) for v in range(num_values)}
    targets = {at: pick(critic.target, *at) for at in nets}
    actors = [pick(learner.actors, i) for i in range(num_agents)]
    actor_targets = [pick(critic.target_actors, i) for i in range(num_agents)]
    critic_states = {at: adam[0].init(net) for at, net in nets.items()}
    actor_states = [adam[1].init(net) for net in actors]

    def act(params, obs, i):
        moments = jax.tree.map(lambda m: m if m.ndim == 0 else m[i], learner.obs_moments)
        x = jnp.clip((obs[:, i] - moments.mean) / moments.std, -10, 10)
        return jnp.tanh(actor.network.apply(params, x))[:, : sizes[i]]

    def q(params, state, actions):
        moments = learner.state_moments
        x = jnp.clip((state - moments.mean) / moments.std, -10, 10)
        return components.critics.network.apply(params, x, jnp.concatenate(actions, axis=1))

    for step, order in enumerate(orders):
        key_critics = jax.random.split(jax.random.fold_in(key, step))[0]
        for key_critic in jax.random.split(key_critics, delayed):
            key_sample, key_target = jax.random.split(key_critic)
            sample = components.replay.sample(key_sample, replay_state, config.gamma)
            next_actions = [act(net, sample.next_obs, i) for i, net in enumerate(actor_targets)]
            if twin:
                shape = (num_agents, config.minibatch_size, spec.action_size)
                noise = config.target_noise * jax.random.normal(key_target, shape, jnp.float64)
                noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
                next_actions = [jnp.clip(a + noise[i, :, : sizes[i]], -1, 1) for i, a in enumerate(next_actions)]
            stored = [sample.action[:, i, : sizes[i]] for i in range(num_agents)]
            for v in range(num_values):
                values = [q(targets[c, v], sample.next_state, next_actions) for c in range(algorithm.num_critics)]
                y = sample.reward[:, v] + sample.discount * functools.reduce(jnp.minimum, values)
                for c in range(algorithm.num_critics):
                    loss = lambda net: jnp.mean((q(net, sample.state, stored) - y) ** 2)  # noqa: E731
                    steps, critic_states[c, v] = adam[0].update(jax.grad(loss)(nets[c, v]), critic_states[c, v])
                    nets[c, v] = optax.apply_updates(nets[c, v], steps)
        others = [act(net, sample.obs, i) for i, net in enumerate(actors)] if order else stored
        for i in order or range(num_agents):
            value = nets[0, i % num_values]

            def loss(params, i=i, value=value, others=others):
                return -jnp.mean(q(value, sample.state, [*others[:i], act(params, sample.obs, i), *others[i + 1 :]]))

            steps, actor_states[i] = adam[1].update(jax.grad(loss)(actors[i]), actor_states[i])
            actors[i] = optax.apply_updates(actors[i], steps)
            if order:
                others = [*others[:i], act(actors[i], sample.obs, i), *others[i + 1 :]]
        mix = lambda new, old: jax.tree.map(lambda n, o: config.tau * n + (1 - config.tau) * o, new, old)  # noqa: E731
        targets = {at: mix(net, targets[at]) for at, net in nets.items()}
        actor_targets = [mix(net, target) for net, target in zip(actors, actor_targets)]
    return nets, targets, actors, actor_targets


@pytest.mark.parametrize(
    ("name", "num_agents", "team_reward"),
    slow_unless((), [("maddpg", 1, True), ("matd3", 1, True), *((name, 3, name != "hatd3") for name in FOUR)]),
)
def test_gradient_steps_are_those_of_a_plain_loop(name, num_agents, team_reward, float64):
    """Of three agents of different sizes, and of one, with which they are DDPG and TD3."""
    spec = spec_of(num_agents=num_agents, team_reward=team_reward)
    config = small(tau=0.1, actor_lr=1e-2, critic_lr=1e-2, updates_per_step=0.5, minibatch_size=8)
    components, learner = start(name, spec, config)
    _, _, replay_state = filled(spec, config, 5)
    key = jax.random.key(1)
    learned, metrics = jax.jit(
        lambda learner, state: off_policy._learn(key, components, learner, state, jnp.asarray(True))
    )(learner, replay_state)
    in_order = list(orders(key, components))
    nets, targets, actors, actor_targets = jax.jit(
        lambda learner, state: plain_learn(key, components, learner, state, in_order)
    )(learner, replay_state)
    for i in range(num_agents):
        assert_equal(learned.actors, actors[i], i)
        assert_equal(learned.critic.target_actors, actor_targets[i], i)
    for at, net in nets.items():
        assert_equal(learned.critic.params, net, *at)
        assert_equal(learned.critic.target, targets[at], *at)
    assert metrics["q_loss"] > 0 and metrics["actor_loss"].shape == (num_agents,)


def assert_equal(stacked, one, *at):
    jax.tree.map(lambda leaf, own: np.testing.assert_allclose(leaf[at], own, rtol=1e-9, atol=1e-12), stacked, one)


def problem():
    """An actor's loss as a function of its parameters and batch, at random parameters in float64."""
    spec, config = spec_of(), small()
    components, learner = start("maddpg", spec, config)
    rng = np.random.default_rng(1)
    size = (spec.num_agents, 12)
    mask = jnp.broadcast_to(jnp.asarray(spec.action_mask)[:, None], (*size, spec.action_size))
    batch = off_policy.Batch(
        jnp.asarray(rng.normal(size=(*size, spec.observation_size)) * spec.observation_mask[:, None]),
        mask, jnp.asarray(rng.uniform(-1, 1, mask.shape)) * mask, None,
    )  # fmt: skip
    net, state = jax.tree.map(lambda leaf: leaf[0, 0], learner.critic.params), jnp.asarray(rng.normal(size=(12, 2)))

    def loss(params, agent, batch):
        value = lambda agent, action: components.critics.values(net, state[: action.shape[1]], action)  # noqa: E731
        return off_policy._actor_loss(components.actor, params, jax.random.key(4), value, batch, agent)

    return spec, learner, batch, loss


def test_the_gradient_through_q_is_that_of_finite_differences(float64):
    spec, learner, batch, loss = problem()
    params = jax.tree.map(lambda leaf: leaf[2], learner.actors)
    rng = np.random.default_rng(2)
    directions = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=(5, *leaf.shape))), params)

    @jax.jit
    def slopes(params, directions):
        gradient = jax.grad(loss)(params, 2, batch)

        def both(direction):
            moved = lambda h: loss(jax.tree.map(lambda p, d: p + h * d, params, direction), 2, batch)  # noqa: E731
            return optax.tree.vdot(gradient, direction), (moved(1e-5) - moved(-1e-5)) / 2e-5

        return jax.vmap(both)(directions)

    exact, differences = slopes(params, directions)
    np.testing.assert_allclose(exact, differences, rtol=1e-6)
    assert np.all(exact != 0)


def test_padded_entries_and_dead_samples_add_exactly_nothing(float64):
    """Whatever is written into padded actions; samples of weight 0 are as if they were not there."""
    spec, learner, batch, loss = problem()
    params = jax.tree.map(lambda leaf: leaf[1], learner.actors)
    gradient = jax.jit(jax.value_and_grad(loss))
    expected = gradient(params, 1, batch)
    garbage = batch._replace(action=jnp.where(batch.action_mask, batch.action, 7.0))
    jax.tree.map(np.testing.assert_array_equal, gradient(params, 1, garbage), expected)
    output = expected[1]["params"]["output"]
    assert np.all(output["kernel"][:, 1:] == 0) and np.any(output["kernel"][:, 0] != 0), "agent b has one action"
    alive = jnp.arange(12) < 6
    few = jax.tree.map(lambda leaf: leaf[:, :6], batch)
    some = batch._replace(weight=jnp.broadcast_to(alive, (3, 12)), obs=jnp.where(alive[:, None], batch.obs, 9.0))
    assert_close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)  # noqa: E731
    jax.tree.map(assert_close, gradient(params, 1, some), gradient(params, 1, few))


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete"])
def test_choices_are_one_hot_and_differentiated_where_they_are_available(kind):
    spec = spec_of(kind)
    actor = make_actor(spec, small(exploration_epsilon=0.5))
    mask = np.array(spec.action_mask)
    mask[0, 0] = mask[1, :] = False
    mask[1, 1] = kind == "discrete"
    shape = (3, spec.action_size) if kind == "discrete" else (3, spec.num_sub_actions, spec.num_choices)
    logits = jax.random.normal(jax.random.key(0), shape)

    @jax.jit
    def drawn(key):
        policy = actor.distribution(logits, jnp.asarray(mask))
        weight = jnp.arange(mask.size).reshape(mask.shape)
        relaxed = lambda logits: jnp.sum(actor.distribution(logits, mask).relaxed(key) * weight)  # noqa: E731
        actions = policy.sample(key), policy.uniform(key), policy.mode()
        encoded = [policy.encoded(action) for action in actions]
        return [*encoded, policy.relaxed(key), policy.smoothed(key, 0.2, 0.5)], jax.grad(relaxed)(logits)

    encoded, gradient = jax.vmap(drawn)(jax.random.split(jax.random.key(1), 200))
    has_choice = mask.reshape(*shape[:-1], -1).any(-1)
    for actions in encoded:
        assert np.all(actions[:, ~mask] == 0), "never an action that is not available"
        groups = actions.reshape(-1, *shape)
        np.testing.assert_array_equal(groups.max(-1), np.broadcast_to(has_choice, groups.shape[:-1]))
        np.testing.assert_array_equal(groups.sum(-1), np.broadcast_to(has_choice, groups.shape[:-1]))
    gradient = np.asarray(gradient).reshape(200, *mask.shape)
    assert np.all(gradient[:, ~mask] == 0) and np.all(np.any(gradient[:, 2, -2:] != 0, axis=0) == mask[2, -2:])


# Learning


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maddpg", "hatd3"])
def test_the_best_action_of_a_team_is_found(name):
    """r = a1 a2 within [-2, 2] has its maximum 4 at two corners; 3 seeds, 6,000 env steps."""
    result = marl_kl.train(
        envs.make("bilinear", bound=2.0), name, seeds=3, num_envs=8, rollout_length=4, hidden_sizes=(32,), actor_lr=1e-2,
        critic_lr=5e-3, tau=0.02, minibatch_size=64, warmup_steps=512, replay_size=8_192, total_env_steps=6_000,
        eval_episodes=4, eval_interval=0, progress="none",
    )  # fmt: skip
    assert np.all(result.evaluation.episode_return[:, -1] > 3.5), result.evaluation.episode_return[:, -1]
