"""Chunks of any length must give the same bits, compiled as users compile: python -m tests.support.chunks"""

import numpy as np

import marl_kl
from tests.support.counting_env import counting_env

LENGTHS = (10, 3)
"""Updates per chunk: all of the run in one, and chunks of which the last is cut short."""
CONFIG = {
    "num_envs": 4, "rollout_length": 8, "hidden_sizes": (8,), "critic_minibatches": 2, "eval_episodes": 4, "eval_interval": 0,
    "total_env_steps": 320, "progress": "none",
}  # fmt: skip


def main():
    whole, chunked = (
        marl_kl.train(counting_env(), "hatrpo", seeds=2, chunk_updates=length, **CONFIG) for length in LENGTHS
    )
    for name, values in whole.metrics.items():
        np.testing.assert_array_equal(chunked.metrics[name], values, err_msg=name)
    for part, other in zip(whole.evaluation, chunked.evaluation):
        np.testing.assert_array_equal(part, other)
    print("the same bits")


if __name__ == "__main__":
    main()
