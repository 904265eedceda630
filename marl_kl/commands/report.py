"""`marl-kl report` and `marl-kl show`: a stored run, to be looked at."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from marl_kl.commands.words import add_command, default_text
from marl_kl.storage import run_folder


def add_report(commands) -> None:
    """Describes `marl-kl report`."""
    text = "write a run or a sweep as one HTML page: curves, KL shares, steps, config, versions"
    parser = add_command(
        commands, _report, "report RUN|SWEEP [--out FILE]", text, ". The page needs no server, no network, no script."
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN|SWEEP", help="the folder of a run, finished or not, or of a sweep"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in the folder)")


def _report(arguments: argparse.Namespace) -> int:
    from marl_kl.reports import pages

    out = arguments.out
    if out is not None and (out.suffix != ".html" or not out.parent.is_dir()):
        raise ValueError(f"out={str(out)!r}; it must be a .html file in a folder that exists")
    path = pages.write(arguments.run, out)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def add_show(commands) -> None:
    """Describes `marl-kl show`."""
    text = "show what a run is and how it stands: environment, config, last numbers"
    parser = add_command(commands, _show, "show RUN", text, ".")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, finished or not")


def _show(arguments: argparse.Namespace) -> int:
    from marl_kl import reporting, summary
    from marl_kl.storage import stored_runs

    record = run_folder.read_record(arguments.run)
    console = reporting.wide_console()
    for line in _lines(record):
        console.print(line, soft_wrap=True, markup=False)
    if not (arguments.run / "evaluation.csv").exists():
        console.print("nothing was saved yet")
        return 0
    result = stored_runs.read_result(arguments.run, record)
    console.print(summary.table(result, summary.stored_facts(result)))
    return 0


def _lines(record: run_folder.RunRecord) -> list[str]:
    """Status, environment, versions, and every config field; "*" before those that are not at their default."""
    document, spec = record.document, record.spec
    session = run_folder.last_session(document)
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items() if version)
    ended = f", ended {document['ended']}" if document.get("ended") else ""
    config = [
        f"  {'*' if getattr(record.config, field.name) != field.default else ' '} {field.name} = "
        f"{default_text(getattr(record.config, field.name))}"
        for field in dataclasses.fields(record.config)
    ]
    return [
        f"{record.algorithm} on {spec.name}, seeds {', '.join(map(str, record.seeds))}",
        f"status       {record.status}, started {document['started']}{ended}",
        f"environment  {'; '.join(f'{name} {value}' for name, value in spec.metadata) or '-'}",
        f"agents       {', '.join(spec.agents)}",
        f"device       {session['device']['count']} x {session['device']['kind']}",
        f"versions     {versions}",
        f"config       {record.document['config_class']}; * not at its default",
        *config,
    ]
