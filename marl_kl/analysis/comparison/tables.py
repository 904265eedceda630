"""A comparison as tables, for a terminal and as Markdown: by task and method, and over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from marl_kl.analysis.comparison.estimates import FINAL_SHARE, MIN_RUNS, Comparison, Entry, Estimate, TaskScale
from marl_kl.analysis.summary import markdown_row, mean_and_std, number_text

_TEXTS = ("task", "method")
"""The columns that are no numbers."""


class _Block(NamedTuple):
    """A table: what is said above it, its rows, and the lines that belong inside it at its end."""

    title: str
    header: list[str]
    rows: list[list[str]]
    warnings: tuple[str, ...] = ()


def markdown(comparison: Comparison) -> str:
    """Everything as GitHub Markdown, to be pasted into a paper; warnings are rows of the first table."""
    lines = []
    for block in _blocks(comparison):
        empty = [""] * (len(block.header) - 1)
        lines += [
            f"## {block.title}",
            "",
            markdown_row(block.header),
            markdown_row(["---" if name in _TEXTS else "---:" for name in block.header]),
            *(markdown_row(row) for row in block.rows),
            *(markdown_row([f"**Warning: {text}**", *empty]) for text in block.warnings),
            "",
        ]
    return "\n".join([f"# {_title(comparison)}", "", *lines, *(f"- {note}" for note in notes(comparison))]) + "\n"


def table(comparison: Comparison) -> Group:
    """The same for a terminal."""
    parts = [Text(_title(comparison), style="bold")]
    for block in _blocks(comparison):
        rich_table = Table(*block.header, title=block.title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
        for column in rich_table.columns:
            column.justify = "left" if column.header in _TEXTS else "right"
        for row in block.rows:
            rich_table.add_row(*row)
        parts += [rich_table, *(Text(f"  Warning: {text}", style="bold red") for text in block.warnings), Text("")]
    return Group(*parts, *(Text(f"- {note}") for note in notes(comparison)))


def notes(comparison: Comparison) -> list[str]:
    """What the figures mean and what a reader should know, one sentence each."""
    kind = "deterministic policies, mean over episodes" if comparison.metric == "evaluation" else "sampled actions"
    window = FINAL_SHARE[comparison.metric]
    final = f"final: mean over the last {100 * window:.0f} %" if window else "final: at the end"
    lines = [
        f"{comparison.metric} returns ({kind}); {final} of the env steps that all runs of a task cover; mean on the "
        "way: area under the curve over those steps, divided by their number",
        "IQM: mean of the runs without the lowest and the highest quarter (rounded down); [ ]: 95 % percentile "
        f"bootstrap, {comparison.num_resamples:,} resamples of runs within each task, from {MIN_RUNS} seeds on",
    ]
    if any(scale.threshold is not None for scale in comparison.tasks):
        lines.append(
            "steps to a return: env steps at a run's first measurement at or above it, median over seeds (the later of "
            "two), and how many seeds reached it at all (those that did not count as infinite)"
        )
    if comparison.overall is not None:
        scales = "; ".join(
            f"{scale.name} {number_text(scale.low)} and {number_text(scale.high)}" for scale in comparison.tasks
        )
        lines.append(
            f"normalised: 0 and 1 are the returns {scales} (unless given: mean of all runs at the beginning, best "
            "final return of a single run); every task counts the same in profiles and probabilities"
        )
    return [*lines, *comparison.notes]


def _blocks(comparison: Comparison) -> list[_Block]:
    blocks = [_Block("By task", _header(comparison), _rows(comparison), comparison.warnings)]
    overall = comparison.overall
    if overall is None:
        return blocks
    over = f"over {len(overall.tasks)} tasks" if len(overall.tasks) > 1 else f"on {overall.tasks[0]}"
    better = [f"better than {method}" for method in comparison.methods]
    rows = []
    for index, method in enumerate(comparison.methods):
        chances = [
            "" if other == index else _with_interval(_at(overall.improvement, (index, other)), "{:.2f}".format)
            for other in range(len(comparison.methods))
        ]
        rows.append([method, _with_interval(_at(overall.iqm, index), "{:.3f}".format), *chances])
    return [*blocks, _Block(f"Final return, normalised, {over}", ["method", "IQM [95 %]", *better], rows)]


def _title(comparison: Comparison) -> str:
    tasks = ", ".join(scale.name for scale in comparison.tasks)
    return f"{len(comparison.methods)} method{'s' * (len(comparison.methods) > 1)} on {tasks}"


def _header(comparison: Comparison) -> list[str]:
    task = ["task"] * (len(comparison.tasks) > 1)
    budget = ["KL budget"] * any(comparison.kl_budgets.values())
    header = [
        *task,
        "method",
        *budget,
        "seeds",
        "final: mean ± std",
        "final: IQM [95 %]",
        "mean on the way: IQM [95 %]",
    ]
    levels = [scale.threshold for scale in comparison.tasks]
    if any(level is not None for level in levels):
        header.append(f"steps to {number_text(levels[0])}" if len(set(levels)) == 1 else "steps to threshold")
    return header


def _rows(comparison: Comparison) -> list[list[str]]:
    scales = {scale.name: scale for scale in comparison.tasks}
    return [_cells(comparison, scales[entry.task], entry) for entry in comparison.entries]


def _cells(comparison: Comparison, scale: TaskScale, entry: Entry) -> list[str]:
    cells = [entry.task] * (len(comparison.tasks) > 1) + [entry.method]
    if any(comparison.kl_budgets.values()):
        cells.append(", ".join(f"{budget:g}" for budget in comparison.kl_budgets[entry.method]) or "-")
    cells += [
        str(len(entry.seeds)), mean_and_std(entry.final), _with_interval(entry.final_iqm, number_text),
        _with_interval(entry.area_iqm, number_text),
    ]  # fmt: skip
    if any(other.threshold is not None for other in comparison.tasks):
        cells.append(_steps_text(scale, entry))
    return cells


def _steps_text(scale: TaskScale, entry: Entry) -> str:
    if scale.threshold is None:
        return "-"
    reached = int(np.isfinite(entry.steps_to_threshold).sum())
    # of two middle ones the later: between a number and infinity there is nothing
    median = np.quantile(entry.steps_to_threshold, 0.5, method="higher")
    steps = f"{median:,.0f}" if np.isfinite(median) else f"> {scale.env_steps[-1]:,.0f}"
    return f"{steps} ({reached} of {len(entry.seeds)})"


def _with_interval(estimate: Estimate, text) -> str:
    interval = f" [{text(estimate.lower)}, {text(estimate.upper)}]" if np.isfinite(estimate.lower) else ""
    return f"{text(estimate.value)}{interval}"


def _at(estimate: Estimate, index: int | Sequence[int]) -> Estimate:
    return Estimate(*(values[index] for values in estimate))
