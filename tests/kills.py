"""A run that is killed again and again, and must end as one that was never interrupted.

    python -m tests.kills FOLDER [KILLS]     a reference and a victim in FOLDER, and the verdict (default: 20 kills)

A kill is SIGKILL, so nothing can be tidied up. Odd ones come from outside, at a random moment after the first update
of that process; even ones from the process itself, at a random one of the moments when files change their names, which
are the seams of a save.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import marl_kl
from marl_kl import checkpoints
from tests.counting_env import counting_env

UPDATES = 60
CONFIG = {
    "num_envs": 4, "rollout_length": 8, "hidden_sizes": (8,), "critic_minibatches": 2, "eval_episodes": 4,
    "total_env_steps": 32 * UPDATES, "chunk_updates": 3, "eval_interval": 7, "save_interval": 4,
}  # fmt: skip


def train(out, **options):
    return marl_kl.train(
        counting_env(), "hatrpo_w", **{"seeds": [4, 7], "out": out, "progress": "none", **CONFIG, **options}
    )


def assert_same_run(out, reference):
    """The same tables and stream, byte for byte, and the same train state and best teams, bit for bit."""
    for table in ("metrics.csv", "evaluation.csv", "log.jsonl"):
        assert (Path(out) / table).read_bytes() == (Path(reference) / table).read_bytes(), table
    found, wanted = checkpoints.load(out), checkpoints.load(reference)
    assert found.update == wanted.update
    np.testing.assert_array_equal(found.best.update, wanted.best.update)
    np.testing.assert_array_equal(found.best.episode_return, wanted.best.episode_return)
    for tree, other in ((found.state, wanted.state), (found.best.learner, wanted.best.learner)):
        assert tree.keys() == other.keys()
        for name, leaf in other.items():
            np.testing.assert_array_equal(tree[name], leaf, err_msg=name)


def train_and_be_killed(out, kill, seed, updates=UPDATES, environment=None):
    """One victim: `kill` is "inside" (by itself, at a random rename) or "outside"; returns what became of it."""
    command = [sys.executable, "-m", "tests.kills", "--victim", str(out), kill, str(seed), str(updates)]
    before = _last_update(out)
    victim = subprocess.Popen(command, cwd=Path(__file__).parent.parent, env=environment)
    while kill == "outside" and victim.poll() is None and _last_update(out) == before:
        time.sleep(0.01)
    if kill == "outside":
        time.sleep(random.Random(seed).uniform(0, 0.3))
        victim.kill()
    code = victim.wait(timeout=300)
    return f"{kill:<7} at update {_last_update(out):>3} {'killed' if code == -signal.SIGKILL else f'exit code {code}'}"


def _last_update(out):
    """Of the newest checkpoint, by its name; 0 if there is none."""
    folder = Path(out) / "checkpoints"
    return max((int(entry.name) for entry in folder.glob("[0-9]*")), default=0)


def _be_victim(out, kill, seed, updates):
    if kill == "inside":
        _die_at_rename(random.Random(seed).randrange(5, 40))
    train(out, resume=True, total_env_steps=32 * updates)


def _die_at_rename(count):
    """Kills this process at its `count`-th rename: before it or after it."""
    rename, left = os.replace, [count]

    def slow(*arguments):
        left[0] -= 1
        if left[0] == 0 and count % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = slow


def main(folder, kills="20"):
    """Compiled as users compile, unless the environment says otherwise."""
    folder, updates = Path(folder), UPDATES + 20 * int(kills)
    train(folder / "reference", total_env_steps=32 * updates)
    for index in range(int(kills)):
        print(train_and_be_killed(folder / "victim", ("outside", "inside")[index % 2], index, updates), flush=True)
    train(folder / "victim", resume=True, total_env_steps=32 * updates)
    assert_same_run(folder / "victim", folder / "reference")
    print(f"{kills} kills, the same bits")


if __name__ == "__main__":
    if sys.argv[1] == "--victim":
        _be_victim(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    else:
        main(*sys.argv[1:])
