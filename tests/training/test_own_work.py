"""Environments, algorithms and networks of users' own, by path: stored, and found again by every command."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
import marl_kl
from marl_kl import algorithms
from marl_kl.cli.main import main
from marl_kl.core.critic import rescale_output
from marl_kl.core.normalizers import Moments
from marl_kl.core.policies import make_actor
from marl_kl.core.trainer import learner_shapes
from tests.support import jitted, kills, own_work
from tests.support.grids import slow_unless

ENV, ALGORITHM, ENCODER = (f"tests.support.own_work:{name}" for name in ("grid", "CAUTIOUS", "row_sums"))
SMALL = dict(
    num_envs=4, rollout_length=8, hidden_sizes=(4,), total_env_steps=64, eval_episodes=2, critic_epochs=1,
    critic_minibatches=1, kept_back=0.25, actor_encoder=ENCODER, critic_encoder=ENCODER, progress="none",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "run"
    return marl_kl.train(envs.make(ENV, side=2), ALGORITHM, out=out, **SMALL)


def test_an_environment_is_named_by_its_path():
    spec = envs.make(ENV, side=2).spec
    assert spec.name == ENV and spec.options == (("side", 2),) and spec.observation_shape == (2, 2, 1)


def test_an_algorithm_is_named_by_its_path():
    """Also where Python code has the description itself."""
    assert algorithms.get(own_work.CAUTIOUS) == algorithms.get(ALGORITHM) == own_work.CAUTIOUS._replace(name=ALGORITHM)
    assert algorithms.get(algorithms.get("hatrpo_w")).name == "hatrpo_w"


@pytest.mark.slow
def test_its_config_reaches_it(run):
    assert isinstance(run.config, own_work.CautiousConfig) and run.algorithm == ALGORITHM
    np.testing.assert_allclose(run.metrics["kl_threshold"].sum(-1), 0.75 * 0.08, rtol=1e-5)


@pytest.mark.slow
def test_another_process_knows_it_all(run, tmp_path):
    """Resumes, loads, evaluates, sweeps: with nothing imported but what the folder names."""
    lines = f"""
