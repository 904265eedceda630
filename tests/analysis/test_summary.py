"""The summary of a run: the numbers in its table, for the terminal and as Markdown."""

import dataclasses

import numpy as np
from rich.console import Console

from marl_kl.analysis import summary
from marl_kl.analysis.statistics import interquartile_mean
from marl_kl.config import FirstOrderConfig
from marl_kl.results import Failure
from tests.support import synthetic


def _table(result) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(summary.table(result))
    return console.export_text()


def _row(result, name) -> list[str]:
    (line,) = [line for line in summary.markdown(result).splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_hold_the_means_of_the_run():
    result = synthetic.result(num_seeds=4)
    final = result.evaluation.episode_return[:, -1].mean(axis=-1, dtype=np.float64)
    share = result.metrics["kl_total"] / result.config.kl_budget
    accepted = (result.metrics["step_fraction"] > 0).mean(axis=(1, 2))
    row = _row(result, "1")
    assert row[2] == f"{final[1]:.0f}"
    assert row[3] == f"{result.metrics['episode_return'][1, -1]:.0f}"
    assert row[4:] == [f"{100 * x:.1f} %" for x in (share[1].mean(), share[1].max(), accepted[1])]
    overall = _row(result, "mean ± std")
    assert overall[2] == f"{final.mean():.0f} ± {final.std(ddof=1):.3g}"
    assert _row(result, "IQM [95 %]")[2].startswith(f"{interquartile_mean(final):.0f} [")


def test_both_forms_hold_the_same_cells_and_facts():
    result = synthetic.result(num_seeds=3)
    text = _table(result)
    for line in summary.markdown(result).splitlines():
        if line.startswith("|") and "---" not in line:
            assert all(cell.strip() in text for cell in line.strip("|").split("|"))
    assert "36,864 env steps/s" in text and "compile 2.0 s" in text and "GiB" in text


def test_failed_seeds_are_named_and_left_out_of_the_means():
    result = synthetic.result(num_seeds=3, failures=[Failure(1, 6, "critic")])
    result.metrics["kl_total"][1] = np.nan
    assert "seed 1 failed: critic was not finite in update 7" in summary.markdown(result)
    assert _row(result, "1 (failed)")[4] == "-"
    healthy = (result.metrics["kl_total"] / result.config.kl_budget)[[0, 2]]
    assert _row(result, "mean ± std")[4] == f"{100 * healthy.mean():.1f} %"
    assert "| IQM" not in summary.markdown(result), "two seeds have no interval"


def test_without_a_budget_kl_is_a_number_and_clipped_samples_have_a_column():
    result = synthetic.result(num_seeds=2, kl=False)
    kl, shares = np.full((2, 30), 0.05), np.full((2, 30, 4), 0.25)
    kl[1, 3] = 0.35
    config = FirstOrderConfig(total_env_steps=result.config.total_env_steps)
    metrics = result.metrics | {"kl_total": kl, "clip_fraction": shares}
    result = dataclasses.replace(result, config=config, metrics=metrics)
    assert _row(result, "1")[4:] == ["0.06", "0.35", "25.0 %"]
    assert _row(result, "mean ± std")[4:] == ["0.055", "0.35", "25.0 %"]
    text = summary.markdown(result)
    assert "KL: sum over agents" in text and "beyond clip:" in text and "accepted" not in text


def test_one_seed_without_kl_or_evaluation_or_episodes():
    result = synthetic.result(num_seeds=1, kl=False, num_evaluations=1)
    result.metrics["episode_return"][:] = np.nan
    row = _row(result, "0")
    assert row[2:] == ["-"] * 2, "what is not reported has no column"
    assert "mean ±" not in _table(result)


def test_in_a_notebook_a_result_is_its_table():
    result = synthetic.result()
    page = result._repr_html_()
    assert page.count("<tr>") == 1 + 4 + 2 and "hatrpo_w on legs, 4 seeds" in page
    assert all(f"<td>{cell}</td>" in page for cell in summary.rows(result)[0][2])
