"""What all studies share: sizes, pieces stored on disk, and pages whose tables and figures are computed.

A study is a list of pieces. The raw results of a piece are written as soon as it is done, so that a study can be stopped
at any time: the same command resumes with the interrupted piece. When all pieces are done they become one file of raw
results; tables and figures are computed from that file alone. They are written into the study's page, a Markdown file
whose text is written by hand: only what stands between a table's markers is replaced.

    python -m experiments.<name> --smoke     seconds: does everything run?
    python -m experiments.<name> --quick     minutes on two CPU cores: the study whose results are stored here
    python -m experiments.<name> --full      the same with more seeds, starts and sizes
    python -m experiments.<name> --report    tables and figures again, from the stored raw results
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import marl_kl
from marl_kl.analysis.text_tables import markdown_row
from marl_kl.storage.files import write_file
from marl_kl.storage.run_record import current_fields

SIZES = ("smoke", "quick", "full")
RESULTS = Path("experiments/results")
WORK = Path("runs/experiments")

Values = dict[str, np.ndarray]
"""The raw results of a piece: named arrays, documented where they are made."""


class Piece(NamedTuple):
    """A part of a study that is done whole or not at all.

    Attributes:
        name: of its file.
        seconds: expected on two quiet CPU cores.
        settings: plain values; stored results of other settings are not used.
        run: does the work, from the results of `needs`.
        needs: names of pieces that come before; results from other results of theirs are not used.
    """

    name: str
    seconds: float
    settings: Mapping[str, Any]
    run: Callable[..., Values]
    needs: tuple[str, ...] = ()


class Report(NamedTuple):
    """What a study shows, by name: `tables` in Markdown, `figures`."""

    tables: Mapping[str, str]
    figures: Mapping[str, Figure]


class Results(NamedTuple):
    """Stored raw results.

    Attributes:
        size: one of `SIZES`.
        pieces: name -> values.
        settings: name -> the settings of each piece.
        machines: the machines it ran on.
        seconds: all pieces together.
    """

    size: str
    pieces: dict[str, Values]
    settings: dict[str, dict]
    machines: tuple[str, ...]
    seconds: float


class Study(NamedTuple):
    """A question and how it is answered.

    Attributes:
        name: of the module, its page, its raw results and its figures.
        title: of its page.
        pieces: size -> what is to be run.
        report: raw results -> what is shown.
        is_incremental: a study of many hours: raw results are a folder with a file per piece, and the report shows
            those that exist.
    """

    name: str
    title: str
    pieces: Callable[[str], Sequence[Piece]]
    report: Callable[[Results], Report]
    is_incremental: bool = False


def main(study: Study) -> None:
    """The command line of a study."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{study.name}", description=study.title)
    what = parser.add_mutually_exclusive_group(required=True)
    for size in SIZES:
        what.add_argument(f"--{size}", dest="size", action="store_const", const=size)
    what.add_argument("--report", action="store_true", help="tables and figures from the stored raw results")
    parser.add_argument("--out", type=Path, help=f"folder of the results; {RESULTS} for --quick, else under {WORK}")
    parser.add_argument("--pdf", action="store_true", help="figures as PDF too")
    options = parser.parse_args()
    if options.report:
        out = options.out or RESULTS
        results = load(study, out)
    else:
        marl_kl.use_all_cpu_cores()
        work = WORK / f"{study.name}-{options.size}"
        out = options.out or (RESULTS if options.size == "quick" else work)
        results = run(study, options.size, out / study.name if study.is_incremental else work / "pieces", out)
    print(f"tables and figures: {write_report(study, results, out, options.pdf)}")


# Running


def run(
    study: Study, size: str, work: Path, out: Path, log: Callable[[str], None] = functools.partial(print, flush=True)
) -> Results:
    """Runs the pieces that are not in `work` yet and writes the raw results of all to `out`/<name>.json."""
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    pieces = study.pieces(size)
    stored: dict[str, dict | None] = {}
    for piece in pieces:
        stored[piece.name] = _stored(work, piece, stored)
    missing = [piece for piece in pieces if stored[piece.name] is None]
    left = sum(piece.seconds for piece in missing)
    log(f"{study.name} --{size}: {len(pieces) - len(missing)} of {len(pieces)} pieces are done; the others take about "
        f"{duration(left)} on two quiet CPU cores. This machine: {machine()}")  # fmt: skip
    spent = expected = 0.0
    for piece in missing:
        begin = time.perf_counter()
        values = piece.run(*(_decoded(stored[name]) for name in piece.needs))
        seconds = time.perf_counter() - begin
        stored[piece.name] = {
            "size": size, "settings": _plain(piece.settings), "needs": _digests(piece, stored), "machine": machine(),
            "seconds": round(seconds, 1), "values": {name: _listed(array) for name, array in values.items()},
        }  # fmt: skip
        write_file(work / f"{piece.name}.json", _compact(stored[piece.name]))
        spent, expected, left = spent + seconds, expected + piece.seconds, left - piece.seconds
        log(f"  {piece.name}: {seconds:.0f} s; about {duration(max(left, 0) * spent / expected)} left")
    if not study.is_incremental:
        document = {"study": study.name, "size": size, "pieces": {piece.name: stored[piece.name] for piece in pieces}}
        write_file(out / f"{study.name}.json", _compact(document))
    return load(study, out)


