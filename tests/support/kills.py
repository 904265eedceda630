"""A run or a sweep that is killed again and again, and must end as one that was never interrupted.

    python -m tests.support.kills run|sweep|search|replay FOLDER [KILLS]

writes a reference and a victim to FOLDER, and prints the verdict (default: 20 kills).

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

import jax
import numpy as np

import marl_kl
from marl_kl.storage import checkpoints, run_record, run_tables
from tests.support.counting_env import counting_env
from tests.support.kinds_env import kinds_env

UPDATES = 60
CONFIG = {
    "num_envs": 4, "rollout_length": 8, "hidden_sizes": (8,), "critic_minibatches": 2, "eval_episodes": 4,
    "total_env_steps": 32 * UPDATES, "chunk_updates": 3, "eval_interval": 7, "save_interval": 4,
}  # fmt: skip


GRID = {"kl_budget": (0.02, 0.08, 0.3)}
"""Of the sweep: two shards of two trials, the second one padded."""


def train(out, **options):
    return marl_kl.train(
        counting_env(), "hatrpo_w", **{"seeds": [4, 7], "out": out, "progress": "none", **CONFIG, **options}
    )


def sweep(out, **options):
    return marl_kl.sweep(
        counting_env(), "hatrpo_w",
        **{"grid": GRID, "seeds": [4], "runs_at_once": 2, "out": out, "progress": "none", **CONFIG, **options},
    )  # fmt: skip


def train_with_replay(out, **options):
    own = {"warmup_steps": 64, "replay_size": 256, "minibatch_size": 8, "n_step": 2, "updates_per_step": 0.25}
    common = {name: value for name, value in CONFIG.items() if name != "critic_minibatches"}
    return marl_kl.train(
        kinds_env("squashed"), "hatd3", **{"seeds": [4, 7], "out": out, "progress": "none", **common, **own, **options}
    )


def assert_same_sweep(out, reference):
    """The same tables and stream, byte for byte, and every shard's results and learners, bit for bit."""
    for table in ("table.csv", "curves.csv", "log.jsonl"):
        assert (Path(out) / table).read_bytes() == (Path(reference) / table).read_bytes(), table
    for shard in sorted((Path(reference) / "pieces").iterdir()):
        found, wanted = (checkpoints.load(Path(folder) / "pieces" / shard.name) for folder in (out, reference))
        assert found.extent == wanted.extent
        for name, values in wanted.metrics.items():
            np.testing.assert_array_equal(found.metrics[name], values, err_msg=name)
        np.testing.assert_array_equal(found.evaluation.episode_return, wanted.evaluation.episode_return)
        _assert_same_teams(found, wanted)


def assert_same_run(out, reference):
    """The same tables and stream, byte for byte, and the same train state and best teams, bit for bit."""
    for table in ("evaluation.csv", "log.jsonl"):
        assert (Path(out) / table).read_bytes() == (Path(reference) / table).read_bytes(), table
    assert without_wall_clock(out) == without_wall_clock(reference)
    times = run_tables.read_metrics(out, run_record.read_record(out).spec.agents).wall_time_s
    assert np.all(np.diff(times) > 0) and times[0] > 0
    found, wanted = checkpoints.load(out), checkpoints.load(reference)
    assert found.update == wanted.update
    _assert_same_teams(found, wanted)


def without_wall_clock(out) -> str:
    """The text of `metrics.csv` without its only column that the seeds do not determine."""
    header, *rows = ((Path(out) / "metrics.csv").read_text()).splitlines()
    place = header.split(",").index("wall_time_s")
    cells = (row.split(",") for row in (header, *rows))
    return "\n".join(",".join(row[:place] + row[place + 1 :]) for row in cells)


def _assert_same_teams(found, wanted):
    """Of two snapshots: what there is of the train state, and the best teams."""
    np.testing.assert_array_equal(found.best.update, wanted.best.update)
    np.testing.assert_array_equal(found.best.episode_return, wanted.best.episode_return)
    for tree, other in ((found.state, wanted.state), (found.best.learner, wanted.best.learner)):
        assert tree.keys() == other.keys()
        for name, leaf in other.items():
            np.testing.assert_array_equal(tree[name], leaf, err_msg=name)


def search(out, **options):
    space = {"kl_budget": marl_kl.log_uniform(0.02, 0.3), "gamma": marl_kl.uniform(0.8, 1.0)}
    return sweep(out, grid=None, search=space, samples=3, rounds=2, **options)


KINDS = {
    "run": (train, assert_same_run),
    "sweep": (sweep, assert_same_sweep),
    "search": (search, assert_same_sweep),
    "replay": (train_with_replay, assert_same_run),
}
"""What can be killed: how it is started or resumed, and what must hold at its end."""


def as_here():
    """The environment of a victim that compiles as this process does (see conftest.py), and finds what it compiled."""
    settings = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return settings | os.environ


def be_killed(kind, out, kill, seed, updates=UPDATES, environment=None):
    """One victim: `kill` is "inside" (by itself, at a random rename) or "outside"; returns what became of it."""
    command = [sys.executable, "-m", "tests.support.kills", "--victim", kind, str(out), kill, str(seed), str(updates)]
    before = last_update(out)
    victim = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment)
    while kill == "outside" and victim.poll() is None and last_update(out) == before:
        time.sleep(0.01)
    if kill == "outside":
        time.sleep(random.Random(seed).uniform(0, 0.3))
        victim.kill()
    code = victim.wait(timeout=300)
    return f"{kill:<7} at update {last_update(out):>3} {'killed' if code == -signal.SIGKILL else f'exit code {code}'}"


def last_update(out):
    """Of the newest checkpoint, by its name, shards of a sweep added up; 0 if there is none."""
    # nothing below these folders is looked at: the victim may be removing it
    folders = [Path(out) / "checkpoints", *Path(out).glob("pieces/*/checkpoints")]
    names = [[entry.name.removesuffix("~") for entry in folder.iterdir()] for folder in folders if folder.is_dir()]
    return sum(max((int(name) for name in of_folder if name.isdigit()), default=0) for of_folder in names)


def _be_victim(kind, out, kill, seed, updates):
    if kill == "inside":
        _die_at_rename(random.Random(seed).randrange(3, 20))
    KINDS[kind][0](out, resume=True, total_env_steps=32 * updates)


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


def main(kind, folder, kills="20"):
    """Compiled as users compile, unless the environment says otherwise."""
    folder, updates = Path(folder), UPDATES + 20 * int(kills)
    begin, assert_same = KINDS[kind]
    begin(folder / "reference", total_env_steps=32 * updates)
    for index in range(int(kills)):
        print(be_killed(kind, folder / "victim", ("outside", "inside")[index % 2], index, updates), flush=True)
    begin(folder / "victim", resume=True, total_env_steps=32 * updates)
    assert_same(folder / "victim", folder / "reference")
    print(f"{kills} kills, the same bits")


if __name__ == "__main__":
    if sys.argv[1] == "--victim":
        _be_victim(*sys.argv[2:5], *map(int, sys.argv[5:]))
    else:
        main(*sys.argv[1:])
