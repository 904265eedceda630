"""Brax's bodies, loaded once in a process: loading one traces a reset."""

import functools

import pytest

from envs.bodies import brax_engine

_load = functools.cache(brax_engine.load)


@pytest.fixture(scope="module", autouse=True)
def bodies_are_loaded_once():
    """In a module that imports this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brax_engine, "load", _load)
        yield
