"""Does unequal KL pay? Allocators with utilities of the batch and of held-out halves, over millions of env steps.

python -m experiments.bodies_at_scale --quick

Pieces (`body_runs`) are stored one by one next to the results, each as soon as it is done: the same command resumes where
it was stopped, inside a piece too, and `--report` shows those that exist. The share of the budget really spent is in the
tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import shares, study, styles
from experiments.body_runs import REQUIRED, SIZES, STUDY_NAME, piece_name, pieces
from experiments.curves import last_fifth, pace_text
from experiments.intervals import Estimate, estimate, mean_ratio
from experiments.methods import METHOD_STYLES, METHODS, is_trust_region
from experiments.study import Report, Results


def report(results: Results) -> Report:
    """Of the pieces that are done."""
    by_scenario = together(results)
    methods = [method for method in METHODS if any(method in values for values in by_scenario.values())]
    whole = list(complete(by_scenario).values())
    rows = {scenario: _title(scenario, values) for scenario, values in by_scenario.items()}

    def table(cell, names=methods, more_rows=()):
        body = [
            [rows[scenario], *(cell(values, method) if method in values else "–" for method in names)]
            for scenario, values in by_scenario.items()
        ]
        first = "scenario (env steps per seed × seeds)"
        return study.table([first, *(METHODS[method].label for method in names)], [*body, *more_rows])

    def gains(score):
        def text(bodies, method):
            both_ran = bodies and all(method in values and "hatrpo" in values for values in bodies)
            return gain_over_hatrpo(bodies, method, score).text() if both_ran else "–"

        mean = [f"geometric mean of {len(whole)}", *(text(whole, method) for method in compared)]
        return table(lambda values, method: text([values], method), compared, [mean])

    compared = [method for method in methods if method != "hatrpo"]
    budgeted = [method for method in methods if is_trust_region(method)]
    adaptive = [method for method in budgeted if METHODS[method].algorithm != "hatrpo"]
    # Smoothed, shrunk utilities give equal shares in most updates, and then no agent leads.
    led = [method for method in adaptive if not METHODS[method].fields.get("utility_smoothing")]
    tables = {
        "final": table(lambda values, m: estimate(of_training(values[m])).text(0)),
        "evaluated": table(lambda values, m: estimate(of_evaluation(values[m])).text(0)),
        "gain_evaluated": gains(of_evaluation),
        "gain": gains(of_training),
        "pace": table(_pace, compared),
        "spent": table(lambda values, m: f"{100 * values[m]['spent'].mean():.0f} %", budgeted),
        "shares": table(_shares, adaptive),
        "leaders": table(lambda values, m: shares.stays_text(values[m]["stays"], values[m]["by_chance"]), led),
        "signal": table(_signal, adaptive),
        "search": study.table(
            ["scenario, method", "return at the end of each trial (mean of two seeds)", "chosen"],
            [
                _trials(scenario, method, results.pieces[name])
                for scenario in by_scenario
                for method in METHODS
                if (name := piece_name(scenario, "search", method)) in results.pieces
            ],
        ),
    }
    figures = {"curves": curves(by_scenario), "allocation": allocation(by_scenario)}
    return Report(tables, figures)


_OVER_SEEDS = ("env_steps", "eval_env_steps", "share", "signal", "led")
"""The results that have no seed axis: the same in all pieces, or means over seeds."""


def together(results: Results) -> dict[str, dict[str, study.Values]]:
    """scenario -> method -> values of all groups of seeds that are done; those of which none is are left out."""
    by_scenario = {}
    for scenario in dict.fromkeys(scenario for scenario, _ in SIZES[results.size].blocks):
        found = {method: _together(results, scenario, method) for method in METHODS}
        if any(found.values()):
            by_scenario[scenario] = {method: values for method, values in found.items() if values}
    return by_scenario


def _together(results: Results, scenario: str, method: str) -> study.Values:
    """The groups of seeds that are done, as one; empty if none is."""
    size = SIZES[results.size]
    names = [piece_name(scenario, method, group) for group in range(size.groups)]
    done = [results.pieces[name] for name in names if name in results.pieces]
    return {
        field: np.mean([values[field] for values in done], axis=0)
        if field in _OVER_SEEDS
        else np.concatenate([values[field] for values in done])
        for field in (done[0] if done else ())
    }


def complete(by_scenario: Mapping[str, dict[str, study.Values]]) -> dict[str, dict[str, study.Values]]:
    """The bodies on which all required trust-region methods ran, of which means over bodies are taken."""
    return {scenario: values for scenario, values in by_scenario.items() if set(REQUIRED[:4]) <= set(values)}


def of_training(values: study.Values) -> np.ndarray:
    """[seed] final return of stochastic policies."""
    return values["final"]


def of_evaluation(values: study.Values) -> np.ndarray:
    """[seed] final return of deterministic policies."""
    return last_fifth(values["evaluated"])


def gain_over_hatrpo(
    bodies: Sequence[Mapping[str, study.Values]],
    method: str,
    score: Callable[[study.Values], np.ndarray] = of_training,
) -> Estimate:
    """The method's final return over HATRPO's on bodies that both ran on; of several bodies the geometric mean."""
    return mean_ratio([(score(values[method]), score(values["hatrpo"])) for values in bodies])


def _title(scenario: str, values: Mapping[str, study.Values]) -> str:
    shown = next(iter(values.values()))
    seeds = {len(own["final"]) for own in values.values()}
    return f"{scenario} ({int(shown['env_steps'][-1]):,} × {'/'.join(map(str, sorted(seeds)))} seeds)"


def _pace(values: Mapping[str, study.Values], method: str) -> str:
    return pace_text(values[method], values["hatrpo"]) if "hatrpo" in values else "–"


def _shares(values: Mapping[str, study.Values], method: str) -> str:
    own = values[method]
    mean = own["share"].mean(0)
    correlation = own["correlation"][np.isfinite(own["correlation"])]
    found = f", r = {correlation.mean():.2f}" if len(correlation) else ""
    return f"{100 * own['largest'].mean():.0f} %; {' '.join(f'{100 * part:.0f}' for part in mean)}{found}"


def _signal(values: Mapping[str, study.Values], method: str) -> str:
    if "signal" not in values[method]:
        return "–"
    thirds = np.array_split(values[method]["signal"], 3)
    return ", ".join(f"{100 * np.nanmean(part):.0f} %" for part in thirds)


def _trials(scenario: str, method: str, values: study.Values) -> list[str]:
    each = [f"{value:.2g}: {trial.mean():.0f}" for value, trial in zip(values["tried"], values["trials"])]
    facts = ", ".join(each), f"{float(values['chosen']):.2g}"
    return [f"{scenario}, {METHODS[method].label}", *facts]


def curves(rows: Mapping[str, Mapping[str, study.Values]]) -> Figure:
    """Left training returns (stochastic policies), right evaluation returns (deterministic policies); by title and method."""
    figure = Figure(figsize=(9.0, 2.7 * len(rows) + 0.8), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False, sharex="row", sharey="row")
    for (title, values), (training, evaluation) in zip(rows.items(), panels):
        for method, own in values.items():
            known = np.isfinite(own["returns"]).all(axis=0)
            style = METHOD_STYLES[method]
            styles.curve(training, own["env_steps"][known] / 1e6, own["returns"][:, known], style)
            styles.curve(evaluation, own["eval_env_steps"] / 1e6, own["evaluated"], style)
        training.set_title(title, fontsize=10, loc="left")
        training.set_ylabel("return")
        for axes in (training, evaluation):
            axes.set_xlim(left=0)
            styles.clean(axes)
    panels[0][1].set_title("evaluation return (deterministic policies)", fontsize=9, loc="right")
    panels[0][0].set_title("training return (stochastic policies)", fontsize=9, loc="right")
    for axes in panels[-1]:
        axes.set_xlabel("env steps per seed (millions)")
    styles.legend_below(figure, panels.ravel(), 4, fontsize=8.5)
    return figure


def allocation(by_scenario: Mapping[str, Mapping[str, study.Values]]) -> Figure:
    """The share of each agent against its signal, both means over a bin of updates, as multiples of the team's mean."""
    shown = [
        method
        for method in ("hatrpo_w", "hatrpo_w_cross", "hatrpo_n_cross")
        if any(method in values for values in by_scenario.values())
    ]
    figure = Figure(figsize=(3.0 * len(shown), 3.6), layout="constrained")
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, shown):
        for place, (scenario, values) in enumerate(by_scenario.items()):
            if method not in values:
                continue
            signal, share = values[method]["signal"], values[method]["share"]
            relative = signal / np.maximum(np.nanmean(signal, axis=1, keepdims=True), 1e-3)
            look = {"color": f"C{place}", "markersize": 4, "alpha": 0.6, "label": scenario}
            axes.plot(relative.ravel(), (share * share.shape[1]).ravel(), ".", **look)
        axes.axhline(1, color="0.6", linewidth=1, linestyle=":")
        axes.set_title(METHODS[method].label, fontsize=10, loc="left")
        axes.set_xlabel("signal fraction / mean of the team")
        axes.set_xlim(-1, 4)
        styles.clean(axes)
    panels[0].set_ylabel("share of the budget / equal share")
    styles.legend_below(figure, panels, 5, fontsize=8.5)
    return figure


STUDY = study.Study(STUDY_NAME, "Bodies at scale", pieces, report, is_incremental=True)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(study.WORK / "compiled"))
    study.main(STUDY)
