"""PaxMen against plain loops over sets of cells, written from the rules alone: exact equality, whatever happens."""

from collections import Counter
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.paxmen import PaxMenState
from envs.time_limit import TimedState
from tests.support.grids import slow_unless

HUB = {4: 3, 5: 5, 6: 7}
LIMIT = {4: 100, 5: 115, 6: 130}
ARMS = {
    4: (
        {"N": [(0, 12)], "S": [(0, 4)], "E": [(0, 8)], "W": [(0, 8)]},
        {"N": [(0, 4)], "S": [(0, 12)], "E": [(0, 8)], "W": [(0, 8)]},
        {"N": [(0, 8)], "S": [(0, 8)], "E": [(0, 12)], "W": [(0, 4)]},
        {"N": [(0, 8)], "S": [(0, 8)], "E": [(0, 4)], "W": [(0, 12)]},
    ),
    5: (
        {"N": [(-2, 12), (2, 4)], "S": [(0, 8)], "E": [(0, 8)], "W": [(0, 8)]},
        {"N": [(0, 8)], "S": [(-2, 12), (2, 4)], "E": [(0, 8)], "W": [(0, 8)]},
        {"N": [(0, 8)], "S": [(0, 8)], "E": [(-2, 12), (2, 4)], "W": [(0, 8)]},
        {"N": [(0, 8)], "S": [(0, 8)], "E": [(0, 8)], "W": [(-2, 12), (2, 4)]},
    ),
    6: (
        {"N": [(-2, 12), (2, 8)], "S": [(-2, 12), (2, 8)], "E": [(0, 4)], "W": [(0, 4)]},
        {"N": [(0, 4)], "S": [(0, 4)], "E": [(-2, 12), (2, 8)], "W": [(-2, 12), (2, 8)]},
        {"N": [(-2, 12), (2, 8)], "S": [(0, 4)], "E": [(-2, 12), (2, 8)], "W": [(0, 4)]},
        {"N": [(0, 4)], "S": [(-2, 12), (2, 8)], "E": [(0, 4)], "W": [(-2, 12), (2, 8)]},
    ),
}
GAMES = 6


class Map:
    """The cells of one layout: `hub`, `corridors` and `rooms`, lists of (row, column) in the order of the state."""

    def __init__(self, num_agents, layout):
        hub = HUB[num_agents]
        side = hub + 2 * 12 + 2 * (5 + 2)
        middle = side // 2
        near, far = middle - hub // 2, middle + hub // 2
        self.hub = [(row, column) for row in range(near, far + 1) for column in range(near, far + 1)]
        self.corridors, self.rooms = [], []
        for direction in "NSEW":
            for offset, length in ARMS[num_agents][layout][direction]:
                line = middle + offset
                steps = range(1, length + 1)
                if direction == "N":
                    corridor = [(near - k, line) for k in steps]
                    rows, columns = range(near - length - 5, near - length), range(line - 1, line + 2)
                elif direction == "S":
                    corridor = [(far + k, line) for k in steps]
                    rows, columns = range(far + length + 1, far + length + 6), range(line - 1, line + 2)
                elif direction == "E":
                    corridor = [(line, far + k) for k in steps]
                    rows, columns = range(line - 1, line + 2), range(far + length + 1, far + length + 6)
                else:
                    corridor = [(line, near - k) for k in steps]
                    rows, columns = range(line - 1, line + 2), range(near - length - 5, near - length)
                self.corridors.append(corridor)
                self.rooms.append([(row, column) for row in rows for column in columns])
        arms = [cell for corridor, room in zip(self.corridors, self.rooms) for cell in corridor + room]
        self.cells = self.hub + arms
        assert len(set(self.cells)) == len(self.cells) == hub**2 + 23 * num_agents
        assert all(2 <= coordinate < side - 2 for cell in self.cells for coordinate in cell)


def seen(places, dots, free, viewer, cell):
    """What stands in the observation for `cell`; `viewer` is an agent's number, None for the state."""
    if any(place == cell for agent, place in enumerate(places) if agent != viewer):
        return np.float32(0.1)
    if cell in dots:
        return np.float32(1)
    return np.float32(0 if cell in free else -1)


def expected_view(places, dots, free, agent):
    row, column = places[agent]
    around = [(row + down, column + right) for down in range(-2, 3) for right in range(-2, 3)]
    return [seen(places, dots, free, agent, cell) for cell in around]


def as_cells(array):
    return [tuple(int(x) for x in cell) for cell in np.reshape(array, (-1, 2))]


