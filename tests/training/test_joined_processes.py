"""One run in several processes (slow, because each is started, and compiles, anew)."""

import os
import random
import signal
import time

import numpy as np
import pytest

from marl_kl import processes
from marl_kl.storage import checkpoints, run_record
from tests.support import joined, kills

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
from tests.support import spread_runs

learners = {
    "hatrpo_w": spread_runs.first_update("hatrpo_w", None, 1, utility="cross_fitted"),
    "four seeds": spread_runs.first_update("hatrpo_w", None, 4),
}
if processes.is_first():
    leaves = jax.tree_util.tree_leaves_with_path(learners)
    np.savez(sys.argv[1], **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
"""


@pytest.mark.slow
def test_the_first_update_is_that_of_one_process(tmp_path):
    """Where environments are spread, in float64; where seeds are, but for the rounding of initial weights in float32."""
    found = {}
    for count in (1, 2, 4):
        joined.run(count, _FIRST_UPDATES, tmp_path / f"{count}.npz")
        found[count] = dict(np.load(tmp_path / f"{count}.npz"))
        assert found[count].keys() == found[1].keys() and len(found[1]) > 20
        for name, wanted in found[1].items():
            bound = (1e-4 if "four seeds" in name else 1e-12) * np.abs(wanted).max()
            np.testing.assert_allclose(found[count][name], wanted, rtol=0, atol=bound, err_msg=name)


@pytest.mark.slow
def test_killed_runs_are_resumed_to_the_same_bits(tmp_path):
    """Each kill ends the other process with one line; the same bits as without kills on as many."""
    whole, victim = tmp_path / "whole", tmp_path / "victim"
    assert _ends(joined.command_line(2, *RUN, "--out", whole)) == [(0, ""), (0, "")]
    generator, killed = random.Random(0), 0
    for number in range(10):
        command = (
            ("resume", victim, "--progress", "none") if (victim / "run.json").exists() else (*RUN, "--out", victim)
        )
        pair = joined.command_line(2, *command)
        pair[0].stdout.readline()  # of the first connection: both are there
        time.sleep(generator.uniform(0, 6))
        if all(process.poll() is None for process in pair):
            pair.pop(number % 2).kill()
            killed += 1
        for code, text in _ends(pair):
            assert (code == 0 and not text) or (code != 0 and _is_one_line(text)), (code, text)
        assert not list(victim.glob("**/.tmp-*/manifest.json"))
    assert killed >= 5
    assert _ends(joined.command_line(2, "resume", victim, "--progress", "none")) == [(0, ""), (0, "")]
    kills.assert_same_run(victim, whole)
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
    pair = joined.command_line(2, *RUN, "--seeds", 2, "--out", out)
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
    assert [code for code, _ in _ends(joined.command_line(1, "resume", out, *total, "--progress", "none"))] == [0]
    assert checkpoints.load(out).update == before.update + 4
