"""The package as a whole: its public names, and what importing them imports."""

import subprocess
import sys

import pytest

import envs
import marl_kl
from tests.support import random_run


def test_every_name_is_there():
    for name in marl_kl.__all__:
        assert getattr(marl_kl, name) is not None, name
    assert set(marl_kl.__all__) <= set(dir(marl_kl))
    assert (
        marl_kl.train.__module__ == "marl_kl.training.host_loop"
        and marl_kl.evaluate.__module__ == "marl_kl.analysis.reevaluation"
    )
    with pytest.raises(AttributeError, match="module 'marl_kl' has no attribute 'trian'"):
        _ = marl_kl.trian


_ACT = """
import sys
import numpy as np
import marl_kl
run = marl_kl.load(sys.argv[1], which="best")
obs = np.zeros((run.spec.num_agents, run.spec.observation_size))
run.policy(seed=1)(obs)
run.agent_policy(0)(obs[0])
core = ("trainer", "critic", "schemes", "gradient_steps", "trust_region", "algorithms")
unwanted = {"optax", "matplotlib", "brax", "scipy.stats", *(f"marl_kl.core.{name}" for name in core)}
unwanted |= {"marl_kl.training", "marl_kl.analysis", "marl_kl.cli"}
print(sorted(unwanted & set(sys.modules)))
"""


def test_a_stored_policy_acts_without_the_training_code(tmp_path):
    out = random_run.store(tmp_path / "run", envs.make("bilinear"), best_updates=(3, 4))
    done = subprocess.run([sys.executable, "-c", _ACT, out], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
