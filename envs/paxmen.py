"""PaxMen: a hub with one corridor per agent, each to a room with three dots to eat.

The rooms are at different distances, so that agents should go different ways. The rules are those of the task's public
environment:

- 4, 5 or 6 agents in a hub of 3 x 3, 5 x 5 or 7 x 7 cells. One straight corridor per agent, one cell wide,
  S = 4, M = 8 or L = 12 cells long; at its end a room, 5 high x 3 wide to the north and south, 3 high x 5 wide
  to the east and west. At every reset one of four layouts is drawn (`_sides`); the agents start on distinct cells of
  the hub.
- Choices: up, down, right, left, eat. All move simultaneously; a move into a wall has no effect; agents may share a
  cell. Eating removes a dot on the agent's own cell. m agents who eat the same dot get 1/m each; an agent that eats
  nothing gets -0.025. The team reward is the sum over agents.
- When all dots are eaten, new ones appear on new cells of the same rooms. Nothing terminates: after 100, 115 or 130
  steps (4, 5, 6 agents) the time limit truncates.
- An agent observes the 5 x 5 cells around it: wall -1, empty 0, dot 1, another agent 0.1 (even on a dot). The state has
  all cells of hub, corridors and rooms: hub^2 + 23 N numbers.

Our choices where the rules are not specific: an offset of -2 is west of the middle (corridors to the north and south)
or north of it (east and west), a room is centred on its corridor, an agent does not observe itself (so a dot on its own
cell is 1, unless another agent is there too), the state encodes cells like the observations, row by row, arm by arm in
the order north, south, east, west, from the hub outwards, and new dots are visible in the step that ate the last one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs import pictures
from envs.base import Env, EnvSpec, TimeStep
from envs.time_limit import with_time_limit

S, M, L = 4, 8, 12
DOTS = 3
"""Per room."""
VIEW = 2
"""Radius of an agent's observation."""
MARGIN = L + 5 + VIEW
"""Cells between the hub and the edge of the grid: the longest arm and the view of an agent at its end."""
IDLE_COST = 0.025
"""Cost of an agent that eats nothing."""
WALL, EMPTY, DOT, AGENT = -1.0, 0.0, 1.0, 0.1
UP, DOWN, RIGHT, LEFT, EAT = range(5)
_MOVES = np.array([(-1, 0), (1, 0), (0, 1), (0, -1), (0, 0)], np.int32)
_OUTWARDS = {"north": (-1, 0), "south": (1, 0), "east": (0, 1), "west": (0, -1)}
_OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
_HUB = {4: 3, 5: 5, 6: 7}
_STEPS = {4: 100, 5: 115, 6: 130}


def _sides(num_agents: int) -> list[dict[str, tuple[tuple[int, int], ...]]]:
    """Per layout, per side, its corridors as (offset from the side's middle, length)."""
    if num_agents == 4:
        return [{**dict.fromkeys(_OUTWARDS, ((0, M),)), far: ((0, L),), _OPPOSITE[far]: ((0, S),)} for far in _OUTWARDS]
    if num_agents == 5:
        return [{**dict.fromkeys(_OUTWARDS, ((0, M),)), double: ((-2, L), (2, S))} for double in _OUTWARDS]
    pairs = ("north", "south"), ("east", "west"), ("north", "east"), ("south", "west")
    return [{**dict.fromkeys(_OUTWARDS, ((0, S),)), **dict.fromkeys(pair, ((-2, L), (2, M)))} for pair in pairs]


class Layouts(NamedTuple):
    """All layouts of a team size, on a grid of G x G cells.

    Attributes:
        is_wall: [4, G, G] bool.
        rooms: [4, N, 15, 2] int32, (row, column) of every room's cells.
        hub: [hub^2, 2] int32.
        cells: [4, hub^2 + 23 N, 2] int32: all cells that are not walls, in the order of the state.
    """

    is_wall: np.ndarray
    rooms: np.ndarray
    hub: np.ndarray
    cells: np.ndarray


@functools.cache
def layouts(num_agents: int) -> Layouts:
    """The four layouts for 4, 5 or 6 agents."""
    width = _HUB[num_agents]
    hub = _block(MARGIN, MARGIN, width, width)
    rooms, cells = [], []
    for sides in _sides(num_agents):
        arms = [_arm(width, side, *corridor) for side, corridors in sides.items() for corridor in corridors]
        rooms.append([room for _, room in arms])
        cells.append(np.concatenate([hub, *(part for arm in arms for part in arm)]))
    is_wall = np.ones((4, width + 2 * MARGIN, width + 2 * MARGIN), bool)
    for walls, free in zip(is_wall, cells):
        walls[free[:, 0], free[:, 1]] = False
    return Layouts(is_wall, np.array(rooms, np.int32), hub, np.array(cells, np.int32))


