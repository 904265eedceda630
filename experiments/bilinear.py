"""The bilinear game: do agents that step at the same time lower the reward, and agents that take turns raise it?

python -m experiments.bilinear --quick
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import envs
from experiments import exact_gaussians, stage_games, study
from experiments.exact_gaussians import Team
from experiments.study import HOLDS, NOT_SEEN, PARTLY, Piece, Report, Results, Row

START = np.array([-0.25, 0.25])
BATCH = 256
SIMULTANEOUS = "simultaneous"
KEYS = 16
"""Of the random orders; the same for all starts, so that neighbours differ by where they are and not by chance."""
ROUNDING = 1e-5
"""Falls of the reward that are smaller than this are rounding (float32)."""
SHOWN = 1.0
"""Changes of the reward beyond this have one colour."""
_LABELS = {SIMULTANEOUS: "at the same time, equal thresholds"} | {
    m: f"in turns, {study.LABELS[m]}" for m in study.TRUST_REGION
}


class Size(NamedTuple):
    """budgets: joint. grid: starts along a side of [-2, 2]^2."""

    budgets: tuple[float, ...]
    grid: int
    seeds: int
    methods: tuple[str, ...]


SIZES = {
    "smoke": Size((1.0,), 3, 2, ("hatrpo",)),
    "quick": Size((0.01, 0.1, 1.0), 41, 128, study.TRUST_REGION),
    "full": Size((0.001, 0.01, 0.1, 1.0, 4.0), 201, 2000, study.TRUST_REGION),
}


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    exact = {"budgets": list(chosen.budgets), "grid": chosen.grid, "start": START.tolist(), "keys": KEYS}
    sampled = {"budgets": list(chosen.budgets), "seeds": chosen.seeds, "batch": BATCH, "start": START.tolist()}
    updates = len(chosen.budgets) * chosen.grid**2 * KEYS
    runs = len(chosen.budgets) * chosen.seeds
    return [
        *(
            Piece(f"exact-{method}", 1.5 + updates / 200000, exact | {"method": method},
                  lambda method=method: step_exactly(method, chosen))
            for method in (SIMULTANEOUS, *chosen.methods)
        ),
        *(
            Piece(f"sampled-{method}", 9 + runs / 100, sampled | {"method": method},
                  lambda method=method: step_by_samples(method, chosen))
            for method in chosen.methods
        ),
    ]  # fmt: skip


def starts(side: int) -> np.ndarray:
    """[side^2, 2]."""
    line = np.linspace(-2.0, 2.0, side)
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


def step_exactly(method: str, size: Size) -> study.Values:
    """One update with exact gradients and standard deviation 1, from every start in `KEYS` random orders.

    Returns:
        change: [budget, start] of the expected reward, mean over the orders. worse: [budget] share of the starts from
        which it falls in one order at least. paper: [budget] the expected reward after the update from (-1/4, 1/4), in
        the worst order.
    """
    allocator = exact_gaussians.ALLOCATORS["hatrpo" if method == SIMULTANEOUS else method]()
    update = exact_gaussians.make_update(
        lambda mean, std: jnp.prod(mean), allocator, learn_std=False, simultaneous=method == SIMULTANEOUS
    )

    def after(start, budget, key):
        return jnp.prod(update(key, Team(start, jnp.zeros(2)), budget)[0].mean)

    points = np.concatenate([starts(size.grid), START[None]])
    in_every_order = jax.vmap(after, (None, None, 0))
    program = jax.jit(jax.vmap(jax.vmap(in_every_order, (0, None, None)), (None, 0, None)))
    keys = jax.random.split(jax.random.key(0), KEYS)
    value = np.asarray(program(jnp.asarray(points, jnp.float32), jnp.asarray(size.budgets), keys), np.float64)
    change = value[:, :-1] - points[:-1].prod(-1)[:, None]
    return {
        "change": change.mean(-1),
        "worse": (change.min(-1) < -ROUNDING).mean(-1),
        "paper": value[:, -1].min(-1),
    }


def step_by_samples(method: str, size: Size) -> study.Values:
    """One update of the trainer from (-1/4, 1/4). Returns: value [budget, seed], the expected reward after it."""
    runs = stage_games.combinations(kl_budget=size.budgets, seed=np.arange(size.seeds))
    seeds = runs.pop("seed")
    config = stage_games.game_config(method, BATCH, init_std=1.0)
    begin = np.broadcast_to(START, (len(seeds), 2))

    def record(policy, params, metrics):
        return {"value": jnp.prod(policy.mean)}

    kept = stage_games.learn(envs.make("bilinear"), method, config, runs, seeds, 1, record, start_means=begin)
    return {"value": kept["value"][:, 0].reshape(len(size.budgets), -1)}


# What is shown


def report(results: Results) -> Report:
    size = SIZES[results.size]
    rows = [
        _paper_row(results, size),
        _grid_row(results, size),
        *(_sampled_row(results, size, m) for m in size.methods),
    ]
    figures = {
        "change": (_figure(results, size), "Change of the expected reward by one exact update, by start; joint KL "
                   f"budget {size.budgets[-1]:g}; colours end at ±{SHOWN:g}. Inside the lines the reward falls. "
                   f"Cross: (-1/4, 1/4). HATRPO: mean over {KEYS} random orders, the same for all starts."),
    }  # fmt: skip
    return Report(rows, figures, _text(results, size))


def _paper_row(results: Results, size: Size) -> Row:
    together, turns = (results.pieces[f"exact-{m}"]["paper"][-1] for m in (SIMULTANEOUS, "hatrpo"))
    start = START.prod()
    verdict = HOLDS if together < start < turns else NOT_SEEN
    return Row(
        "From means (-1/4, 1/4), trust-region steps at the same time lower the reward and steps in turns raise it "
        "(Kuba et al. 2022)",
        f"{start:.4f} becomes {together:.4f} at the same time and {turns:.4f} in turns (joint KL budget "
        f"{size.budgets[-1]:g})",
        "exact",
        verdict,
        study.because(verdict, {HOLDS: "The second agent's gradient has the sign of the first one's new mean."}),
    )


def _grid_row(results: Results, size: Size) -> Row:
    together = results.pieces[f"exact-{SIMULTANEOUS}"]["worse"]
    turns = {m: results.pieces[f"exact-{m}"]["worse"] for m in size.methods}
    most = max(share.max() for share in turns.values())
    verdict = HOLDS if most == 0 < together.max() else PARTLY if most < together.max() else NOT_SEEN
    shares = ", ".join(f"{100 * share:.1f} % at {budget:g}" for share, budget in zip(together, size.budgets))
    reasons = {
        HOLDS: "In turns, the line search tests the very reward that the team will get. At the same time the reward "
        "falls from every start whose means have opposite signs, and sizes whose sum is below the step's length; short "
        "steps leave a region finer than the grid.",
    }
    return Row(
        "In turns no start is made worse, whoever shares out the budget; at the same time some are",
        f"starts made worse at the same time: {shares}; in turns, all allocations and budgets: at most "
        f"{100 * most:.1f} %",
        "exact, grid of starts",
        verdict,
        study.because(verdict, reasons),
    )


def _sampled_row(results: Results, size: Size, method: str) -> Row:
    rises = results.pieces[f"sampled-{method}"]["value"] > START.prod()
    found = [study.proportion(of_budget) for of_budget in rises]
    verdict = study.counted([study.judged(f, 0.9, 0.5) for f in found])
    tried = f" Tried: {size.seeds} seeds of {BATCH} samples at each budget, from (-1/4, 1/4)."
    reasons = {
        PARTLY: "Gradients of samples: both slopes are only 1/4 at the start, and steps from a wrong sign are not "
        "always made good by the factor." + tried,
        NOT_SEEN: "Gradients of samples: both slopes are only 1/4 at the start, and the sign is often wrong." + tried,
        HOLDS: f"{BATCH} samples tell the signs of both slopes.",
    }
    return Row(
        f"The same from samples: {study.LABELS[method]} raises the reward in its first update (nine times in ten)",
        "share of seeds: " + ", ".join(f"{f.number(0, True)} at {b:g}" for f, b in zip(found, size.budgets)),
        "; ".join(f"{f.interval(0, True)} %" for f in found),
        verdict,
        study.because(verdict, reasons),
    )


def _figure(results: Results, size: Size) -> Figure:
    shown = (SIMULTANEOUS, *size.methods)
    figure = Figure(figsize=(2.4 * len(shown) + 1.1, 3.2), layout="constrained")
    line = np.linspace(-2.0, 2.0, size.grid)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, shown):
        change = results.pieces[f"exact-{method}"]["change"][-1].reshape(size.grid, size.grid).T
        image = axes.pcolormesh(line, line, change, cmap="PuOr_r", vmin=-SHOWN, vmax=SHOWN, shading="nearest",
                                rasterized=True)  # fmt: skip
        if change.min() < -ROUNDING:
            axes.contour(line, line, change, levels=[-ROUNDING], colors="black", linewidths=1)
        axes.plot(*START, "x", color="white", markersize=8, markeredgewidth=3.4)
        axes.plot(*START, "x", color="black", markersize=7, markeredgewidth=1.6)
        axes.set_title(_LABELS[method].replace(", ", ",\n"), fontsize=9, loc="left")
        axes.set_aspect("equal")
        axes.set_xlabel("mean of agent 1")
    panels[0].set_ylabel("mean of agent 2")
    figure.colorbar(image, ax=panels, label="change of the reward", shrink=0.8, extend="both")
    return figure


def _text(results: Results, size: Size) -> str:
    return (
        f"r = a1 a2, Gaussian policies of standard deviation 1, one update. Exact: a grid of {size.grid} x {size.grid} "
        f"starts on [-2, 2]^2, each in {KEYS} random orders, a start made worse if it is so in one of them. Sampled: "
        f"{size.seeds} seeds, batches of {BATCH}, the standard deviation may move too. Nothing is searched."
    )


STUDY = study.Study(
    "bilinear",
    "The bilinear game: turns against simultaneous steps",
    "Do trust-region steps that all agents make at once lower the reward of r = a1 a2, and do steps in turns raise it, "
    "whatever the allocation?",
    pieces,
    report,
)


if __name__ == "__main__":
    study.main(STUDY)
