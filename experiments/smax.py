"""Does unequal KL pay in SMAX, JaxMARL's StarCraft? Win rates of HATRPO, HATRPO-W, HAPPO and MAPPO.

python -m experiments.smax --quick

A piece is one method on one map, stored as soon as it is done; the same command resumes, inside a piece too. Every method
is tuned on the first map with the same number of trials (HATRPO-W takes HATRPO's joint KL budget) and trains with the
best value on all maps.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import envs
import marl_kl
from experiments import settings, study, styles
from experiments.curves import last_fifth, last_tenth
from experiments.ecosystem import COMMON, FIRST_ORDER, won
from experiments.intervals import estimate
from experiments.methods import METHODS, SEARCHED, is_trust_region, swept_field, train_with
from experiments.study import Piece, Report, Results
from marl_kl.core.algorithms import get

STUDY_NAME = "smax"
EVALUATIONS = 20
SEARCH_SEEDS = (100, 101)


class Size(NamedTuple):
    """maps: as JaxMARL names them; methods are tuned on the first. env_steps: of each run; search_env_steps: of a trial."""

    maps: Sequence[str]
    methods: Sequence[str]
    env_steps: int
    search_env_steps: int
    seeds: int


_METHODS = ("hatrpo", "hatrpo_w", "happo", "mappo")
SIZES = {
    "smoke": Size(("3m",), ("hatrpo", "hatrpo_w", "mappo"), 2 * 4096, 4096, 2),
    "quick": Size(("2s3z", "5m_vs_6m"), _METHODS, 1_500_000, 500_000, 5),
    "full": Size(("2s3z", "5m_vs_6m", "3s5z", "8m", "27m_vs_30m"), _METHODS, 10_000_000, 1_000_000, 10),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    searches = [_search_piece(size, method) for method in chosen.methods if method == _tuned_as(method)]
    return [*searches, *(_run_piece(size, scenario, method) for scenario in chosen.maps for method in chosen.methods)]


def _tuned_as(method: str) -> str:
    return "hatrpo" if is_trust_region(method) else method


def _name(scenario: str, method: str) -> str:
    return f"{scenario}-{method}"


def _env(scenario: str):
    return envs.make(f"jaxmarl/{scenario}")


def _config(method: str, env_steps: int) -> marl_kl.Config:
    fields = {} if is_trust_region(method) else FIRST_ORDER
    config = get(METHODS[method].algorithm).config_class(
        **COMMON | fields | METHODS[method].fields | {"total_env_steps": env_steps}
    )
    interval = max(1, config.num_updates // EVALUATIONS)
    return config.replace(eval_interval=interval, save_interval=interval, checkpoints_kept=1)


def _search_piece(size: str, method: str) -> Piece:
    chosen = SIZES[size]
    scenario, config = chosen.maps[0], _config(method, chosen.search_env_steps).replace(eval_interval=0)
    values = SEARCHED[swept_field(method)]
    facts = {"map": scenario, "method": method, "searched": list(values), "search_seeds": list(SEARCH_SEEDS)}
    name = _name("search", method)

    def search() -> study.Values:
        """tried: [trial]; trials: [trial, seed] return of the stochastic policy at the end; chosen: the best value."""
        result = train_with(_env(scenario), method, values, SEARCH_SEEDS, config, _work(size, name))
        trials = last_tenth(result.metrics["episode_return"])
        best = values[int(trials.mean(1).argmax())]
        return {"tried": np.array(values), "trials": trials, "chosen": np.array(best)}

    seconds = 60.0 + len(values) * len(SEARCH_SEEDS) * config.total_env_steps / 15_000
    return Piece(name, seconds, facts | settings.of_config(config, METHODS[method].algorithm), search)


def _run_piece(size: str, scenario: str, method: str) -> Piece:
    chosen, name = SIZES[size], _name(scenario, method)
    config, seeds = _config(method, chosen.env_steps), range(chosen.seeds)
    facts = {
        "map": scenario,
        "method": method,
        "seeds": list(seeds),
        **settings.of_config(config, METHODS[method].algorithm),
    }

    def play(searched: study.Values) -> study.Values:
        """
        Returns:
            eval_env_steps: [V]; won: [seed, V] share of the evaluation episodes, of deterministic policies; evaluated:
            [seed, V] their mean return. final: [seed] return of the stochastic policy, last tenth of the updates.
            Trust-region methods also: spent: [seed] share of the budget, mean over updates; HATRPO-W also: largest: [seed]
            share of one agent, and signal: [agent] `signal_fraction`, means over updates (and seeds).
        """
        value = float(searched["chosen"])
        result = train_with(_env(scenario), method, [value], seeds, config, _work(size, name))
        returns = result.evaluations[0].episode_return
        metrics = {key: found[0] for key, found in result.metrics.items()}
        values = {
            "eval_env_steps": result.evaluations[0].env_steps,
            "won": won(_env(scenario).spec, returns).mean(-1),
            "evaluated": returns.mean(-1),
            "final": last_tenth(metrics["episode_return"]),
        }
        if is_trust_region(method):
            values["spent"] = metrics["kl_total"].mean(1) / (value * _env(scenario).spec.num_agents)
        if "signal_fraction" in metrics:
            threshold = metrics["kl_threshold"]
            values["largest"] = (threshold.max(-1) / threshold.sum(-1)).mean(1)
            values["signal"] = np.nanmean(metrics["signal_fraction"], axis=(0, 1))
        shutil.rmtree(_work(size, name), ignore_errors=True)
        return values

    seconds = 60.0 + len(seeds) * config.total_env_steps / 12_000
    return Piece(name, seconds, facts, play, (_name("search", _tuned_as(method)),))


def _work(size: str, name: str) -> Path:
    """Where a piece that was interrupted is resumed."""
    return study.WORK / f"{STUDY_NAME}-{size}" / name


# What is shown


def report(results: Results) -> Report:
    """Of the pieces that are done."""
    size = SIZES[results.size]
    by_map = study.done(results, dict.fromkeys(size.maps, size.methods), _name)
    methods = [method for method in size.methods if any(method in found for found in by_map.values())]

    def table(cell, names=methods):
        body = [
            [scenario, *(cell(found[method]) if method in found else "–" for method in names)]
            for scenario, found in by_map.items()
        ]
        return study.table(["map", *(METHODS[method].label for method in names)], body)

    budgeted = [method for method in methods if is_trust_region(method)]
    adaptive = [method for method in budgeted if method != "hatrpo"]
    tried = [
        [METHODS[method].label, ", ".join(f"{v:g}: {t.mean():.2f}" for v, t in zip(own["tried"], own["trials"])),
         f"{float(own['chosen']):g}"]
        for method in size.methods
        if (own := results.pieces.get(_name("search", method)))
    ]  # fmt: skip
    tables = {
        "won": table(lambda own: estimate(last_fifth(own["won"])).text()),
        "final": table(lambda own: estimate(own["final"]).text()),
        "spent": table(lambda own: f"{100 * own['spent'].mean():.0f} %", budgeted),
        "allocation": table(
            lambda own: f"{100 * own['largest'].mean():.0f} %; {100 * np.mean(own['signal']):.1f} %", adaptive
        ),
        "search": study.table(["method", f"return on {size.maps[0]} (mean of two seeds)", "chosen"], tried),
    }
    return Report(tables, {"won": win_rates(by_map)})


def win_rates(by_map) -> Figure:
    """Of deterministic policies; interquartile mean over seeds and its interval."""
    figure = Figure(figsize=(4.2 * len(by_map), 3.4), layout="constrained")
    panels = figure.subplots(1, len(by_map), squeeze=False, sharey=True)[0]
    for axes, (scenario, found) in zip(panels, by_map.items()):
        for method, own in found.items():
            styles.curve(axes, own["eval_env_steps"] / 1e6, own["won"], METHODS[method].algorithm)
        axes.set_title(scenario, fontsize=10, loc="left")
        axes.set_xlabel("env steps per seed (millions)")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1)
        styles.clean(axes)
    panels[0].set_ylabel("episodes won")
    styles.legend_below(figure, panels, 4, fontsize=9)
    return figure


STUDY = study.Study(STUDY_NAME, "SMAX: JaxMARL's StarCraft", pieces, report, is_incremental=True)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(study.WORK / "compiled"))
    study.main(STUDY)
