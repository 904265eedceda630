"""Every name of `envs.names()` keeps the contract: which test plays which, and the games that no other test plays."""

import pytest

import envs
from envs.adapters import jaxmarl, jumanji
from envs.bodies import scenarios
from tests.support.grids import slow_unless


def physics_of(name):
    """What a name runs: its body, whatever the split; everything else is something of its own."""
    return scenarios.parse_name(name)[0] if name in scenarios.FACTORIES else name


PLAYED = {physics_of(name): name for name in envs.names() if not name.startswith((jaxmarl.PREFIX, jumanji.PREFIX))}
"""One name for each: of a body's names the last, which for chains is the one of the papers."""

GAMES = tuple(name for name in PLAYED.values() if name not in scenarios.FACTORIES)


def test_every_name_is_played_somewhere():
    """Bodies in tests/envs/test_bodies.py (each of their names without compiling, some step by step), JaxMARL's families in
    tests/envs/test_jaxmarl.py, Jumanji's in tests/envs/test_jumanji.py, games here."""
    covered = {name for name in envs.names() if physics_of(name) in PLAYED} | {*jaxmarl.NAMES, *jumanji.NAMES}
    assert covered == set(envs.names())
    assert set(scenarios.BODIES) <= set(PLAYED) and not set(scenarios.BODIES) & set(GAMES)
    assert {"manyagent_swimmer_10x2", "manyagent_ant_2x3"} <= set(PLAYED.values())


@pytest.mark.parametrize("name", slow_unless(lambda name: not name.startswith("paxmen"), GAMES))
def test_games(name):
    envs.check(envs.make(name), steps=200, num_envs=2)
