"""The long study of bodies: its searches, its groups of seeds, and a report of what is done so far."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import body_runs, study
from experiments.bodies_at_scale import STUDY
from experiments.body_runs import SIZES, TRIALS


@pytest.mark.parametrize(
    "best, tried",
    [(0.015, 3), (0.005, 4), (0.045, 4), (0.0004, TRIALS), (10.0, TRIALS)],
)
def test_a_grid_is_extended_until_its_best_value_is_inside(monkeypatch, tmp_path, best, tried):
    def sweep(scenario, method, values, seeds, config, folder):
        returns = -np.square(np.log(np.asarray(values) / best))
        return SimpleNamespace(
            metrics={"episode_return": np.broadcast_to(returns[:, None, None], (len(values), 2, 20))}
        )

    monkeypatch.setattr(body_runs, "train_with", sweep)
    found = body_runs.search("bilinear", "hatrpo", SIZES["smoke"], tmp_path / "work")
    assert len(found["tried"]) == tried and list(found["tried"]) == sorted(found["tried"])
    if tried < TRIALS:
        np.testing.assert_allclose(found["chosen"], best)
        assert found["tried"][0] < found["chosen"] < found["tried"][-1]


@pytest.mark.slow
def test_groups_are_of_different_seeds_and_follow_their_search():
    pieces = {piece.name: piece for piece in body_runs.pieces("quick")}
    seeds = [pieces[f"ant_4x2-hatrpo-{group}"].settings["seeds"] for group in (0, 1)]
    assert sum(map(len, seeds)) == len({seed for group in seeds for seed in group}) == 8
    names = list(pieces)
    for piece in pieces.values():
        assert all(names.index(need) < names.index(piece.name) for need in piece.needs)


@pytest.mark.slow
@pytest.mark.studies
def test_smoke(monkeypatch, tmp_path):
    """Pieces are files of their own, a second call runs none again, and a report shows those that are done."""
    monkeypatch.setattr(study, "WORK", tmp_path / "work")
    monkeypatch.setattr(body_runs, "TRIALS", len(body_runs.SEARCHED["kl_budget"]))
    log = []
    results = study.run(STUDY, "smoke", tmp_path / STUDY.name, tmp_path, log.append)
    assert {path.stem for path in (tmp_path / STUDY.name).iterdir()} == set(results.pieces)
    text = study.write_report(STUDY, results, tmp_path).read_text()
    assert "| bilinear (" in text and " × 4 seeds)" in text and "nan" not in text
    log.clear()
    study.run(STUDY, "smoke", tmp_path / STUDY.name, tmp_path, log.append)
    assert len(log) == 1 and "3 of 3 pieces are done" in log[0]
    (tmp_path / STUDY.name / "bilinear-hatrpo_w_cross-1.json").unlink()
    assert " × 2 seeds)" in study.write_report(STUDY, study.load(STUDY, tmp_path), tmp_path).read_text()
