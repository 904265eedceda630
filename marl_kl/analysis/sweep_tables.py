"""The tables of a sweep: one row per setting and seed (CSV), one per setting (Markdown, terminal)."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from marl_kl.analysis.statistics import interquartile_mean
from marl_kl.analysis.summary import iqm_and_interval, markdown_row, mean_and_std, number_text
from marl_kl.results import SweepResult, what_failed
from marl_kl.storage import files, run_tables

MEANING = (
    "untrained, final: return of evaluation episodes (deterministic policies), mean over episodes, then over seeds; "
    "IQM: interquartile mean over seeds with its 95 % bootstrap interval; failed: runs that met a non-finite number, "
    "which are left out of their row's figures"
)


class _Row(NamedTuple):
    """setting: its index. final: [S'] mean returns of the seeds that did not fail. untrained: likewise."""

    setting: int
    untrained: np.ndarray
    final: np.ndarray

    @property
    def score(self) -> float:
        """What settings are ranked by; -inf where there is no figure."""
        iqm = interquartile_mean(self.final) if len(self.final) else np.nan
        return float(iqm) if np.isfinite(iqm) else -np.inf


def write(result: SweepResult) -> None:
    """Writes `table.csv`, `curves.csv` and `summary.md` to `result.out`; each appears whole or not at all.

    Raises:
        RunFolderError: a file cannot be written.
    """
    files.write_file(Path(result.out) / "table.csv", csv_text(result))
    run_tables.write_curves(result.out, result.seeds, result.env_steps, result.metrics)
    files.write_file(Path(result.out) / "summary.md", markdown(result))


def show(result: SweepResult, console: Console | None = None) -> None:
    """Prints the table of settings, best first."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    table = Table(
        *header(result),
        title=title(result),
        caption="\n".join(facts(result)),
        title_justify="left",
        caption_justify="left",
        caption_style="",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    if result.out is not None:
        console.print(f"everything is in {result.out}", soft_wrap=True, markup=False)


def csv_text(result: SweepResult) -> str:
    """One row per setting and seed.

    Columns: setting, the swept fields, seed, untrained_return, final_return, final_length, failure. Returns and lengths
    are means over evaluation episodes. `failure` says what was not finite and in which update, from 1; it is empty in a
    healthy run.
    """
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    names = list(result.settings[0])
    writer.writerow(["setting", *names, "seed", "untrained_return", "final_return", "final_length", "failure"])
    failures = {(failure.setting, failure.seed): failure for failure in result.failures}
    figures = [_mean(x) for x in (result.untrained.episode_return, *result.final)]
    for k, fields in enumerate(result.settings):
        for s, seed in enumerate(result.seeds):
            means = [repr(float(values[k, s])) for values in figures]
            failure = failures.get((k, seed))
            what = "" if failure is None else what_failed(failure)
            writer.writerow([k, *map(cell, fields.values()), seed, *means, what])
    return content.getvalue()


def markdown(result: SweepResult) -> str:
    """One row per setting, best interquartile mean first, with what was run and the failures under it."""
    names = header(result)
    lines = [
        f"# {title(result)}",
        "",
        markdown_row(names),
        markdown_row(["---:"] * len(names)),
        *(markdown_row(row) for row in rows(result)),
        "",
        *(f"- {fact}" for fact in facts(result)),
        "",
        f"{MEANING}.",
    ]
    return "\n".join(lines) + "\n"


def facts(result: SweepResult) -> list[str]:
    """What is true of the sweep as a whole, one line each: extent, times, failures."""
    return [
        *extent(result),
        *times(result),
        *(
            f"setting {failure.setting}, seed {failure.seed} failed: {what_failed(failure)}; it kept its last finite "
            "parameters"
            for failure in result.failures
        ),
    ]


def extent(result: SweepResult) -> list[str]:
    """How much was to be run, and, unless all of it was, how much of it."""
    steps = _steps_per_run(result)
    each = f"{steps.min():,}" if steps.min() == steps.max() else f"{steps.min():,} to {steps.max():,}"
    lines = [f"{len(result.settings)} settings, {len(result.seeds)} seeds each, {each} env steps per run"]
    finished = finished_runs(result)
    if not finished.all():
        lines.append(f"{finished.sum()} of {finished.size} runs are finished; only they have a final return")
    return lines


def times(result: SweepResult) -> list[str]:
    """Where the time went, and env steps per second over all runs; nothing where that is not known."""
    timing = result.timing
    if not np.isfinite(timing).all():
        return []
    made = result.env_steps[:, -1:].sum()  # those of the seeds that have come furthest
    steps = len(result.seeds) * (_steps_per_run(result).sum() if finished_runs(result).all() else made)
    speed = f"; {steps / timing.train:,.0f} env steps/s" if timing.train else ""
    return [f"compile {timing.compile:.1f} s, train {timing.train:.1f} s, evaluate {timing.evaluate:.1f} s{speed}"]


def finished_runs(result: SweepResult) -> np.ndarray:
    """[setting, seed] bool: whether the run was evaluated after its last update."""
    return np.isfinite(result.final.episode_length).all(axis=-1)


def _steps_per_run(result: SweepResult) -> np.ndarray:
    """[setting]."""
    configs = [result.config_of(k) for k in range(len(result.settings))]
    return np.array([config.num_updates * config.batch_size for config in configs])


def title(result: SweepResult) -> str:
    """What was swept, with what, on what."""
    return f"sweep of {', '.join(result.settings[0])}: {result.algorithm} on {result.spec.name}"


def named(result: SweepResult, setting: int) -> str:
    """The swept fields of a setting with their values."""
    return ", ".join(f"{name}={cell(value)}" for name, value in result.settings[setting].items())


def rows(result: SweepResult) -> list[list[str]]:
    """The cells of the table, a row per setting, best interquartile mean first."""
    return [_cells(result, row) for row in _ranked(result)]


def ranking(result: SweepResult) -> list[int]:
    """The settings' indices in the order of the table."""
    return [row.setting for row in _ranked(result)]


def header(result: SweepResult) -> list[str]:
    """The names of the table's columns."""
    return ["setting", *result.settings[0], "untrained", "final: mean ± std", "IQM [95 %]", "failed"]


def _cells(result: SweepResult, row: _Row) -> list[str]:
    fields = result.settings[row.setting]
    num_failed = len({failure.seed for failure in result.failures if failure.setting == row.setting})
    return [
        str(row.setting), *(f"{v:.4g}" if isinstance(v, float) else cell(v) for v in fields.values()),
        _mean_text(row.untrained, with_std=False), _mean_text(row.final), _iqm_text(row.final), str(num_failed),
    ]  # fmt: skip


def _ranked(result: SweepResult) -> list[_Row]:
    """Best interquartile mean first; settings without one last, in their own order."""
    failed = {(failure.setting, failure.seed) for failure in result.failures}
    untrained, final = _mean(result.untrained.episode_return), _mean(result.final.episode_return)
    is_finished = finished_runs(result)
    rows = []
    for k in range(len(result.settings)):
        healthy = np.array([(k, seed) not in failed for seed in result.seeds])
        begun = healthy & (is_finished[k] | np.isfinite(untrained[k]))
        rows.append(_Row(k, untrained[k, begun], final[k, healthy & is_finished[k]]))
    return sorted(rows, key=lambda row: -row.score)


def _mean(episodes: np.ndarray) -> np.ndarray:
    """[setting, seed, episode] -> [setting, seed], in double precision."""
    return np.asarray(episodes, np.float64).mean(axis=-1)


def _mean_text(scores: np.ndarray, with_std: bool = True) -> str:
    if not len(scores):
        return "-"
    return mean_and_std(scores) if with_std and len(scores) > 1 else number_text(scores.mean())


def _iqm_text(scores: np.ndarray) -> str:
    return iqm_and_interval(scores) if len(scores) > 1 else _mean_text(scores)


def cell(value) -> str:
    """A field's value in a cell: as Python reads it back, tuples without brackets as the command line has them."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
