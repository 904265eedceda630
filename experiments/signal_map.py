"""Where does unequal KL pay? Gain over HATRPO against heterogeneity, samples per update and budget.

python -m experiments.signal_map --quick

The game: in every step each of four agents sees 8 random numbers of its own and chooses a number; the reward is
sum_i w_i exp(-(a_i - f_i(o_i))^2) plus noise, f_i a fixed random function. Networks are 64-64, weights are in a ratio
r : with r = 1 agents are alike, with r = 2 they matter 8 : 4 : 2 : 1. All methods get the same env steps and the same
joint budget, of which matched line searches spend nearly all.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import marl_kl
from envs.base import Env, EnvSpec, TimeStep
from experiments import settings, stage_games, study, styles
from experiments.intervals import ratio
from experiments.methods import METHOD_STYLES, METHODS
from experiments.study import Piece, Report, Results
from marl_kl import algorithms, devices

AGENTS, OBSERVATION = 4, 8
PLAYED = ("hatrpo", "hatrpo_w", "hatrpo_w_cross", "hatrpo_n_cross")
RATIOS = (1.0, 2.0, 4.0)
NOISE = 1.0
"""Standard deviation of the noise on a reward between 0 and 1."""


class Size(NamedTuple):
    """samples: per update. budgets: joint KL budgets. env_steps: per run."""

    samples: tuple[int, ...]
    budgets: tuple[float, ...]
    env_steps: int
    seeds: int
    methods: tuple[str, ...] = PLAYED


SIZES = {
    "smoke": Size((64,), (0.02,), 256, 2, ("hatrpo", "hatrpo_w_cross")),
    "quick": Size((512,), (0.02,), 65_536, 8),
    "full": Size((512, 2048, 8192), (0.005, 0.02, 0.08), 1_048_576, 16),
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


def config_of(method: str, samples: int):
    config_class = algorithms.get(METHODS[method].algorithm).config_class
    return config_class(
        num_envs=samples, rollout_length=1, critic_minibatches=1, critic_epochs=2, init_std=1.0, cg_subsample=0.25,
        **settings.UNEVALUATED,
        **METHODS[method].fields,
    )  # fmt: skip


def pieces(size: str) -> list[Piece]:
    chosen = SIZES[size]
    return [
        Piece(
            f"{method}-{samples}", 60.0 + 3e-5 * chosen.env_steps * chosen.seeds * len(RATIOS) * len(chosen.budgets),
            {
                "method": method, "ratios": list(RATIOS), "budgets": list(chosen.budgets), "noise": NOISE, "seeds": chosen.seeds,
                "env_steps": chosen.env_steps, **settings.of_config(config_of(method, samples)),
            },
            functools.partial(play, method, samples, chosen),
        )
        for samples in chosen.samples
        for method in chosen.methods
    ]  # fmt: skip


def play(method: str, samples: int, size: Size) -> study.Values:
    """One method at all ratios and budgets, one program.

    Returns:
        [ratio, budget, seed] each. untrained: return of the first update's rollout; area: mean over the run; final: over
        its last tenth; the noise on the mean of many returns is left in. spent: share of the budget. share: [ratio, budget, seed, agent] of the thresholds, mean over the second half of the run.
        signal: the same of signal_fraction, where it is measured.
    """
    env, config = tracking_game(), config_of(method, samples)
    runs = stage_games.combinations(ratio=RATIOS, budget=size.budgets, seed=np.arange(size.seeds))
    given = {
        "weights": np.stack([weights_of(value) for value in runs["ratio"]]),
        "budget": runs["budget"].astype(np.float32),
        "seed": runs["seed"].astype(np.uint32),
    }

    def one_run(given: Mapping[str, Any]):
        game = env._replace(params=given["weights"])
        its_config = config.replace(kl_budget=given["budget"])
        train = marl_kl.make_train(game, METHODS[method].algorithm, its_config)

        def update(state, _):
            state, metrics = train.update(state)
            kept = {name: metrics[name] for name in ("episode_return", "kl_total", "kl_threshold")}
            return state, kept | ({"signal": metrics["signal_fraction"]} if "signal_fraction" in metrics else {})

        return jax.lax.scan(update, train.init(jax.random.key(given["seed"])), None, size.env_steps // samples)[1]

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
        "spent": (kept["kl_total"] / given["budget"][:, None]).mean(1),
        "share": share[:, half:].mean(1),
    }
    if "signal" in kept:
        found["signal"] = kept["signal"][:, half:].mean(1)
    shape = (len(RATIOS), len(size.budgets), size.seeds)
    return {name: values.reshape(*shape, *values.shape[1:]) for name, values in found.items()}


# What is shown


def _gain(results: Results, method: str, samples: int, which: str, at: tuple[int, int]):
    """Ratio of the improvements over untrained teams, which are the same for all methods."""
    of_method, of_hatrpo = (results.pieces[f"{name}-{samples}"] for name in (method, "hatrpo"))
    start = of_hatrpo["untrained"][at].mean()
    return ratio(of_method[which][at] - start, of_hatrpo[which][at] - start)


def report(results: Results) -> Report:
    size = SIZES[results.size]
    compared = [method for method in size.methods if method != "hatrpo"]
    cells = [(s, b, r) for s in range(len(size.samples)) for b in range(len(size.budgets)) for r in range(len(RATIOS))]

    def table(cell, methods):
        body = [
            [f"{size.samples[s]:,}", f"{size.budgets[b]:g}", f"{RATIOS[r]:g}", *(cell(m, size.samples[s], (r, b)) for m in methods)]
            for s, b, r in cells
        ]  # fmt: skip
        return study.table(["samples per update", "KL budget", "ratio", *(METHODS[m].label for m in methods)], body)

    def shares(method, samples, at):
        values = results.pieces[f"{method}-{samples}"]
        return " ".join(f"{100 * part:.0f}" for part in values["share"][at].mean(0))

    def signal(method, samples, at):
        values = results.pieces[f"{method}-{samples}"]
        return " ".join(f"{100 * part:.0f}" for part in values["signal"][at].mean(0)) if "signal" in values else "–"

    spent = {m: np.mean([results.pieces[f"{m}-{s}"]["spent"] for s in size.samples]) for m in size.methods}
    tables = {
        "area": table(lambda m, s, at: _gain(results, m, s, "area", at).text(), compared),
        "final": table(lambda m, s, at: _gain(results, m, s, "final", at).text(), compared),
        "shares": table(shares, compared),
        "signal": table(signal, [m for m in compared if m.endswith("cross")]),
        "spent": study.table(
            ["method", "share of the budget spent"],
            [[METHODS[method].label, f"{100 * value:.1f} %"] for method, value in spent.items()],
        ),
    }
    return Report(tables, {"map": figure(results, compared)})


def figure(results: Results, compared: list[str]) -> Figure:
    """A panel per number of samples and budget: gain over HATRPO against the ratio."""
    size = SIZES[results.size]
    shown = Figure(figsize=(9.0, 2.6 * len(size.budgets) + 1.2), layout="constrained")
    panels = shown.subplots(len(size.budgets), len(size.samples), squeeze=False, sharex=True, sharey="row")
    for b, line in enumerate(panels):
        for samples, axes in zip(size.samples, line):
            axes.axhline(1, color="0.6", linewidth=1, linestyle=":")
            axes.set_xscale("log", base=2)
            for shift, method in enumerate(compared):
                found = [_gain(results, method, samples, "area", (r, b)) for r in range(len(RATIOS))]
                look = METHOD_STYLES[method]
                styles.error_bars(
                    axes, RATIOS, found, shift - 1, color=look.colour, marker=look.marker, label=look.label
                )
            axes.set_xticks(RATIOS, [f"{value:g}" for value in RATIOS])
            axes.set_title(f"{samples:,} samples, budget {size.budgets[b]:g}", fontsize=9, loc="left")
            styles.clean(axes)
        line[0].set_ylabel("improvement / HATRPO's")
    for axes in panels[-1]:
        axes.set_xlabel("ratio of the agents' weights")
    styles.legend_below(shown, panels.ravel(), 4, fontsize=8.5)
    return shown


STUDY = study.Study("signal_map", "Where unequal KL pays", pieces, report)


if __name__ == "__main__":
    study.main(STUDY)
