"""JaxMARL behind our protocol: the same play as JaxMARL's own `step`, and what is said of names, options and ends."""

import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
import marl_kl
from envs.adapters import jaxmarl as adapter
from envs.adapters import spaces
from tests.support.grids import rare, slow_unless

with adapter.silence():
    jaxmarl = pytest.importorskip("jaxmarl")

CASES = {
    "3m": ("3m", "HeuristicEnemySMAX", {"max_steps": 14}, 15, 12),
    "spread": ("MPE_simple_spread_v3", "MPE_simple_spread_v3", {"max_steps": 5}, 6, 2),
    "overcooked": ("overcooked", "overcooked", {"max_steps": 6}, 6, 2),
    "overcooked_v2": ("overcooked_v2", "overcooked_v2", {"max_steps": 6}, 6, 2),
    "storm": ("storm", "storm", {"num_inner_steps": 6}, 6, 2),
    "hanabi": ("hanabi", "hanabi", {"num_colors": 2, "num_ranks": 2, "num_cards_of_rank": np.array([3, 2])}, 20, 3),
}
"""Ours, theirs, options of both, env steps, games."""


def theirs(case):
    _, name, options, _, _ = CASES[case]
    if case == "3m":
        from jaxmarl.environments.smax import map_name_to_scenario

        options = {"scenario": map_name_to_scenario("3m"), **options}
    return jaxmarl.make(name, **options)


def chosen(key, timestep, health):
    """Anything available. With the enemies' `health` (SMAX): meet them, then shoot at the weakest in reach."""
    mask = timestep.action_mask
    if health is None:
        return jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf), axis=-1).astype(jnp.int32)
    in_reach = mask[:, 5:]
    weakest = 5 + jnp.argmin(jnp.where(in_reach, health, jnp.inf), axis=-1)
    going = jnp.where(mask[:, 1], 1, 4)  # the dead can only stop
    return jnp.where(jnp.any(in_reach, axis=-1), weakest, going).astype(jnp.int32)


def shown(observed, agents):
    """[size] per agent, as JaxMARL says it; STORM's is in one array per kind of thing, see its source."""
    if "inventory" not in observed:
        return [jnp.ravel(observed[agent]).astype(jnp.float32) for agent in agents]
    views, inventory = (observed[name].astype(jnp.float32) for name in ("observations", "inventory"))
    return [jnp.concatenate([views[i].ravel(), inventory[:3, i], inventory[3:].ravel()]) for i in agents]


def close(ours, other):
    """Two compilations of the same formulas differ in the last bit."""
    np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


def play_both(case):
    """Ours and theirs under the same keys and actions: (ours, theirs, alive) over time, leaves [game, T, ...]."""
    own, _, options, steps, games = CASES[case]
    env, other = envs.make(f"jaxmarl/{own}", **options), theirs(case)
    legal = getattr(other, "get_legal_moves", other.get_avail_actions)
    has_legal = case in ("3m", "hanabi")

    def native(action):
        return tuple(action) if case == "storm" else {agent: action[i] for i, agent in enumerate(other.agents)}

    def game(key):
        key_reset, key_steps = jax.random.split(key)
        ours, timestep = env.reset(key_reset, ())
        _, state = other.reset(key_reset)

        def env_step(carry, key):
            ours, timestep, state = carry
            key_action, key_step = jax.random.split(key)
            action = chosen(key_action, timestep, ours.inner.state.unit_health[3:] if case == "3m" else None)
            key_env = jax.random.split(key_step)[0]  # `step` splits first; without its reset it is `step_env`
            if case == "spread":
                observed, state, rewards, dones, _ = other.step(key_step, state, native(action))
            else:
                observed, state, rewards, dones, _ = other.step_env(key_env, state, native(action))
            ours, timestep = env.step(key_env, ours, action, ())
            seen = {
                "obs": shown(observed, other.agents),
                "reward": jnp.stack([jnp.asarray(rewards[agent], jnp.float32) for agent in other.agents]),
                "done": dones["__all__"],
                "legal": [legal(state)[agent] for agent in other.agents] if has_legal else (),
                "world_state": observed.get("world_state", ()),
            }
            alive = ours.inner.state.unit_alive if case == "3m" else ()
            return (ours, timestep, state), (timestep, seen, alive)

        first = timestep
        trace = jax.lax.scan(env_step, (ours, timestep, state), jax.random.split(key_steps, steps))[1]
        return first, trace

    keys = jax.random.split(jax.random.key(3), games)
    return env, *jax.tree.map(np.asarray, jax.jit(jax.vmap(game))(keys))


