"""The summary of a run: a table per seed and over seeds, for a terminal and as Markdown.

"Evaluation return" is that of evaluation episodes, played by the deterministic policies; "training return" that of the
episodes of training, played by the stochastic ones.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from rich.table import Table

from marl_kl.analysis.statistics import MIN_RUNS
from marl_kl.analysis.text_tables import (
    STATISTICS,
    duration_text,
    html_table,
    iqm_and_interval,
    markdown_table,
    mean_and_std,
    number_text,
    percent_text,
    terminal_table,
)
from marl_kl.results import TrainResult, what_failed

RETURN_COLUMNS = ("evaluation return, untrained", "evaluation return, final", "training return, last")
_RETURNS_MEANING = (
    "evaluation return: mean over evaluation episodes (deterministic policies); training return: mean over the last "
    "training episodes (stochastic policies)"
)


class _Column(NamedTuple):
    """A column after the returns: what the updates did.

    Attributes:
        name: in the header. meaning: for the line below the table.
        values: [S]. over_seeds: reduces them to one number. text: number -> cell.
    """

    name: str
    meaning: str
    values: np.ndarray
    over_seeds: Callable[[np.ndarray], float]
    text: Callable[[float], str]


def table(result: TrainResult, notes: Sequence[str] | None = None) -> Table:
    """Per seed and over seeds: returns, KL spent, accepted steps or clipped samples, as far as the algorithm reports them.

    Failed seeds have a row and are left out of the rows over seeds.

    Args:
        result: the run.
        notes: lines below the table; None: `process_notes`.
    """
    rich_table = terminal_table(header(result), _title(result), process_notes(result) if notes is None else notes)
    per_seed, over_seeds = rows(result)
    for row in per_seed:
        rich_table.add_row(*row)
    rich_table.add_section()
    for row in over_seeds:
        rich_table.add_row(*row, style="bold")
    return rich_table


def markdown(result: TrainResult) -> str:
    """The same table as GitHub Markdown, with `process_notes` as a list below it."""
    per_seed, over_seeds = rows(result)
    lines = [
        f"# {_title(result)}",
        "",
        *markdown_table(header(result), [*per_seed, *over_seeds]),
        "",
        *(f"- {note}" for note in process_notes(result)),
        "",
        f"{meanings(result)}.",
    ]
    return "\n".join(lines) + "\n"


def html(result: TrainResult) -> str:
    """The same table for a notebook, with `run_notes`."""
    per_seed, over_seeds = rows(result)
    return html_table(_title(result), header(result), [*per_seed, *over_seeds], run_notes(result))


def process_notes(result: TrainResult) -> list[str]:
    """`run_notes` of a run that this process has made, with the peak memory of the process."""
    extent, times, *failures = run_notes(result)
    return [extent, f"{times}; peak memory of the process {_peak_memory_text()}", *failures]


def run_notes(result: TrainResult) -> list[str]:
    """Length and speed, times, and failures of a run, one line each."""
    timing = result.timing
    steps = int(result.env_steps[-1]) if len(result.env_steps) else 0
    speed = f"; {result.steps_per_second:,.0f} env steps/s over all seeds" if steps and timing.train > 0 else ""
    times = (
        f"compile {timing.compile:.1f} s, train {timing.train:.1f} s, evaluate {timing.evaluate:.1f} s; "
        f"{duration_text(sum(timing))} in all"
    )
    lines = [
        f"{steps:,} env steps per seed, {len(result.env_steps)} updates{speed}",
        times if np.isfinite(timing).all() else "times unknown",
    ]
    for failure in result.failures:
        lines.append(
            f"seed {failure.seed} failed: {what_failed(failure)}; "
            "it kept its last finite parameters and is left out of the rows over seeds"
        )
    return lines


def meanings(result: TrainResult) -> str:
    """What the columns of the table mean."""
    return "; ".join([_RETURNS_MEANING, *(column.meaning for column in _columns(result) if column.meaning), STATISTICS])


def header(result: TrainResult) -> list[str]:
    """The names of the table's columns."""
    return ["seed", *RETURN_COLUMNS, *(column.name for column in _columns(result))]


