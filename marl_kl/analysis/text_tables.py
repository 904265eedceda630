"""Tables as text, for a terminal and as Markdown, and numbers in their cells."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import measure_renderables
from rich.table import Table
from rich.text import Text

from marl_kl.analysis.statistics import MIN_RUNS, bootstrap_interval, interquartile_mean

STATISTICS = (
    "std: sample standard deviation (n - 1); IQM: interquartile mean, without the floor(n / 4) lowest and highest (as "
    f"rliable); [ ]: 95 % percentile bootstrap interval of the IQM, from {MIN_RUNS} on"
)
"""What the statistics over seeds are, in every table."""


class TerminalTable(Table):
    """A table whose numbers are never cut: where the columns do not fit, every cell has its own line."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(console, options)
        if widths is None:
            yield from self._stacked()
            return
        for column, width in zip(self.columns, widths):
            column.width = width
        yield from super().__rich_console__(console, options)

    def _widths(self, console: Console, options: ConsoleOptions) -> list[int] | None:
        """Of the columns, at least their longest words; None if these do not fit. (rich would narrow the widest column
        first, if need be to less than a number.)"""
        cells = [measure_renderables(console, options, list(column.cells)) for column in self.columns]
        heads = [measure_renderables(console, options, [column.header]) for column in self.columns]
        widths = [max(cell.minimum, head.minimum) for cell, head in zip(cells, heads)]
        free = options.max_width - sum(widths) - 3 * len(widths) - 1  # a space on both sides of each cell, and the box
        if free < 0:
            return None
        for measured in (cells, heads):  # cells in one line matter more than headers, and short ones are cheaper
            for index in sorted(range(len(widths)), key=lambda index: measured[index].maximum - widths[index]):
                more = min(free, max(0, measured[index].maximum - widths[index]))
                widths[index] += more
                free -= more
        return widths

    def _stacked(self) -> RenderResult:
        yield Text(str(self.title), style="bold")
        first, *others = self.columns
        for name, *cells in zip(*(column.cells for column in self.columns)):
            yield Text(f"\n{first.header}: {name}", style="bold")
            grid = Table.grid("", "", padding=(0, 2))
            for column in grid.columns:
                column.overflow = "fold"
            for column, cell in zip(others, cells):
                if cell:
                    grid.add_row(f"  {column.header}", cell)
            yield grid
        yield Text(f"\n{self.caption or ''}".rstrip())


def terminal_table(header: Sequence[str], title: str, notes: Sequence[str] = (), text_columns: int = 1) -> Table:
    """An empty table with `notes` below it; all columns but the first `text_columns` are aligned to the right."""
    table = TerminalTable(
        *header, title=title, caption="\n".join(notes), title_justify="left", caption_justify="left", caption_style="",
        title_style="bold", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    for column in table.columns[text_columns:]:
        column.justify = "right"
    return table


def wide_console(console: Console | None = None) -> Console:
    """`console`, or standard output, wide enough for tables."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        # A log has no width; the 80 columns that rich assumes would break the table's lines.
        console.width = max(console.width, 120)
    return console


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> list[str]:
    """The lines of a GitHub Markdown table; all columns but the first `text_columns` are aligned to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return [markdown_row(header), markdown_row(rule), *map(markdown_row, rows)]


def markdown_row(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """A table for a notebook, with `notes` below it."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    below = "".join(f"<br>{html.escape(note)}" for note in notes)
    return f"<b>{html.escape(title)}</b><table><tr>{head}</tr>{body}</table><small>{below}</small>"


def number_text(value: float) -> str:
    """Three significant digits, whole numbers from 100 on; "-" if it is not finite."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration_text(seconds: float) -> str:
    """3723.4 as "1:02:03", 75 as "1:15"; "-" if it is not finite."""
    if not np.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(int(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def percent_text(share: float) -> str:
    """0.125 as "12.5 %"; "-" if it is not finite."""
    return f"{100 * share:.1f} %" if np.isfinite(share) else "-"


def mean_and_std(values: np.ndarray) -> str:
    """Mean ± sample standard deviation over seeds or episodes [S]; of one value the value."""
    if not len(values) or not np.isfinite(values).all():
        return "-"
    if len(values) == 1:
        return number_text(values[0])
    return f"{number_text(values.mean())} ± {number_text(values.std(ddof=1))}"


def iqm_and_interval(values: np.ndarray) -> str:
    """Interquartile mean over seeds [S] with, from `MIN_RUNS` seeds on, its 95 % bootstrap interval."""
    if not len(values) or not np.isfinite(values).all():
        return "-"
    if len(values) < MIN_RUNS:
        return number_text(interquartile_mean(values))
    lower, upper = bootstrap_interval(values)
    return f"{number_text(interquartile_mean(values))} [{number_text(lower)}, {number_text(upper)}]"
