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

from marl_kl import files
from marl_kl.results import SweepResult, what_failed
from marl_kl.statistics import interquartile_mean
from marl_kl.summary import iqm_and_interval, markdown_row, mean_and_std, number_text

_MEANING = (
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
    """Writes `table.csv` and `summary.md` to `result.out`; each appears whole or not at all.

    Raises:
        RunFolderError: a file cannot be written.
    """
    files.write_file(Path(result.out) / "table.csv", csv_text(result))
    files.write_file(Path(result.out) / "summary.md", markdown(result))


def show(result: SweepResult, console: Console | None = None) -> None:
    """Prints the table of settings, best first."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        # A log has no width; the 80 columns that rich assumes would break the table's lines.
        console.width = max(console.width, 120)
    table = Table(
        *_header(result), title=_title(result), caption="\n".join(facts(result)), title_justify="left",
        caption_justify="left", caption_style="", title_style="bold", box=box.SIMPLE_HEAD,
    )
    for row in _ranked(result):
        table.add_row(*_cells(result, row))
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
            writer.writerow([k, *map(_value, fields.values()), seed, *means, "" if failure is None else what_failed(failure)])
    return content.getvalue()


def markdown(result: SweepResult) -> str:
    """One row per setting, best interquartile mean first, with what was run and the failures under it."""
    header = _header(result)
    lines = [
        f"# {_title(result)}",
        "",
        markdown_row(header),
        markdown_row(["---:"] * len(header)),
        *(markdown_row(_cells(result, row)) for row in _ranked(result)),
        "",
        *(f"- {fact}" for fact in facts(result)),
        "",
        f"{_MEANING}.",
    ]
    return "\n".join(lines) + "\n"


def facts(result: SweepResult) -> list[str]:
    """What is true of the sweep as a whole, one line each: extent, times, failures."""
    timing = result.timing
    steps = result.env_steps[:, -1]
    extent = f"{steps.min():,}" if steps.min() == steps.max() else f"{steps.min():,} to {steps.max():,}"
    return [
        f"{len(result.settings)} settings, {len(result.seeds)} seeds each, {extent} env steps per run",
        f"compile {timing.compile:.1f} s, train {timing.train:.1f} s, evaluate {timing.evaluate:.1f} s",
        *(
            f"setting {failure.setting}, seed {failure.seed} failed: {what_failed(failure)}; it kept its last finite "
            "parameters"
            for failure in result.failures
        ),
    ]


def _title(result: SweepResult) -> str:
    return f"sweep of {', '.join(result.settings[0])}: {result.algorithm} on {result.spec.name}"


def _header(result: SweepResult) -> list[str]:
    return ["setting", *result.settings[0], "untrained", "final: mean ± std", "IQM [95 %]", "failed"]


def _cells(result: SweepResult, row: _Row) -> list[str]:
    fields = result.settings[row.setting]
    num_failed = len(result.seeds) - len(row.final)
    return [
        str(row.setting), *(f"{v:.4g}" if isinstance(v, float) else _value(v) for v in fields.values()),
        _mean_text(row.untrained, with_std=False), _mean_text(row.final), _iqm_text(row.final), str(num_failed),
    ]  # fmt: skip


def _ranked(result: SweepResult) -> list[_Row]:
    """Best interquartile mean first; settings without one last, in their own order."""
    failed = {(failure.setting, failure.seed) for failure in result.failures}
    untrained, final = _mean(result.untrained.episode_return), _mean(result.final.episode_return)
    rows = []
    for k in range(len(result.settings)):
        healthy = np.array([(k, seed) not in failed for seed in result.seeds])
        rows.append(_Row(k, untrained[k, healthy], final[k, healthy]))
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


def _value(value) -> str:
    """A field's value in a cell: as Python reads it back, tuples without brackets as the command line has them."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