def rows(result: TrainResult) -> tuple[list[list[str]], list[list[str]]]:
    """The cells of one row per seed, and of the rows over seeds."""
    returns = (_evaluation_return(result, 0), _evaluation_return(result, -1), _last_training_return(result))
    columns = _columns(result)
    failed = {failure.seed for failure in result.failures}
    per_seed = [
        [f"{seed} (failed)" if seed in failed else str(seed)]
        + [number_text(column[i]) for column in returns]
        + [column.text(column.values[i]) for column in columns]
        for i, seed in enumerate(result.seeds)
    ]
    healthy = np.array([seed not in failed for seed in result.seeds])
    if healthy.sum() < 2:
        return per_seed, []
    updates = [column.text(column.over_seeds(column.values[healthy])) for column in columns]
    over_seeds = [["mean ± std", *(mean_and_std(column[healthy]) for column in returns), *updates]]
    if healthy.sum() >= MIN_RUNS:
        empty = [""] * len(columns)
        over_seeds.append(["IQM [95 %]", *(iqm_and_interval(column[healthy]) for column in returns), *empty])
    return per_seed, over_seeds


def _title(result: TrainResult) -> str:
    seeds = f"seed {result.seeds[0]}" if len(result.seeds) == 1 else f"{len(result.seeds)} seeds"
    return f"{result.algorithm} on {result.spec.name}, {seeds}"


def _peak_memory_text() -> str:
    """Of this process so far and, if the backend reports it, of the device."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux reports KiB, macOS bytes.
    text = f"{largest / (2**30 if sys.platform == 'darwin' else 2**20):.2f} GiB"
    device_peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return text if device_peak is None else f"{text}, of the device {device_peak / 2**30:.2f} GiB"


def _columns(result: TrainResult) -> list[_Column]:
    columns = []
    budget = getattr(result.config, "kl_budget", None)
    if "kl_total" in result.metrics:
        kl = _metric(result, "kl_total") / (1.0 if budget is None else float(budget))
        what = "sum over agents" if budget is None else "share of the budget"
        meaning = f"KL: {what}, mean and maximum over updates"
        text = number_text if budget is None else percent_text
        columns += [
            _Column("KL spent", meaning, _finite_reduce(np.mean, kl), np.mean, text),
            _Column("KL at most", "", _finite_reduce(np.max, kl), np.max, text),
        ]
    if "step_fraction" in result.metrics:
        meaning = "accepted: share of line searches that found a step"
        fraction = _metric(result, "step_fraction")
        shares = _finite_reduce(np.mean, np.where(np.isfinite(fraction), fraction > 0, np.nan))
        columns.append(_Column("accepted", meaning, shares, np.mean, percent_text))
    if "clip_fraction" in result.metrics:
        meaning = "beyond clip: share of samples whose final ratio is further than clip_eps from 1"
        shares = _finite_reduce(np.mean, _metric(result, "clip_fraction"))
        columns.append(_Column("beyond clip", meaning, shares, np.mean, percent_text))
    if "q_mean" in result.metrics:
        for name, metric in (("mean Q", "q_mean"), ("Q loss", "q_loss")):
            last = np.asarray(result.metrics[metric], np.float64)[:, -1]
            columns.append(_Column(name, f"{name}: in the last update", last, np.mean, number_text))
    return columns


def _evaluation_return(result: TrainResult, index: int) -> np.ndarray:
    """[S] mean over episodes of the untrained (index 0) or the last evaluation (-1); NaN if there is none."""
    update = np.asarray(result.evaluation.update)
    if not len(update) or (update[index] == 0) != (index == 0):
        return np.full(len(result.seeds), np.nan)
    return np.asarray(result.evaluation.episode_return, dtype=np.float64)[:, index].mean(axis=-1)


def _last_training_return(result: TrainResult) -> np.ndarray:
    """[S]."""
    return _finite_reduce(lambda finite: finite[-1], _metric(result, "episode_return"))


def _metric(result: TrainResult, name: str) -> np.ndarray:
    """[S, ...] in double precision; [S, 0] if the algorithm does not report it."""
    return np.asarray(result.metrics.get(name, np.empty((len(result.seeds), 0))), dtype=np.float64)


def _finite_reduce(reduce: Callable, values: np.ndarray) -> np.ndarray:
    """[S, ...] -> [S] over finite values; NaN if there are none (NumPy's own nan-functions would warn)."""
    return np.array([reduce(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values])
