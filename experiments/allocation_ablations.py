"""What do the details of the allocation change: epsilon, utility, noise, leftover budget, and budgets that are large?

python -m experiments.allocation_ablations --quick
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import study, styles, weighted_game
from experiments.intervals import Estimate, estimate, ratio_of_means
from experiments.study import Piece, Report, Results
from experiments.styles import ADAPTIVE, TRUST_REGION, label
from experiments.weighted_game import (
    BATCH,
    BUDGETS,
    EPSILON_BUDGETS,
    EPSILONS,
    NOISES,
    NUM_ACTIONS,
    OTHER_WAY,
    USUAL_BUDGET,
    VARIANTS,
    WEIGHTS,
    Setting,
    Variant,
    settings_of,
)


class Size(NamedTuple):
    variants: tuple[Variant, ...]
    seeds: int
    updates: int


SIZES = {
    "smoke": Size((*VARIANTS[:2], VARIANTS[8]), 1, 3),
    "quick": Size(VARIANTS, 60, 60),
    "full": Size(VARIANTS, 300, 200),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    found = []
    for variant in chosen.variants:
        settings = settings_of(variant)
        updates = len(settings) * chosen.seeds * chosen.updates
        found.append(
            Piece(
                variant.name, 12 + updates * (1 + variant.samples) / 6000,
                {"settings": [list(s) for s in settings], "seeds": chosen.seeds, "updates": chosen.updates,
                 "batch": BATCH, "variant": list(variant), "weights": WEIGHTS.tolist(), "actions": NUM_ACTIONS},
                lambda variant=variant: weighted_game.play(variant, chosen.seeds, chosen.updates),
            )
        )  # fmt: skip
    return found


# What is shown

_CHANGES = {"measured": "utility measured, not predicted", "all": "the best agent may use all that is left"}


def at(results: Results, name: str, key: str, **setting) -> np.ndarray:
    """[seed] of the variant called `name` at a setting; its budget is the usual one if not given."""
    variant = next(v for v in VARIANTS if v.name == name)
    return results.pieces[name][key][settings_of(variant).index(Setting(**{"kl_budget": USUAL_BUDGET} | setting))]


def change(results: Results, name: str, other: str) -> list[Estimate]:
    """By budget: mean payoff of `name` minus that of `other`, seed by seed."""
    return [estimate(at(results, name, "area", kl_budget=b) - at(results, other, "area", kl_budget=b)) for b in BUDGETS]


def realised(results: Results, name: str, above: str, below: str) -> list[Estimate]:
    """By budget: mean `above` over mean `below`."""
    pairs = [np.stack([at(results, name, key, kl_budget=b) for key in (above, below)], -1) for b in BUDGETS]
    return [estimate(pair, ratio_of_means) for pair in pairs]


def epsilon_changes(results: Results, name: str, key: str, budget: float) -> list[Estimate]:
    """By epsilon: `key` minus that at the usual epsilon, seed by seed."""
    usual = at(results, name, key, kl_budget=budget)
    return [estimate(at(results, name, key, kl_budget=budget, allocation_epsilon=e) - usual) for e in EPSILONS]


def carried_and_lost(name: str) -> tuple[str, str]:
    """The variants of an algorithm that carry leftover budget over, and lose it."""
    other = f"{name}-{OTHER_WAY[name]}"
    return (other, name) if OTHER_WAY[name] == "carried" else (name, other)


def report(results: Results) -> Report:
    variants = SIZES[results.size].variants
    names = [variant.name for variant in variants]
    plain = [name for name in names if name in TRUST_REGION]
    adaptive = [name for name in plain if name in ADAPTIVE]
    with_epsilon = [name for name in plain if name in ("hatrpo_w", "hatrpo_g")]
    changed = [variant.name.split("-") for variant in variants if variant.fields]
    leftover = [name for name in plain if f"{name}-{OTHER_WAY[name]}" in names]
    samples = [variant.samples for variant in variants if variant.samples > 1]
    tables = {
        "unequal": _budget_table({(label(m),): change(results, m, "hatrpo") for m in adaptive}),
        "samples": _budget_table(
            {
                (label(m), f"{times} times the samples"): change(results, m, f"hatrpo-x{times}")
                for m in adaptive
                for times in samples
            },
            ["method", "HATRPO with"],
        ),
        "leftover": _budget_table({(label(m),): change(results, *carried_and_lost(m)) for m in leftover}),
        "spent": _spent_table(results, leftover),
        "gains": _gains_table(results, plain),
        "epsilon": _epsilon_table(results, with_epsilon),
        "noise": _noise_table(results, plain),
        "variants": _budget_table(
            {(label(base), _CHANGES[what]): change(results, f"{base}-{what}", base) for base, what in changed},
            ["method", "change"],
        ),
        "first_update": _first_update_table(results, names),
    }
    figures = {
        "payoff": _payoff_figure(results, leftover, adaptive, samples),
        "settings": _settings_figure(results, plain),
        "gains": _gains_figure(results, plain),
        "epsilon": _epsilon_figure(results, with_epsilon),
    }
    return Report(tables, figures)


def _budget_table(rows: dict[tuple[str, ...], list[Estimate]], header: Sequence[str] = ("method",)) -> str:
    """Differences in mean payoff by budget."""
    columns = [*header, *(f"budget {b:g}" for b in BUDGETS)]
    return study.table(columns, [[*names, *(f.text(3, sign="+") for f in found)] for names, found in rows.items()])


def _spent_table(results: Results, leftover: list[str]) -> str:
    rows = []
    for name in leftover:
        for title, variant in zip(("carried over", "lost"), carried_and_lost(name)):
            shares = [f"{100 * at(results, variant, 'spent', kl_budget=b).mean():.0f} %" for b in BUDGETS]
            rows.append([label(name), title, *shares])
    return study.table(["method", "leftover", *(f"budget {b:g}" for b in BUDGETS)], rows)


_GAINS = {
    "exact / predicted gain": ("real", "predicted"),
    "predicted for accepted / for whole steps": ("accepted", "predicted"),
    "exact / predicted gain of accepted steps": ("real", "accepted"),
    "gain on the samples / predicted gain of accepted steps": ("surrogate", "accepted"),
}


def _gains_table(results: Results, names: list[str]) -> str:
    rows = [
        [label(name), title, *(f.text() for f in realised(results, name, *ratio))]
        for title, ratio in _GAINS.items()
        for name in names
    ]
    return study.table(["method", "ratio", *(f"budget {b:g}" for b in BUDGETS)], rows)


def _epsilon_table(results: Results, names: list[str]) -> str:
    """The largest change over the epsilons."""
    rows = []
    for name in names:
        for budget in EPSILON_BUDGETS:
            payoff, moved = (
                max(epsilon_changes(results, name, key, budget), key=lambda f: abs(f.value))
                for key in ("area", "moved")
            )
            rows.append([label(name), f"{budget:g}", payoff.text(3, sign="+"), moved.text()])
    return study.table(["method", "joint KL budget", "mean payoff", "part of the budget reallocated"], rows)


def _noise_table(results: Results, names: list[str]) -> str:
    most = NOISES[-1]
    rows = []
    for name in names:
        off, moved, area = (
            lambda noise, key=key: at(results, name, key, noise=noise) for key in ("off", "moved", "area")
        )
        worse = estimate(off(most) - off(0.0)).text(sign="+")
        payoff = estimate(area(most) - area(0.0)).text(3, sign="+")
        offs = [f"{estimate(off(noise)).value:.2f}" for noise in NOISES]
        rows.append([label(name), *offs, worse, f"{estimate(moved(most)).value:.2f}", payoff])
    columns = [f"noise {noise:g}" for noise in NOISES]
    last = [f"change at {most:g}", f"reallocated at {most:g}", f"payoff at {most:g}"]
    return study.table(["method", *columns, *last], rows)


def _first_update_table(results: Results, names: list[str]) -> str:
    rows = []
    for name in names:
        largest, spent, fraction, surrogate, accepted = (
            at(results, name, key).mean() for key in ("largest", "spent", "fraction", "surrogate", "accepted")
        )
        rows.append([name, *(f"{value:.2f}" for value in (largest, spent, fraction, surrogate / accepted))])
    return study.table(
        ["variant", "largest share", "KL spent / budget", "accepted fraction", "gain on the samples / predicted"], rows
    )


def _settings_figure(results: Results, names: list[str]) -> Figure:
    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col")
    columns = (("kl_budget", BUDGETS), ("noise", NOISES))
    for column, (field, ticks) in enumerate(columns):
        for axes, key in zip(panels[:, column], ("area", "off")):
            axes.set_xscale("log" if field == "kl_budget" else "linear")
            for place, name in enumerate(names):
                found = [estimate(at(results, name, key, **{field: tick})) for tick in ticks]
                styles.error_bars(axes, ticks, found, place - 1.5, **styles.point_style(name))
            styles.clean(axes)
    panels[1, 0].set_xlabel("joint KL budget")
    panels[1, 1].set_xlabel("variance of the noise / of the reward")
    panels[0, 0].set_ylabel("mean expected payoff")
    panels[1, 0].set_ylabel("part of the budget not where\nexact utilities would allocate it")
    styles.legend_below(figure, [panels[0, 0]])
    return figure


def _epsilon_figure(results: Results, names: list[str]) -> Figure:
    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    panels = figure.subplots(2, len(EPSILON_BUDGETS), sharex=True, sharey="row")
    for column, budget in enumerate(EPSILON_BUDGETS):
        for axes, key in zip(panels[:, column], ("area", "moved")):
            axes.set_xscale("log")
            axes.axhline(0, color="0.6", linewidth=0.8)
            for place, name in enumerate(names):
                found = epsilon_changes(results, name, key, budget)
                styles.error_bars(axes, EPSILONS, found, place - 0.5, **styles.point_style(name))
            styles.clean(axes)
        panels[0, column].set_title(f"joint KL budget {budget:g}", fontsize=10, loc="left")
        panels[1, column].set_xlabel("epsilon")
    panels[0, 0].set_ylabel("change of the\nmean payoff")
    panels[1, 0].set_ylabel("part of the budget\nreallocated")
    styles.legend_below(figure, [panels[0, 0]])
    return figure


def _gains_figure(results: Results, names: list[str]) -> Figure:
    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    *panels, empty = figure.subplots(2, 3).ravel()
    empty.set_axis_off()
    for axes, title in zip(panels, [*_GAINS, "KL spent / budget"]):
        axes.set_title(title.replace(" / ", " /\n"), fontsize=9, loc="left")
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("joint KL budget")
        for place, name in enumerate(names):
            if title in _GAINS:
                found = realised(results, name, *_GAINS[title])
            else:
                found = [estimate(at(results, name, "spent", kl_budget=b), np.mean) for b in BUDGETS]
            styles.error_bars(axes, BUDGETS, found, place - 1.5, **styles.point_style(name))
        axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
        styles.clean(axes)
    styles.legend_below(figure, panels[:1], 1, loc="center", bbox_to_anchor=(0.84, 0.26))
    return figure


def _payoff_figure(results: Results, leftover: list[str], adaptive: list[str], samples: list[int]) -> Figure:
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    panels = left, right = figure.subplots(1, 2)
    for axes, title in zip(panels, ("against equal shares", "leftover carried over − lost")):
        axes.set_title(title, fontsize=10, loc="left")
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("joint KL budget")
        styles.clean(axes)
    for place, name in enumerate(adaptive):
        styles.error_bars(left, BUDGETS, change(results, name, "hatrpo"), place - 1.5, **styles.point_style(name))
    for times, marker in zip(samples, ("x", "*")):
        look = {"color": styles.ALGORITHM_STYLES["hatrpo"].colour, "marker": marker, "linestyle": ":", "markersize": 6}
        found = change(results, f"hatrpo-x{times}", "hatrpo")
        styles.error_bars(left, BUDGETS, found, 1.5, **look, label=f"HATRPO, {times} times the samples")
    for place, name in enumerate(leftover):
        found = change(results, *carried_and_lost(name))
        styles.error_bars(right, BUDGETS, found, place - 1.5, **styles.point_style(name))
    left.set_ylabel("difference in mean payoff")
    styles.legend_below(figure, panels, 3)
    return figure


STUDY = study.Study(
    "allocation_ablations", "Allocation: unequal agents, epsilon, utility, noise, leftover budget", pieces, report
)


if __name__ == "__main__":
    study.main(STUDY)
