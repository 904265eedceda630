"""`marl-kl train --config FILE`: what it passes on, that every run leaves such a file, and that bad ones are said."""

import dataclasses
import textwrap
import tomllib

import jax.numpy as jnp
import pytest

import envs
import marl_kl
from marl_kl.cli import main
from marl_kl.core import algorithms
from marl_kl.storage import run_record
from marl_kl.training import run_file, toml_file
from marl_kl.training.programs import Programs
from tests.support import synthetic
from tests.support.counting_env import counting_env

FILE = """
env = "matrix_game"
algorithm = "hatrpo_g"
seeds = [3, 5]
[env_options]
num_agents = 3
steps = 5
[config]
hidden_sizes = [8, 4]
gamma = 0.9
"""


@pytest.fixture
def trained(monkeypatch):
    """Replaces `marl_kl.train` by a record of its calls."""
    calls = []

    def train(env, algorithm, **options):
        calls.append((env.spec, algorithm, options))
        return synthetic.result()

    monkeypatch.setattr(marl_kl, "train", train)
    return calls


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return str(path)


def test_the_fields_of_the_file_are_passed_to_train(trained, tmp_path):
    assert main.main(["train", "--config", written(tmp_path, FILE), "--progress", "none"]) == 0
    ((spec, algorithm, options),) = trained
    assert spec == envs.make("matrix_game", num_agents=3, steps=5).spec and algorithm == "hatrpo_g"
    assert str(options.pop("out")).startswith("runs/matrix_game-hatrpo_g-2")
    assert options == {
        "seeds": [3, 5],
        "progress": "none",
        "loggers": [],
        "devices": None,
        "init_from": None,
        "init_which": "last",
        "hidden_sizes": [8, 4],
        "gamma": 0.9,
    }


def test_the_command_line_overrides_the_file(trained, tmp_path):
    words = "--seeds 2 --gamma 0.8 --actor-lr 0.1 --env steps=2 --algorithm happo --out"
    assert main.main(["train", "--config", written(tmp_path, FILE), *words.split(), str(tmp_path / "run")]) == 0
    assert main.main(["train", "parameter_sharing", "--config", written(tmp_path, FILE), "--env", "num_agents=4"]) == 0
    (spec, algorithm, options), (other, _, _) = trained
    assert spec == envs.make("matrix_game", num_agents=3, steps=2).spec and algorithm == "happo"
    assert options["seeds"] == 2 and options["out"] == tmp_path / "run"
    assert (options["gamma"], options["actor_lr"], options["hidden_sizes"]) == (0.8, 0.1, [8, 4])
    assert other == envs.make("parameter_sharing", num_agents=4, steps=5).spec


def test_the_example_is_one(tmp_path):
    text = textwrap.dedent(run_file.EXAMPLE.split("\n", 1)[1])
    plan = run_file.read(written(tmp_path, text))
    assert plan.env_options == {"backend": "spring"} and plan.make_config().total_env_steps == 2_000_000


# The file that a run leaves


