"""Chunks of any length must give the same bits, compiled as users compile: python -m tests.support.chunks [replay]"""

import sys

import numpy as np

import marl_kl
from tests.support.counting_env import counting_env
from tests.support.kinds_env import kinds_env

LENGTHS = (10, 3)
"""Updates per chunk: all of the run in one, and chunks of which the last is cut short."""
CONFIG = {
    "num_envs": 4, "rollout_length": 8, "hidden_sizes": (8,), "eval_episodes": 4, "eval_interval": 0,
    "total_env_steps": 320, "progress": "none",
}  # fmt: skip
ON_POLICY = counting_env(), "hatrpo", {"critic_minibatches": 2}
OFF_POLICY = kinds_env("squashed"), "hatd3", {"warmup_steps": 64, "replay_size": 128, "minibatch_size": 8, "n_step": 2}


def main():
    env, algorithm, own = OFF_POLICY if sys.argv[1:] == ["replay"] else ON_POLICY
    whole, chunked = (
        marl_kl.train(env, algorithm, seeds=2, chunk_updates=length, **CONFIG, **own) for length in LENGTHS
    )
    for name, values in whole.metrics.items():
        np.testing.assert_array_equal(chunked.metrics[name], values, err_msg=name)
    for part, other in zip(whole.evaluation, chunked.evaluation):
        np.testing.assert_array_equal(part, other)
    print("the same bits")


if __name__ == "__main__":
    main()
