"""A tree with every kind of leaf and container that a train state may have."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class State(NamedTuple):
    actors: Any
    odd: Any
    key: Any
    other_key: Any
    empty: Any


def example_state(seeds=3, value=1.0):
    return State(
        actors={"Dense_0": {"kernel": jnp.full((seeds, 2, 5), value), "a/b.c": jnp.ones((seeds,), jnp.bfloat16)}},
        odd=((), [jnp.arange(seeds), jnp.full((seeds,), jnp.nan)], None, np.arange(seeds) > 0),
        key=jax.random.split(jax.random.key(0), seeds),
        other_key=jax.vmap(lambda seed: jax.random.split(jax.random.key(seed, impl="rbg"), 2))(jnp.arange(seeds)),
        empty=jnp.zeros((seeds, 0)),
    )
