"""The end of a run or a sweep: a summary and figures go to its folder, the table of a run to the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from marl_kl.analysis import summary
from marl_kl.analysis.decoration import decoration
from marl_kl.analysis.text_tables import wide_console
from marl_kl.results import SweepResult, TrainResult
from marl_kl.storage.files import write_file


def finish(result: TrainResult, *, quiet: bool = False, console: Console | None = None) -> None:
    """Writes `summary.md` and the figures to `result.out` (if there is one) and prints the table.

    Whatever of this fails is a `RunWarning`: the run is already stored when this is called.

    Args:
        result: the run.
        quiet: print nothing.
        console: where to print; None: standard output.
    """
    if result.out is not None:
        with decoration(f"summary.md in {result.out}"):
            write_file(Path(result.out) / "summary.md", summary.markdown(result))
        with decoration(f"figures in {result.out}"):
            write_figures(result)
    if quiet:
        return
    with decoration("table on the terminal"):
        console = wide_console(console)
        console.print(summary.table(result))
        if result.out is not None:
            console.print(f"results are in {result.out}", soft_wrap=True, markup=False)


def finish_sweep(result: SweepResult) -> None:
    """Writes `settings.png` to `result.out`; if that fails, it is a `RunWarning`."""
    with decoration(f"figure in {result.out}"):
        from marl_kl.analysis import sweep_figures
        from marl_kl.analysis.figure_style import figure_bytes

        if sweep_figures.has_returns(result):
            figure = sweep_figures.returns_by_field(result)
            write_file(Path(result.out) / "settings.png", figure_bytes(figure, "png"))


def write_figures(result: TrainResult) -> list[Path]:
    """Writes `learning_curve.png`, `diagnostics.png` and, if the algorithm has a KL budget, `kl_share.png`.

    Returns:
        The paths.
    """
    # Imported here: matplotlib takes most of a second.
    from marl_kl.analysis import diagnostics, run_figures
    from marl_kl.analysis.figure_style import figure_bytes

    figures = {"learning_curve.png": run_figures.learning_curve(result)}
    if diagnostics.has_diagnostics(result):
        figures["diagnostics.png"] = diagnostics.figure(result)
    if run_figures.has_kl_share(result):
        figures["kl_share.png"] = run_figures.kl_share(result)
    for name, figure in figures.items():
        write_file(Path(result.out) / name, figure_bytes(figure, "png"))
    return [Path(result.out) / name for name in figures]
