"""Where does unequal KL pay? Gain over HATRPO against heterogeneity, samples per update and budget.

python -m experiments.signal_map --quick

The game: in every step each of four agents sees 8 random numbers of its own and chooses a number; the reward is
sum_i w_i exp(-(a_i - f_i(o_i))^2) plus noise, f_i a fixed random function. Networks are 64-64, weights are in a ratio
r : with r = 1 agents are alike, with r = 2 they matter 8 : 4 : 2 : 1. All methods get the same env steps and the same
joint budget, of which matched line searches spend nearly all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import marl_kl
from envs.base import Env, EnvSpec, TimeStep
from experiments import settings, stage_games, study, styles
from experiments.intervals import Estimate, ratio
from experiments.methods import METHOD_STYLES, METHODS
from experiments.study import Piece, Report, Results
from marl_kl import algorithms, devices

AGENTS, OBSERVATION = 4, 8
PLAYED = ("hatrpo", "hatrpo_w", "hatrpo_w_cross", "hatrpo_n_cross", "hatrpo_g", "hatrpo_g_cross")
RATIOS = (1.0, 2.0, 4.0)
NOISE = 1.0
"""Standard deviation of the noise on a reward between 0 and 1."""


class Cell(NamedTuple):
    """samples: per update. budget: joint KL. env_steps: per run. methods: the first is the reference."""

    samples: int
    budget: float
    env_steps: int
    methods: tuple[str, ...]


class Size(NamedTuple):
    cells: tuple[Cell, ...]
    seeds: int


_CROSS_FITTED = ("hatrpo", "hatrpo_w_cross", "hatrpo_n_cross")
_BUDGETS = (0.005, 0.02, 0.08)
SIZES = {
    "smoke": Size((Cell(64, 0.02, 256, ("hatrpo", "hatrpo_w_cross")),), 2),
    "quick": Size(
        (
            Cell(512, 0.005, 65_536, _CROSS_FITTED),
            Cell(512, 0.02, 65_536, PLAYED),
            Cell(512, 0.08, 65_536, _CROSS_FITTED),
            Cell(2048, 0.005, 131_072, PLAYED),
            Cell(2048, 0.02, 131_072, _CROSS_FITTED),
            Cell(2048, 0.08, 131_072, _CROSS_FITTED),
        ),
        16,
    ),
    "full": Size(
        tuple(Cell(samples, budget, 1_048_576, PLAYED) for samples in (512, 2048, 8192) for budget in _BUDGETS), 16
    ),
}


def tracking_game() -> Env:
    """See the module; one-step episodes, `Env.params` are the weights [4]."""
    names = tuple(f"agent_{i}" for i in range(AGENTS))
    spec = EnvSpec(
        "tracking", names, (OBSERVATION,) * AGENTS, (1,) * AGENTS, "continuous", AGENTS * OBSERVATION, 1
    )  # fmt: skip
    rng = np.random.default_rng(0)
    inner = jnp.asarray(rng.normal(size=(AGENTS, OBSERVATION, 16)) / np.sqrt(OBSERVATION), jnp.float32)
    outer = jnp.asarray(rng.normal(size=(AGENTS, 16)) / 2, jnp.float32)

    def timestep(obs, reward, over):
        return TimeStep(
            obs, obs.ravel(), jnp.full(AGENTS, reward), over, jnp.zeros((), bool), jnp.ones((AGENTS, 1), bool)
        )

    def reset(key, params):
        obs = jax.random.normal(key, (AGENTS, OBSERVATION))
        return obs, timestep(obs, 0.0, jnp.zeros((), bool))

    def step(key, obs, action, params):
        wanted = jnp.einsum("nh,nh->n", outer, jnp.tanh(3 * jnp.einsum("no,noh->nh", obs, inner)))
        reward = jnp.sum(params * jnp.exp(-jnp.square(action[:, 0] - wanted)))
        return obs, timestep(obs, reward + NOISE * jax.random.normal(key), jnp.ones((), bool))

    return Env(spec, reset, step, params=weights_of(1.0))


def weights_of(ratio: float) -> np.ndarray:
    """[4] that sum to 1, each `ratio` times the next."""
    weights = float(ratio) ** -np.arange(AGENTS)
    return np.asarray(weights / weights.sum(), np.float32)


def config_of(method: str, samples: int, env_steps: int, budget: float) -> marl_kl.Config:
    config_class = algorithms.get(METHODS[method].algorithm).config_class
    return config_class(
        total_env_steps=env_steps, num_envs=samples, rollout_length=1, critic_minibatches=1, critic_epochs=2,
        init_std=1.0, cg_subsample=0.25, kl_budget=budget, **settings.UNEVALUATED, **METHODS[method].fields,
    )  # fmt: skip


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    return [_piece(cell, method, chosen.seeds) for cell in chosen.cells for method in cell.methods]


def _name(cell: Cell, method: str) -> str:
    return f"{method}-{cell.samples}-{cell.budget:g}"


def _piece(cell: Cell, method: str, seeds: int) -> Piece:
    config = config_of(method, cell.samples, cell.env_steps, cell.budget)
    facts = {
        "method": method,
        "ratios": list(RATIOS),
        "noise": NOISE,
        "seeds": seeds,
        **settings.of_config(config, METHODS[method].algorithm),
    }
    seconds = 30.0 + 1.5e-4 * cell.env_steps * seeds * len(RATIOS)
    return Piece(_name(cell, method), seconds, facts, functools.partial(play, method, config, seeds))


def play(method: str, config: marl_kl.Config, seeds: int) -> study.Values:
    """One method at all ratios, one program.

    Returns:
        [ratio, seed] each. untrained: return of the first update's rollout; area: mean over the run; final: over its last
        tenth; the noise on the mean of many returns is left in. spent: share of the budget. share: [ratio, seed, agent] of
        the thresholds, mean over the second half of the run. signal: the same of signal_fraction, where it is measured.
    """
    env = tracking_game()
    runs = stage_games.combinations(ratio=RATIOS, seed=np.arange(seeds))
    given = {
        "weights": np.stack([weights_of(value) for value in runs["ratio"]]),
        "seed": runs["seed"].astype(np.uint32),
    }

    def one_run(given: Mapping[str, Any]):
        train = marl_kl.make_train(env._replace(params=given["weights"]), METHODS[method].algorithm, config)

        def update(state, _):
            state, metrics = train.update(state)
            kept = {name: metrics[name] for name in ("episode_return", "kl_total", "kl_threshold")}
            return state, kept | ({"signal": metrics["signal_fraction"]} if "signal_fraction" in metrics else {})

        return jax.lax.scan(update, train.init(jax.random.key(given["seed"])), None, config.num_updates)[1]

    mesh = devices.seed_mesh(len(given["seed"]))
    program = devices.over_seeds(jax.vmap(one_run), mesh, (devices.SEEDS,), devices.SEEDS)
    kept = jax.tree.map(np.asarray, program(devices.shard(given, mesh)))
    updates = kept["kl_total"].shape[1]
    half, tenth = updates // 2, max(1, updates // 10)
    share = kept["kl_threshold"] / kept["kl_threshold"].sum(-1, keepdims=True)
    found = {
        "untrained": kept["episode_return"][:, 0],
        "area": kept["episode_return"].mean(1),
        "final": kept["episode_return"][:, -tenth:].mean(1),
        "spent": kept["kl_total"].mean(1) / config.kl_budget,
        "share": share[:, half:].mean(1),
    }
    if "signal" in kept:
        found["signal"] = kept["signal"][:, half:].mean(1)
    return {name: values.reshape(len(RATIOS), seeds, *values.shape[1:]) for name, values in found.items()}


# What is shown


Found = Mapping[str, study.Values]
"""method -> values, of one cell."""


def gain_over_hatrpo(found: Found, method: str, which: str, ratio_place: int) -> Estimate:
    """Ratio of the improvements over untrained teams, which are the same for all methods."""
    start = found["hatrpo"]["untrained"][ratio_place].mean()
    return ratio(found[method][which][ratio_place] - start, found["hatrpo"][which][ratio_place] - start)


def best_gain(weights: np.ndarray) -> float:
    """What unequal allocation gains in the local model of one update when utilities U are in the ratio of `weights` and
    known: HATRPO's equal shares gain sum U sqrt(d / N), the best ones sqrt(d sum U^2)."""
    return float(np.sqrt(len(weights) * np.square(weights).sum()) / weights.sum())


