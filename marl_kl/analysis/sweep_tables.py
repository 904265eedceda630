"""The tables of a sweep: one row per setting and seed (CSV), one row per setting (Markdown, terminal)."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from marl_kl.analysis.decoration import decoration
from marl_kl.analysis.statistics import interquartile_mean
from marl_kl.analysis.text_tables import (
    STATISTICS,
    html_table,
    iqm_and_interval,
    markdown_table,
    mean_and_std,
    number_text,
    terminal_table,
    wide_console,
)
from marl_kl.results import SweepResult, what_failed
from marl_kl.storage import files, run_tables

_RETURN_COLUMNS = (
    "evaluation return, untrained",
    "evaluation return, final: mean ± std",
    "evaluation return, final: IQM [95 %]",
)
MEANING = (
    "evaluation return: mean over evaluation episodes (deterministic policies), then over seeds; failed: number of failed "
    f"runs (a non-finite number), which are left out of the other columns; {STATISTICS}"
)


class _SettingReturns(NamedTuple):
    """Evaluation returns of a setting's seeds that did not fail: untrained [S'], final [S'']."""

    setting: int
    untrained: np.ndarray
    final: np.ndarray

    @property
    def rank_key(self) -> float:
        """The interquartile mean of final returns; -inf without one."""
        iqm = interquartile_mean(self.final) if len(self.final) else np.nan
        return float(iqm) if np.isfinite(iqm) else -np.inf


def write(result: SweepResult) -> None:
    """Writes `table.csv`, `curves.csv` and `summary.md` to `result.out`; each is written atomically.

    Raises:
        RunFolderError: one of the first two cannot be written; `summary.md`, which only repeats them, costs a warning.
    """
    files.write_file(Path(result.out) / "table.csv", csv_text(result))
    run_tables.write_curves(result.out, result.seeds, result.env_steps, result.metrics)
    with decoration(f"summary.md in {result.out}"):
        files.write_file(Path(result.out) / "summary.md", markdown(result))


def show(result: SweepResult, console: Console | None = None) -> None:
    """Prints the table of settings, best first."""
    console = wide_console(console)
    table = terminal_table(header(result), title(result), notes(result), text_columns=len(header(result)))
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    if result.out is not None:
        console.print(f"results are in {result.out}", soft_wrap=True, markup=False)


def csv_text(result: SweepResult) -> str:
    """One row per setting and seed.

    Columns: setting, the swept fields, seed, untrained_return, final_return, final_length, failure. Returns and lengths
    are means over evaluation episodes. `failure` names the quantity that was not finite and the update, from 1; it is
    empty otherwise.
    """
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    names = list(result.settings[0])
    writer.writerow(["setting", *names, "seed", "untrained_return", "final_return", "final_length", "failure"])
    failures = {(failure.setting, failure.seed): failure for failure in result.failures}
    columns = [_mean(x) for x in (result.untrained.episode_return, *result.final)]
    for k, fields in enumerate(result.settings):
        for s, seed in enumerate(result.seeds):
            means = [repr(float(values[k, s])) for values in columns]
            failure = failures.get((k, seed))
            reason = "" if failure is None else what_failed(failure)
            writer.writerow([k, *map(cell, fields.values()), seed, *means, reason])
    return content.getvalue()


def markdown(result: SweepResult) -> str:
    """One row per setting, best interquartile mean first, with `notes` below it."""
    lines = [
        f"# {title(result)}",
        "",
        *markdown_table(header(result), rows(result), text_columns=0),
        "",
        *(f"- {note}" for note in notes(result)),
        "",
        f"{MEANING}.",
    ]
    return "\n".join(lines) + "\n"


def html(result: SweepResult) -> str:
    """The same table for a notebook."""
    return html_table(title(result), header(result), rows(result), notes(result))


def notes(result: SweepResult) -> list[str]:
    """Size, times and failures of the sweep, one line each."""
    return [
        *size(result),
        *times(result),
        *(
            f"setting {failure.setting}, seed {failure.seed} failed: {what_failed(failure)}; it kept its last finite "
            "parameters"
            for failure in result.failures
        ),
    ]


def size(result: SweepResult) -> list[str]:
    """Numbers of settings, seeds and env steps and, of an unfinished sweep, of finished runs."""
    steps = _steps_per_run(result)
    each = f"{steps.min():,}" if steps.min() == steps.max() else f"{steps.min():,} to {steps.max():,}"
    lines = [f"{len(result.settings)} settings, {len(result.seeds)} seeds each, {each} env steps per run"]
    finished = finished_runs(result)
    if not finished.all():
        lines.append(f"{finished.sum()} of {finished.size} runs are finished; only these have a final return")
    return lines


def times(result: SweepResult) -> list[str]:
    """Seconds by kind, and env steps per second over all runs; empty if unknown."""
    timing = result.timing
    if not np.isfinite(timing).all():
        return []
    made = result.env_steps[:, -1:].sum()  # of the seed that has made most updates
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
    """Swept fields, algorithm and environment."""
    return f"sweep of {', '.join(result.settings[0])}: {result.algorithm} on {result.spec.name}"


def setting_text(result: SweepResult, setting: int) -> str:
    """A setting as `field=value, ...`."""
    return ", ".join(f"{name}={cell(value)}" for name, value in result.settings[setting].items())


def rows(result: SweepResult) -> list[list[str]]:
    """The cells of the table, a row per setting, best interquartile mean first."""
    return [_cells(result, row) for row in _ranked(result)]


def ranking(result: SweepResult) -> list[int]:
    """The settings' indices in the order of the table."""
    return [row.setting for row in _ranked(result)]


