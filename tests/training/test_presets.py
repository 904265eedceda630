"""Presets: each one that ships fits its environment and its algorithms, and says where its numbers are from."""

import functools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import envs
import marl_kl
from marl_kl.cli import main
from marl_kl.config import OffPolicyConfig, TrustRegionConfig
from marl_kl.core import algorithms
from marl_kl.core.trainer import make_train
from marl_kl.training import presets
from tests.support import synthetic
from tests.support.loaded_bodies import bodies_are_loaded_once  # noqa: F401  for all tests here

ROOT = Path(__file__).parents[2]

PUBLISHED = {
    "ant_4x2": 0.005, "halfcheetah_2x3": 0.01, "hopper_3x1": 0.001, "walker2d_2x3": 0.01, "walker2d_6x1": 0.005,
}  # fmt: skip
"""KL thresholds per agent of HARL's tuned HATRPO."""


@pytest.mark.slow
@pytest.mark.parametrize("name", presets.names())
def test_every_preset_fits_its_environments_and_algorithms(name):
    preset = presets.get(name)
    assert preset.about and preset.source and preset.scenarios and preset.algorithms
    classes = {algorithms.get(algorithm).config_class.__name__ for algorithm in algorithms.names()}
    classes |= {"Config", "OnPolicyConfig", *preset.algorithms}
    assert set(preset.fields) <= classes
    for scenario, tables in preset.scenarios.items():
        assert set(tables) <= classes
        spec = _spec(scenario)
        assert spec.name == scenario
        for algorithm in preset.algorithms:
            config = presets.config(name, scenario, algorithm)
            entry = algorithms.get(algorithm)
            assert type(config) is entry.config_class
            for field, value in presets.fields(name, scenario, algorithm).items():
                kept = getattr(config, field)
                assert kept == (tuple(value) if isinstance(value, list) else value)
            make_train(_bare(spec), algorithm, config)


@functools.cache
def _spec(scenario):
    return envs.make(scenario, **({} if scenario.startswith("manyagent") else {"backend": "spring"})).spec


def _bare(spec):
    """An environment of which only the description is looked at."""
    return envs.Env(spec, None, None)


def test_paper_is_what_was_published():
    """At equal budgets: the joint one is the number of agents times the published threshold."""
    assert set(presets.get("paper").scenarios) == set(PUBLISHED)
    for scenario, threshold in PUBLISHED.items():
        num_agents = int(scenario.split("_")[1].split("x")[0])
        for algorithm in algorithms.names(TrustRegionConfig):
            config = presets.config("paper", scenario, algorithm)
            assert config.kl_budget == pytest.approx(num_agents * threshold)
            assert config.batch_size == 4_000 and config.num_updates == 2_500 and config.cg_subsample == 1.0
    with pytest.raises(ValueError, match="preset 'paper' is not for happo; it is for hatrpo, hatrpo_w, "):
        presets.config("paper", "ant_4x2", "happo")


N_STEPS = {
    "ant_4x2": (20, 5),
    "halfcheetah_2x3": (20, 10),
    "hopper_3x1": (20, 5),
    "walker2d_2x3": (10, 20),
    "walker2d_6x1": (20, 25),
}
"""n-step returns of HARL's tuned MADDPG and HADDPG, and of its MATD3 and HATD3."""


def test_off_policy_is_what_was_published():
    assert set(presets.get("off_policy").scenarios) == set(N_STEPS)
    for scenario, (of_ddpg, of_td3) in N_STEPS.items():
        for algorithm in algorithms.names(OffPolicyConfig):
            config, is_td3 = presets.config("off_policy", scenario, algorithm), algorithm.endswith("td3")
            algorithms.get(algorithm).refuse_unused(config)
            assert config.n_step == (of_td3 if is_td3 else of_ddpg)
            assert config.policy_freq == (8 if is_td3 and scenario == "walker2d_2x3" else 2)
            is_slow = scenario == "ant_4x2" and not is_td3
            assert (config.updates_per_step, config.exploration_noise) == ((0.5, 0.05) if is_slow else (1.0, 0.1))
            assert config.replay_size == 1_000_000 and config.minibatch_size == 1000 and config.num_envs == 10


