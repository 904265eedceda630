"""What the package is as a whole: its names, and what importing it brings along."""

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
        marl_kl.train.__module__ == "marl_kl.training.runner"
        and marl_kl.core.evaluation.__name__ == "marl_kl.core.evaluation"
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
parts = ("trainer", "critic", "schemes", "gradient_steps", "trust_region", "algorithms")
trains = {"optax", "matplotlib", "brax", *(f"marl_kl.core.{part}" for part in parts)}
print(sorted(name for name in sys.modules if name in trains or name.startswith("marl_kl.training")))
"""


def test_a_stored_policy_acts_without_what_trains(tmp_path):
    out = random_run.store(tmp_path / "run", envs.make("bilinear"), best_updates=(3, 4))
    found = subprocess.run([sys.executable, "-c", _ACT, out], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"
