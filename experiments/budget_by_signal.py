"""How is KL best spread over a run? A joint budget scaled by the team's signal, fixed and falling ones, larger batches.

python -m experiments.budget_by_signal --quick

In the local model an update of KL d along a direction of which the part f is signal gains sqrt(2 d f) |g|, g the true
gradient in the metric of the Fisher matrix. Of all ways to spend a run's KL the best is then d proportional to f |g|^2,
and f grows with the samples of a batch, so that updates of four times as many samples and four times the KL gain as much
as four of the others. Here HATRPO trains with budgets proportional to the measured signal, with a fixed and a falling
budget of the same mean, and with such larger batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import marl_kl
from envs.base import Env
from experiments import body_runs, settings, signal_map, study, styles
from experiments.curves import bin_edges, binned, last_tenth
from experiments.intervals import Estimate, estimate, ratio
from experiments.methods import config_of as config_of_method
from experiments.study import Piece, Report, Results
from experiments.styles import Style
from marl_kl import devices

STUDY_NAME = "budget_by_signal"
CEILING = 1.0
"""Of a budget scaled by signal, in KL per agent: what would be spent if all of the predicted gain were real."""
SMOOTHING = 0.98
"""Weight of earlier updates in the average of the signal."""
SMALLEST = 1e-6
"""Joint budget while no signal is seen: too small to change anything."""


class Schedule(NamedTuple):
    """How a run's KL is spent.

    Attributes:
        label: in tables.
        colour: in figures.
        compared_with: the schedule that spends as much in a run.
        by_signal: the budget is `CEILING` times the smoothed signal fraction.
        has_its_mean: the mean of the budget is what `by_signal` spent, not the world's own.
        falls: linearly from twice the mean to 0.
        batches: the multiple of the world's batch, and of its budget.
    """

    label: str
    colour: str
    compared_with: str = ""
    by_signal: bool = False
    has_its_mean: bool = False
    falls: bool = False
    batches: int = 1


SCHEDULES = {
    "same_mean": Schedule("fixed", "#333333", has_its_mean=True),
    "signal": Schedule("scaled by signal", "#0072B2", "same_mean", by_signal=True),
    "falling": Schedule("falling", "#E69F00", "same_mean", has_its_mean=True, falls=True),
    "fixed": Schedule("fixed, 0.005 per agent", "#999999"),
    "large": Schedule("four times the batch and that KL", "#009E73", "fixed", batches=4),
}
"""In the order of the tables."""


class World(NamedTuple):
    """env: its environment. config: `config(env_steps, batches)`, HATRPO's with a batch that is `batches` times as large.
    env_steps: per seed."""

    env: Callable[[], Env]
    config: Callable[[int, int], marl_kl.Config]
    env_steps: int
    seeds: int


BUDGET = 0.005
"""Of fixed budgets, per agent: the best of HATRPO's search on ant_4x2, and signal_map's."""


def _unequal_game() -> Env:
    """signal_map's, whose agents matter 8 : 4 : 2 : 1."""
    return signal_map.tracking_game()._replace(params=signal_map.weights_of(2.0))


def _game_config(env_steps: int, batches: int) -> marl_kl.Config:
    return signal_map.config_of("hatrpo", 512 * batches, env_steps, BUDGET)


def _body_config(scenario: str, env_steps: int, batches: int) -> marl_kl.Config:
    num_envs = 32 * batches
    config = config_of_method(scenario, "hatrpo", env_steps, num_envs, 128, body_runs.EVALUATIONS)
    return config.replace(**settings.UNEVALUATED)


def _body(scenario: str, env_steps: int, seeds: int) -> World:
    make = functools.partial(body_runs.make_env, scenario)
    return World(make, functools.partial(_body_config, scenario), env_steps, seeds)


SIZES = {
    "smoke": {"game": World(_unequal_game, _game_config, 2 * 4096, 2)},
    "quick": {
        "game": World(_unequal_game, _game_config, 65_536, 16),
        "ant_4x2": _body("ant_4x2", 1_500_000, 8),
    },
    "full": {
        "game": World(_unequal_game, _game_config, 1_048_576, 64),
        "ant_4x2": _body("ant_4x2", 10_000_000, 12),
        "hopper_3x1": _body("hopper_3x1", 10_000_000, 12),
    },
}


