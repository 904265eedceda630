"""The throughput benchmark: both families of algorithms, all kinds of actions, alone and beside JaxMARL."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
import marl_kl
from benchmarks import jaxmarl_ippo, throughput
from tests.benchmarks.test_jaxmarl_ippo import SETTINGS
from tests.support.counting_env import counting_env
from tests.support.kinds_env import KINDS, is_available, kinds_env

TOY = ["--algorithms", "hatrpo", "mappo", "--seeds", "1", "--num-envs", "2", "--rollout-length", "4", "--repeats", "1"]


@pytest.fixture(autouse=True)
def _devices_are_there_already(monkeypatch):
    monkeypatch.setattr(marl_kl, "use_all_cpu_cores", lambda: None)


def figures(tmp_path, *arguments):
    throughput.main([*arguments, *TOY, "--json", str(tmp_path / "figures.json")])
    return json.loads((tmp_path / "figures.json").read_text())


@pytest.mark.rare
def test_an_environment_of_several_choices_without_backends(tmp_path, capsys):
    found = figures(tmp_path, "--env", "digits")
    assert [(row["algorithm"], row["backend"]) for row in found["rows"]] == [("hatrpo", "none"), ("mappo", "none")]
    for row in found["rows"]:
        assert min(row["bare"], row["rollout"]) > 0 and row["fraction"] == pytest.approx(row["training"] / row["bare"])
    assert len(capsys.readouterr().out.splitlines()) == 4 and "beside JaxMARL" not in found


def test_jaxmarls_ippo_is_measured_in_the_same_run(tmp_path, monkeypatch):
    """Behind the table, with the same algorithms, sizes and seeds; the rows: tests/benchmarks/test_jaxmarl_ippo.py."""
    spec = dataclasses.replace(counting_env().spec, name="jaxmarl/x")
    told = []

    def make_train(settings):
        told.append((settings["ENV_NAME"], settings["NUM_ENVS"], settings["NUM_STEPS"]))
        return lambda key: {"metrics": jax.random.uniform(key)}

    monkeypatch.setattr(envs, "make", lambda name: counting_env()._replace(spec=spec))
    monkeypatch.setattr(throughput, "measure", lambda *_: [])
    monkeypatch.setattr(jaxmarl_ippo, "our_run", lambda *_: jax.random.uniform)
    monkeypatch.setattr(jaxmarl_ippo, "load_baseline", lambda path: jaxmarl_ippo.Baseline(make_train, SETTINGS))
    beside = figures(tmp_path, "--env", "jaxmarl/x", "--jaxmarl-baselines", str(tmp_path))["beside JaxMARL"]
    assert (beside["env"], beside["num_envs"], beside["updates"]) == ("jaxmarl/x", 2, jaxmarl_ippo.UPDATES)
    names = [row["algorithm"] for row in beside["rows"]]
    assert names == [jaxmarl_ippo.JAXMARL, jaxmarl_ippo.ALIKE, "hatrpo", "mappo"] and beside["rows"][0]["ratio"] == 1
    assert told == [("x", 2, 4)]


@pytest.mark.slow
def test_off_policy_algorithms_have_gradient_steps_and_a_floor(monkeypatch):
    monkeypatch.setattr(
        throughput, "config_of", lambda name, num_envs, length: marl_kl.OffPolicyConfig(
            num_envs=num_envs, rollout_length=length, hidden_sizes=(8,), warmup_steps=0, replay_size=64, minibatch_size=4
        ),
    )  # fmt: skip
    (row,) = throughput.measure(kinds_env("squashed"), ["matd3"], 2, 4, 1, 1)
    assert row["gradient_steps"] == pytest.approx(row["training"] / 2, rel=1e-6) and row["floor"] > 0


def test_the_arithmetic_of_a_gradient_step():
    """Two critics of 2 + 6 inputs and three actors of 3: matrix products, counted by hand."""
    spec, config = kinds_env("squashed").spec, marl_kl.OffPolicyConfig(hidden_sizes=(8,), minibatch_size=10)
    critic, actor = 2 * (8 * 8 + 8), 2 * (3 * 8 + 8 * 3)
    expected = 10 * (4 * 2 * critic + 3 * actor + 3 * (3 * actor + 2 * critic) / 2)
    assert throughput.gradient_flops(spec, "hatd3", config) == expected


def test_impossible_comparisons_are_refused_before_any_measurement(tmp_path, capsys):
    with pytest.raises(SystemExit):
        figures(tmp_path, "--env", "digits", "--jaxmarl-baselines", str(tmp_path))
    assert "no IPPO/ippo_ff_mpe.py there" in capsys.readouterr().err


def test_all_algorithms_and_the_backends_that_there_are_by_default():
    assert throughput.default_backends(envs.make("bilinear")) == ("none",)
    assert throughput.default_backends(envs.make("ant_4x2", backend="spring")) == ("mjx", "spring")


@pytest.mark.parametrize("kind", KINDS)
def test_random_actions_are_those_of_the_environment(kind):
    spec = kinds_env(kind).spec
    actions = throughput.random_actions(spec, jax.random.key(0), 500)
    assert actions.shape == (500, *spec.action_shape) and actions.dtype == spec.example_action.dtype
    if spec.action_kind == "continuous":
        assert np.all(np.abs(actions) <= 1)
        return
    assert np.all(jax.vmap(lambda action: is_available(spec, action, jnp.asarray(spec.action_mask)))(actions))
    choices = spec.action_mask.reshape(*spec.action_shape, -1).sum(-1)
    np.testing.assert_array_equal(actions.max(0), np.maximum(choices, 1) - 1)
