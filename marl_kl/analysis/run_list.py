"""The table of all runs and sweeps in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from marl_kl.analysis.text_tables import mean_and_std, terminal_table
from marl_kl.storage import run_folder, run_record, run_tables
from marl_kl.storage.files import RunFolderError

_HEADER = ("folder", "environment", "algorithm", "status", "seeds", "env steps", "return")


def table(folder: Path, runs: Sequence[Path]) -> Table:
    """A row per run and sweep.

    Args:
        folder: the folder that holds them.
        runs: those of `stored_runs.below(folder)`.
    """
    notes = [
        "env steps: per seed, at the last evaluation, of all",
        "return: of that evaluation, mean ± std over seeds (of a sweep: marl-kl show SWEEP)",
    ]
    rows = []
    for run in runs:
        try:
            cells = _sweep_cells(run) if run_folder.is_sweep(run) else _run_cells(run)
        except RunFolderError as error:
            cells = ["cannot be read"]
            notes.append(str(error))
        rows.append([str(run.relative_to(folder)), *cells])
    listed = terminal_table(_HEADER, f"runs in {folder}", notes, text_columns=4)
    for row in rows:
        listed.add_row(*row)
    return listed


def _sweep_cells(sweep: Path) -> list[str]:
    record = run_record.read_record(sweep, run_record.SWEEP)
    return [*_facts(record), f"{len(record.document['settings'])} settings x {len(record.seeds)}", "-", "-"]


def _run_cells(run: Path) -> list[str]:
    record = run_record.read_record(run)
    done, returns = "0", "-"
    if (run / "evaluation.csv").exists():
        evaluation = run_tables.read_evaluation(run, record.status == "finished").evaluation
        done, returns = f"{evaluation.env_steps[-1]:,}", mean_and_std(evaluation.episode_return[:, -1].mean(-1))
    return [*_facts(record), str(len(record.seeds)), f"{done} of {record.config.total_env_steps:,}", returns]


def _facts(record: run_record.RunRecord) -> list[str]:
    return [record.spec.name, record.algorithm, record.status]
