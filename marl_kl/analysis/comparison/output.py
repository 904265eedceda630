"""The files of a comparison."""

from __future__ import annotations

import os
from pathlib import Path

from marl_kl.analysis.comparison import comparison_figures, comparison_tables, marl_eval
from marl_kl.analysis.comparison.estimates import Comparison
from marl_kl.analysis.figure_style import figure_bytes
from marl_kl.storage.files import one_line_error, write_file


def write(comparison: Comparison, out: str | os.PathLike) -> list[Path]:
    """Writes `comparison.md`, `marl_eval.json` and the figures, each as PNG and PDF; existing files are replaced.

    Returns:
        The paths.

    Raises:
        RunFolderError: a file cannot be written.
    """
    out = Path(out)
    with one_line_error("create", out):
        out.mkdir(parents=True, exist_ok=True)
    contents: dict[str, str | bytes] = {
        "comparison.md": comparison_tables.markdown(comparison),
        "marl_eval.json": marl_eval.as_json(comparison),
    }
    for name, figure in comparison_figures.figures(comparison).items():
        contents |= {f"{name}.{kind}": figure_bytes(figure, kind) for kind in ("png", "pdf")}
    for name, content in contents.items():
        write_file(out / name, content)
    return [out / name for name in contents]
