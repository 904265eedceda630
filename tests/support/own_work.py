"""What users write in their own modules: an environment of images, an encoder, an algorithm and its config."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from envs import Env, EnvSpec, TimeStep
from envs.time_limit import with_time_limit
from marl_kl import TrustRegionConfig, algorithms, allocators, config, schemes


def grid(side: int = 3) -> Env:
    """Two agents see a square image with one bright pixel, and are paid for naming its row and its column."""
    shape = (side, side, 1)
    size = math.prod(shape)
    spec = EnvSpec("grid", ("row", "column"), (size, size), (side, side), "discrete", size, 4, observation_shape=shape)

    def timestep(place, reward):
        image = jnp.zeros(shape).at[place[0], place[1]].set(1.0).ravel()
        no, mask = jnp.zeros((), bool), jnp.asarray(spec.action_mask)
        return TimeStep(jnp.stack([image, image]), image, jnp.full(2, reward), no, no, mask)

    def reset(key, params):
        place = jax.random.randint(key, (2,), 0, side)
        return place, timestep(place, 0.0)

    def step(key, place, action, params):
        new = jax.random.randint(key, (2,), 0, side)
        return new, timestep(new, jnp.mean(action == place, dtype=jnp.float32))

    return with_time_limit(Env(spec, reset, step))


def flat() -> Env:
    """The same with observations of 5 entries, which says nothing of their true shape."""
    env = grid()
    return env._replace(spec=dataclasses.replace(env.spec, observation_sizes=(5, 5), observation_shape=None))


class RowSums(nn.Module):
    """A layer called "output", like the critic's own, over the rows of an image."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        rows = x.reshape(*x.shape[:-1], self.shape[0], -1)
        return nn.tanh(nn.Dense(3, name="output")(rows)).sum(-2)


def row_sums(spec: EnvSpec) -> nn.Module:
    return RowSums(spec.observation_shape or (3, 3, 1))


def all_in_one(spec: EnvSpec) -> nn.Module:
    """No encoder: it drops the batch axes."""
    return nn.Sequential([nn.Dense(2), jnp.ravel])


def no_module(spec: EnvSpec):
    return spec.name


@dataclasses.dataclass(frozen=True)
class CautiousConfig(TrustRegionConfig):
    kept_back: float = config.traced(0.5, "share of the KL budget that is never allocated")


def cautious(actor, config):
    """HATRPO that keeps a part of its budget back."""

    def equal(utility, kl_budget):
        return jnp.full_like(utility, (1 - config.kept_back) * kl_budget / utility.shape[0])

    return schemes.sequential(actor, config, allocators.planned(equal))


CAUTIOUS = algorithms.get("hatrpo")._replace(name="cautious", build=cautious, config_class=CautiousConfig)
