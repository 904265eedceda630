"""Synthetic training results, for tests of tables, figures and storage."""

import numpy as np

from envs.base import EnvSpec
from marl_kl.config import TrustRegionConfig
from marl_kl.results import Evaluation, Timing, TrainResult


def spec(num_agents: int = 4) -> EnvSpec:
    agents = tuple(f"hip_{i}+ankle_{i}" for i in range(num_agents))
    sizes = tuple(range(5, 5 + num_agents))
    return EnvSpec("legs", agents, sizes, (2,) * num_agents, "continuous", 9, 100, True, (("backend", "spring"),))


def result(
    *,
    num_seeds: int = 4,
    num_agents: int = 4,
    num_updates: int = 30,
    num_evaluations: int = 2,
    kl: bool = True,
    failures=(),
    out=None,
) -> TrainResult:
    """A run with increasing returns, without a finished episode in its first two updates, that spends most of its budget."""
    config = TrustRegionConfig(total_env_steps=num_updates * 4096)
    generator = np.random.default_rng(0)
    shape = (num_seeds, num_updates)
    episode_return = 1000 * np.linspace(0, 1, num_updates) + 50 * generator.normal(size=shape)
    episode_return[:, :2] = np.nan
    metrics = {"episode_return": episode_return.astype(np.float32), "value_loss": np.ones(shape, np.float32)}
    if kl:
        weight = generator.gamma(2.0, 1.0, (*shape, num_agents))
        threshold = (config.kl_budget * weight / weight.sum(axis=-1, keepdims=True)).astype(np.float32)
        fraction = generator.choice([0.0, 0.8, 1.0], size=threshold.shape, p=[0.1, 0.2, 0.7]).astype(np.float32)
        spent = threshold * fraction**2
        metrics |= {"kl_threshold": threshold, "kl": spent, "kl_total": spent.sum(-1), "step_fraction": fraction}
    update = np.linspace(0, num_updates, num_evaluations).astype(int)
    returns = 1000 * update[None, :, None] / num_updates + generator.normal(size=(num_seeds, num_evaluations, 8))
    evaluation = Evaluation(update, update * 4096, returns.astype(np.float32), np.full(returns.shape, 100))
    return TrainResult(
        spec(num_agents),
        "hatrpo_w",
        config,
        tuple(range(num_seeds)),
        np.arange(1, num_updates + 1) * 4096,
        metrics,
        evaluation,
        tuple(failures),
        Timing(compile=2.0, train=10.0, evaluate=1.0),
        out,
    )
