"""`marl-kl report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from marl_kl.cli.options import add_command, one_line_warnings, working


def add_report(commands) -> None:
    """Adds `marl-kl report`."""
    text = "write one HTML page about a run or a sweep: learning curves, KL shares, steps, config, versions"
    parser = add_command(
        commands, _report, "report RUN|SWEEP [--out FILE]", text, ". The page is self-contained, without scripts."
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN|SWEEP", help="the folder of a run or of a sweep, finished or not"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in the folder)")


def _report(arguments: argparse.Namespace) -> int:
    from marl_kl.analysis.report import pages

    out = arguments.out
    if out is not None and (out.suffix != ".html" or not out.parent.is_dir()):
        raise ValueError(f"out={str(out)!r}; it must be a .html file in an existing folder")
    with one_line_warnings(), working("drawing"):
        path = pages.write(arguments.run, out)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0
