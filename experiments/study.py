"""What all studies share: three sizes, pieces that are kept on disk, intervals, verdicts, figures and their Markdown.

A study is cut into pieces. The raw results of a piece are written as soon as it is done, so that a study may be stopped
at any time: the same command goes on with the piece that was cut off. When all pieces are there they become one file of
raw results, and whatever is shown (rows, figures, text) is computed from that file alone.

    python -m experiments.<name> --smoke     seconds: does everything run?
    python -m experiments.<name> --quick     minutes on two CPU cores: a real study, the one whose results are kept here
    python -m experiments.<name> --full      the same with more seeds, starts and sizes
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import beta

import marl_kl
from marl_kl.analysis.figure_style import PALETTE
from marl_kl.analysis.statistics import bootstrap_interval, interquartile_mean
from marl_kl.analysis.text_tables import markdown_row
from marl_kl.storage.files import write_file

SIZES = ("smoke", "quick", "full")
RESULTS = Path("experiments/results")
WORK = Path("runs/experiments")

TRUST_REGION = ("hatrpo", "hatrpo_w", "hatrpo_g", "hatrpo_n")
ADAPTIVE = TRUST_REGION[1:]
FIRST_ORDER = ("happo", "mappo")

COLOURS = {
    "hatrpo": "#333333", "hatrpo_w": PALETTE[0], "hatrpo_g": PALETTE[1], "hatrpo_n": PALETTE[2],
    "happo": PALETTE[3], "mappo": PALETTE[4], "ippo": PALETTE[5], "maspo": "#882255", "mars": "#8C510A",
    "hatrpo_critic": "#888888",
}  # fmt: skip
"""An algorithm has the same colour in every picture."""
DASHES = {
    "hatrpo": "-", "hatrpo_w": (0, (5, 1.5)), "hatrpo_g": (0, (1, 1)), "hatrpo_n": (0, (5, 1, 1, 1)),
    "happo": "-", "mappo": (0, (3, 1)), "ippo": (0, (1, 1)), "maspo": (0, (5, 1.5)), "mars": (0, (5, 1, 1, 1)),
    "hatrpo_critic": (0, (2, 2)),
}  # fmt: skip
MARKERS = {"hatrpo": "o", "hatrpo_w": "s", "hatrpo_g": "^", "hatrpo_n": "D", "happo": "v", "mappo": "P"}
LABELS = {
    "hatrpo": "HATRPO", "hatrpo_w": "HATRPO-W", "hatrpo_g": "HATRPO-G", "hatrpo_n": "HATRPO-N",
    "happo": "HAPPO", "mappo": "MAPPO", "ippo": "IPPO", "maspo": "MASPO", "mars": "MARS",
    "hatrpo_critic": "HATRPO, better critic",
}  # fmt: skip

HOLDS, PARTLY, NOT_SEEN = "holds", "holds partly", "not seen"
MIXED, CONTRARY = "mixed", "the contrary"
VERDICTS = (HOLDS, PARTLY, NOT_SEEN, MIXED, CONTRARY)

Values = dict[str, np.ndarray]
"""The raw results of a piece: numbers with named axes, described where they are made."""


class Piece(NamedTuple):
    """A part of a study that is done whole or not at all.

    Attributes:
        name: of its file.
        seconds: expected on two quiet CPU cores.
        settings: plain values; stored results of other settings are not used.
        run: does the work, from the results of `needs`.
        needs: names of pieces that come before.
    """

    name: str
    seconds: float
    settings: Mapping[str, Any]
    run: Callable[..., Values]
    needs: tuple[str, ...] = ()


class Row(NamedTuple):
    """A claim and what became of it.

    Attributes:
        claim: with its source. measured: the quantity and its value. interval: 95 %, or why there is none.
        verdict: one of `VERDICTS`. why: what we take to be the reason.
    """

    claim: str
    measured: str
    interval: str
    verdict: str
    why: str


class Report(NamedTuple):
    """What a study shows: `rows`, `figures` by name with what they show, `text` in Markdown."""

    rows: Sequence[Row]
    figures: Mapping[str, tuple[Figure, str]]
    text: str


class Results(NamedTuple):
    """Raw results as they lie on disk.

    Attributes:
        size: one of `SIZES`. pieces: name -> values. settings: name -> the settings of each piece.
        machines: the machines it ran on. seconds: all pieces together.
    """

    size: str
    pieces: dict[str, Values]
    settings: dict[str, dict]
    machines: tuple[str, ...]
    seconds: float


class Study(NamedTuple):
    """A question and the way to its answer.

    Attributes:
        name: of the module and its files. title: of its section. question: one or two sentences.
        pieces: size -> what is to be run. report: raw results -> what is shown.
        pace: `pace(size)` -> how many times as fast as two quiet CPU cores the device found here does this work; None
            if nobody measures that beforehand.
    """

    name: str
    title: str
    question: str
    pieces: Callable[[str], Sequence[Piece]]
    report: Callable[[Results], Report]
    pace: Callable[[str], float] | None = None


# Running


def main(study: Study) -> None:
    """The command line of a study."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{study.name}", description=study.question)
    sizes = parser.add_mutually_exclusive_group(required=True)
    for size in SIZES:
        sizes.add_argument(f"--{size}", dest="size", action="store_const", const=size)
    parser.add_argument("--out", type=Path, help=f"folder of the results; {RESULTS} for --quick, else under {WORK}")
    options = parser.parse_args()
    marl_kl.use_all_cpu_cores()
    work = WORK / f"{study.name}-{options.size}"
    out = options.out or (RESULTS if options.size == "quick" else work)
    results = run(study, options.size, work / "pieces", out)
    print(show(study, results, out))


