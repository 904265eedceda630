"""`marl-kl compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

import marl_kl
from marl_kl.analysis.comparison.samples import METRICS
from marl_kl.cli.options import add_command, one_line_warnings

EXAMPLE = """examples:
  marl-kl compare runs/ant-hatrpo runs/ant-hatrpo_w runs/ant-happo --out comparisons/ant
  marl-kl compare sweeps/budgets
  marl-kl compare runs/*/* --threshold ant_4x2=1500 --reference ant_4x2=0,4000
"""


def add_compare(commands) -> None:
    """Adds `marl-kl compare`."""
    text = "compare runs: learning curves, final returns, intervals, probabilities of improvement"
    parser = add_command(
        commands, _compare, "compare RUN|SWEEP [RUN|SWEEP ...] [--out FOLDER] [options]", text,
        ". Seeds of runs with the same algorithm and config are pooled; every setting of a sweep is a method.",
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN|SWEEP", help="the folder of a run, finished or not, or of a sweep"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write the tables, figures (PNG, PDF) and marl_eval.json here (default: only print the tables)",
    )
    parser.add_argument(
        "--metric",
        default="evaluation",
        choices=METRICS,
        help="evaluation returns (deterministic policies) or training returns (stochastic policies) (default: evaluation)",
    )
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[TASK=]X",
        help="report the env steps to this return; may be repeated for several tasks",
    )
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="TASK=LOW,HIGH",
        help="the returns that are normalised to 0 and 1 (default: initial mean, best final return of a run)",
    )
    parser.add_argument("--bootstrap", default="2000", metavar="N", help="resamples of the bootstrap (default: 2000)")
    parser.add_argument("--seed", default="0", metavar="S", help="seed of the bootstrap (default: 0)")


def _compare(arguments: argparse.Namespace) -> int:
    from marl_kl.analysis.comparison import comparison_tables
    from marl_kl.analysis.text_tables import wide_console

    with one_line_warnings():
        comparison = marl_kl.compare(
            arguments.runs,
            metric=arguments.metric,
            threshold=_thresholds(arguments.threshold),
            references={task: _pair(task, text) for task, text in map(_task_and_value, arguments.reference)},
            bootstrap=_integer("bootstrap", arguments.bootstrap),
            seed=_integer("seed", arguments.seed),
            out=arguments.out,
        )
    console = wide_console()
    console.print(comparison_tables.table(comparison))
    if arguments.out is not None:
        console.print(f"results are in {arguments.out}", soft_wrap=True, markup=False)
    return 0


def _thresholds(texts: list[str]) -> float | dict[str, float] | None:
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return _number("threshold", texts[0])
    return {task: _number("threshold", text) for task, text in map(_task_and_value, texts)}


def _task_and_value(text: str) -> tuple[str, str]:
    """Split at the last "=", since the label of a task may contain others."""
    task, equals, value = text.rpartition("=")
    if not equals:
        raise ValueError(f"{text!r} has no task; write TASK={text}")
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
