"""JaxMARL's environments (SMAX, MPE, Overcooked, Hanabi, STORM, ...) behind the protocol of `envs.base`.

The package is imported only when one of them is made: `pip install 'marl_kl[jaxmarl]'`. Differences:

- `step_env` is called instead of `step`, which resets automatically, so that the last observation of an episode is the
  true one.
- Observations are flattened to float32 and padded; the state is `world_state` if there is one (SMAX), else the
  concatenated observations of all agents.
- Bounded continuous actions are [-1, 1] scaled to the range (see `envs.adapters.spaces`).
- JaxMARL has one `done` for the end of the task and the time limit. They are distinguished per family, see `_ending`.
- After an inner game of STORM or the coin game, JaxMARL starts the next one within the same step.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs import pictures
from envs.adapters import spaces
from envs.base import Draw, Env, EnvSpec, TimeStep, cast_like
from envs.time_limit import with_time_limit
from envs.validation import suggest

PREFIX = "jaxmarl/"

SMAX_MAPS = (
    "3m", "2s3z", "25m", "3s5z", "8m", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m", "3s5z_vs_3s6z", "3s_vs_5z", "6h_vs_8z",
    "smacv2_5_units", "smacv2_10_units", "smacv2_20_units",
)  # fmt: skip
"""The scenarios of `HeuristicEnemySMAX`, which are environment names here."""

REGISTERED = (
    "MPE_simple_v3", "MPE_simple_tag_v3", "MPE_simple_world_comm_v3", "MPE_simple_spread_v3", "MPE_simple_crypto_v3",
    "MPE_simple_speaker_listener_v4", "MPE_simple_push_v3", "MPE_simple_adversary_v3", "MPE_simple_reference_v3",
    "MPE_simple_facmac_v1", "MPE_simple_facmac_3a_v1", "MPE_simple_facmac_6a_v1", "MPE_simple_facmac_9a_v1",
    "switch_riddle", "SMAX", "HeuristicEnemySMAX", "ant_4x2", "halfcheetah_6x1", "hopper_3x1", "humanoid_9|8",
    "walker2d_2x3", "storm", "storm_2p", "storm_np", "hanabi", "overcooked", "overcooked_v2", "coin_game", "jaxnav",
)  # fmt: skip
"""JaxMARL 0.2's names that need no further packages or objects."""

NAMES = tuple(PREFIX + name for name in (*SMAX_MAPS, *REGISTERED))
"""Known without the package; other names that an installed one registers are also accepted."""


def find(name: str) -> Callable[..., Env] | None:
    """The factory for "jaxmarl/3m", "jaxmarl/MPE_simple_spread_v3", ... (case-insensitive); None for other names.

    The factory takes the options of JaxMARL's own constructor; for Overcooked also `reward_shaping`, see
    `from_jaxmarl`. `layout` (Overcooked) and `scenario` (SMAX) may be names.
    """
    own = _own_name(name)
    return None if own is None else functools.partial(_make, own)


def explain_unknown(name: str) -> str | None:
    """The message for an unknown name with the prefix "jaxmarl/"; None for other names."""
    if not name.lower().startswith(PREFIX):
        return None
    return f"unknown env {name!r}; {suggest(name, NAMES)}"


def _own_name(name: str) -> str | None:
    """JaxMARL's own spelling of "jaxmarl/..."."""
    if not name.lower().startswith(PREFIX):
        return None
    lower = name[len(PREFIX) :].lower()
    known = next((own for own in (*SMAX_MAPS, *REGISTERED) if own.lower() == lower), None)
    return known or next((own for own in _installed_names() if own.lower() == lower), None)


def _installed_names() -> tuple[str, ...]:
    """The names that the installed package registers, possibly more than 0.2's; () if it is not installed."""
    try:
        registered = _imported("jaxmarl").registered_envs
    except ValueError:
        return ()
    return tuple(registered)


def _make(own: str, **options) -> Env:
    """The environment that JaxMARL calls `own`, or `HeuristicEnemySMAX` on the map `own`."""
    name = PREFIX + own
    jaxmarl = _imported(name)
    shaping = {"reward_shaping": options.pop("reward_shaping")} if "reward_shaping" in options else {}
    try:
        registered, arguments = constructor_call(own, options)
        env = jaxmarl.make(registered, **arguments)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"env '{name}': JaxMARL cannot make it with {options}: {reason}") from error
    accepted = _accepted(type(env))
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"env '{name}': unknown option {unknown[0]!r}; accepted: {', '.join(accepted)}")
    return from_jaxmarl(env, name, **shaping)


