"""The end of a run: a summary and figures go to its folder, the table to the terminal."""

from __future__ import annotations

import warnings
from pathlib import Path

from rich.console import Console

from envs.validation import first_line
from marl_kl.analysis import summary
from marl_kl.analysis.text_tables import wide_console
from marl_kl.results import TrainResult
from marl_kl.storage.files import write_file
from marl_kl.storage.run_folder import RunWarning


def finish(result: TrainResult, *, quiet: bool = False, console: Console | None = None) -> None:
    """Writes `summary.md` and the figures to `result.out` (if there is one) and prints the table.

    A figure that cannot be drawn is a `RunWarning`: the run is already stored when this is called.

    Args:
        result: the run.
        quiet: print nothing.
        console: where to print; None: standard output.

    Raises:
        RunFolderError: the summary cannot be written.
    """
    if result.out is not None:
        write_file(Path(result.out) / "summary.md", summary.markdown(result))
        try:
            write_figures(result)
        except Exception as error:  # of matplotlib, its backend, its fonts, or the disk
            message = f"no figures in {result.out}: {first_line(error)}"
            warnings.warn(message, RunWarning, stacklevel=2)
    if quiet:
        return
    console = wide_console(console)
    console.print(summary.table(result))
    if result.out is not None:
        console.print(f"results are in {result.out}", soft_wrap=True, markup=False)


def write_figures(result: TrainResult) -> list[Path]:
    """Writes `learning_curve.png` and, if the algorithm has a KL budget, `kl_share.png`; returns the paths."""
    # Imported here: matplotlib takes most of a second, and fails if MPLBACKEND names no backend.
    from marl_kl.analysis import run_figures
    from marl_kl.analysis.figure_style import figure_bytes

    figures = {"learning_curve.png": run_figures.learning_curve(result)}
    if run_figures.has_kl_share(result):
        figures["kl_share.png"] = run_figures.kl_share(result)
    for name, figure in figures.items():
        write_file(Path(result.out) / name, figure_bytes(figure, "png"))
    return [Path(result.out) / name for name in figures]
