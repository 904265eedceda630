"""`marl-kl report` and `marl-kl show`: a stored run or sweep, to be looked at."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from marl_kl.cli.options import add_command, default_text
from marl_kl.cli.stored import add_setting
from marl_kl.storage import run_folder
from marl_kl.storage import stored_sweeps as sweep_folders


def add_report(commands) -> None:
    """Describes `marl-kl report`."""
    text = "write a run or a sweep as one HTML page: curves, KL shares, steps, config, versions"
    parser = add_command(
        commands, _report, "report RUN|SWEEP [--out FILE]", text, ". The page needs no server, no network, no script."
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN|SWEEP", help="the folder of a run or of a sweep, finished or not"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in the folder)")


def _report(arguments: argparse.Namespace) -> int:
    from marl_kl.analysis.report import pages

    out = arguments.out
    if out is not None and (out.suffix != ".html" or not out.parent.is_dir()):
        raise ValueError(f"out={str(out)!r}; it must be a .html file in a folder that exists")
    path = pages.write(arguments.run, out)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def add_show(commands) -> None:
    """Describes `marl-kl show`."""
    text = "show what a run or a sweep is and how it stands: environment, config, last numbers"
    parser = add_command(commands, _show, "show RUN|SWEEP [--setting K]", text, ".")
    parser.add_argument(
        "run", type=Path, metavar="RUN|SWEEP", help="the folder of a run or of a sweep, finished or not"
    )
    add_setting(parser)


def _show(arguments: argparse.Namespace) -> int:
    from marl_kl.training import reporting

    console = reporting.wide_console()
    is_sweep = arguments.setting is None and run_folder.is_sweep(arguments.run)
    (_show_sweep if is_sweep else _show_run)(arguments, console)
    return 0


def _show_run(arguments: argparse.Namespace, console: Console) -> None:
    """A run, or one setting of a sweep."""
    from marl_kl.analysis import summary
    from marl_kl.storage import stored_runs

    record = sweep_folders.record_of(arguments.run, arguments.setting)
    for line in _lines(record):
        console.print(line, soft_wrap=True, markup=False)
    if arguments.setting is not None:
        result = sweep_folders.read(arguments.run).setting(arguments.setting)
        is_empty = not len(result.evaluation.update)
    else:
        is_empty = not (arguments.run / "evaluation.csv").exists()
        result = None if is_empty else stored_runs.read_result(arguments.run, record)
    if is_empty:
        console.print("nothing was saved yet")
        return
    console.print(summary.table(result, summary.stored_facts(result)))


def _show_sweep(arguments: argparse.Namespace, console: Console) -> None:
    from marl_kl.analysis import sweep_tables

    record = run_folder.read_record(arguments.run, run_folder.SWEEP)
    result = sweep_folders.read(arguments.run)
    for line in _lines(record, list(result.settings[0])):
        console.print(line, soft_wrap=True, markup=False)
    sweep_tables.show(result, console)


def _lines(record: run_folder.RunRecord, swept: Sequence[str] = ()) -> list[str]:
    """Status, environment, versions, and every config field; "*" before those that are not at their default."""
    document, spec = record.document, record.spec
    session = run_folder.last_session(document)
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items() if version)
    ended = f", ended {document['ended']}" if document.get("ended") else ""
    config = []
    for field in dataclasses.fields(record.config):
        value = getattr(record.config, field.name)
        mark = "*" if value != field.default or field.name in swept else " "
        config.append(f"  {mark} {field.name} = {'swept' if field.name in swept else default_text(value)}")
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
