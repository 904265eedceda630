"""All tables and figures again from the stored raw results, also those of experiments/RESULTS.md.

python -m experiments.report
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments import (
    allocation_ablations,
    allocator_cost,
    bilinear,
    bodies_at_scale,
    budget_by_signal,
    budgets_at_scale,
    ecosystem,
    headline,
    matrix_game,
    mixed_motives,
    off_policy,
    parameter_sharing,
    signal_map,
    smax,
    study,
    theory,
    two_peaks,
)
from marl_kl.storage.files import write_file

STUDIES = (
    allocation_ablations.STUDY,
    signal_map.STUDY,
    bodies_at_scale.STUDY,
    budgets_at_scale.STUDY,
    budget_by_signal.STUDY,
    smax.STUDY,
    off_policy.STUDY,
    matrix_game.STUDY,
    two_peaks.STUDY,
    theory.STUDY,
    bilinear.STUDY,
    parameter_sharing.STUDY,
    mixed_motives.STUDY,
    allocator_cost.STUDY,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=study.RESULTS, help="folder of the raw results")
    parser.add_argument("--pdf", action="store_true", help="figures as PDF too")
    options = parser.parse_args()
    for one in STUDIES:
        print(study.write_report(one, study.load(one, options.results), options.results, options.pdf), flush=True)
    ecosystem.main(["--report", "--results", str(options.results)])
    of = {one.name: study.load(one, options.results) for one in headline.STUDIES}
    study.write_figure(headline.figure(of), options.results / "gain_over_hatrpo", options.pdf)
    page = options.results.parent / "RESULTS.md"
    write_file(page, study.with_tables(page.read_text(), {"claims": headline.claims(of)}))


if __name__ == "__main__":
    main()
