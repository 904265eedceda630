"""The pictures of docs/method.md: `PYTHONPATH=. python docs/figures/water_filling.py` writes them to docs/images."""

from pathlib import Path

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from marl_kl import allocators

IMAGES = Path(__file__).parents[1] / "images"
UTILITY = np.array([0.4, 0.3, 0.2, 0.1])
EPSILON = 1e-4
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]


def vessels(ax, kl_budget):
    """One vessel per agent: as wide as its utility, with its floor at epsilon / utility; the area of water is its threshold."""
    thresholds = np.asarray(allocators.water_filling(jnp.asarray(UTILITY), kl_budget, EPSILON))
    floors, left = EPSILON / UTILITY, np.concatenate([[0.0], np.cumsum(UTILITY)[:-1]])
    ax.bar(left, floors, UTILITY, align="edge", color="0.75", edgecolor="0.4")
    ax.bar(left, thresholds / UTILITY, UTILITY, floors, align="edge", color=COLOURS, edgecolor="0.4", alpha=0.8)
    top = 1.25 * max(np.max(floors + thresholds / UTILITY), floors[-1])
    for place, width, threshold in zip(left, UTILITY, thresholds):
        ax.text(place + width / 2, top * 0.96, f"{threshold / kl_budget:.0%}", ha="center", va="top")
    ax.set(ylim=(0, top), xlim=(0, 1), title=f"budget {kl_budget / EPSILON:g} ε", yticks=[], xlabel="width: utility U")
    ax.set_xticks(left + UTILITY / 2, [f"{u:g}" for u in UTILITY])
    ax.spines[["top", "right"]].set_visible(False)


def water_filling():
    fig, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
    for ax, budget in zip(axes, (1.5 * EPSILON, 8 * EPSILON, 800 * EPSILON)):
        vessels(ax, budget)
    axes[0].set_ylabel("floor ε / U, water up to 1 / λ")
    fig.savefig(IMAGES / "water_filling.png", dpi=130)


def allocations():
    shares = {
        "HATRPO: equal": allocators.uniform(jnp.asarray(UTILITY), 1.0),
        "HATRPO-W, ε ≪ budget: ∝ U": allocators.water_filling(jnp.asarray(UTILITY), 1.0, 1e-4),
        "HATRPO-W, ε = budget": allocators.water_filling(jnp.asarray(UTILITY), 1.0, 1.0),
        "HATRPO-N: ∝ U²": allocators.natural(jnp.asarray(UTILITY), 1.0),
    }
    fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
    for row, share in enumerate(shares.values()):
        left = 0.0
        for part, colour in zip(np.asarray(share), COLOURS):
            ax.barh(row, part, left=left, color=colour, edgecolor="white", alpha=0.8)
            if part > 0.03:
                ax.text(left + part / 2, row, f"{part:.0%}", ha="center", va="center", color="white")
            left += part
    ax.set_yticks(range(len(shares)), shares)
    ax.set(xlim=(0, 1), xticks=[], title="share of the KL budget of four agents with utilities 0.4, 0.3, 0.2, 0.1")
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    fig.savefig(IMAGES / "allocations.png", dpi=130)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    water_filling()
    allocations()
