"""The bilinear game: do simultaneous steps of the agents lower the reward, and sequential steps raise it?

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
from experiments.intervals import proportion
from experiments.study import Piece, Report, Results
from experiments.styles import TRUST_REGION, label

START = np.array([-0.25, 0.25])
BATCH = 256
SIMULTANEOUS = "simultaneous"
KEYS = 16
"""Random orders; the same for all starts, so that neighbours differ by their position only."""
ROUNDING = 1e-5
"""Falls of the reward that are smaller than this are rounding (float32)."""
SHOWN = 1.0
"""Changes of the reward beyond this have one colour."""
_LABELS = {SIMULTANEOUS: "simultaneous, equal thresholds"} | {m: f"sequential, {label(m)}" for m in TRUST_REGION}


class Size(NamedTuple):
    """budgets: joint. grid: starts along a side of [-2, 2]^2."""

    budgets: tuple[float, ...]
    grid: int
    seeds: int
    methods: tuple[str, ...]


SIZES = {
    "smoke": Size((1.0,), 3, 2, ("hatrpo",)),
    "quick": Size((0.01, 0.1, 1.0), 41, 128, TRUST_REGION),
    "full": Size((0.001, 0.01, 0.1, 1.0, 4.0), 201, 2000, TRUST_REGION),
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
    budgets = [f"joint KL budget {budget:g}" for budget in size.budgets]
    exact = {method: results.pieces[f"exact-{method}"] for method in (SIMULTANEOUS, *size.methods)}
    sampled = {m: results.pieces[f"sampled-{m}"]["value"] > START.prod() for m in size.methods}
    tables = {
        "reference": study.table(
            ["update", *budgets],
            [[_LABELS[m], *(f"{value:.4f}" for value in values["paper"])] for m, values in exact.items()],
        ),
        "worse": study.table(
            ["update", *budgets],
            [[_LABELS[m], *(f"{100 * share:.1f} %" for share in values["worse"])] for m, values in exact.items()],
        ),
        "sampled": study.table(
            ["update", *budgets],
            [[_LABELS[m], *(proportion(each).text(0, percent=True) for each in rises)] for m, rises in sampled.items()],
        ),
    }
    return Report(tables, {"change": _figure(exact, size)})


def _figure(exact: dict, size: Size) -> Figure:
    figure = Figure(figsize=(2.4 * len(exact) + 1.1, 3.2), layout="constrained")
    line = np.linspace(-2.0, 2.0, size.grid)
    panels = figure.subplots(1, len(exact), sharey=True, squeeze=False)[0]
    for axes, (method, values) in zip(panels, exact.items()):
        change = values["change"][-1].reshape(size.grid, size.grid).T
        options = {"cmap": "PuOr_r", "vmin": -SHOWN, "vmax": SHOWN, "shading": "nearest", "rasterized": True}
        image = axes.pcolormesh(line, line, change, **options)
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


STUDY = study.Study("bilinear", "The bilinear game: sequential against simultaneous steps", pieces, report)


if __name__ == "__main__":
    study.main(STUDY)