def pieces(size: str) -> list[Piece]:
    in_order = sorted(SCHEDULES, key=lambda schedule: SCHEDULES[schedule].has_its_mean)
    return [_piece(name, world, schedule) for name, world in SIZES[size].items() for schedule in in_order]


def _name(world: str, schedule: str) -> str:
    return f"{world}-{schedule}"


def _piece(name: str, world: World, schedule: str) -> Piece:
    chosen = SCHEDULES[schedule]
    facts = {
        "world": name, "schedule": schedule, "seeds": world.seeds, "ceiling": CEILING,
        "smoothing": SMOOTHING, **dict(world.env().spec.metadata), **settings.of_config(config_of(world, chosen), "hatrpo"),
    }  # fmt: skip
    needs = (_name(name, "signal"),) if chosen.has_its_mean else ()
    seconds = 60.0 + world.seeds * world.env_steps / 15_000
    return Piece(_name(name, schedule), seconds, facts, functools.partial(play, world, chosen), needs)


def config_of(world: World, schedule: Schedule) -> marl_kl.Config:
    config = world.config(world.env_steps, schedule.batches)
    return config.replace(
        measure_signal=True, kl_budget_final_fraction=0.0 if schedule.falls else 1.0,
        kl_budget=schedule.batches * BUDGET * world.env().spec.num_agents,
    )  # fmt: skip


def budget_of(signal: jax.Array, num_agents: int) -> jax.Array:
    """[] joint budget at a smoothed signal fraction []."""
    return jnp.maximum(CEILING * num_agents * jnp.clip(signal, 0.0, 1.0), SMALLEST)


def play(world: World, schedule: Schedule, scaled: study.Values | None = None) -> study.Values:
    """HATRPO with this schedule, all seeds in one program.

    Args:
        scaled: the results of the budget scaled by signal, whose mean a schedule that `has_its_mean` takes.

    Returns:
        env_steps: [P] at the end of a bin of updates. untrained: [seed] return of the first update. returns: [seed, P];
        final: [seed] over the last tenth of the updates. budget: [P] joint budget, mean over seeds. kl: [seed] joint KL
        spent per update; kl_of_run: the same in sum. signal: [P] signal fraction, mean over seeds and agents.
    """
    env, config = world.env(), config_of(world, schedule)
    if scaled is not None:
        mean = float(scaled["kl"].mean())
        config = config.replace(kl_budget=mean * (2 if schedule.falls else 1))
    spec = env.spec
    average = optax.ema(SMOOTHING)

    def one_run(seed):
        train = marl_kl.make_train(env, "hatrpo", config)

        def update(carry, _):
            state, averaging, signal = carry
            if schedule.by_signal:
                budget = budget_of(signal, spec.num_agents)
                state, metrics = marl_kl.make_train(env, "hatrpo", config.replace(kl_budget=budget)).update(state)
            else:
                state, metrics = train.update(state)
            measured = jnp.mean(metrics["signal_fraction"])
            kept = {
                "returns": metrics["episode_return"], "kl": metrics["kl_total"], "signal": measured,
                "budget": jnp.sum(metrics["kl_threshold"]),
            }  # fmt: skip
            signal, averaging = average.update(measured, averaging)
            return (state, averaging, signal), kept

        unseen = jnp.zeros(())
        first = train.init(jax.random.key(seed)), average.init(unseen), unseen
        return jax.lax.scan(update, first, None, config.num_updates)[1]

    mesh = devices.seed_mesh(world.seeds)
    options = spec.cpu_compiler_options
    program = devices.over_seeds(jax.vmap(one_run), mesh, (devices.SEEDS,), devices.SEEDS, options)
    seeds = np.arange(world.seeds, dtype=np.uint32)
    found: Mapping[str, Any] = jax.tree.map(np.asarray, program(devices.shard(seeds, mesh)))
    edges = bin_edges(config.num_updates)
    returns = binned(found["returns"], edges)
    return {
        "env_steps": config.batch_size * edges[1:],
        "untrained": _first_finite(found["returns"]),
        "returns": returns,
        "final": last_tenth(found["returns"]),
        "budget": binned(found["budget"], edges).mean(0),
        "kl": found["kl"].mean(1),
        "kl_of_run": found["kl"].sum(1),
        "signal": binned(found["signal"], edges).mean(0),
    }