def run(
    study: Study, size: str, work: Path, out: Path, say: Callable[[str], None] = functools.partial(print, flush=True)
) -> Results:
    """Does the pieces that are not in `work` yet and writes the raw results of all to `out`/<name>.json."""
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    pieces = study.pieces(size)
    stored = {piece.name: _stored(work, piece) for piece in pieces}
    missing = [piece for piece in pieces if stored[piece.name] is None]
    done = len(pieces) - len(missing)
    to_come = sum(piece.seconds for piece in missing)
    is_paced = study.pace is not None and missing
    pace, where = (study.pace(size), "here") if is_paced else (1.0, "on two quiet CPU cores")
    say(f"{study.name} --{size}: {done} of {len(pieces)} pieces are done; the others take about "
        f"{duration(to_come / pace)} {where}. This is: {machine()}")  # fmt: skip
    spent = expected = 0.0
    for piece in missing:
        begin = time.perf_counter()
        values = piece.run(*(_decoded(stored[name]) for name in piece.needs))
        seconds = time.perf_counter() - begin
        stored[piece.name] = {
            "settings": _plain(piece.settings), "machine": machine(), "seconds": round(seconds, 1),
            "values": {name: _listed(array) for name, array in values.items()},
        }  # fmt: skip
        write_file(work / f"{piece.name}.json", _compact(stored[piece.name]))
        spent, expected, to_come = spent + seconds, expected + piece.seconds, to_come - piece.seconds
        say(f"  {piece.name}: {seconds:.0f} s; still to come: about {duration(max(to_come, 0) * spent / expected)}")
    document = {"study": study.name, "size": size, "pieces": {piece.name: stored[piece.name] for piece in pieces}}
    write_file(out / f"{study.name}.json", _compact(document))
    return load(study, out)


def _stored(work: Path, piece: Piece) -> dict | None:
    """What an earlier call left of this very piece."""
    path = work / f"{piece.name}.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    return stored if stored["settings"] == _plain(piece.settings) else None


def load(study: Study, folder: Path) -> Results:
    """The raw results in `folder`/<name>.json."""
    document = json.loads((folder / f"{study.name}.json").read_text())
    stored = document["pieces"]
    return Results(
        document["size"],
        {name: _decoded(piece) for name, piece in stored.items()},
        {name: piece["settings"] for name, piece in stored.items()},
        tuple(dict.fromkeys(piece["machine"] for piece in stored.values())),
        sum(piece["seconds"] for piece in stored.values()),
    )


def machine() -> str:
    """Hardware and versions, as they are named beside results."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = f"{cores} CPU cores ({_cpu_name()})" if device.platform == "cpu" else device.device_kind
    return f"{kind}, jax {jax.__version__}, numpy {np.__version__}, Python {platform.python_version()}"


def _cpu_name() -> str:
    """ "AMD EPYC, x86_64", as far as the system tells."""
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
    """As JSON gives it back."""
    return json.loads(json.dumps(dict(settings)))


def _listed(array: Any) -> Any:
    """Nested lists of whole numbers, or of numbers with 5 digits; NaN becomes None."""
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
    """The values of a piece as they are stored."""
    return {name: np.asarray(values, np.float64) for name, values in stored["values"].items()}


def _compact(document: Mapping) -> str:
    return json.dumps(document, separators=(",", ":")).replace('"},"', '"},\n"').replace(']],"', ']],\n"') + "\n"


# Statistics


class Estimate(NamedTuple):
    """A statistic and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2, percent: bool = False) -> str:
        """ "1.20 [1.05, 1.31]"."""
        return f"{self.number(digits, percent)} {self.interval(digits, percent)}"

    def number(self, digits: int = 2, percent: bool = False) -> str:
        return f"{100 * self.value:.{digits}f} %" if percent else f"{self.value:.{digits}f}"

    def interval(self, digits: int = 2, percent: bool = False) -> str:
        scale = 100 if percent else 1
        return f"[{scale * self.low:.{digits}f}, {scale * self.high:.{digits}f}]"


def estimate(scores: np.ndarray, statistic: Callable = interquartile_mean) -> Estimate:
    """Of one score per run [R]."""
    scores = np.asarray(scores, np.float64)
    return Estimate(float(statistic(scores, axis=0)), *map(float, bootstrap_interval(scores, statistic=statistic)))


def ratio(above: np.ndarray, below: np.ndarray, statistic: Callable = interquartile_mean) -> Estimate:
    """statistic(above) / statistic(below), of independent runs [R] and [Q]."""
    return _of_two(above, below, statistic, np.divide)


