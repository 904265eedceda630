"""`compare`: reads runs, computes the estimates and writes tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

from envs.validation import check_integer
from marl_kl.analysis.comparison import output
from marl_kl.analysis.comparison.estimates import Comparison, estimate
from marl_kl.analysis.comparison.samples import Metric, read


def compare(
    runs: Sequence[str | PathLike],
    *,
    metric: Metric = "evaluation",
    threshold: float | Mapping[str, float] | None = None,
    references: Mapping[str, tuple[float, float]] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    out: str | PathLike | None = None,
) -> Comparison:
    """Compares stored runs, finished or interrupted, and the finished settings of stored sweeps.

    Seeds of runs with the same algorithm and config are pooled; methods are labelled by algorithm and by the config
    fields in which they differ on some task.

    Args:
        runs: folders of runs, and of sweeps, each of whose settings counts as a run.
        metric: "evaluation" (returns of evaluation episodes, deterministic policies) or "training" (returns of training
            episodes, stochastic policies).
        threshold: a return to reach, for all tasks or by task; None: none.
        references: task -> the returns (low, high) that are normalised to 0 and 1; by default the mean return of all
            runs on the task at the beginning of the grid (evaluation: of untrained policies) and the best final return
            of a single run.
        bootstrap: number of resamples.
        seed: of the bootstrap.
        out: folder for `comparison.md`, the figures as PNG and PDF, and `marl_eval.json`, created if missing; None
            writes nothing.

    Raises:
        ValueError: an invalid argument, or runs that cannot be compared.
        RunFolderError: a folder without a readable run, or `out` is not writable.
    """
    for name, value, least in (("bootstrap", bootstrap, 1), ("seed", seed, 0)):
        check_integer(name, value, least)
    comparison = estimate(
        read(runs, metric), metric, threshold=threshold, references=references, num_resamples=int(bootstrap),
        seed=int(seed),
    )  # fmt: skip
    if out is not None:
        output.write(comparison, out)
    return comparison