def test_a_scenario_s_fields_come_before_the_preset_s_and_changes_before_both():
    ant, cheetah = (presets.config("quick", scenario, "happo") for scenario in ("ant_4x2", "halfcheetah_6x1"))
    assert (ant.total_env_steps, cheetah.total_env_steps) == (400_000, 200_000)
    assert ant.gamma == 0.97 and ant.actor_lr == 2e-3
    hopper = presets.config("quick", "hopper_3x1", "happo")
    assert (hopper.gamma, hopper.gae_lambda, hopper.actor_lr) == (0.99, 0.95, 2e-3)
    assert presets.config("quick", "ant_4x2", "hatrpo", gamma=0.5, cg_iters=3) == TrustRegionConfig(
        gamma=0.5,
        gae_lambda=0.9,
        eval_episodes=8,
        eval_interval=10,
        cg_damping=1.0,
        total_env_steps=400_000,
        cg_iters=3,
    )


def test_the_command_line_knows_them(monkeypatch, tmp_path, capsys):
    calls = []

    def train(env, algorithm, **options):
        calls.append(options)
        return synthetic.result()

    monkeypatch.setattr(marl_kl, "train", train)
    words = ["--preset", "quick", "--env", "backend=spring", "--cg-damping", "0.5"]
    file = tmp_path / "run.toml"
    file.write_text('env = "hopper_3x1"\nalgorithm = "hatrpo"\n[config]\ngamma = 0.9\ncg_damping = 0.3\n')
    assert main.main(["train", "Ant-v2-4x2", *words, "--config", str(file), "--out", str(tmp_path / "run")]) == 0
    assert calls == [
        {"seeds": 1, "out": tmp_path / "run", "progress": "auto", "loggers": [], "init_from": None, "init_which": "last", "devices": None, "gamma": 0.9,
         "gae_lambda": 0.9, "eval_episodes": 8, "eval_interval": 10, "cg_damping": 0.5, "total_env_steps": 400_000}
    ]  # fmt: skip
    assert main.main(["presets"]) == 0
    said = capsys.readouterr().out
    for name in presets.names():
        preset = presets.get(name)
        assert f"{name}: {preset.about}\n" in said and preset.source in said and ", ".join(preset.scenarios) in said


@pytest.mark.parametrize(
    "words, message",
    [
        ("train ant_4x2 --preset papre", "unknown preset 'papre'; did you mean paper"),
        ("train ant_4x2 --preset mine", "unknown preset 'mine'; known: off_policy, paper, quick"),
        ("train ant_8x1 --preset paper", "preset 'paper' has nothing for 'ant_8x1'; it has ant_4x2, halfcheetah_2x3"),
        ("train matrix_game --preset quick", "preset 'quick' has nothing for 'matrix_game'; it has ant_2x4"),
        ("train ant_4x2 --preset paper --algorithm ippo", "preset 'paper' is not for ippo; it is for hatrpo"),
    ],
)
def test_unknown_presets_give_a_one_line_error(words, message, capsys, tmp_path):
    assert main.main([*words.split(), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"marl-kl: {message}") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Packaging


def test_the_files_are_declared_as_package_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["marl_kl.training.presets"]
    found = {file.name for pattern in patterns for file in Path(presets.__file__).parent.glob(pattern)}
    assert found == {f"{name}.toml" for name in presets.names()} and len(found) >= 2


def test_the_files_are_in_the_package_that_setuptools_builds(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    code = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", code, "-q", "egg_info", "-e", tmp_path, "build", "-b", tmp_path / "build"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    built = tmp_path / "build" / "lib" / "marl_kl" / "training" / "presets"
    assert {file.name for file in built.glob("*.toml")} == {f"{name}.toml" for name in presets.names()}