def difference(left: np.ndarray, right: np.ndarray, statistic: Callable = interquartile_mean) -> Estimate:
    """statistic(left) - statistic(right), of independent runs [R] and [Q]."""
    return _of_two(left, right, statistic, np.subtract)


def _of_two(left, right, statistic, combine) -> Estimate:
    both = np.concatenate([left, right])
    strata = np.repeat([0, 1], [len(left), len(right)])

    def combined(scores, axis):
        first, second = np.split(scores, [len(left)], axis=axis)
        return combine(statistic(first, axis=axis), statistic(second, axis=axis))

    low, high = bootstrap_interval(both, strata=strata, statistic=combined)
    return Estimate(float(combined(both, axis=0)), float(low), float(high))


def proportion(flags: np.ndarray) -> Estimate:
    """The share of independent cases in which something was so, and its exact interval (Clopper and Pearson 1934).

    A bootstrap says [1, 1] of ten cases out of ten; this says [0.69, 1].
    """
    flags = np.asarray(flags, bool).ravel()
    hits, n = int(flags.sum()), flags.size
    low = 0.0 if hits == 0 else beta.ppf(0.025, hits, n - hits + 1)
    high = 1.0 if hits == n else beta.ppf(0.975, hits + 1, n - hits)
    return Estimate(hits / n, float(low), float(high))


def judged(found: Estimate, claimed: float, nothing: float) -> str:
    """The verdict on a claim that a quantity is at least `claimed`, where `nothing` would mean no effect.

    It holds if the whole interval is at or above `claimed`, partly if the whole interval is above `nothing`; if the
    whole interval is below `nothing` the contrary was seen; otherwise the claim was not seen.
    """
    if found.low >= claimed:
        return HOLDS
    if found.low > nothing:
        return PARTLY
    return CONTRARY if found.high < nothing else NOT_SEEN


def counted(verdicts: Sequence[str]) -> str:
    """The verdict on a claim about several cases.

    It holds if it does in all. It is mixed if some cases speak for it and others against it, partly true if some
    speak for it and none against it, and the contrary if some speak against it and none for it.
    """
    if all(verdict == HOLDS for verdict in verdicts):
        return HOLDS
    for_it = any(verdict in (HOLDS, PARTLY, MIXED) for verdict in verdicts)
    against_it = any(verdict in (CONTRARY, MIXED) for verdict in verdicts)
    if for_it:
        return MIXED if against_it else PARTLY
    return CONTRARY if against_it else NOT_SEEN


def because(verdict: str, reasons: Mapping[str, str]) -> str:
    """The reason that was written for this verdict; a reason for another outcome must not stand beside the numbers."""
    return reasons.get(verdict, "This outcome is new; nobody has looked into its reason yet.")


# Showing


def show(study: Study, results: Results, out: Path) -> str:
    """Writes the figures and the Markdown section to `out` and returns the section."""
    report = study.report(results)
    for name, (figure, _) in report.figures.items():
        for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=120, metadata=metadata)
            write_file(out / f"{study.name}-{name}.{kind}", content.getvalue())
    section = markdown(study, results, report)
    write_file(out / f"{study.name}.md", section)
    return section


def markdown(study: Study, results: Results, report: Report, folder: str = "") -> str:
    """The section; `folder` is where its pictures are, seen from the file it will be in."""
    parts = [f"## {study.title}", study.question, table(report.rows)]
    parts += [
        f"![{about}]({folder}{study.name}-{name}.png)\n\n*{about}*" for name, (_, about) in report.figures.items()
    ]
    source = f"`python -m experiments.{study.name} --{results.size}` on {'; '.join(results.machines)}"
    parts += [report.text.strip(), f"Made by {source}. Raw results: [{study.name}.json]({folder}{study.name}.json)."]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(rows: Sequence[Row]) -> str:
    """The claims as Markdown."""
    lines = [markdown_row(["claim", "measured", "95 %", "verdict", "why, we think"]), markdown_row(["---"] * 5)]
    return "\n".join([*lines, *(markdown_row(row._replace(verdict=f"**{row.verdict}**")) for row in rows)])


def strip(axes) -> None:
    """Takes the upper and right spine off and lays a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def line_style(algorithm: str) -> dict:
    """Colour, dashes and label of an algorithm's line."""
    return {"color": COLOURS[algorithm], "linestyle": DASHES[algorithm], "label": LABELS[algorithm]}


def point_style(algorithm: str) -> dict:
    """Colour, marker and label of an algorithm's points."""
    return {"color": COLOURS[algorithm], "marker": MARKERS[algorithm], "label": LABELS[algorithm]}


def curve(axes, x: np.ndarray, scores: np.ndarray, algorithm: str) -> None:
    """IQM over runs of `scores` [R, X] and its interval."""
    axes.fill_between(
        x, *bootstrap_interval(scores, num_resamples=500), color=COLOURS[algorithm], alpha=0.15, linewidth=0
    )
    axes.plot(x, interquartile_mean(scores), linewidth=1.8, **line_style(algorithm))