def _arm(width: int, side: str, offset: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells of a corridor, from the hub outwards, and of its room, row by row."""
    outwards = np.array(_OUTWARDS[side])
    sideways = np.abs(outwards[::-1])
    middle = np.full(2, MARGIN + width // 2)
    start = middle + outwards * (width // 2) + sideways * offset
    corridor = start + outwards * np.arange(1, length + 1)[:, None]
    centre = start + outwards * (length + 3)
    height, breadth = (5, 3) if outwards[0] else (3, 5)
    return corridor, _block(centre[0] - height // 2, centre[1] - breadth // 2, height, breadth)


def _block(row: int, column: int, height: int, width: int) -> np.ndarray:
    """[height * width, 2] (row, column), row by row."""
    rows, columns = np.mgrid[row : row + height, column : column + width]
    return np.stack([rows.ravel(), columns.ravel()], axis=-1).astype(np.int32)


class PaxMenState(NamedTuple):
    """One game.

    Attributes:
        layout: [] int32.
        position: [N, 2] int32, (row, column).
        dots: [N, 3, 2] int32, of every room; `is_left`: [N, 3] bool, not eaten yet.
    """

    layout: jax.Array
    position: jax.Array
    dots: jax.Array
    is_left: jax.Array


def paxmen(num_agents: int) -> Env:
    """PaxMen for 4, 5 or 6 agents; the rules are in the module's docstring.

    Raises:
        ValueError: another number of agents.
    """
    if num_agents not in _HUB:
        raise ValueError(f"env 'paxmen': num_agents={num_agents!r}; accepted: 4, 5, 6")
    maps = layouts(num_agents)
    spec = EnvSpec(
        name=f"paxmen_{num_agents}",
        agents=tuple(f"agent_{i}" for i in range(num_agents)),
        observation_sizes=((2 * VIEW + 1) ** 2,) * num_agents,
        action_sizes=(len(_MOVES),) * num_agents,
        action_kind="discrete",
        state_size=maps.cells.shape[1],
        episode_length=_STEPS[num_agents],
    )
    is_wall, rooms, hub, cells = map(jnp.asarray, maps)
    grid = maps.is_wall.shape[1:]
    # the sum over agents, by dots eaten (the 1/m add up to 1 per dot) and idle agents; a table is exact
    counts = np.arange(num_agents + 1)
    team_reward = jnp.asarray(counts[:, None] - IDLE_COST * counts, jnp.float32)

    def timestep(state, reward):
        row, column = state.position.T
        content = jnp.where(is_wall[state.layout], WALL, EMPTY)
        content = content.at[state.dots[..., 0], state.dots[..., 1]].max(jnp.where(state.is_left, DOT, WALL))
        crowd = jnp.zeros(grid, jnp.int32).at[row, column].add(1)

        def view(own):
            others = crowd.at[own[0], own[1]].add(-1)
            visible = jnp.where(others > 0, AGENT, content)
            return jax.lax.dynamic_slice(visible, own - VIEW, (2 * VIEW + 1,) * 2).ravel()

        free = cells[state.layout]
        return TimeStep(
            obs=jax.vmap(view)(state.position),
            state=jnp.where(crowd > 0, AGENT, content)[free[:, 0], free[:, 1]],
            reward=jnp.full(num_agents, reward, jnp.float32),
            terminated=jnp.asarray(False),
            truncated=jnp.asarray(False),
            action_mask=jnp.asarray(spec.action_mask),
        )

    def fresh_dots(key, layout):
        keys = jax.random.split(key, num_agents)
        return jax.vmap(lambda key, room: jax.random.choice(key, room, (DOTS,), replace=False))(keys, rooms[layout])

    def reset(key, params):
        key_layout, key_agents, key_dots = jax.random.split(key, 3)
        layout = jax.random.randint(key_layout, (), 0, len(rooms))
        position = jax.random.choice(key_agents, hub, (num_agents,), replace=False)
        state = PaxMenState(layout, position, fresh_dots(key_dots, layout), jnp.ones((num_agents, DOTS), bool))
        return state, timestep(state, 0.0)

    def step(key, state, action, params):
        target = state.position + jnp.asarray(_MOVES)[action]
        blocked = is_wall[state.layout, target[:, 0], target[:, 1]]
        position = jnp.where(blocked[:, None], state.position, target)
        is_here = jnp.all(position[:, None, None] == state.dots, axis=-1)
        eats = is_here & state.is_left & (action == EAT)[:, None, None]
        is_eaten, ate = jnp.any(eats, axis=0), jnp.any(eats, axis=(1, 2))
        is_left = state.is_left & ~is_eaten
        reward = team_reward[jnp.sum(is_eaten), jnp.sum(~ate)]
        is_over = ~jnp.any(is_left)
        dots = jnp.where(is_over, fresh_dots(key, state.layout), state.dots)
        state = PaxMenState(state.layout, position, dots, is_left | is_over)
        return state, timestep(state, reward)

    def draw(axes, state, action, params):
        is_wall = maps.is_wall[state.layout]
        pictures.maze(axes, is_wall, state.dots[state.is_left], state.position, spec.agents)

    return with_time_limit(Env(spec, reset, step, draw=draw))


FACTORIES: dict[str, Callable[..., Env]] = {f"paxmen_{n}": functools.partial(paxmen, n) for n in _HUB}
"""From the name to the factory, for `envs.registry`."""


def find(name: str) -> Callable[..., Env] | None:
    """The factory of PaxMen in any spelling: "PaxMen-5", "pax men 5", "paxmen5"; None for other names."""
    words = re.fullmatch(r"pax[\W_]*men[\W_]*([456])([\W_]*agents?)?", name.strip().lower())
    return words and FACTORIES[f"paxmen_{words[1]}"]
