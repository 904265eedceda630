"""The table at the end of a run, for a terminal and as Markdown."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from rich import box
from rich.table import Table

from marl_kl.analysis.statistics import bootstrap_interval, interquartile_mean
from marl_kl.results import EpisodeStatistics, TrainResult, what_failed

_RETURNS = ("untrained", "final", "training")
_RETURNS_MEAN = (
    "untrained, final: return of evaluation episodes (deterministic policies), mean over episodes; "
    "training: return of the last training episodes (sampled actions)"
)


class _Column(NamedTuple):
    """What the updates did, beside the returns.

    Attributes:
        name: header. meaning: for the line under the table.
        values: [S]; over seeds they are reduced by `over_seeds`. text: number -> cell.
    """

    name: str
    meaning: str
    values: np.ndarray
    over_seeds: Callable[[np.ndarray], float]
    text: Callable[[float], str]


def table(result: TrainResult, notes: Sequence[str] | None = None) -> Table:
    """Per seed and over seeds: evaluation return before and after, KL spent, accepted steps or clipped samples.

    Which columns there are depends on what the algorithm reports.

    Seeds that failed have a row and are left out of the rows over seeds. Under it stand `notes`; None: speed, times,
    memory and failures of a run that this process has made (`facts`).
    """
    notes = facts(result) if notes is None else notes
    rich_table = Table(
        *header(result),
        title=_title(result),
        caption="\n".join(notes),
        title_justify="left",
        caption_justify="left",
        caption_style="",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for column in rich_table.columns[1:]:
        column.justify = "right"
    per_seed, over_seeds = rows(result)
    for row in per_seed:
        rich_table.add_row(*row)
    rich_table.add_section()
    for row in over_seeds:
        rich_table.add_row(*row, style="bold")
    return rich_table


def markdown(result: TrainResult) -> str:
    """The same table as GitHub Markdown, with the facts as a list under it."""
    per_seed, over_seeds = rows(result)
    lines = [
        f"# {_title(result)}",
        "",
        markdown_row(header(result)),
        markdown_row(["---", *["---:"] * (len(header(result)) - 1)]),
        *(markdown_row(row) for row in (*per_seed, *over_seeds)),
        "",
        *(f"- {fact}" for fact in facts(result)),
        "",
        f"{meanings(result)}.",
    ]
    return "\n".join(lines) + "\n"


def facts(result: TrainResult) -> list[str]:
    """What is true of a run that this process has made, one line each: speed, times, memory, failures."""
    extent, times, *failures = stored_facts(result)
    return [extent, f"{times}; peak memory of the process {peak_memory_text()}", *failures]


def meanings(result: TrainResult) -> str:
    """What the columns of the table are."""
    return "; ".join([_RETURNS_MEAN, *(column.meaning for column in _columns(result) if column.meaning)])


def stored_facts(result: TrainResult) -> list[str]:
    """What is true of any run as a whole, one line each: extent and speed, times, failures."""
    timing = result.timing
    steps = int(result.env_steps[-1]) if len(result.env_steps) else 0
    speed = f"{result.steps_per_second:,.0f}" if steps and timing.train > 0 else "-"
    times = f"compile {timing.compile:.1f} s, train {timing.train:.1f} s, evaluate {timing.evaluate:.1f} s"
    lines = [
        f"{steps:,} env steps per seed, {len(result.env_steps)} updates; {speed} env steps/s over all seeds",
        times if np.isfinite(timing).all() else "how long it took is not known",
    ]
    for failure in result.failures:
        lines.append(
            f"seed {failure.seed} failed: {what_failed(failure)}; "
            "it kept its last finite parameters and is left out of the rows over seeds"
        )
    return lines


class Scores(NamedTuple):
    """Evaluation episodes of a run's teams.

    Attributes:
        physics: in which they were played, for the heads of the columns.
        statistics: [seed, episode].
    """

    physics: str
    statistics: EpisodeStatistics


def evaluation_table(title: str, seeds: Sequence[int], scores: Sequence[Scores], notes: Sequence[str]) -> Table:
    """Per seed the return and the length of evaluation episodes, mean ± std over episodes, in each physics; below
    them mean ± std over the seeds' means."""
    heads = [f"{what} in {score.physics}" for score in scores for what in ("return", "length")]
    rich_table = Table(
        "seed",
        *heads,
        title=title,
        caption="\n".join(notes),
        title_justify="left",
        caption_justify="left",
        caption_style="",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for column in rich_table.columns[1:]:
        column.justify = "right"
    columns = [np.asarray(values, np.float64) for score in scores for values in score.statistics]
    for index, seed in enumerate(seeds):
        rich_table.add_row(str(seed), *(mean_and_std(values[index]) for values in columns))
    if len(seeds) > 1:
        rich_table.add_section()
        rich_table.add_row("mean ± std", *(mean_and_std(values.mean(axis=-1)) for values in columns), style="bold")
    return rich_table


def peak_memory_text() -> str:
    """The largest memory of this process so far and, where the device counts, of the device."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux reports KiB, macOS bytes.
    text = f"{largest / (2**30 if sys.platform == 'darwin' else 2**20):.2f} GiB"
    device_peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return text if device_peak is None else f"{text}, of the device {device_peak / 2**30:.2f} GiB"


def _title(result: TrainResult) -> str:
    seeds = f"seed {result.seeds[0]}" if len(result.seeds) == 1 else f"{len(result.seeds)} seeds"
    return f"{result.algorithm} on {result.spec.name}, {seeds}"


def header(result: TrainResult) -> list[str]:
    """The names of the table's columns."""
    return ["seed", *_RETURNS, *(column.name for column in _columns(result))]


def _columns(result: TrainResult) -> list[_Column]:
    """The columns after the returns: of what the algorithm reports."""
    columns = []
    budget = getattr(result.config, "kl_budget", None)
    if "kl_total" in result.metrics:
        kl = _metric(result, "kl_total") / (1.0 if budget is None else float(budget))
        what = "sum over agents" if budget is None else "share of the budget"
        meaning = f"KL: {what}, mean and maximum over updates"
        text = number_text if budget is None else _percent
        columns += [
            _Column("KL spent", meaning, _nan_reduce(np.mean, kl), np.mean, text),
            _Column("KL at most", "", _nan_reduce(np.max, kl), np.max, text),
        ]
    if "step_fraction" in result.metrics:
        meaning = "accepted: share of line searches that found a step"
        columns.append(_Column("accepted", meaning, _accepted(result), np.mean, _percent))
    if "clip_fraction" in result.metrics:
        meaning = "beyond clip: share of samples whose ratio ended further than clip_eps from 1"
        shares = _nan_reduce(np.mean, _metric(result, "clip_fraction"))
        columns.append(_Column("beyond clip", meaning, shares, np.mean, _percent))
    return columns


def rows(result: TrainResult) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of one seed each, rows over seeds."""
    returns = (_evaluation(result, first=True), _evaluation(result, first=False), _last_finite(result))
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
    over_all = [column.text(column.over_seeds(column.values[healthy])) for column in columns]
    over_seeds = [["mean ± std", *(mean_and_std(column[healthy]) for column in returns), *over_all]]
    if healthy.sum() >= 3:
        empty = [""] * len(columns)
        over_seeds.append(["IQM [95 %]", *(iqm_and_interval(column[healthy]) for column in returns), *empty])
    return per_seed, over_seeds


def _evaluation(result: TrainResult, first: bool) -> np.ndarray:
    """[S] mean over episodes of the untrained or the last evaluation; NaN where there is none."""
    update = np.asarray(result.evaluation.update)
    if not len(update) or (update[0] != 0 if first else update[-1] == 0):
        return np.full(len(result.seeds), np.nan)
    returns = np.asarray(result.evaluation.episode_return, dtype=np.float64)
    return returns[:, 0 if first else -1].mean(axis=-1)


def _last_finite(result: TrainResult) -> np.ndarray:
    """[S] the last training return that is a number."""
    return _nan_reduce(lambda finite: finite[-1], _metric(result, "episode_return"))


def _accepted(result: TrainResult) -> np.ndarray:
    """[S] share of line searches that found a step."""
    fraction = _metric(result, "step_fraction")
    return _nan_reduce(np.mean, np.where(np.isfinite(fraction), fraction > 0, np.nan))


def _metric(result: TrainResult, name: str) -> np.ndarray:
    """[S, ...] in double precision; [S, 0] if the algorithm does not report it."""
    return np.asarray(result.metrics.get(name, np.empty((len(result.seeds), 0))), dtype=np.float64)


def _nan_reduce(reduce, values: np.ndarray) -> np.ndarray:
    """[S, ...] -> [S], over what is finite; NaN where nothing is (numpy's own nan-functions would warn)."""
    return np.array([reduce(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values])


def mean_and_std(values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "-"
    if len(values) == 1:
        return number_text(values[0])
    return f"{number_text(values.mean())} ± {number_text(values.std(ddof=1))}"


def iqm_and_interval(values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "-"
    lower, upper = bootstrap_interval(values)
    return f"{number_text(interquartile_mean(values))} [{number_text(lower)}, {number_text(upper)}]"


def number_text(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if np.isfinite(share) else "-"


def markdown_row(cells) -> str:
    return f"| {' | '.join(cells)} |"
