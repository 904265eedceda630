"""Runs of seconds."""

import marl_kl
from tests.support.counting_env import counting_env

SMALL = {"num_envs": 4, "rollout_length": 8, "hidden_sizes": (8,), "critic_minibatches": 2, "eval_episodes": 4}


def train(env, algorithm="hatrpo_w", **options):
    return marl_kl.train(env, algorithm, **{"progress": "none", **SMALL, **options})


def finished(out):
    """Ten updates of two seeds on the counting environment, in the folder `out`."""
    return train(counting_env(), seeds=[4, 7], total_env_steps=320, chunk_updates=3, eval_interval=4, out=out)
