"""The comparison with JaxMARL's IPPO: where its script is found, what it is told, and what a row says."""

import sys

import jax
import pytest

import marl_kl
from benchmarks import jaxmarl_ippo
from marl_kl.core import algorithms
from tests.support.counting_env import counting_env

SCRIPT = """
import hydra
import wandb
from omegaconf import OmegaConf

def make_train(config):
    def train(rng):
        wandb.log({})
        return {"metrics": (rng, config)}
    return train

@hydra.main(version_base=None, config_path="config", config_name="ippo_ff_mpe")
def main(config):
    raise AssertionError("the script was run")
"""
SETTINGS = {
    "LR": 2.5e-4, "NUM_ENVS": 16, "NUM_STEPS": 128, "TOTAL_TIMESTEPS": 1000, "UPDATE_EPOCHS": 3, "NUM_MINIBATCHES": 2,
    "GAMMA": 0.9, "GAE_LAMBDA": 0.8, "CLIP_EPS": 0.1, "ENT_COEF": 0.02, "MAX_GRAD_NORM": 0.5, "ACTIVATION": "relu",
    "ANNEAL_LR": True, "ENV_NAME": "other", "ENV_KWARGS": {"n": 2},
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "baselines" / "IPPO"
    (folder / "config").mkdir(parents=True)
    (folder / "ippo_ff_mpe.py").write_text(SCRIPT)
    (folder / "config" / "ippo_ff_mpe.yaml").write_text("\n".join(f'"{k}": {v}' for k, v in SETTINGS.items()))
    return tmp_path


@pytest.mark.parametrize("path", [".", "baselines", "baselines/IPPO/ippo_ff_mpe.py"])
def test_the_script_is_found_and_needs_neither_its_command_line_nor_its_logger(checkout, path, monkeypatch):
    own = object()
    monkeypatch.setitem(sys.modules, "wandb", own)
    monkeypatch.delitem(sys.modules, "hydra", raising=False)
    baseline = jaxmarl_ippo.load_baseline(checkout / path)
    assert baseline.settings == SETTINGS
    assert sys.modules["wandb"] is own and "hydra" not in sys.modules
    key = jax.random.key(3)
    raw_key, told = jaxmarl_ippo.baseline_run(baseline, "spread", num_envs=4, rollout_length=8, updates=5)(key)
    assert (raw_key == jax.random.key_data(key)).all()
    changed = {"NUM_ENVS": 4, "NUM_STEPS": 8, "TOTAL_TIMESTEPS": 160, "ENV_NAME": "spread", "ENV_KWARGS": {}}
    assert told == SETTINGS | changed


def test_missing_files_are_named_in_a_one_line_error(checkout):
    with pytest.raises(ValueError, match="no IPPO/ippo_ff_mpe.py there; it must be a checkout of JaxMARL"):
        jaxmarl_ippo.load_baseline(checkout / "elsewhere")
    script = checkout / "baselines" / "IPPO" / "ippo_ff_mpe.py"
    script.write_text("import a_package_that_nobody_has")
    with pytest.raises(ValueError, match="cannot be imported: No module named 'a_package_that_nobody_has'"):
        jaxmarl_ippo.load_baseline(script)
    (script.parent / "config" / "ippo_ff_mpe.yaml").unlink()
    with pytest.raises(ValueError, match="ippo_ff_mpe.py is there, but its config file"):
        jaxmarl_ippo.load_baseline(checkout)


def test_our_ippo_does_as_much_work_as_the_baseline():
    sizes = {"num_envs": 4, "rollout_length": 8}
    config = jaxmarl_ippo.alike(SETTINGS, marl_kl.FirstOrderConfig(**sizes))
    assert (config.actor_epochs, config.critic_epochs) == (3, 3)
    assert (config.actor_minibatches, config.critic_minibatches) == (2, 2)
    assert (config.actor_lr, config.critic_lr, config.clip_eps, config.ent_coef) == (2.5e-4, 2.5e-4, 0.1, 0.02)
    assert (config.gamma, config.gae_lambda, config.activation, config.actor_lr_final_fraction) == (
        0.9,
        0.8,
        "relu",
        0.0,
    )
    assert config.share_parameters and not config.normalize_observations and config.batch_size == 32


def test_an_environment_of_ours_is_refused():
    baseline = jaxmarl_ippo.Baseline(None, SETTINGS)
    with pytest.raises(ValueError, match="it must be one of JaxMARL's"):
        jaxmarl_ippo.runs(counting_env(), baseline, algorithms.names(), 4, 8, 1)


def test_a_row_per_run_with_ratios_to_jaxmarl():
    theirs, ours = (lambda key, n=n: jax.random.uniform(key, (n,)).sum() for n in (5, 7))
    runs = {jaxmarl_ippo.JAXMARL: theirs, "ours": ours}
    rows = jaxmarl_ippo.measure(runs, (), num_seeds=2, env_steps=10, repeats=1)
    assert [row["algorithm"] for row in rows] == list(runs)
    rates = [row["env_steps_per_s"] for row in rows]
    assert [row["ratio"] for row in rows] == pytest.approx([1.0, rates[1] / rates[0]])