def cells(results: Results) -> dict[Cell, Found]:
    """Those of which HATRPO is done."""
    done = study.done(results, {cell: cell.methods for cell in SIZES[results.size].cells}, _name)
    return {cell: found for cell, found in done.items() if "hatrpo" in found}


def report(results: Results) -> Report:
    """Of the pieces that are done."""
    done = cells(results)
    methods = [method for method in PLAYED if any(method in found for found in done.values())]

    def table(text: Callable[[Found, str, int], str], names: Sequence[str]) -> str:
        body = [
            [
                f"{cell.samples:,}", f"{cell.budget:g}", f"{value:g}",
                *(text(found, name, place) if name in found else "–" for name in names),
            ]
            for cell, found in done.items()
            for place, value in enumerate(RATIOS)
        ]  # fmt: skip
        return study.table(["samples per update", "joint KL budget", "ratio", *(METHODS[m].label for m in names)], body)

    def percent(field: str) -> Callable[[Found, str, int], str]:
        return lambda found, name, place: " ".join(f"{100 * part:.0f}" for part in found[name][field][place].mean(0))

    def gain(which: str) -> Callable[[Found, str, int], str]:
        return lambda found, name, place: gain_over_hatrpo(found, name, which, place).text()

    compared = methods[1:]
    tables = {
        "area": table(gain("area"), compared),
        "final": table(gain("final"), compared),
        "shares": table(percent("share"), compared),
        "signal": table(percent("signal"), [name for name in compared if name.endswith("cross")]),
        "best": study.table(
            ["ratio", "gain of one update at known utilities"],
            [[f"{value:g}", f"{best_gain(weights_of(value)):.2f}"] for value in RATIOS],
        ),
        "spent": study.table(
            ["samples per update", "joint KL budget", *(METHODS[name].label for name in methods)],
            [
                [f"{cell.samples:,}", f"{cell.budget:g}",
                 *(f"{100 * found[name]['spent'].mean():.1f} %" if name in found else "–" for name in methods)]
                for cell, found in done.items()
            ],
        ),
    }  # fmt: skip
    return Report(tables, {"map": figure(done, compared)})


