"""The training loop as two pure functions: `make_train(env, algorithm, config) -> Train(init, update)`."""

from __future__ import annotations

import jax

from envs.base import Env, EnvSpec
from marl_kl.config import Config, OffPolicyConfig
from marl_kl.core import algorithms, off_policy, on_policy
from marl_kl.core.train_state import Learner, Loop, Train, TrainState

__all__ = ["Learner", "Train", "TrainState", "learner_shapes", "make_train"]


def make_train(env: Env, algorithm: str | algorithms.AlgorithmSpec, config: Config | None = None) -> Train:
    """Composes environment, algorithm and config, without compiling.

    `Config.traced_fields` may be tracers, so that `jax.vmap(lambda d: make_train(env, "hatrpo_w",
    config.replace(kl_budget=d)).update(state))` sweeps them.

    Args:
        env: from `envs.make` or your own.
        algorithm: one of `marl_kl.core.algorithms.names()`, or your own `AlgorithmSpec`.
        config: of the algorithm's `config_class`; its defaults if None.

    Raises:
        ValueError: unknown algorithm, or a config of the wrong class.
    """
    algorithm = algorithms.get(algorithm)
    config = algorithm.config_class() if config is None else config
    return _loop(algorithm, config).make_train(env, algorithm.build, config)


def learner_shapes(spec: EnvSpec, algorithm: str | algorithms.AlgorithmSpec, config: Config) -> Learner:
    """The shapes and dtypes of one seed's learner, without an environment."""
    algorithm = algorithms.get(algorithm)
    loop = _loop(algorithm, config)
    return jax.eval_shape(lambda: loop.init_learner(jax.random.key(0), spec, algorithm.build, config))


def _loop(algorithm: algorithms.AlgorithmSpec, config: Config) -> Loop:
    """How the algorithms with a config of this class are trained."""
    if not isinstance(config, algorithm.config_class):
        expected = algorithm.config_class.__name__
        raise ValueError(f"config is a {type(config).__name__}; algorithm '{algorithm.name}' needs a {expected}")
    return off_policy.LOOP if isinstance(config, OffPolicyConfig) else on_policy.LOOP
