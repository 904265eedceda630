"""One run in several processes (slow, because each is started, and compiles, anew)."""

import os
import random
import signal
import time

import numpy as np
import pytest

from marl_kl import processes
from marl_kl.storage import checkpoints, run_record
from tests.support import kills, topology

UPDATES = 90
RUN = (
    "train", "tests.support.counting_env:counting_env", "--algorithm", "hatrpo_w", "--progress", "none",
    "--num-envs", 4, "--rollout-length", 8, "--hidden-sizes", 8, "--critic-minibatches", 2, "--eval-episodes", 4,
    "--chunk-updates", 3, "--eval-interval", 50, "--save-interval", 4, "--total-env-steps", 32 * UPDATES, "--devices", 2,
)  # fmt: skip

_FIRST_UPDATES = """
jax.config.update("jax_enable_x64", True)
import numpy as np
from marl_kl import processes
from tests.support.spread_runs import first_update

learners = {
    "hatrpo_w": first_update("hatrpo_w", None, 1, utility="cross_fitted"),
    "recurrent": first_update("hatrpo", None, 1, recurrent=True, recurrent_critic=True),
    "ippo": first_update("ippo", None, 1, actor_minibatches=2),
    "four seeds": first_update("hatrpo_w", None, 4, sys.argv[2]),
}
if processes.is_first():
    leaves = jax.tree_util.tree_leaves_with_path(learners)
    np.savez(sys.argv[1], **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
"""


@pytest.mark.slow
def test_the_first_update_is_that_of_one_process(tmp_path):
    """Environments are spread, or seeds, in float64."""
    found = {}
    for count in (1, 2, 4):
        topology.run(_FIRST_UPDATES, tmp_path / f"{count}.npz", tmp_path / "start", processes=count)
        found[count] = dict(np.load(tmp_path / f"{count}.npz"))
        assert found[count].keys() == found[1].keys() and len(found[1]) > 50
        for name, wanted in found[1].items():
            np.testing.assert_allclose(
                found[count][name], wanted, rtol=0, atol=1e-12 * np.abs(wanted).max(), err_msg=name
            )


@pytest.mark.slow
def test_seeds_with_replays_are_spread_over_processes(tmp_path):
    """An off-policy run has the results of one process up to rounding, and its checkpoint has every seed's replay."""
    for count in (1, 2):
        lines = "from tests.support import kills\nkills.train_with_replay(sys.argv[1], total_env_steps=32 * 20)"
        topology.run(lines, tmp_path / str(count), processes=count)
    one, two = (checkpoints.load(tmp_path / str(count)) for count in (1, 2))
    assert two.state["replay.transitions.experience.reward"].shape[0] == 2
    for name in ("replay.transitions.experience.obs", "replay.transitions.experience.reward"):
        np.testing.assert_allclose(two.state[name], one.state[name], rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(two.metrics["q_loss"], one.metrics["q_loss"], rtol=1e-3)


@pytest.mark.slow
def test_a_body_is_trained_in_two_processes(tmp_path):
    """MJX would put its model on a device of process 0."""
    sizes = ("--num-envs", 4, "--rollout-length", 4, "--eval-episodes", 2, "--total-env-steps", 32, "--devices", 2)
    command = ("train", "ant_4x2", "--env", "backend=spring", "--seeds", 2, *sizes, "--progress", "none")
    assert _ends(topology.command_line(2, *command, "--out", tmp_path / "run")) == [(0, ""), (0, "")]
    assert checkpoints.load(tmp_path / "run").metrics["kl_total"].shape == (2, 2)


@pytest.mark.slow
def test_killed_runs_are_resumed_to_the_same_bits(tmp_path):
    """Each kill ends the other process with one line; the same bits as without kills on as many."""
    whole, victim = tmp_path / "whole", tmp_path / "victim"
    assert _ends(topology.command_line(2, *RUN, "--out", whole)) == [(0, ""), (0, "")]
    generator, killed = random.Random(0), 0
    for number in range(10):
        command = (
            ("resume", victim, "--progress", "none") if (victim / "run.json").exists() else (*RUN, "--out", victim)
        )
        pair = topology.command_line(2, *command)
        pair[0].stdout.readline()  # of the first connection: both are there
        time.sleep(generator.uniform(0, 6))
        if all(process.poll() is None for process in pair):
            pair.pop(number % 2).kill()
            killed += 1
        for code, text in _ends(pair):
            assert (code == 0 and not text) or (code != 0 and _is_one_line(text)), (code, text)
    assert killed >= 5
    assert _ends(topology.command_line(2, "resume", victim, "--progress", "none")) == [(0, ""), (0, "")]
    kills.assert_same_run(victim, whole)
    assert not list(victim.glob("checkpoints/.tmp-[0-9]*")), "the next save removes what a kill left unfinished"
    assert run_record.read_record(victim).document["device"] | {"kind": ""} == {
        "kind": "", "platform": "cpu", "count": 2 * len(os.sched_getaffinity(0)), "used": 2, "per_seed": 2, "processes": 2,
    }  # fmt: skip


def _ends(started):
    """Exit code and standard error of each."""
    texts = [process.communicate(timeout=600)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, texts)]


def _is_one_line(text):
    return text == f"marl-kl: {processes.LOST}\n"


@pytest.mark.slow
def test_an_interrupt_of_one_process_stops_and_saves_all_and_others_go_on(tmp_path):
    out = tmp_path / "run"
    pair = topology.command_line(2, *RUN, "--seeds", 2, "--out", out)
    while kills.last_update(out) == 0 and all(process.poll() is None for process in pair):
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGINT)
    for code, text in _ends(pair):
        assert code == 130 and text.splitlines()[-1].startswith(f"marl-kl: interrupted; the run is saved in {out}"), (
            text
        )
    record, before = run_record.read_record(out), checkpoints.load(out)
    assert record.status == "interrupted" and 0 < before.update < UPDATES
    total = ("--total-env-steps", 32 * (before.update + 4))
    assert [code for code, _ in _ends(topology.command_line(1, "resume", out, *total, "--progress", "none"))] == [0]
    assert checkpoints.load(out).update == before.update + 4