def figure(done: Mapping[Cell, Found], compared: Sequence[str]) -> Figure:
    """A panel per number of samples and budget: gain over HATRPO against the ratio."""
    samples, budgets = (sorted({getattr(cell, name) for cell in done}) for name in ("samples", "budget"))
    shown = Figure(figsize=(9.0, 2.4 * len(samples) + 1.0), layout="constrained")
    panels = shown.subplots(len(samples), len(budgets), squeeze=False, sharex=True, sharey=True)
    for axes in panels.ravel():
        axes.set_visible(False)
    for cell, found in done.items():
        axes = panels[samples.index(cell.samples), budgets.index(cell.budget)]
        axes.set_visible(True)
        axes.axhline(1, color="0.6", linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        for shift, method in enumerate(compared):
            if method not in found:
                continue
            gains = [gain_over_hatrpo(found, method, "area", place) for place in range(len(RATIOS))]
            look = METHOD_STYLES[method]
            styles.error_bars(
                axes,
                RATIOS,
                gains,
                shift - (len(compared) - 1) / 2,
                color=look.colour,
                marker=look.marker,
                label=look.label,
            )
        axes.set_xticks(RATIOS, [f"{value:g}" for value in RATIOS])
        axes.set_title(f"{cell.samples:,} samples, budget {cell.budget:g}", fontsize=9, loc="left")
        axes.set_xlabel("ratio of the agents' weights")
        styles.clean(axes)
    for axes in panels[:, 0]:
        axes.set_ylabel("improvement / HATRPO's")
    styles.legend_below(shown, panels.ravel(), 4, fontsize=8.5)
    return shown


STUDY = study.Study("signal_map", "Where unequal KL pays", pieces, report, is_incremental=True)


if __name__ == "__main__":
    study.main(STUDY)
