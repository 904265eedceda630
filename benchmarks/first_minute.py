"""Seconds from `marl-kl train` to the first update, in new processes: without and with a warm compilation cache.

    python -m benchmarks.first_minute [--env ant_4x2] [--backends mjx spring] [--seeds 4] [--repeats 3]
                                      [--against PATH] [--json FILE]

The command is `marl-kl train ENV --preset quick` with one update per chunk. The first update counts as done when the run
folder has its metrics. `cold` is the first start with an empty compilation cache, `warm` the next one. With `--against`,
the root of another checkout of this repository, both run in turn on the same Python environment, and the last column is
its seconds divided by these.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.timing import versions
from marl_kl.training.loggers import STREAM

HERE = Path(__file__).parents[1]


def seconds_to_first_update(root: Path, folder: Path, arguments: Sequence[str]) -> float:
    """Of one run of the code in `root`, which is then stopped; its compilation cache is in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(root), "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-m", "marl_kl", "train", *arguments, "--out", f"{out}/run", "--progress", "none"]
        stream = Path(out, "run", STREAM)
        begin = time.perf_counter()
        # in a folder without the package, which would come before PYTHONPATH
        process = subprocess.Popen(
            command, cwd=out, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            while not (stream.exists() and stream.stat().st_size):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended before its first update:\n{process.stdout.read()}")
                time.sleep(0.02)
            return time.perf_counter() - begin
        finally:
            process.kill()
            process.communicate()


def measure(roots: Sequence[Path], arguments: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """`cold` and `warm`: median seconds per root, over `repeats` rounds in turn."""
    rounds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            places = [(root, Path(tempfile.mkdtemp(dir=folder))) for root in roots]
            cold, warm = ([seconds_to_first_update(*place, arguments) for place in places] for _ in range(2))
            rounds.append([cold, warm])
    return dict(zip(("cold", "warm"), np.median(rounds, axis=0).tolist()))


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="ant_4x2")
    parser.add_argument("--backends", nargs="+", default=["mjx", "spring"])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", type=Path, help="root of another checkout")
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args(arguments)
    roots = [HERE] if options.against is None else [HERE, options.against.resolve()]
    print(f"{os.cpu_count()} cores, {versions()}")
    print(f"{'env':>16} {'cache':>6} {'first update s':>14} {'other s':>8} {'ratio':>6}")
    rows = []
    for backend in options.backends:
        asked = [options.env, "--env", f"backend={backend}", "--preset", "quick", "--seeds", str(options.seeds),
                 "--chunk-updates", "1"]  # fmt: skip
        for cache, seconds in measure(roots, asked, options.repeats).items():
            own, other = (*seconds, np.nan)[:2]
            rows.append(
                {"env": options.env, "backend": backend, "cache": cache, "seconds": own, "other_seconds": other}
            )
            print(
                f"{options.env + '/' + backend:>16} {cache:>6} {own:14.1f} {other:8.1f} {other / own:6.2f}", flush=True
            )
    if options.json:
        Path(options.json).write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
