"""What `compare` leaves in its folder."""

from __future__ import annotations

import io
import os
from pathlib import Path

from matplotlib.figure import Figure

from marl_kl.analysis.comparison import figures, marl_eval, tables
from marl_kl.analysis.comparison.estimates import Comparison
from marl_kl.storage.files import one_line_error, write_file
from marl_kl.training.reporting import PNG_DPI


def write(comparison: Comparison, out: str | os.PathLike) -> list[Path]:
    """Writes `comparison.md`, `marl_eval.json` and the figures, each as PNG and PDF; what is there is replaced.

    Returns:
        The paths.

    Raises:
        RunFolderError: a file cannot be written.
    """
    out = Path(out)
    with one_line_error("create", out):
        out.mkdir(parents=True, exist_ok=True)
    contents: dict[str, str | bytes] = {
        "comparison.md": tables.markdown(comparison),
        "marl_eval.json": marl_eval.as_json(comparison),
    }
    for name, figure in figures.figures(comparison).items():
        contents |= {f"{name}.{kind}": picture(figure, kind) for kind in ("png", "pdf")}
    for name, content in contents.items():
        write_file(out / name, content)
    return [out / name for name in contents]


def picture(figure: Figure, kind: str) -> bytes:
    """The figure as "png", "pdf" or "svg", without the time at which it was made."""
    content = io.BytesIO()
    no_date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    figure.savefig(content, format=kind, dpi=PNG_DPI, metadata=no_date[kind])
    return content.getvalue()
