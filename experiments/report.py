"""Assembles experiments/RESULTS.md from the raw results, and draws all pictures again.

python -m experiments.report
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments import (
    allocation_ablations,
    allocator_cost,
    bilinear,
    brax_suite,
    matrix_game,
    mixed_motives,
    parameter_sharing,
    study,
    theory,
    two_peaks,
)
from marl_kl.analysis.text_tables import markdown_row
from marl_kl.storage.files import write_file

STUDIES = tuple(
    module.STUDY
    for module in (
        matrix_game,
        two_peaks,
        bilinear,
        parameter_sharing,
        theory,
        allocation_ablations,
        mixed_motives,
        allocator_cost,
        brax_suite,
    )
)

_INTRODUCTION = """# Results

The papers' claims, on games whose answer is known exactly and on bodies, and what we measured. Written by `python -m
experiments.report` from the raw results in [results](results); every number below is computed from them. One command
makes each study again:
`python -m experiments.<name> --quick` (run it from the repository's root). It says beforehand how long it takes, and
goes on where it was stopped.

*Verdicts.* A claim that something is at least x **holds** if the whole 95 % interval is at or above x, **holds
partly** if the interval lies wholly above no effect only, was **not seen** if the interval contains no effect, and is
**the contrary** of what was seen if the interval lies wholly below no effect. A claim about several cases holds if it
does in all of them, and is **mixed** if some cases speak for it and others against it. Intervals are percentile
bootstraps over seeds, starts or games of the interquartile mean (of the mean for ratios, regrets and correlations
where it says so); where what is counted is yes or no they are Clopper and Pearson's. With six seeds such a bootstrap
covers the truth in about 90 of 100 cases, not in 95. No correction is made for the number of rows: of a claim about
one case without any truth in it, one in 40 would seem to hold partly, and of claims about many cases more. All
trust-region methods have equal joint KL budgets. The reasons are ours and belong to the verdict beside them; HATRPO-N
is ours as well.
"""


def assembled(folder: Path, studies=STUDIES) -> str:
    """The whole document; studies without raw results in `folder` are named at its end."""
    found = [s for s in studies if (folder / f"{s.name}.json").exists()]
    missing = [s for s in studies if s not in found]
    overview = [markdown_row(["study", "claim", "verdict"]), markdown_row(["---"] * 3)]
    sections = []
    for one in found:
        results = study.load(one, folder)
        study.show(one, results, folder)
        report = one.report(results)
        overview += [markdown_row([f"`{one.name}`", row.claim, f"**{row.verdict}**"]) for row in report.rows]
        sections.append(study.markdown(one, results, report, folder=f"{folder.name}/"))
    parts = [_INTRODUCTION, "\n".join(overview) + "\n", *sections]
    if missing:
        parts.append(f"Not run yet: {', '.join(f'`{one.name}`' for one in missing)}.\n")
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=study.RESULTS, help="folder of the raw results")
    options = parser.parse_args()
    write_file(options.results.parent / "RESULTS.md", assembled(options.results))


if __name__ == "__main__":
    main()
