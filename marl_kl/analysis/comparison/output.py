"""The files of a comparison."""

from __future__ import annotations

import os
from pathlib import Path

from marl_kl.analysis.comparison import comparison_tables, marl_eval
from marl_kl.analysis.comparison.estimates import Comparison
from marl_kl.analysis.decoration import decoration
from marl_kl.storage.files import one_line_error, write_file


def write(comparison: Comparison, out: str | os.PathLike) -> list[Path]:
    """Writes `comparison.md`, `marl_eval.json` and the figures, each as PNG and PDF; existing files are replaced.

    Figures that cannot be drawn are a `RunWarning`.

    Returns:
        The paths.

    Raises:
        RunFolderError: a file cannot be written.
    """
    out = Path(out)
    with one_line_error("create", out):
        out.mkdir(parents=True, exist_ok=True)
    contents = {
        "comparison.md": comparison_tables.markdown(comparison).encode(),
        "marl_eval.json": marl_eval.as_json(comparison).encode(),
    }
    with decoration(f"figures in {out}"):
        contents |= _figures(comparison)
    for name, content in contents.items():
        write_file(out / name, content)
    return [out / name for name in contents]


def _figures(comparison: Comparison) -> dict[str, bytes]:
    from marl_kl.analysis.comparison import comparison_figures  # imports matplotlib
    from marl_kl.analysis.figure_style import figure_bytes

    return {
        f"{name}.{kind}": figure_bytes(figure, kind)
        for name, figure in comparison_figures.figures(comparison).items()
        for kind in ("png", "pdf")
    }
