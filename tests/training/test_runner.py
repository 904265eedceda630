"""`train` from its arguments to its run folder, and back through `load`."""

import json
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import envs
import marl_kl
from marl_kl import devices
from marl_kl.cli import main
from marl_kl.core import evaluation
from marl_kl.core.policies import make_actor
from marl_kl.core.rollout import policy_step
from marl_kl.core.trainer import make_train
from marl_kl.storage import loading
from marl_kl.training.programs import Programs
from tests.support import kills
from tests.support.counting_env import counting_env
from tests.support.faults import stopped
from tests.support.shared_programs import programs_are_shared  # noqa: F401  for all tests here
from tests.support.small_run import SMALL, train


def test_result_axes(finished):
    _, result = finished
    assert result.env_steps.tolist() == [32 * (i + 1) for i in range(10)]
    assert result.metrics["episode_return"].shape == (2, 10)
    assert result.metrics["kl_threshold"].shape == result.metrics["kl"].shape == (2, 10, 2)
    assert result.evaluation.update.tolist() == [0, 4, 8, 10]
    assert result.evaluation.episode_return.shape == (2, 4, 4)
    np.testing.assert_array_equal(result.evaluation.episode_length, 5)
    assert result.failures == () and result.steps_per_second > 0


def test_the_run_folder_holds_everything(finished):
    out, result = finished
    metrics = pd.read_csv(out / "metrics.csv")
    assert len(metrics) == 20 and set(metrics.seed) == {4, 7}
    np.testing.assert_array_equal(metrics[metrics.seed == 7]["kl[b]"].astype(np.float32), result.metrics["kl"][1, :, 1])
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and record["config"]["kl_budget"] == result.config.kl_budget
    assert record["versions"]["jax"] == jax.__version__
    for picture in ("learning_curve.png", "kl_share.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert "KL" in (out / "summary.md").read_text()


def test_loaded_policies_act_as_the_trained_ones(finished):
    """The evaluation's own first action, from the saved parameters; sampling only with a key."""
    out, _ = finished
    run = marl_kl.load(out)
    assert (run.algorithm, run.seeds, run.update) == ("hatrpo_w", (4, 7), 10)
    obs = np.asarray([[0.3, 1.0], [0.3, 1.0]])
    first, second = run.policy(seed=4)(obs), run.policy(seed=7)(obs)
    assert first.shape == (2, 1) and not np.array_equal(first, second)
    np.testing.assert_array_equal(run.policy(seed=4)(obs), first)
    samples = [run.policy(seed=4)(obs, key=jax.random.key(i)) for i in range(2)]
    assert not np.array_equal(*samples)
    with pytest.raises(ValueError, match="seed=0 is not in this run; it has 4, 7"):
        run.policy(seed=0)
    with pytest.raises(ValueError, match=r"obs has shape \(3,\)"):
        run.policy(seed=4)(np.zeros(3))


@pytest.mark.parametrize(
    "kind", [pytest.param([], marks=pytest.mark.slow), pytest.param(["replay"], marks=pytest.mark.rare)]
)
def test_chunks_of_any_length_give_the_same_bits(kind):
    """Compiled as users compile; what both runs have in common (first states, evaluations) only once."""
    as_users = {**kills.as_here(), "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "tests.support.chunks", *kind]
    assert "the same bits" in subprocess.run(command, env=as_users, check=True, capture_output=True, text=True).stdout


AS_FINISHED = {"total_env_steps": 320, "chunk_updates": 3}
"""What makes a run of two seeds use the program of `finished`."""


def test_evaluating_more_often_does_not_change_the_training(finished):
    often = train(counting_env(), seeds=[4, 7], eval_interval=2, **AS_FINISHED)
    assert len(often.evaluation.update) > len(finished[1].evaluation.update)
    np.testing.assert_array_equal(finished[1].metrics["kl"], often.metrics["kl"])


@pytest.mark.slow
def test_seeds_can_be_named():
    two = train(counting_env(), seeds=2, **AS_FINISHED)
    reordered = train(counting_env(), seeds=[1, 0], **AS_FINISHED)
    assert two.seeds == (0, 1) and reordered.seeds == (1, 0)
    np.testing.assert_allclose(reordered.metrics["kl"], two.metrics["kl"][::-1], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_a_nan_in_one_seed_of_eight_is_named_and_leaves_the_others_alone(tmp_path):
    env, options = counting_env(nan_start_above=0.995), {"total_env_steps": 192, "chunk_updates": 2}
    result = train(env, seeds=[1, 3, 4, 5, 6, 7, 8, 9], out=tmp_path / "run", **options)
    healthy = train(env, seeds=[1, 3, 4, 5, 12, 7, 8, 9], **options)
    (failure,) = result.failures
    assert failure.seed == 6 and failure.quantity == "reward" and failure.update < 3 and not healthy.failures
    others = np.array(result.seeds) != failure.seed
    for name, values in healthy.metrics.items():
        np.testing.assert_array_equal(result.metrics[name][others], values[others], err_msg=name)
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["failures"][0] == failure._asdict()
    policy = marl_kl.load(tmp_path / "run").policy(seed=failure.seed)
    assert np.all(np.isfinite(policy(np.zeros((2, 2)))))


def test_the_best_teams_are_those_that_were_evaluated_best(finished):
    """Each seed's own best, with the parameters of that evaluation: in its episodes they earn the same again."""
    out, result = finished
    run, last = marl_kl.load(out, which="best"), marl_kl.load(out)
    means = result.evaluation.episode_return.mean(axis=-1)
    index = means.argmax(axis=1)
    assert run.best_updates == tuple(result.evaluation.update[index]) and run.update == 10
    assert [run.update_of(seed) for seed in (4, 7)] == list(run.best_updates) and last.update_of(7) == 10
    env = counting_env()
    for which, updates, k in ((run, run.best_updates, index), (last, 10, [3, 3])):
        again = evaluation.evaluate_again(env, result.config, run.seeds, updates, which.learner)
        wanted = result.evaluation.episode_return[[0, 1], k]
        np.testing.assert_allclose(again.episode_return, wanted, rtol=1e-6)
    fewer = evaluation.evaluate_again(env, result.config.replace(eval_episodes=2), run.seeds, 10, last.learner)
    wanted = result.evaluation.episode_return[:, -1]
    np.testing.assert_allclose(fewer.episode_return, wanted[:, :2], rtol=1e-6, err_msg="the first ones")
    assert len(np.unique(wanted)) == wanted.size
    with pytest.raises(ValueError, match="which='worst'; it must be 'last' or 'best'"):
        marl_kl.load(out, which="worst")


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_it_had(tmp_path, monkeypatch):
    """Ctrl-C in the third chunk waits for its end, since the state's memory belongs to the chunk."""
    original, calls = Programs.chunk, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(Programs, "chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(counting_env(), seeds=[4, 7], out=tmp_path / "run", eval_interval=0, **AS_FINISHED)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert len(pd.read_csv(tmp_path / "run" / "metrics.csv")) == 2 * 9
    assert marl_kl.load(tmp_path / "run").update == 9


@pytest.mark.slow
def test_out_of_memory_gives_a_one_line_error(tmp_path, monkeypatch, capsys):
    """Before the first update if XLA's account says so, and from the command line as well."""
    what = r"training seeds=2 at once with num_envs=4, rollout_length=8"
    with monkeypatch.context() as patch:
        patch.setattr(devices, "free_bytes", lambda mesh: 1)
        patch.setattr(Programs, "chunk", never_compile)
        with pytest.raises(
            MemoryError, match=f"{what} needs about 0.0 GiB of memory, of which 0.0 GiB are free; reduce any"
        ):
            train(counting_env(), seeds=2, **AS_FINISHED)
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore of it")
    monkeypatch.setattr(Programs, "compile", stopped(None, error, 1, "before"))
    words = f"train matrix_game --seeds 2 --num-envs 4 --rollout-length 8 --progress none --out {tmp_path / 'run'}"
    assert main.main(words.split()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("marl-kl: training seeds=2 at once") and "does not fit into the device's" in printed
    assert printed.count("\n") == 1 and json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def never_compile(*_):
    raise AssertionError("bad input must be found before anything compiles")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "hatrpo", "greedy_share": "all"}, "greedy_share='all'; hatrpo does not use it, it .* hatrpo_g$"),
        ({"algorithm": "HATRPO-W", "utility_smoothing": 1.0}, r"utility_smoothing=1.0; it must be .* in \[0, 1\)"),
        ({"algorithm": "hatrpo_v"}, "unknown algorithm 'hatrpo_v'; did you mean hatrpo"),
        ({"seeds": 0}, "seeds=0; it must be"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]; it must be"),
        ({"seeds": "many"}, "seeds='many'; it must be"),
        ({"total_env_steps": 0}, "total_env_steps=0; it must be an integer > 0"),
        ({"total_env_steps": 1.5}, "total_env_steps=1.5; it must be an integer"),
        ({"kl_budget": -0.1}, "kl_budget=-0.1; it must be a finite number > 0"),
        ({"kl_budget": jnp.array(-1.0)}, "kl_budget=-1.0; it must be a finite number > 0"),
        ({"kl_budget": jnp.ones(2)}, "it must be a finite number > 0"),
        ({"value_clip": 0}, "value_clip=0.0; it must be a finite number > 0, or inf to switch it off"),
        ({"gamma": 1.1}, r"gamma=1.1; it must be a finite number in \[0, 1\]"),
        ({"activation": "sine"}, "activation='sine'; it must be one of tanh"),
        ({"hidden_sizes": (8, 0)}, r"hidden_sizes=\(8, 0\)"),
        ({"critic_minibatches": 3}, "critic_minibatches=3 does not divide the batch"),
        ({"kl_bugdet": 0.1}, "unknown config field 'kl_bugdet' for TrustRegionConfig; did you mean kl_budget"),
        ({"config": marl_kl.OnPolicyConfig(**SMALL)}, "needs a TrustRegionConfig"),
        ({"progress": "loud"}, "progress='loud'"),
    ],
)
def test_bad_input_gives_a_one_line_error_before_compilation(options, message, monkeypatch, tmp_path):
    monkeypatch.setattr(Programs, "compile", never_compile)
    with pytest.raises(ValueError, match=message) as caught:
        train(counting_env(), out=tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_environment_name_is_not_an_environment():
    with pytest.raises(ValueError, match=r"env='ant_4x2'; it must be an environment, as envs.make\('ant_4x2'\)"):
        train("ant_4x2")


def test_a_folder_that_holds_another_run_is_refused(finished, monkeypatch):
    monkeypatch.setattr(Programs, "compile", never_compile)
    with pytest.raises(FileExistsError, match="already holds another run"):
        train(counting_env(), out=finished[0])


@pytest.mark.rare
def test_a_real_body_trains():
    """All the parts together on spring physics: finite, inside the budget, every agent moving."""
    env = envs.make("reacher_2x1", engine="brax", backend="spring")  # the body that compiles fastest
    result = train(env, total_env_steps=1_024, num_envs=8, rollout_length=32, kl_budget=0.1)
    assert np.all(np.isfinite(result.evaluation.episode_return)) and not result.failures
    assert np.all(result.metrics["kl_total"] <= 0.1)
    assert np.all(np.mean(result.metrics["step_fraction"], axis=1) > 0)


@pytest.mark.slow
def test_independent_learners_from_start_to_pictures(tmp_path):
    """What an algorithm without a budget leaves: no picture of shares, a table of what it does report."""
    result = train(counting_env(), "ippo", total_env_steps=128, out=tmp_path / "run", actor_minibatches=2)
    ippo = marl_kl.core.algorithms.get("ippo")
    assert set(result.metrics) == {*ippo.team_metrics, *ippo.agent_metrics}
    assert not (tmp_path / "run" / "kl_share.png").exists() and (tmp_path / "run" / "learning_curve.png").exists()
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "beyond clip" in summary and "accepted" not in summary
    assert "clip_fraction[b]" in pd.read_csv(tmp_path / "run" / "metrics.csv").columns
    run = marl_kl.load(tmp_path / "run")
    assert run.learner.critic.moments.mean.shape == (1, 2, 1) and run.config == result.config
    assert run.policy()(np.zeros((2, 2))).shape == (2, 1)


@pytest.mark.parametrize("agent_ids", [True, False])
def test_policies_that_share_a_network_act_as_in_training(agent_ids):
    env = counting_env()
    config = marl_kl.FirstOrderConfig(hidden_sizes=(8,), share_parameters=True, agent_ids=agent_ids)
    learner = jax.jit(make_train(env, "mappo", config).init)(jax.random.key(0)).learner
    # outputs that differ visibly from one input to another
    learner = learner._replace(actors=jax.tree.map(lambda leaf: leaf + 0.3, learner.actors))
    stored = jax.tree.map(lambda leaf: np.asarray(leaf)[None], learner)
    run = loading.Run(None, env.spec, "mappo", config, (0,), stored, 0)
    obs = jnp.array([[0.3, 1.0], [0.3, 1.0]])
    mask = jnp.ones((1, 2, 1), bool)
    expected, _ = policy_step(make_actor(env.spec, config), learner.actors, learner.obs_moments, obs[None], mask, ())
    actions = run.policy()(obs)
    np.testing.assert_allclose(actions, expected.mode()[:, 0], rtol=1e-6)
    assert (actions[0] != actions[1]) == agent_ids
    assert {leaf.shape[0] for leaf in jax.tree.leaves(learner.actors)} == {1}