def play(num_agents, steps):
    """GAMES games from starts of all kinds, with agents on dots and few dots left among them, under random choices."""
    env = envs.make(f"paxmen_{num_agents}")

    def start(key, game):
        env_state, _ = env.reset(key, ())
        state, keys = env_state.inner, jax.random.split(key, 3)
        on_dots = jax.random.randint(keys[0], (num_agents,), 0, 2)  # several agents on one dot
        beside = state.dots.reshape(-1, 2)[on_dots]
        position = jnp.where(game % 2 == 0, state.position, beside)
        few = jnp.zeros((num_agents, 3), bool).at[0, :2].set(True)
        is_left = jnp.where(game % 3 == 1, few, state.is_left)
        return TimedState(PaxMenState(state.layout, position, state.dots, is_left), env_state.t)

    def game(key, game):
        env_state = start(key, game)

        def env_step(env_state, key):
            key_action, key_step = jax.random.split(key)
            action = jnp.minimum(jax.random.randint(key_action, (num_agents,), 0, 8), 4)  # half of them eat
            after, timestep = env.step(key_step, env_state, action, ())
            return after, (action, after.inner, timestep)

        trace = jax.lax.scan(env_step, env_state, jax.random.split(key, steps))[1]
        return env_state.inner, trace

    keys = jax.random.split(jax.random.key(num_agents), GAMES)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(game))(keys, jnp.arange(GAMES)))


@pytest.mark.parametrize("num_agents", slow_unless({5}, [4, 5, 6]))
def test_play_equals_plain_loops(num_agents):
    limit = LIMIT[num_agents]
    before, (actions, after, trace) = play(num_agents, limit)
    happened = Counter()
    for game in range(GAMES):
        board = Map(num_agents, int(before.layout[game]))
        free = set(board.cells)
        places = as_cells(before.position[game])
        dots = {cell for cell, left in zip(as_cells(before.dots[game]), before.is_left[game].ravel()) if left}
        for t in range(limit):
            eaters = {}
            for agent, choice in enumerate(actions[game, t]):
                row, column = places[agent]
                wanted = {0: (row - 1, column), 1: (row + 1, column), 2: (row, column + 1), 3: (row, column - 1)}
                target = wanted.get(int(choice), (row, column))
                happened["bumps"] += target not in free
                places[agent] = target if target in free else (row, column)
                if choice == 4 and places[agent] in dots:
                    eaters.setdefault(places[agent], []).append(agent)
            pay = [Fraction(-25, 1000)] * num_agents
            for cell, together in eaters.items():
                happened[f"eaten by {min(len(together), 2)}"] += 1
                dots.remove(cell)
                for agent in together:
                    pay[agent] = Fraction(1, len(together))
            if not dots:
                happened["respawns"] += 1
                fresh = as_cells(after.dots[game, t])
                for room, own in zip(board.rooms, np.reshape(after.dots[game, t], (num_agents, 3, 2))):
                    assert len(set(as_cells(own))) == 3 and set(as_cells(own)) <= set(room)
                dots = set(fresh)
            want = [expected_view(places, dots, free, agent) for agent in range(num_agents)]
            np.testing.assert_array_equal(trace.obs[game, t], want)
            whole = [seen(places, dots, free, None, cell) for cell in board.cells]
            np.testing.assert_array_equal(trace.state[game, t], whole)
            np.testing.assert_array_equal(trace.reward[game, t], np.float32(float(sum(pay))))
    assert all(happened[what] for what in ("bumps", "eaten by 1", "eaten by 2", "respawns")), happened
    assert not trace.terminated.any() and trace.action_mask.all()
    last = np.arange(limit) == limit - 1
    np.testing.assert_array_equal(trace.truncated, np.broadcast_to(last, trace.truncated.shape))


def test_resets_draw_every_layout_start_and_dots():
    env = envs.make("paxmen_4")
    state, timestep = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(jax.random.key(1), 200), ())
    state = jax.tree.map(np.asarray, state.inner)
    assert not np.asarray(timestep.reward).any() and state.is_left.all()
    share = np.bincount(state.layout, minlength=4) / 200
    assert share.shape == (4,) and (share > 0.15).all()
    maps = [Map(4, layout) for layout in range(4)]
    for layout, position, dots in zip(state.layout, state.position, state.dots):
        places = as_cells(position)
        assert len(set(places)) == 4 and set(places) <= set(maps[layout].hub)
        for room, own in zip(maps[layout].rooms, dots):
            assert len(set(as_cells(own))) == 3 and set(as_cells(own)) <= set(room)


@pytest.mark.parametrize("written", ["paxmen_5", "PaxMen-5", "Pax Men 5", "paxmen5", "PAXMEN_5_agents"])
def test_other_spellings_of_names(written):
    spec = envs.make(written).spec
    assert (spec.name, spec.num_agents, spec.episode_length, spec.state_size) == ("paxmen_5", 5, 115, 25 + 5 * 23)


@pytest.mark.parametrize("written", ["paxmen_7", "paxmen"])
def test_other_sizes_do_not_exist(written):
    with pytest.raises(ValueError, match="did you mean paxmen_"):
        envs.make(written)