@pytest.fixture
def stopped_at_once(monkeypatch):
    """Runs stop where they would begin to compile."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Programs, "compile", stop)


def test_the_file_that_a_run_leaves_is_the_same_run_again(stopped_at_once, tmp_path):
    options = {"num_agents": 3, "steps": 5, "payoff": None}
    fields = {"kl_budget": 0.1 + 0.2, "value_clip": float("inf"), "total_env_steps": 1e6, "hidden_sizes": (7, 3)}
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(KeyboardInterrupt):
        marl_kl.train(envs.make("matrix_game", **options), "hatrpo_n", seeds=[4, 7], out=first, **fields)
    assert main.main(["train", "--config", str(first / "config.toml"), "--out", str(second)]) == 130
    records = [run_record.read_record(out) for out in (first, second)]
    assert records[0].config == records[1].config and records[0].config.hidden_sizes == (7, 3)
    identities = [run_record.fingerprint(record.document) for record in records]
    assert identities[0] == identities[1]
    assert (first / "config.toml").read_bytes() == (second / "config.toml").read_bytes()


def test_a_run_made_longer_says_so_in_its_file(stopped_at_once, tmp_path):
    for steps in (1_000_000, 2_000_000):
        with pytest.raises(KeyboardInterrupt):
            marl_kl.train(envs.make("bilinear"), "hatrpo", out=tmp_path / "run", resume=True, total_env_steps=steps)
        plan = run_file.read(tmp_path / "run" / run_file.NAME)
        assert plan.make_config() == run_record.read_record(tmp_path / "run").config
        assert plan.make_config(gamma=0.5).total_env_steps == steps


def test_an_environment_of_one_s_own_leaves_none(stopped_at_once, tmp_path):
    """It has no name that a file could say."""
    with pytest.raises(KeyboardInterrupt):
        marl_kl.train(counting_env(), "hatrpo", out=tmp_path / "run")
    assert (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "config.toml").exists()


@pytest.mark.parametrize("algorithm", ["hatrpo_w", "mappo"])
def test_every_field_is_written_with_its_description(algorithm):
    spec = dataclasses.replace(synthetic.spec(), options=(("obs", 1), ("partition", (("a", "b|c"), ('"d"\\',)))))
    config = algorithms.get(algorithm).config_class(value_clip=float("inf"))
    text = run_file.text(spec, algorithm, config, (0,))
    content = tomllib.loads(text)
    assert content["env_options"] == {"obs": 1, "partition": [["a", "b|c"], ['"d"\\']]}
    assert type(config)(**content["config"]) == config
    assert all(f"# {field.metadata['help']}\n" in text for field in dataclasses.fields(config))


def test_toml_of_odd_values_reads_back():
    values = {
        "text": 'a "b" \\ \n\t\x7f é 🦵 |', "empty": "", "large": 10**18, "small": 5e-324, "whole": 1e22,
        "no": False,
        "nested": ((1, 2.5), (), ("x",)), "below": float("-inf"), "array": jnp.array(0.5),
    }  # fmt: skip
    read = tomllib.loads(toml_file.text(values))
    assert read == values | {"nested": [[1, 2.5], [], ["x"]]} and isinstance(read["whole"], float)
    with pytest.raises(ValueError, match="None cannot be written to a TOML file"):
        toml_file.text({"nothing": None})


# Bad files

_HEAD = 'env = "matrix_game"\nalgorithm = "hatrpo_w"\n'

_BAD = {
    "env = ": "is not a TOML file",
    _HEAD.replace("env", "evn"): "unknown key 'evn'; did you mean env",
    'env = "matrix_game"': "algorithm must be there",
    _HEAD.replace("hatrpo_w", "hatrpo_v"): "unknown algorithm 'hatrpo_v'; did you mean hatrpo",
    _HEAD.replace("game", "gme"): "unknown env 'matrix_gme'",
    _HEAD + "sedes = 3": "unknown key 'sedes'; did you mean seeds",
    _HEAD + 'seeds = "four"': "seeds='four'; it must be a number of seeds",
    _HEAD + "seeds = 1.5": "seeds=1.5; it must be",
    _HEAD + "env_options = 3": "env_options must be a table, written [env_options]",
    _HEAD + "[env_options]\ncolour = 1": "unknown option 'colour'",
    _HEAD + "[grid]\ngamma = [0.9]": "unknown key 'grid'",
    _HEAD + "[config]\nkl_bugdet = 0.1": "unknown config field 'kl_bugdet' for TrustRegionConfig; did you mean kl",
    _HEAD + '[config]\ngamma = "0.9"': "gamma='0.9'; it must be a finite number",
    _HEAD + "[config]\nnum_envs = 2.5": "num_envs=2.5; it must be an integer",
    _HEAD + '[config]\nnum_envs = "4"': "num_envs='4'; it must be an integer",
    _HEAD + "[config]\nhidden_sizes = 8": "hidden_sizes=8; it must be a tuple of integers",
    _HEAD + "[config]\nnormalize_observations = 1": "normalize_observations=1; it must be a boolean",
    _HEAD + "[config]\nactivation = true": "activation=True; it must be one of tanh",
    _HEAD + "[config]\ncritic_minibatches = 7": "critic_minibatches=7 does not divide the batch",
}


@pytest.mark.parametrize("text", _BAD)
def test_a_bad_file_gives_a_one_line_error_and_exit_code_2(text, tmp_path, capsys):
    assert main.main(["train", "--config", written(tmp_path, text), "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert _BAD[text] in captured.err and captured.out == ""
    assert captured.err.startswith("marl-kl: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_file_gives_a_one_line_error(tmp_path, capsys):
    assert main.main(["train", "--config", str(tmp_path / "none.toml")]) == 2
    assert "no such file" in capsys.readouterr().err
