"""A comparison as tables, for a terminal and as Markdown: by task and method, and over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from rich.console import Group
from rich.text import Text

from marl_kl.analysis.comparison.estimates import (
    FINAL_SHARE,
    Comparison,
    IntervalEstimate,
    MethodEstimates,
    TaskScale,
)
from marl_kl.analysis.text_tables import (
    STATISTICS,
    html_table,
    markdown_row,
    markdown_table,
    mean_and_std,
    number_text,
    terminal_table,
)


class _Block(NamedTuple):
    """A table with its title, and warnings as its last rows."""

    title: str
    header: list[str]
    rows: list[list[str]]
    text_columns: int
    warnings: tuple[str, ...] = ()


def markdown(comparison: Comparison) -> str:
    """All tables and notes as GitHub Markdown; warnings are rows of the first table."""
    lines = []
    for block in _blocks(comparison):
        empty = [""] * (len(block.header) - 1)
        lines += [
            f"## {block.title}",
            "",
            *markdown_table(block.header, block.rows, block.text_columns),
            *(markdown_row([f"**Warning: {text}**", *empty]) for text in block.warnings),
            "",
        ]
    return "\n".join([f"# {_title(comparison)}", "", *lines, *(f"- {note}" for note in notes(comparison))]) + "\n"


def table(comparison: Comparison) -> Group:
    """The same for a terminal."""
    parts = [Text(_title(comparison), style="bold")]
    for block in _blocks(comparison):
        rich_table = terminal_table(block.header, block.title, text_columns=block.text_columns)
        for row in block.rows:
            rich_table.add_row(*row)
        parts += [rich_table, *(Text(f"  Warning: {text}", style="bold red") for text in block.warnings), Text("")]
    return Group(*parts, *(Text(f"- {note}") for note in notes(comparison)))


def html(comparison: Comparison) -> str:
    """The same for a notebook, warnings first."""
    warnings = [f"Warning: {text}" for text in comparison.warnings]
    blocks = _blocks(comparison)
    tables = [
        html_table(block.title, block.header, block.rows, () if block is not blocks[-1] else notes(comparison))
        for block in blocks
    ]
    return "".join([*(f"<p><b>{escape(text)}</b></p>" for text in warnings), *tables])


def notes(comparison: Comparison) -> list[str]:
    """What the columns mean, and the comparison's own notes."""
    policies = "deterministic" if comparison.metric == "evaluation" else "stochastic"
    share = FINAL_SHARE[comparison.metric]
    final = f"mean over the last {100 * share:.0f} % of" if share else "at the end of"
    lines = [
        f"{comparison.metric} return: of {comparison.metric} episodes, {policies} policies; final return: {final} the env "
        "steps that all runs of a task cover; mean return: area under the curve divided by those env steps",
        f"over seeds, {STATISTICS}, with {comparison.num_resamples:,} resamples of runs within each task",
    ]
    if any(scale.threshold is not None for scale in comparison.tasks):
        lines.append(
            "steps to a return: env steps at a run's first measurement at or above it; median over seeds (the larger of "
            "two middle ones, infinite for seeds that did not reach it), and how many seeds reached it"
        )
    if comparison.overall is not None:
        scales = "; ".join(
            f"{scale.name} {number_text(scale.low)} and {number_text(scale.high)}" for scale in comparison.tasks
        )
        lines.append(
            f"normalised return: 0 and 1 are the returns {scales} (unless given: initial mean over all runs, best final "
            "return of a single run); tasks have equal weight in profiles and probabilities"
        )
    return [*lines, *comparison.notes]


def _blocks(comparison: Comparison) -> list[_Block]:
    blocks = [
        _Block(
            f"{comparison.metric.capitalize()} returns by task", _header(comparison), _rows(comparison),
            1 + _has_task_column(comparison), comparison.warnings,
        )
    ]  # fmt: skip
    overall = comparison.overall
    if overall is None:
        return blocks
    over = f"over {len(overall.tasks)} tasks" if len(overall.tasks) > 1 else f"on {overall.tasks[0]}"
    better = [f"better than {method}" for method in comparison.methods]
    rows = []
    for index, method in enumerate(comparison.methods):
        probabilities = [
            "" if other == index else _with_interval(_at(overall.improvement, (index, other)), "{:.2f}".format)
            for other in range(len(comparison.methods))
        ]
        rows.append([method, _with_interval(_at(overall.iqm, index), "{:.3f}".format), *probabilities])
    title = f"Normalised final {comparison.metric} return {over}"
    return [*blocks, _Block(title, ["method", "IQM [95 %]", *better], rows, 1)]


def _title(comparison: Comparison) -> str:
    tasks = ", ".join(scale.name for scale in comparison.tasks)
    return f"{len(comparison.methods)} method{'s' * (len(comparison.methods) > 1)} on {tasks}"


def _has_task_column(comparison: Comparison) -> bool:
    return len(comparison.tasks) > 1


def _header(comparison: Comparison) -> list[str]:
    task = ["task"] * _has_task_column(comparison)
    budget = ["KL budget"] * any(comparison.kl_budgets.values())
    returns = ["final return: mean ± std", "final return: IQM [95 %]", "mean return: IQM [95 %]"]
    header = [*task, "method", *budget, "seeds", *returns]
    levels = [scale.threshold for scale in comparison.tasks]
    if any(level is not None for level in levels):
        header.append(f"steps to {number_text(levels[0])}" if len(set(levels)) == 1 else "steps to threshold")
    return header


def _rows(comparison: Comparison) -> list[list[str]]:
    scales = {scale.name: scale for scale in comparison.tasks}
    return [_cells(comparison, scales[entry.task], entry) for entry in comparison.entries]


def _cells(comparison: Comparison, scale: TaskScale, entry: MethodEstimates) -> list[str]:
    cells = [entry.task] * _has_task_column(comparison) + [entry.method]
    if any(comparison.kl_budgets.values()):
        cells.append(", ".join(f"{budget:g}" for budget in comparison.kl_budgets[entry.method]) or "-")
    cells += [
        str(len(entry.seeds)), mean_and_std(entry.final), _with_interval(entry.final_iqm, number_text),
        _with_interval(entry.area_iqm, number_text),
    ]  # fmt: skip
    if any(other.threshold is not None for other in comparison.tasks):
        cells.append(_steps_text(scale, entry))
    return cells


def _steps_text(scale: TaskScale, entry: MethodEstimates) -> str:
    if scale.threshold is None:
        return "-"
    reached = int(np.isfinite(entry.steps_to_threshold).sum())
    # "higher": the mean of a number and infinity would be infinite
    median = np.quantile(entry.steps_to_threshold, 0.5, method="higher")
    steps = f"{median:,.0f}" if np.isfinite(median) else f"> {scale.env_steps[-1]:,.0f}"
    return f"{steps} ({reached} of {len(entry.seeds)})"


def _with_interval(estimate: IntervalEstimate, text) -> str:
    interval = f" [{text(estimate.lower)}, {text(estimate.upper)}]" if np.isfinite(estimate.lower) else ""
    return f"{text(estimate.value)}{interval}"


def _at(estimate: IntervalEstimate, index: int | Sequence[int]) -> IntervalEstimate:
    return IntervalEstimate(*(values[index] for values in estimate))