@pytest.mark.parametrize(
    "case", [*slow_unless((), ["3m", "spread", "overcooked", "overcooked_v2"]), *rare(["storm", "hanabi"])]
)
def test_plays_as_jaxmarls_own_step(case):
    env, first, (ours, other, alive) = play_both(case)
    spec = env.spec
    ended = ours.terminated | ours.truncated
    # up to the first end: after it theirs begins anew, or is not meant to be stepped
    playing = np.cumsum(ended, axis=1) - ended == 0
    before = playing & ~ended
    np.testing.assert_array_equal(ended[playing], other["done"][playing])
    assert not (ours.terminated & ours.truncated).any()
    # STORM pays nothing for the last step of a game, of which ours is none
    paid = before if case == "storm" else playing
    close(ours.reward[paid], other["reward"][paid])
    for agent, size in enumerate(spec.observation_sizes):
        close(ours.obs[before][:, agent, :size], other["obs"][agent][before])
        assert not ours.obs[..., agent, size:].any()
        if len(other["legal"]):
            want = other["legal"][agent][before] != 0
            np.testing.assert_array_equal(ours.action_mask[before][:, agent, : want.shape[-1]], want)
    assert np.isfinite(ours.obs).all() and np.isfinite(ours.state).all() and np.isfinite(ours.reward).all()
    assert not (ours.action_mask & ~spec.action_mask).any() and not (first.action_mask & ~spec.action_mask).any()
    if len(other["legal"]):
        assert not ours.action_mask[before].all()
    if spec.team_reward:
        np.testing.assert_array_equal(ours.reward, np.broadcast_to(ours.reward[..., :1], ours.reward.shape))
    if case in ("3m", "hanabi"):
        assert ended.any(axis=1).all()
    if case == "hanabi":
        assert ours.terminated.any(axis=1).all() and spec.episode_length >= playing.sum(1).max()
    if case in ("spread", "overcooked", "overcooked_v2", "storm"):
        last = np.arange(ended.shape[1]) == spec.episode_length - 1
        np.testing.assert_array_equal(ours.truncated, np.broadcast_to(last, ended.shape))
        assert not ours.terminated.any() and ended.shape[1] == spec.episode_length
    if case == "3m":
        check_smax(spec, ours, other, alive, playing, before)


def check_smax(spec, ours, other, alive, playing, before):
    """The world state, ends told apart, and won episodes told by their return."""
    assert (spec.observation_sizes, spec.action_sizes, spec.state_size) == ((75,) * 3, (8,) * 3, 6 * 10 + 6 * 2)
    close(ours.state[before], other["world_state"][before])
    allies, enemies = alive[..., :3].any(-1), alive[..., 3:].any(-1)
    np.testing.assert_array_equal(ours.terminated, ~(allies & enemies))
    np.testing.assert_array_equal(ours.alive, alive[..., :3])
    np.testing.assert_array_equal(ours.obs.any(-1)[before], ours.alive[before])
    assert ours.terminated.any() and ours.truncated[:, -1].any() and spec.episode_length == 15
    end = playing.sum(1) - 1
    games = np.arange(len(end))
    won = allies[games, end] & ~enemies[games, end]
    returns = (ours.reward[..., 0] * playing).sum(1)
    assert won.any() and not won.all()
    np.testing.assert_array_equal(returns > float(dict(spec.metadata)["won_above"]), won)


def test_shaped_rewards_are_added_per_agent():
    env = envs.make("jaxmarl/overcooked", layout="coord_ring", reward_shaping=0.5)
    assert not env.spec.team_reward and dict(env.spec.metadata)["reward_shaping"] == "0.5"
    assert dict(env.spec.options) == {"layout": "coord_ring", "reward_shaping": 0.5}