def _imported(name: str):
    try:
        with silence():
            import jaxmarl
    except ImportError as error:
        raise ValueError(
            f"env '{name}' needs JaxMARL, which cannot be imported ({error}); pip install 'marl_kl[jaxmarl]'"
        ) from error
    return jaxmarl


@contextlib.contextmanager
def silence():
    """Suppresses what importing JaxMARL prints; its Brax module restores `sys.__stdout__`."""
    original = sys.__stdout__
    with contextlib.redirect_stdout(io.StringIO()) as silent, contextlib.redirect_stderr(sys.stderr):
        sys.__stdout__ = silent
        try:
            yield
        finally:
            sys.__stdout__ = original


def constructor_call(own: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the keyword arguments that `jaxmarl.make` takes for the environment or map `own`."""
    if own in SMAX_MAPS:
        options = {"scenario": own, **options}
        own = "HeuristicEnemySMAX"
    if isinstance(options.get("scenario"), str):
        from jaxmarl.environments.smax import map_name_to_scenario

        options = {**options, "scenario": map_name_to_scenario(options["scenario"])}
    if own == "overcooked" and isinstance(options.get("layout"), str):
        from jaxmarl.environments.overcooked import overcooked_layouts

        options = {**options, "layout": overcooked_layouts[options["layout"]]}
    if own in ("ant_4x2", "halfcheetah_6x1", "hopper_3x1", "humanoid_9|8", "walker2d_2x3"):
        options = {"auto_reset": False, **options}
    return own, options


_MPE_EXTRAS = (
    "rad", "moveable", "silent", "collide", "mass", "accel", "max_speed", "u_noise", "c_noise", "damping",
    "contact_force", "contact_margin",
)  # fmt: skip
"""What `SimpleMPE` reads from its `**kwargs`; it ignores other names, including misspelled ones."""


def _accepted(env_class: type) -> tuple[str, ...]:
    """The keyword arguments of a constructor, including those passed on by `**kwargs`."""
    accepted: dict[str, None] = {}
    for cls in env_class.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        accepted.update({p.name: None for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD})
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    names = _lineage(env_class)
    if "EnemySMAX" in names:
        return (*accepted, *_accepted(sys.modules["jaxmarl"].registration.SMAX))
    return (*accepted, *(_MPE_EXTRAS if "SimpleMPE" in names else ()))


def from_jaxmarl(
    env: Any,
    name: str | None = None,
    *,
    episode_length: int | None = None,
    team_reward: bool | None = None,
    reward_shaping: float = 0.0,
) -> Env:
    """An environment with JaxMARL's interface as an `Env`. JaxMARL need not be installed.

    Args:
        env: has `agents`, `action_space(agent)`, `reset(key) -> (obs, state)` and `step_env(key, state, actions) ->
            (obs, state, rewards, dones, info)` with one entry per agent in `obs` and `rewards`, and `dones["__all__"]`;
            may have `get_avail_actions(state)` or `get_legal_moves(state)`, an array [choices] per agent, or for
            multi-discrete actions an array per sub-action or their concatenation. `step_env` must not reset.
        name: the name in the spec; that of the class by default.
        episode_length: the time limit in steps; `env.max_steps` by default. A `done` on this step is interpreted as the
            limit. It must not exceed `max_steps`, whose `done` would be mistaken for the end of the task. (JaxMARL's own
            environments are limited by their own options only, see `_ending`.)
        team_reward: whether all agents always receive the same reward; None: as in JaxMARL's known environments, else no.
        reward_shaping: coefficient of `info["shaped_reward"]`, added to every agent's reward (Overcooked).

    Raises:
        ValueError: the episode length is unknown or exceeds the environment's own; an unsupported action space, agents
            with different kinds of actions; action masks with another size than the number of choices; a wrapper that has
            `step_env` only from what it wraps.
    """
    name = name or type(env).__name__
    agents = tuple(env.agents)
    reset_env, step_env = (spaces.own_method(name, env, method) for method in ("reset", "step_env"))
    actions = spaces.read(name, [env.action_space(agent) for agent in agents])
    ending = _ending(env, name, episode_length)
    read_observations = _observations(env, agents)
    legal = None if actions.kind == "continuous" else _legal_choices(env, name, agents, actions)
    alive = _alive(env)

    observed, reset_state = jax.eval_shape(reset_env, jax.random.key(0))
    sizes = tuple(row.shape[0] for row in jax.eval_shape(read_observations, observed))
    has_world_state = isinstance(observed, dict) and "world_state" in observed
    is_team_reward = reward_shaping == 0 and (_has_team_reward(env) if team_reward is None else team_reward)
    spec = EnvSpec(
        name=name,
        agents=tuple(map(str, agents)),
        observation_sizes=sizes,
        **actions.spec_fields,
        state_size=math.prod(observed["world_state"].shape) if has_world_state else sum(sizes),
        episode_length=ending.limit,
        team_reward=is_team_reward,
        observation_shape=_image_shape(env, agents, observed),
        metadata=(
            ("environment", f"{type(env).__module__}.{type(env).__name__}"),
            ("jaxmarl", spaces.installed_version("jaxmarl")),
            ("state", "world_state" if has_world_state else "the observations of all agents"),
            ("reset", "never by itself: step_env, not step"),
            ("time_limit", ending.note),
            *((("reward_shaping", str(float(reward_shaping))),) if reward_shaping else ()),
            *_won_above(env),
        ),
    )

    def native(action):
        per_agent = actions.native(action)
        # JaxMARL's STORM, whose agents are numbers, expects a tuple
        return dict(zip(agents, per_agent)) if isinstance(agents[0], str) else tuple(per_agent)

    def timestep(observed, inner, reward, terminated):
        rows = read_observations(observed)
        mask = jnp.asarray(spec.action_mask)
        return TimeStep(
            obs=spaces.padded_rows(rows, spec.observation_size),
            state=spaces.flat_observation(observed["world_state"]) if has_world_state else jnp.concatenate(rows),
            reward=reward,
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(False),
            action_mask=mask if legal is None else mask & legal(inner),
            alive=None if alive is None else alive(inner),
        )

    def raw_step(key, inner, action):
        observed, inner, rewards, dones, info = step_env(key, inner, native(action))
        reward = [_entry(rewards, agent, index) for index, agent in enumerate(agents)]
        if reward_shaping:
            shaped = info["shaped_reward"]
            reward = [reward[i] + reward_shaping * _entry(shaped, agent, i) for i, agent in enumerate(agents)]
        reward = jnp.stack([jnp.asarray(r, jnp.float32) for r in reward])
        return observed, ending.hold_counter(inner), reward, ending.is_terminal(dones["__all__"], info)

    step_state = jax.eval_shape(raw_step, jax.random.key(0), reset_state, spec.example_action)[1]
    state_shapes = spaces.common_dtypes(reset_state, step_state)

    def reset(key, params):
        observed, inner = reset_env(key)
        return cast_like(inner, state_shapes), timestep(observed, inner, jnp.zeros(len(agents), jnp.float32), False)

    def step(key, env_state, action, params):
        observed, inner, reward, terminated = raw_step(key, env_state, action)
        return cast_like(inner, state_shapes), timestep(observed, inner, reward, terminated)

    return with_time_limit(Env(spec, reset, step, draw=_draw(env)), ending.limited_inside)


class _Ending(NamedTuple):
    """How an environment's episodes end.

    Attributes:
        limit: the time limit, in steps.
        note: a description for the metadata.
        is_terminal: `is_terminal(done, info) -> [] bool`, whether the task itself has ended.
        hold_counter: `hold_counter(state) -> state` with its step counter reset to 0, so that `done` never is the limit.
        limited_inside: see `envs.time_limit.with_time_limit`.
    """

    limit: int
    note: str
    is_terminal: Callable[[jax.Array, Any], jax.Array] = lambda done, info: done
    hold_counter: Callable[[Any], Any] = lambda state: state
    limited_inside: bool = False


def _ending(env: Any, name: str, episode_length: int | None) -> _Ending:
    """That of JaxMARL 0.2's families; for other environments, a `done` on the step of the limit is the limit."""
    known = _known_ending(env, name)
    if known is None:
        limit = spaces.time_limit(name, "max_steps", getattr(env, "max_steps", None), episode_length)
        return _Ending(limit, f"a done at step {limit} is taken for the limit's", limited_inside=True)
    if episode_length not in (None, known.limit):
        raise ValueError(
            f"env '{name}': episode_length={episode_length}; accepted: None, because its own options "
            f"(max_steps, num_inner_steps, ...) set its limit of {known.limit} steps"
        )
    return known


def _known_ending(env: Any, name: str) -> _Ending | None:
    """From the sources of JaxMARL 0.2; None for other environments and JaxNav."""
    families = _lineage(type(env))
    stopped = "ours, at the step of JaxMARL's own; its counter is held at 0, so that its done is the task's end"
    only = "JaxMARL's own, which is the only end"
    if {"SimpleMPE", "SMAX"} & families:
        # the counter is compared before it is incremented: one step more than max_steps
        return _Ending(env.max_steps + 1, stopped, hold_counter=_with_counter_at_0)
    if "EnemySMAX" in families:
        return _Ending(
            env.max_steps + 1, stopped, hold_counter=lambda state: state.replace(state=_with_counter_at_0(state.state))
        )
    if "SwitchRiddle" in families:
        return _Ending(env.max_steps, stopped, hold_counter=_with_counter_at_0)
    if {"InTheGrid", "InTheGrid_2p", "InTheMatrix"} & families and env.num_outer_steps == 1:
        return _Ending(env.num_inner_steps, stopped, hold_counter=_with_counter_at_0)
    if {"InTheGrid", "InTheGrid_2p", "InTheMatrix", "CoinGame"} & families:
        longest = env.num_inner_steps * env.num_outer_steps
        note = f"{only}; after every inner game the next one begins within the step, after the last one too"
        return _Ending(longest, note, is_terminal=_never)
    if {"Overcooked", "OvercookedV2"} & families:
        return _Ending(env.max_steps, only, is_terminal=_never)
    if "HanabiGame" in families:
        # every play or discard uses a card or a turn of the last round, every hint a token
        turns = int(env.deck_size) - env.num_agents * env.hand_size + env.num_agents + 1
        return _Ending(2 * turns + env.max_info_tokens, "none: the game ends")
    if "MABraxEnv" in families:
        if env.auto_reset:
            raise ValueError(f"env '{name}': auto_reset=True; it must be False")
        longest = -(-env.episode_length // env.action_repeat)
        note = "Brax's own, which it reports apart"
        return _Ending(longest, note, is_terminal=lambda done, info: done & (info["truncation"] == 0))
    return None


def _with_counter_at_0(state: Any) -> Any:
    return state.replace(step=jnp.zeros_like(state.step))


def _never(done: jax.Array, info: Any) -> jax.Array:
    return jnp.zeros_like(done)


def _has_team_reward(env: Any) -> bool:
    """Whether all agents of a JaxMARL environment receive the same reward in every step."""
    families = _lineage(type(env))
    team = {"EnemySMAX", "Overcooked", "OvercookedV2", "HanabiGame", "SwitchRiddle", "MABraxEnv"}
    if (team | {"SimpleSpeakerListenerMPE"}) & families or len(env.agents) == 1:
        return True
    # simple_spread and simple_reference mix in individual rewards, with weight 0.5 by default
    return bool({"SimpleSpreadMPE", "SimpleReferenceMPE"} & families) and env.local_ratio == 0


def _won_above(env: Any) -> tuple[tuple[str, str], ...]:
    """Metadata with the return above which an episode is won, if rewards show it.

    SMAX against its heuristic enemy rewards the enemies' lost health, 1 in total, and adds a bonus for a won battle.
    """
    if "EnemySMAX" not in _lineage(type(env)) or env.use_self_play_reward or env.won_battle_bonus <= 0:
        return ()
    return (("won_above", str(1 + float(env.won_battle_bonus) / 2)),)


def _observations(env: Any, agents: Sequence[Any]) -> Callable[[Any], list[jax.Array]]:
    """`read(observed) -> [size] float32 per agent`."""
    if "InTheGrid" in _lineage(type(env)):
        return _storm_observations
    return lambda observed: list(map(spaces.flat_observation, _per_agent(observed, agents)))


def _image_shape(env: Any, agents: Sequence[Any], observed: Any) -> tuple[int, ...] | None:
    if "InTheGrid" in _lineage(type(env)):
        return None
    return spaces.image_shape(jax.eval_shape(lambda observed: _per_agent(observed, agents), observed))


def _per_agent(entries: Any, agents: Sequence[Any]) -> list[Any]:
    return [_entry(entries, agent, index) for index, agent in enumerate(agents)]


def _storm_observations(observed: dict[str, jax.Array]) -> list[jax.Array]:
    """STORM's layout: views [N, ...], and [5, N]: two kinds of coins, readiness, and the coins shown to all.

    An agent observes its own view and inventory, and the coins that frozen agents show to all.
    """
    views, inventory = observed["observations"], observed["inventory"]
    return [spaces.flat_observation((views[agent], inventory[:3, agent], inventory[3:])) for agent in range(len(views))]


def _legal_choices(
    env: Any, name: str, agents: Sequence[Any], actions: spaces.ActionSpaces
) -> Callable[[Any], jax.Array] | None:
    """`legal(state) -> [N, A] bool`; None if all choices are always legal.

    An agent without a legal choice gets all of them; a sub-action without one stays without, and is 0.

    Raises:
        ValueError: an agent's mask does not have one entry per choice.
    """
    choices = getattr(env, "get_legal_moves", None) or getattr(env, "get_avail_actions", None)
    if choices is None:
        return None

    def rows(state):
        masks = choices(state)
        return [spaces.flat_observation(_entry(masks, agent, index)) != 0 for index, agent in enumerate(agents)]

    _, state = jax.eval_shape(env.reset, jax.random.key(0))
    try:
        shapes = jax.eval_shape(rows, state)
    except NotImplementedError:
        return None
    for agent, row, expected in zip(agents, shapes, actions.num_choices):
        # discrete masks may be padded to the agent with the most choices
        most = expected if actions.kind == "multi_discrete" else max(actions.sizes)
        if not expected <= row.shape[0] <= most:
            raise ValueError(
                f"env '{name}': {choices.__name__} has {row.shape[0]} entries for agent {agent!r}; it must have "
                f"{expected}, one per choice"
            )
    if actions.kind == "multi_discrete":
        return lambda state: actions.pad_choices(rows(state))

    def legal(state):
        mask = spaces.padded_rows(rows(state), max(actions.sizes))
        return mask | ~jnp.any(mask, axis=-1, keepdims=True)

    return legal


def _alive(env: Any) -> Callable[[Any], jax.Array] | None:
    """`alive(state) -> [N] bool` of the families whose agents drop out of an episode that continues; None for others.

    Agents that wait for their turn (Hanabi, switch riddle) are not among those: they observe meanwhile.
    """
    families = _lineage(type(env))
    if "EnemySMAX" in families:
        return lambda state: state.state.unit_alive[: env.num_allies]
    if "SMAX" in families:
        return lambda state: state.unit_alive
    if "JaxNav" in families:
        return lambda state: ~(state.done | state.move_term)
    return None


def _draw(env: Any) -> Draw | None:
    """Of MPE and SMAX; None for others."""
    families = _lineage(type(env))
    if "SimpleMPE" in families:
        return functools.partial(_draw_particles, env)
    if "EnemySMAX" in families:
        return lambda axes, state, action, params: _draw_units(env._env, axes, state.state)
    if "SMAX" in families:
        return lambda axes, state, action, params: _draw_units(env, axes, state)
    return None


def _draw_particles(env: Any, axes: Any, state: Any, action: Any, params: Any) -> None:
    silent = [not env.dim_c or bool(silent) for silent in env.silent]
    messages = ["" if is_silent else f"says {np.argmax(c)}" for is_silent, c in zip(silent, state.c)]
    pictures.particles(axes, state.p_pos, np.asarray(env.rad), env.agents, messages)


def _draw_units(env: Any, axes: Any, state: Any) -> None:
    health = np.where(state.unit_alive, state.unit_health / np.asarray(env.unit_type_health)[state.unit_types], 0.0)
    symbols = [env.unit_type_shorthands[kind] for kind in state.unit_types]
    pictures.battle(axes, state.unit_positions, health, state.unit_teams == 1, symbols, (env.map_width, env.map_height))


def _entry(per_agent: Any, agent: Any, index: int) -> Any:
    """The entry of one agent in a dict by agent, or in a sequence or array in the order of the agents."""
    return per_agent[agent] if isinstance(per_agent, dict) else per_agent[index]


def _lineage(env_class: type) -> frozenset[str]:
    """The names of a class's base classes in JaxMARL, found without importing it."""
    return frozenset(cls.__name__ for cls in env_class.__mro__ if cls.__module__.startswith("jaxmarl."))
