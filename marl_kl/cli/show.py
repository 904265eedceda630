"""`marl-kl show`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from marl_kl.cli.options import add_command, add_setting, default_text
from marl_kl.storage import run_folder, run_record, stored_sweeps


def add_show(commands) -> None:
    """Adds `marl-kl show`."""
    text = "show environment, config, status and results of a run or a sweep, or list the runs in a folder"
    more = ". Of the config, the fields that are not at their defaults."
    parser = add_command(commands, _show, "show RUN|SWEEP|FOLDER [--setting K] [--all]", text, more)
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN|SWEEP|FOLDER",
        help="the folder of a run or of a sweep, finished or not, or one that holds such folders",
    )
    add_setting(parser)
    parser.add_argument("--all", action="store_true", help="every field of the config")


def _show(arguments: argparse.Namespace) -> int:
    from marl_kl.analysis import run_list
    from marl_kl.analysis.text_tables import wide_console
    from marl_kl.storage import stored_runs

    console = wide_console()
    if not run_folder.holds_record(arguments.run) and (found := stored_runs.below(arguments.run)):
        console.print(run_list.table(arguments.run, found))
        return 0
    is_sweep = arguments.setting is None and run_folder.is_sweep(arguments.run)
    (_show_sweep if is_sweep else _show_run)(arguments, console)
    return 0


def _show_run(arguments: argparse.Namespace, console: Console) -> None:
    """A run, or one setting of a sweep."""
    from marl_kl.analysis import summary
    from marl_kl.storage import stored_runs

    record = stored_sweeps.record_of(arguments.run, arguments.setting)
    for line in record_lines(record, every_field=arguments.all):
        console.print(line, soft_wrap=True, markup=False)
    if arguments.setting is not None:
        result = stored_sweeps.read(arguments.run).setting(arguments.setting)
        is_empty = not len(result.evaluation.update)
    else:
        is_empty = not (arguments.run / "evaluation.csv").exists()
        result = None if is_empty else stored_runs.read_result(arguments.run, record)
    if is_empty:
        console.print("nothing is saved yet")
        return
    console.print(summary.table(result, summary.run_notes(result)))


def _show_sweep(arguments: argparse.Namespace, console: Console) -> None:
    from marl_kl.analysis import sweep_tables

    record = run_record.read_record(arguments.run, run_record.SWEEP)
    result = stored_sweeps.read(arguments.run)
    for line in record_lines(record, list(result.settings[0]), arguments.all):
        console.print(line, soft_wrap=True, markup=False)
    sweep_tables.show(result, console)


def record_lines(record: run_record.RunRecord, swept: Sequence[str] = (), every_field: bool = False) -> list[str]:
    """Status, environment, versions and config; of every field, "*" marks values other than the default."""
    document, spec = record.document, record.spec
    session = run_record.last_session(document)
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items() if version)
    ended = f", ended {document['ended']}" if document.get("ended") else ""
    config = []
    for field in dataclasses.fields(record.config):
        value = getattr(record.config, field.name)
        is_changed = value != field.default or field.name in swept
        if not is_changed and not every_field:
            continue
        mark = "*" if is_changed and every_field else " "
        config.append(f"  {mark} {field.name} = {'swept' if field.name in swept else default_text(value)}")
    note = "*: not the default" if every_field else "the others are at their defaults: --all"
    source, which = map(document.get, run_record.WARM_START)
    started_from = [f"started from {source}, {which} learners"] if source else []
    return [
        f"{record.algorithm} on {spec.name}, seeds {', '.join(map(str, record.seeds))}",
        f"status       {record.status}, started {document['started']}{ended}",
        *started_from,
        f"environment  {'; '.join(f'{name} {value}' for name, value in spec.metadata) or '-'}",
        f"agents       {', '.join(spec.agents)}",
        f"device       {session['device']['count']} x {session['device']['kind']}",
        f"versions     {versions}",
        f"config       {record.document['config_class']}; {note}",
        *config,
    ]
