"""`marl-kl compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

import marl_kl
from marl_kl.analysis.comparison.samples import METRICS
from marl_kl.cli.options import add_command

EXAMPLE = """examples:
  marl-kl compare runs/ant-hatrpo runs/ant-hatrpo_w runs/ant-happo --out comparisons/ant
  marl-kl compare sweeps/budgets
  marl-kl compare runs/*/* --threshold ant_4x2=1500 --reference ant_4x2=0,4000
"""


def add_compare(commands) -> None:
    """Describes `marl-kl compare`."""
    text = "put runs beside each other: curves, final returns, intervals, who is better"
    parser = add_command(
        commands, _compare, "compare RUN|SWEEP [RUN|SWEEP ...] [--out FOLDER] [options]", text,
        ". Runs of one algorithm and setting are pooled, seed by seed; every setting of a sweep is a method.",
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN|SWEEP", help="the folder of a run, finished or not, or of a sweep"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where to write the table, the figures (PNG, PDF) and marl_eval.json (default: only the table is shown)",
    )
    parser.add_argument(
        "--metric",
        default="evaluation",
        choices=METRICS,
        help="returns of deterministic policies, or of training episodes (default: evaluation)",
    )
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[TASK=]X",
        help="count the env steps to this return; may be repeated with tasks",
    )
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="TASK=LOW,HIGH",
        help="the returns that are normalised to 0 and 1 (default: where the runs begin, and the best end of a run)",
    )
    parser.add_argument("--bootstrap", default="2000", metavar="N", help="resamples of the bootstrap (default: 2000)")
    parser.add_argument("--seed", default="0", metavar="S", help="seed of the bootstrap (default: 0)")


def _compare(arguments: argparse.Namespace) -> int:
    from marl_kl.analysis.comparison import tables
    from marl_kl.training import reporting

    comparison = marl_kl.compare(
        arguments.runs,
        metric=arguments.metric,
        threshold=_thresholds(arguments.threshold),
        references={task: _pair(task, text) for task, text in map(_named, arguments.reference)},
        bootstrap=_integer("bootstrap", arguments.bootstrap),
        seed=_integer("seed", arguments.seed),
        out=arguments.out,
    )
    console = reporting.wide_console()
    console.print(tables.table(comparison))
    if arguments.out is not None:
        console.print(f"everything is in {arguments.out}", soft_wrap=True, markup=False)
    return 0


def _thresholds(texts: list[str]) -> float | dict[str, float] | None:
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return _number("threshold", texts[0])
    return {task: _number("threshold", text) for task, text in map(_named, texts)}


def _named(text: str) -> tuple[str, str]:
    """Cut at the last "=": the name of a task may have others."""
    task, equals, value = text.rpartition("=")
    if not equals:
        raise ValueError(f"{text!r} names no task; write TASK={text}")
    return task, value


def _pair(task: str, text: str) -> tuple[float, ...]:
    return tuple(_number(f"reference {task}", part) for part in text.split(","))


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}; it must be a number") from None


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}; it must be an integer") from None
