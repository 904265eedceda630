"""A stored run whose teams have random parameters: all that looking at a run needs, without training."""

import jax
import numpy as np

from marl_kl.config import TrustRegionConfig
from marl_kl.core.trainer import TrainState, learner_shapes
from marl_kl.results import Timing
from marl_kl.storage import array_trees, checkpoints, run_folder, run_record
from marl_kl.storage.best import Best

CONFIG = TrustRegionConfig(hidden_sizes=(8,), eval_episodes=2)


def learner(spec, seed, config=CONFIG):
    """One seed's, every leaf drawn anew; scales and counts stay positive."""
    generator = np.random.default_rng(seed)
    shapes = learner_shapes(spec, "hatrpo_w", config)
    drawn = jax.tree.map(lambda s: generator.uniform(0.1, 0.6, s.shape).astype(s.dtype), shapes)
    signs = jax.tree.map(lambda leaf: generator.choice([-1.0, 1.0], leaf.shape).astype(leaf.dtype), drawn.actors)
    return drawn._replace(actors=jax.tree.map(np.multiply, drawn.actors, signs))


def store(out, env, seeds=(0, 1), config=CONFIG, update=7, best_updates=None):
    """Writes the run folder and returns its path; with `best_updates` it has best teams, with other parameters."""
    document = run_record.record(env.spec, "hatrpo_w", config, seeds, array_trees.digest(env.params))
    stacked, others = (
        jax.tree.map(lambda *leaves: np.stack(leaves), *(learner(env.spec, seed + more, config) for seed in seeds))
        for more in (0, 100)
    )
    best = None if best_updates is None else Best(
        np.array(best_updates), np.ones(len(seeds)), array_trees.flatten_tree(others)
    )  # fmt: skip
    state = array_trees.flatten_tree(TrainState(key=None, learner=stacked, env_batch=None, healthy=None))
    with run_folder.lock_folder(out, document):
        snapshot = checkpoints.Snapshot(update, state, {}, None, (), Timing(0.0, 0.0, 0.0), best)
        checkpoints.save(out, snapshot, run_record.fingerprint(document), keep=1)
    return out