def header(result: SweepResult) -> list[str]:
    """The names of the table's columns."""
    return ["setting", *result.settings[0], *_RETURN_COLUMNS, "failed"]


def _cells(result: SweepResult, row: _SettingReturns) -> list[str]:
    fields = result.settings[row.setting]
    num_failed = len({failure.seed for failure in result.failures if failure.setting == row.setting})
    return [
        str(row.setting), *(f"{v:.4g}" if isinstance(v, float) else cell(v) for v in fields.values()),
        number_text(row.untrained.mean()) if len(row.untrained) else "-", mean_and_std(row.final),
        iqm_and_interval(row.final), str(num_failed),
    ]  # fmt: skip


def _ranked(result: SweepResult) -> list[_SettingReturns]:
    """Best interquartile mean first; settings without one last, in order of index."""
    failed = {(failure.setting, failure.seed) for failure in result.failures}
    untrained, final = _mean(result.untrained.episode_return), _mean(result.final.episode_return)
    is_finished = finished_runs(result)
    found = []
    for k in range(len(result.settings)):
        healthy = np.array([(k, seed) not in failed for seed in result.seeds])
        has_untrained = healthy & (is_finished[k] | np.isfinite(untrained[k]))
        found.append(_SettingReturns(k, untrained[k, has_untrained], final[k, healthy & is_finished[k]]))
    return sorted(found, key=lambda row: -row.rank_key)


def scores(result: SweepResult) -> list[float]:
    """Per setting what `ranking` sorts by: the interquartile mean of the final returns; -inf without one."""
    return [row.rank_key for row in sorted(_ranked(result), key=lambda row: row.setting)]


def final_returns(result: SweepResult) -> list[np.ndarray]:
    """Per setting the final evaluation returns [S'] of the seeds that are finished and did not fail."""
    return [row.final for row in sorted(_ranked(result), key=lambda row: row.setting)]


def _mean(episodes: np.ndarray) -> np.ndarray:
    """[setting, seed, episode] -> [setting, seed], in double precision."""
    return np.asarray(episodes, np.float64).mean(axis=-1)


def cell(value) -> str:
    """A field's value as on the command line: as Python reads it, tuples without brackets."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