import marl_kl, numpy as np
from marl_kl.cli.main import main
assert main(["resume", r"{run.out}", "--total-env-steps", "96", "--progress", "none"]) == 0
stored = marl_kl.load(r"{run.out}")
assert stored.update == 3 and stored.config.kept_back == 0.25
action = stored.policy()(np.eye(4, dtype=np.float32)[:2])
assert action.shape == (2,)
assert main(["evaluate", r"{run.out}", "--episodes", "4"]) == 0
assert main(["show", r"{run.out}"]) == 0
assert main(["train", "--config", r"{run.out / "config.toml"}", "--out", r"{tmp_path / "again"}", "--progress", "none"]) == 0
"""
    result = subprocess.run([sys.executable, "-c", lines], env=kills.as_here(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    again = marl_kl.load(tmp_path / "again")
    assert again.algorithm == ALGORITHM and again.spec.name == ENV


def test_options_of_its_own_config(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--algorithm", ALGORITHM, "--help"])
    assert "--kept-back X" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"env": "no_such_package.world:make"}, "env 'no_such_package.world:make': there is no module"),
        ({"env": "tests.support.own_work:nothing"}, "has no 'nothing'"),
        ({"env": "tests.support.own_work:CAUTIOUS"}, "it must be a function that returns an envs.Env"),
        ({"env": "tests.support.own_work:row_sums_of"}, "has no 'row_sums_of'"),
        ({"env": "math:tau"}, "is a float; it must be a function"),
        ({"env": "platform:node"}, "returns a str; it must return an envs.Env"),
        ({"algorithm": "tests.support.own_work:cautious"}, "is a function; it must be an AlgorithmSpec"),
        ({"actor_encoder": "row_sums"}, "actor_encoder='row_sums'; it must be a path 'module:function'"),
        ({"actor_encoder": "tests.support.own_work:no_module"}, "returns a str; it must return a flax.linen.Module"),
        ({"critic_encoder": "tests.support.own_work:all_in_one"}, "it must keep all axes but the last"),
        ({"env": "tests.support.own_work:flat", "actor_encoder": ENCODER}, "does not take inputs of shape [..., 5]"),
        ({"actor_encoder": lambda spec: None}, "has no '<lambda>'"),
    ],
)
def test_what_leads_nowhere_is_one_line_before_anything_is_written(arguments, message, tmp_path):
    out = tmp_path / "run"
    given = {"env": ENV, "algorithm": "hatrpo", **arguments}
    with pytest.raises(ValueError) as caught:
        env = envs.make(given.pop("env"))
        marl_kl.train(env, given.pop("algorithm"), out=out, total_env_steps=64, **given)
    text = str(caught.value)
    assert message in text and "\n" not in text and not out.exists()


@pytest.mark.parametrize("start", [marl_kl.train, marl_kl.sweep])
def test_what_no_other_process_could_find_is_not_stored(start, tmp_path):
    env, out = envs.make(ENV), tmp_path / "run"
    start = functools.partial(start, **({"grid": {"kl_budget": [0.1]}} if start is marl_kl.sweep else {}))
    local = algorithms.get("hatrpo")._replace(build=lambda actor, config: algorithms.get("hatrpo").build(actor, config))
    with pytest.raises(ValueError, match="algorithm 'hatrpo' cannot be stored in out"):
        start(env, local, out=out)
    sys.modules["__main__"].encoder_of_a_notebook = own_work.row_sums
    with pytest.raises(ValueError, match="actor_encoder='__main__:encoder_of_a_notebook' cannot be stored in out"):
        start(env, "hatrpo", out=out, actor_encoder="__main__:encoder_of_a_notebook")
    assert not out.exists()


@pytest.mark.parametrize("recurrent", slow_unless({False}, [False, True]))
def test_an_encoder_comes_before_the_hidden_layers(recurrent):
    env = envs.make(ENV, side=2)
    config = marl_kl.TrustRegionConfig(
        hidden_sizes=(4,), actor_encoder=own_work.row_sums, recurrent=recurrent, recurrent_size=5
    )
    actor = make_actor(env.spec, config)
    params = jitted.init_actors(jax.random.key(0), env.spec, config)["params"]
    assert params["encoder"]["output"]["kernel"].shape == (2, 2, 3), "[agents, row, features]"
    images = jax.random.normal(jax.random.key(1), (2, 7, 4))
    outputs, _ = actor.team_step({"params": params}, images, actor.initial_carry((2, 7)))
    assert outputs.shape == (2, 7, 2)
    if not recurrent:
        layers = params["encoder"]["output"], params["logits"]["Dense_0"], params["logits"]["output"]
        (w0, b0), (w1, b1), (w2, b2) = ((layer["kernel"], layer["bias"][:, None]) for layer in layers)
        features = jnp.tanh(jnp.einsum("abri,aio->abro", images.reshape(2, 7, 2, 2), w0) + b0[:, None]).sum(-2)
        hidden = jnp.tanh(features @ w1 + b1)
        np.testing.assert_allclose(outputs, hidden @ w2 + b2, atol=1e-6)


def test_values_are_kept_whatever_an_encoder_calls_its_layers():
    """The rescaling of the critic's output layer leaves a layer of that name in an encoder as it is."""
    env = envs.make(ENV, side=2)
    config = marl_kl.TrustRegionConfig(hidden_sizes=(4,), critic_encoder=ENCODER)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), learner_shapes(env.spec, "hatrpo", config).critic.params)
    old, new = Moments(jnp.ones(()), jnp.zeros(1), jnp.ones(1)), Moments(jnp.ones(()), jnp.ones(1), 4 * jnp.ones(1))
    found = rescale_output(params, old, new)["params"]
    np.testing.assert_array_equal(found["encoder"]["output"]["kernel"], 1.0)
    assert not np.allclose(found["output"]["kernel"], 1.0)
