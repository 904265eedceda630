"""The end of a run: figures and a summary in its folder, the table on the terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from marl_kl.analysis import summary
from marl_kl.results import TrainResult
from marl_kl.storage import files

PNG_DPI = 150


def finish(result: TrainResult, *, quiet: bool = False, console: Console | None = None) -> None:
    """Writes summary and figures to `result.out` (if there is one) and prints the table.

    The results are on disk before, written by the training loop, whatever goes wrong with a figure.

    Args:
        result: the run.
        quiet: whether to print nothing.
        console: where to print; None: standard output.

    Raises:
        RunFolderError: a file cannot be written.
    """
    if result.out is not None:
        files.write_file(Path(result.out) / "summary.md", summary.markdown(result))
        write_pictures(result)
    if quiet:
        return
    console = wide_console(console)
    console.print(summary.table(result))
    if result.out is not None:
        console.print(f"everything is in {result.out}", soft_wrap=True, markup=False)


def wide_console(console: Console | None = None) -> Console:
    """`console`, or standard output, wide enough for tables."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        # A log has no width; the 80 columns that rich assumes would break the table's lines.
        console.width = max(console.width, 120)
    return console


def write_pictures(result: TrainResult) -> list[Path]:
    """Writes `learning_curve.png` and, if the algorithm has a KL budget, `kl_share.png`; returns the paths."""
    # Imported here: matplotlib takes most of a second that a run without figures need not spend.
    from marl_kl.analysis import plots

    figures = {"learning_curve.png": plots.learning_curve(result)}
    if plots.has_kl_share(result):
        figures["kl_share.png"] = plots.kl_share(result)
    for name, figure in figures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=PNG_DPI)
        files.write_file(Path(result.out) / name, content.getvalue())
    return [Path(result.out) / name for name in figures]