def _stored(work: Path, piece: Piece, before: Mapping[str, dict | None]) -> dict | None:
    """What an earlier call stored of this piece with the same settings, from the same results of the pieces `before`."""
    path = work / f"{piece.name}.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    wanted = _plain(piece.settings)
    known = current_fields(stored["settings"])
    # settings and digests that the stored piece lacks did not exist when it was made
    is_same = known == {name: wanted[name] for name in wanted if name in known}
    needs = _digests(piece, before)
    return stored if is_same and stored.get("needs", needs) == needs else None


def _digests(piece: Piece, before: Mapping[str, dict | None]) -> dict[str, str]:
    """Of the results that the piece needs, as far as they are there."""
    found = {name: before[name] for name in piece.needs}
    return {name: _digest(stored["values"]) for name, stored in found.items() if stored is not None}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def load(study: Study, folder: Path) -> Results:
    """The raw results in `folder`/<name>.json, or in the files of the folder <name>."""
    if study.is_incremental:
        stored = {path.stem: json.loads(path.read_text()) for path in sorted((folder / study.name).glob("*.json"))}
        size = next(iter(stored.values()))["size"]
    else:
        document = json.loads((folder / f"{study.name}.json").read_text())
        stored, size = document["pieces"], document["size"]
    return Results(
        size,
        {name: _decoded(piece) for name, piece in stored.items()},
        {name: current_fields(piece["settings"]) for name, piece in stored.items()},
        tuple(dict.fromkeys(piece["machine"] for piece in stored.values())),
        sum(piece["seconds"] for piece in stored.values()),
    )


def machine() -> str:
    """Hardware and versions, as shown next to results."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = f"{cores} CPU cores ({_cpu_name()})" if device.platform == "cpu" else device.device_kind
    return f"{kind}, jax {jax.__version__}, numpy {np.__version__}, Python {platform.python_version()}"


def _cpu_name() -> str:
    """ "AMD EPYC, x86_64", as far as the system reports it."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return ", ".join([*models[:1], platform.machine()])


def duration(seconds: float) -> str:
    """ "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _plain(settings: Mapping[str, Any]) -> dict:
    """As JSON returns it."""
    return json.loads(json.dumps(dict(settings)))


def _listed(array: Any) -> Any:
    """Nested lists of integers, or of numbers with 5 digits; NaN becomes None."""
    array = np.asarray(array)
    if array.ndim:
        return [_listed(part) for part in array]
    number = array.item()
    if not isinstance(number, float):
        return int(number)
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and abs(number) < 1e6 else float(f"{number:.5g}")


def _decoded(stored: Mapping[str, Any]) -> Values:
    return {name: np.asarray(values, np.float64) for name, values in stored["values"].items()}


def _compact(document: Mapping) -> str:
    return json.dumps(document, separators=(",", ":")).replace('"},"', '"},\n"').replace(']],"', ']],\n"') + "\n"


# Reports


def done(
    results: Results, names: Mapping[str, Sequence[str]], name_of: Callable[[str, str], str]
) -> dict[str, dict[str, Values]]:
    """The values of the pieces that are done, by row and method: `names` has the methods of each row, and the name of a
    piece is `name_of(row, method)`. Rows without any are left out."""
    found = {
        row: {method: results.pieces[name] for method in methods if (name := name_of(row, method)) in results.pieces}
        for row, methods in names.items()
    }
    return {row: values for row, values in found.items() if values}


def write_report(study: Study, results: Results, folder: Path, pdf: bool = False) -> Path:
    """Writes the figures to `folder` and the tables into the page there, which it returns; makes the page if there is
    none."""
    report = study.report(results)
    for name, figure in report.figures.items():
        write_figure(figure, folder / f"{study.name}-{name}", pdf)
    tables = {**report.tables, "source": source(study, results)}
    page = folder / f"{study.name}.md"
    text = page.read_text() if page.exists() else new_page(study, report)
    write_file(page, with_tables(text, tables))
    return page


def write_figure(figure: Figure, path: Path, pdf: bool = False) -> None:
    """`path` has no suffix."""
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None}))[: 1 + pdf]:
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=120, metadata=metadata)
        write_file(path.with_suffix(f".{kind}"), content.getvalue())


def source(study: Study, results: Results) -> str:
    """How and where the raw results were made."""
    raw = study.name if study.is_incremental else f"{study.name}.json"
    return (
        f"`python -m experiments.{study.name} --{results.size}`, {duration(results.seconds)} on "
        f"{'; '.join(results.machines)}. Raw results: [{raw}]({raw})."
    )


_BLOCK = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """`page` with `tables` between the markers of their names; the text around them stays.

    Raises:
        ValueError: the page lacks a table's markers, or has markers of an unknown table.
    """
    marked = _BLOCK.findall(page)
    if sorted(marked) != sorted(tables):
        raise ValueError(f"the page has tables {sorted(marked)}; the results have {sorted(tables)}")
    return _BLOCK.sub(lambda match: _block(match[1], tables[match[1]]), page)


def _block(name: str, table: str) -> str:
    return f"<!-- table: {name} -->\n{table}\n<!-- end -->"


def new_page(study: Study, report: Report) -> str:
    """A page without discussion."""
    figures = [f"![{name}]({study.name}-{name}.png)" for name in report.figures]
    return (
        "\n\n".join([f"# {study.title}", *(_block(name, "") for name in [*report.tables, "source"]), *figures]) + "\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    return "\n".join(map(markdown_row, [header, ["---"] * len(header), *escaped]))