@pytest.mark.parametrize(
    "name, options, longest, team_reward",
    [
        ("3m", {"use_self_play_reward": False, "max_steps": 7}, 8, True),
        ("smax", {"scenario": "3m"}, 101, False),
        ("mpe_simple_spread_v3", {"local_ratio": 0.0}, 26, True),
        ("storm", {"num_inner_steps": 9}, 9, False),
        ("MPE_simple_tag_v3", {"action_type": "Continuous"}, 26, False),
        ("coin_game", {"num_inner_steps": 3, "num_outer_steps": 4}, 12, False),
        ("switch_riddle", {"num_agents": 4}, 10, True),
        ("overcooked_v2", {"max_steps": 11}, 11, True),
    ],
)
def test_specs(name, options, longest, team_reward):
    env = envs.make(f"jaxmarl/{name}", **options)
    assert (env.spec.episode_length, env.spec.team_reward) == (longest, team_reward)
    assert dict(env.spec.options) == options and hash(env.spec) == hash(envs.make(env.spec.name, **options).spec)
    key, params = jax.random.key(0), env.params
    state, first = jax.eval_shape(env.reset, key, params)
    shape = (env.spec.num_agents,) + (() if env.spec.action_kind == "discrete" else (env.spec.action_size,))
    dtype = jnp.int32 if env.spec.action_kind == "discrete" else jnp.float32
    after, timestep = jax.eval_shape(env.step, key, state, jnp.zeros(shape, dtype), params)
    assert (state, first) == (after, timestep)  # shapes, types, structure: ready for `jax.lax.scan`
    assert first.state.shape == (env.spec.state_size,)
    assert (first.alive is not None) == (name in ("3m", "smax"))