def _first_finite(returns: np.ndarray) -> np.ndarray:
    """[seed, update] -> [seed]."""
    return returns[np.arange(len(returns)), np.isfinite(returns).argmax(1)]


# What is shown


def report(results: Results) -> Report:
    """Of the pieces that are done."""
    worlds = study.done(results, dict.fromkeys(SIZES[results.size], tuple(SCHEDULES)), _name)

    def table(cell: Callable[[Mapping[str, study.Values], str], str], names: Sequence[str] = tuple(SCHEDULES)) -> str:
        body = [
            [_title(results, world), *(cell(found, name) if name in found else "–" for name in names)]
            for world, found in worlds.items()
        ]
        return study.table(["", *(SCHEDULES[name].label for name in names)], body)

    tables = {
        "gain": table(_gain, [name for name, schedule in SCHEDULES.items() if schedule.compared_with]),
        "final": table(
            lambda found, name: estimate(found[name]["final"]).text(2 if found[name]["final"].max() < 10 else 0)
        ),
        "kl": table(lambda found, name: f"{found[name]['kl'].mean():.3g}; {found[name]['kl_of_run'].mean():.2g}"),
        "signal": table(_signal),
    }
    return Report(tables, {"curves": curves({_title(results, world): found for world, found in worlds.items()})})


def _title(results: Results, world: str) -> str:
    chosen = SIZES[results.size][world]
    return f"{world} ({chosen.env_steps:,} env steps × {chosen.seeds} seeds)"


def improvement_ratio(found: Mapping[str, study.Values], name: str) -> Estimate:
    """Improvement over the untrained team, as a multiple of that with the fixed budget that spends as much."""
    fixed = found[SCHEDULES[name].compared_with]
    start = fixed["untrained"].mean()
    return ratio(found[name]["final"] - start, fixed["final"] - start)


def _gain(found: Mapping[str, study.Values], name: str) -> str:
    return improvement_ratio(found, name).text() if SCHEDULES[name].compared_with in found else "–"


def _signal(found: Mapping[str, study.Values], name: str) -> str:
    """In each third of the run."""
    return ", ".join(f"{100 * part.mean():.1f} %" for part in np.array_split(found[name]["signal"], 3))


def curves(worlds: Mapping[str, Mapping[str, study.Values]]) -> Figure:
    """Left returns, right budgets; a row per world."""
    figure = Figure(figsize=(9.0, 2.7 * len(worlds) + 0.9), layout="constrained")
    panels = figure.subplots(len(worlds), 2, squeeze=False, sharex="row")
    for (title, found), (returns, budgets) in zip(worlds.items(), panels):
        for name, own in found.items():
            chosen = SCHEDULES[name]
            known = np.isfinite(own["returns"]).all(axis=0)
            style = Style(chosen.label, chosen.colour, "-", "o")
            x = own["env_steps"] / 1e6
            styles.curve(returns, x[known], own["returns"][:, known], style)
            budgets.plot(x, own["budget"], color=chosen.colour, linewidth=1.5, label=chosen.label)
        returns.set_title(title, fontsize=10, loc="left")
        returns.set_ylabel("return")
        budgets.set_ylabel("joint KL budget")
        budgets.set_yscale("log")
        budgets.set_ylim(bottom=1e-3)
        for axes in (returns, budgets):
            axes.set_xlim(left=0)
            styles.clean(axes)
    for axes in panels[-1]:
        axes.set_xlabel("env steps per seed (millions)")
    styles.legend_below(figure, panels.ravel(), 3, fontsize=8.5)
    return figure


STUDY = study.Study(STUDY_NAME, "A budget scaled by signal, and larger batches", pieces, report, is_incremental=True)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(study.WORK / "compiled"))
    study.main(STUDY)