def test_the_names_are_those_of_the_installed_package():
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    needs_more = {"LearnedPolicyEnemySMAX"}
    makeable = [n for n in jaxmarl.registered_envs if not n.startswith("JaxRobotarium") and n not in needs_more]
    assert adapter.SMAX_MAPS == tuple(MAP_NAME_TO_SCENARIO)
    assert adapter.REGISTERED == tuple(makeable)
    assert set(adapter.NAMES) <= set(envs.names())


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("jaxmarl/3n", {}, "unknown env 'jaxmarl/3n'; did you mean jaxmarl/3m or"),
        ("JaxMARL/simple_spread", {}, "did you mean jaxmarl/MPE_simple_spread_v3"),
        ("jaxmarl/3m", {"max_step": 3}, "max_step"),
        ("jaxmarl/MPE_simple_spread_v3", {"num_agent": 3}, "unknown option 'num_agent'; accepted: num_agents"),
        ("jaxmarl/overcooked", {"layout": "kitchen"}, "cannot make it with"),
        ("jaxmarl/hanabi", {"hand_size": -1}, "cannot make it with"),
        ("jaxmarl/hopper_3x1", {"auto_reset": True}, "auto_reset=True; it must be False"),
    ],
)
def test_bad_input_gives_a_one_line_error(name, options, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        envs.make(name, **options)
    assert "\n" not in str(raised.value)


def test_a_missing_package_gives_a_one_line_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxmarl", None)
    with pytest.raises(ValueError, match="env 'jaxmarl/3m' needs JaxMARL, .* pip install 'marl_kl\\[jaxmarl\\]'"):
        envs.make("jaxmarl/3m")
    with pytest.raises(ValueError, match="did you mean"):
        envs.make("jaxmarl/3mm")


def test_continuous_actions_are_stretched_where_there_are_bounds():
    boxes = [SimpleNamespace(low=0.0, high=1.0, shape=(2,)), SimpleNamespace(low=-np.inf, high=np.inf, shape=(1, 1))]
    found = spaces.read("boxes", boxes)
    assert (found.kind, found.sizes) == ("continuous", (2, 1))
    bounded, free = found.native(jnp.array([[-3.0, 0.5], [7.0, 0.0]]))
    np.testing.assert_array_equal(bounded, [0.0, 0.75])
    np.testing.assert_array_equal(free, [[7.0]])
    assert "action_low" not in found.spec_fields
    assert spaces.read("box", boxes[:1]).spec_fields["action_low"] == ((-1.0, -1.0),)
    with pytest.raises(ValueError, match="agents have continuous and discrete actions; they must be of one kind"):
        spaces.read("mixed", [boxes[0], SimpleNamespace(n=3)])


def test_several_choices_are_multi_discrete():
    """As Gymnasium calls them, and as JaxMARL does."""
    found = spaces.read("several", [SimpleNamespace(nvec=[2, 3]), SimpleNamespace(num_categories=jnp.array([2]))])
    fields = {"action_kind": "multi_discrete", "action_sizes": (6, 3), "sub_actions": ((2, 3), (2,))}
    assert found.spec_fields == fields
    first, second = found.native(jnp.array([[1, 2], [1, 0]]))
    np.testing.assert_array_equal(first, [1, 2])
    np.testing.assert_array_equal(second, [1])


class Discrete:
    n = 2


class Whistle:
    """A user's own: two agents, no max_steps, who end the game by whistling together."""

    agents = ("a", "b")

    def action_space(self, agent):
        return Discrete()

    def reset(self, key):
        return self.observed(jnp.zeros((), jnp.int32)), {"t": 0}

    def step_env(self, key, state, actions):
        both = (actions["a"] == 1) & (actions["b"] == 1)
        t = state["t"] + 1
        done = both | (t >= 4)
        return self.observed(t), {"t": t}, {"a": 1.0, "b": jnp.where(both, 5, 0)}, {"__all__": done}, {}

    def observed(self, t):
        return {"a": jnp.stack([t, t]), "b": (t,)}


def test_a_user_environment_with_this_interface():
    with pytest.raises(ValueError, match="env 'Whistle' has no time limit max_steps; episode_length="):
        envs.from_jaxmarl(Whistle())
    env = envs.from_jaxmarl(Whistle(), episode_length=4)
    assert (env.spec.observation_sizes, env.spec.state_size, env.spec.team_reward) == ((2, 1), 3, False)
    envs.check(env)
    Discrete.n = np.array([2, 3])
    with pytest.raises(ValueError, match="action space Discrete; accepted: Discrete, MultiDiscrete, Box"):
        envs.from_jaxmarl(Whistle(), episode_length=4)
    Discrete.n = 2


class Panel:
    """A user's own with several choices at once: a lever of three and a button of two, and a lone button.

    The lever's last used place is not available next time, nor is a button after it was pressed. The world state is a
    picture. `masks` is how availability is said.
    """

    agents = ("both", "one")
    max_steps = 3
    spaces = {"both": (3, 2), "one": (2,)}

    def __init__(self, masks):
        self.masks = masks

    def action_space(self, agent):
        return SimpleNamespace(num_categories=np.array(self.spaces[agent]))

    def reset(self, key):
        state = {"used": jnp.full(3, -1, jnp.int32), "t": jnp.zeros((), jnp.int32), "fine": jnp.ones((), bool)}
        return self.observed(state), state

    def step_env(self, key, state, actions):
        assert actions["both"].shape == (2,) and actions["one"].shape == (1,) and actions["one"].dtype == jnp.int32
        now = jnp.concatenate([actions["both"], actions["one"]])
        allowed = jnp.stack([self.allowed(state)[part][choice] for part, choice in enumerate(now)])
        used = jnp.where(jnp.arange(3) == 0, now, jnp.where(now == 1, 1, -1))
        state = {"used": used, "t": state["t"] + 1, "fine": jnp.all(allowed)}
        # a forbidden choice is paid with NaN, which stops a learner
        reward = jnp.where(state["fine"], jnp.mean(1.0 * now), jnp.nan)
        over = {"__all__": state["t"] >= self.max_steps}
        return self.observed(state), state, {"both": reward, "one": reward}, over, {}

    def observed(self, state):
        seen = state["used"].astype(jnp.float32)
        return {"both": seen, "one": seen[2:], "world_state": jnp.tile(seen, (2, 1))}

    def allowed(self, state):
        """Of the lever, the button beside it, and the lone one."""
        return [jnp.arange(size) != used for size, used in zip((3, 2, 2), state["used"])]

    def get_avail_actions(self, state):
        lever, button, lone = self.allowed(state)
        if self.masks == "parts":
            return {"both": (lever, button), "one": (lone,)}
        both = jnp.concatenate([lever, button]).astype(jnp.float32)
        return {"both": both if self.masks == "flat" else both[:4], "one": lone}


@pytest.mark.parametrize("masks", ["flat", "parts"])
def test_multi_discrete_masks_are_padded(masks):
    env = envs.from_jaxmarl(Panel(masks), team_reward=True)
    spec = env.spec
    assert (spec.action_kind, spec.sub_actions, spec.action_shape) == ("multi_discrete", ((3, 2), (2,)), (2, 2))
    assert (spec.state_size, spec.episode_length) == (6, 3)
    envs.check(env)
    state, _ = env.reset(jax.random.key(0), ())
    _, timestep = env.step(jax.random.key(1), state, jnp.array([[2, 1], [0, 0]], jnp.int32), ())
    wanted = [[[True, True, False], [True, False, False]], [[True, True, False], [False] * 3]]
    np.testing.assert_array_equal(timestep.action_mask.reshape(2, 2, 3), wanted)
    np.testing.assert_array_equal(timestep.state, [2, 1, -1, 2, 1, -1])


@pytest.mark.slow
def test_multi_discrete_masks_reach_the_policies():
    """Two updates: nothing forbidden is done, or its NaN would stop the learner."""
    env = envs.from_jaxmarl(Panel("parts"), team_reward=True)
    config = marl_kl.TrustRegionConfig(num_envs=4, rollout_length=8, hidden_sizes=(8,), critic_minibatches=1)
    train = marl_kl.make_train(env, "hatrpo", config)
    run = jax.jit(lambda key: jax.lax.scan(lambda state, _: train.update(state), train.init(key), None, 2))
    state, metrics = run(jax.random.key(0))
    assert state.healthy and np.all(np.isfinite(metrics["episode_return"])) and np.max(metrics["kl"]) > 0


def test_masks_that_fit_no_choices_are_refused():
    with pytest.raises(ValueError, match="get_avail_actions has 4 entries for agent 'both'; it must have 5, one per"):
        envs.from_jaxmarl(Panel("short"))


def test_a_time_limit_beyond_the_environments_own_is_refused():
    """Its own end would pass for the task's; at the same step it is a limit, and before it ours alone counts."""
    with pytest.raises(ValueError, match="episode_length=4; it must be at most .* own limit max_steps=3"):
        envs.from_jaxmarl(Panel("flat"), episode_length=4)
    for episode_length in (2, 3):
        env = envs.from_jaxmarl(Panel("flat"), episode_length=episode_length)
        state, timestep = env.reset(jax.random.key(0), ())
        for _ in range(episode_length):
            state, timestep = env.step(jax.random.key(1), state, env.spec.example_action, ())
        assert timestep.truncated and not timestep.terminated
    spread = theirs("spread")
    with pytest.raises(ValueError, match="episode_length=9; accepted: None, because its own options"):
        envs.from_jaxmarl(spread, episode_length=9)
    assert envs.from_jaxmarl(spread, episode_length=6).spec.episode_length == 6


class ClockParams(NamedTuple):
    max_steps_in_episode: int = 3


class Clock:
    """gymnax's interface before it had `is_truncated`: the one end is that of its params."""

    default_params = ClockParams()

    def action_space(self, params):
        return Discrete()

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        return jnp.ones(1), state + 1, jnp.asarray(1.0), state + 1 >= 3, {}


def test_gymnaxs_own_limit_is_no_termination():
    clock = Clock()
    with pytest.raises(ValueError, match="episode_length=4; it must be at most .* own limit max_steps_in_episode=3"):
        envs.from_gymnax(clock, episode_length=4)
    env = envs.from_gymnax(clock)
    envs.check(env)
    state, timestep = env.reset(jax.random.key(0), env.params)
    for _ in range(3):
        state, timestep = env.step(jax.random.key(1), state, jnp.zeros(1, jnp.int32), env.params)
    assert timestep.truncated and not timestep.terminated
    # where the two ends are told apart a longer limit does no harm
    clock.is_truncated = None
    assert envs.from_gymnax(clock, episode_length=4).spec.episode_length == 4


def test_gymnax_cartpole_plays_as_its_own_step():
    gymnax = pytest.importorskip("gymnax")
    other, params = gymnax.make("CartPole-v1")
    params = params.replace(max_steps_in_episode=12)
    env = envs.from_gymnax(other, params)
    assert (env.spec.name, env.spec.episode_length, env.spec.action_sizes) == ("CartPole-v1", 12, (2,))

    def game(key):
        ours, _ = env.reset(key, params)
        _, state = other.reset(key, params)

        def env_step(carry, key):
            ours, state = carry
            action = jax.random.bernoulli(key, 0.5 + 0.5 * (key_bias > 0), (1,)).astype(jnp.int32)
            key_step = jax.random.split(key)[0]
            _, state, reward, terminated, truncated, info = other.step(key, state, action[0], params)
            ours, timestep = env.step(key_step, ours, action, params)
            return (ours, state), (timestep, info["final_observation"], reward, terminated, truncated)

        key_bias = jax.random.randint(key, (), 0, 2)
        return jax.lax.scan(env_step, (ours, state), jax.random.split(key, 12))[1]

    games = jax.jit(jax.vmap(game))(jax.random.split(jax.random.key(0), 16))
    timestep, observed, reward, terminated, truncated = jax.tree.map(np.asarray, games)
    ended = timestep.terminated | timestep.truncated
    playing = np.cumsum(ended, axis=1) - ended == 0
    close(timestep.obs[playing][:, 0], observed[playing])
    close(timestep.reward[playing][:, 0], reward[playing])
    np.testing.assert_array_equal(timestep.terminated[playing], terminated[playing])
    np.testing.assert_array_equal(timestep.truncated[playing], (truncated & ~terminated)[playing])
    assert timestep.terminated[playing].any() and timestep.truncated[playing].any()


class Half:
    """A wrapper as both ecosystems write them: it changes `step` and passes on everything else to what it wraps."""

    def __init__(self, env):
        self._env = env

    def __getattr__(self, name):
        return getattr(self._env, name)

    def reset(self, key, *params):
        observed, state = self._env.reset(key, *params)
        return jax.tree.map(lambda x: 0.5 * x, observed), state

    def step(self, key, state, action, *params):
        observed, *others = self._env.step(key, state, action, *params)
        return jax.tree.map(lambda x: 0.5 * x, observed), *others


class HalfEnv(Half):
    """The same with a `step_env` of its own, which does not reset."""

    def step_env(self, key, state, action, *params):
        observed, *others = self._env.step_env(key, state, action, *params)
        return jax.tree.map(lambda x: 0.5 * x, observed), *others


def test_a_wrapper_of_jaxmarl_is_called_or_refused():
    spread = theirs("spread")
    with pytest.raises(ValueError, match="Half has no step_env of its own, .* leaves out what Half changes; define"):
        envs.from_jaxmarl(Half(spread))
    key, action = jax.random.key(0), jnp.zeros(3, jnp.int32)
    plain, halved = (
        _first_two(envs.from_jaxmarl(env, name="spread"), key, action) for env in (spread, HalfEnv(spread))
    )
    np.testing.assert_allclose(2 * halved, plain, rtol=1e-6)


def _first_two(env, key, action):
    """Observations after a reset and a step."""
    state, first = env.reset(key, env.params)
    return np.stack([first.obs, env.step(key, state, action, env.params)[1].obs])


def test_a_wrapper_of_gymnax_is_called_or_refused():
    halved = envs.from_gymnax(Half(Clock()))  # reset and step are its own
    state, _ = halved.reset(jax.random.key(0), halved.params)
    assert halved.step(jax.random.key(0), state, jnp.zeros(1, jnp.int32), halved.params)[1].obs[0, 0] == 0.5

    class WithoutReset(Clock):
        reset_env, step_env = Clock.reset, Clock.step

    with pytest.raises(ValueError, match="Half has no reset_env of its own"):
        envs.from_gymnax(Half(WithoutReset()))
