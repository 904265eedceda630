"""The tables of docs/scenarios.md: every body scenario, its sizes, its defaults and how it differs from MA-MuJoCo's.

python -m experiments.scenario_table
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import envs
from envs.bodies import scenarios
from experiments import study
from marl_kl.analysis.bodies import mujoco_check
from marl_kl.storage.files import write_file

_MORE_DIFFERENCES = {
    "ant": ("27 entries instead of 105 (no contact forces)",),
    "coupled_halfcheetah": (
        "each agent drives and reads its own cheetah (the library's agent 0 reads the second one); both see the tendon",
    ),
    "halfcheetah": ("Brax's torso and shins pass through the floor",),
    "humanoid": (
        "244 entries instead of 348 (no contact forces; inertia and velocity per link); controls in [-1, 1] stretched "
        "to ±0.4",
    ),
    "humanoidstandup": (
        "observation and controls as the humanoid's",
        "the reward is corrected to Gymnasium's, but for the impact cost (`corrected=False`: Brax's own, a fifth in "
        "height and a tenth in control cost)",
    ),
    "manyagent_ant": ("Euler instead of RK4",),
    "manyagent_swimmer": ("Euler instead of RK4",),
}
"""On the default engine, in addition to what `mujoco_check` derives from the models and knows of Brax."""


def between(sizes) -> str:
    """ "5" or "5–8"."""
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low}–{high}"


def row(name: str) -> list[str]:
    """One line of the table."""
    env, near, wider = (envs.make(name, obs=obs) for obs in ("full", 0, 1))
    metadata = dict(env.spec.metadata)
    cells = [
        f"`{name}`".replace("|", "\\|"), str(env.spec.num_agents), between(env.spec.action_sizes),
        str(env.spec.state_size), between(near.spec.observation_sizes), between(wider.spec.observation_sizes),
        f"{metadata['engine']}, {metadata['backend']}",
    ]  # fmt: skip
    return cells


def scenario(body: str) -> str:
    """The first of its scenarios."""
    return f"{body}_{scenarios.BODIES[body].splits[0]}"


@functools.cache
def default_engine(body: str) -> tuple[str, str]:
    """Engine and backend."""
    facts = dict(envs.make(scenario(body)).spec.metadata)
    return facts["engine"], facts["backend"]


def difference_row(body: str) -> list[str]:
    """One line of the table of differences; what can touch what is counted in the models."""
    is_mjx = default_engine(body)[0] == "mjx"
    derived = () if is_mjx else mujoco_check.counterpart(envs.make(scenario(body), obs=1)).differences
    phrases = (*derived, *_MORE_DIFFERENCES.get(body, ()))
    return [body, "; ".join(phrases) if phrases else "none but rounding"]


def check_row(body: str) -> list[str]:
    """One line of the table of policies that the check in MuJoCo accepts."""
    engines = ({}, {"obs": 1}, {"engine": "mjx"})
    return [body, *(_taken(envs.make(scenario(body), **options)) for options in engines)]


def _taken(env: envs.Env) -> str:
    try:
        return mujoco_check.counterpart(env).name
    except ValueError as error:
        reason = str(error)
    if "Brax's observation" in reason:
        return f"no: {reason[reason.index('agents see') : reason.index(';')]}"
    return f"no: {reason.rsplit(': ', 1)[1]}"


def speed_row(measured: dict) -> list[str]:
    """One line of the table of speed and fidelity, from a row of `benchmarks/results/bodies.json`."""
    body, backend = measured["body"], measured["backend"]
    on_gymnasium = backend == "gymnasium"
    engine, backend = ("mjx", "mjx") if on_gymnasium else ("brax", backend)
    is_default = default_engine(body) == (engine, backend)
    cells = [
        body, f"{engine}, {backend}", "yes" if is_default else "", f"{measured['steps_per_s']:,.0f}",
        f"{measured['compile_s']:.0f}", f"{measured['moved']:.2g}", f"{measured['error']:.1g}",
        f"{measured['error_99']:.1g}",
    ]  # fmt: skip
    return cells


def tables(measured: dict) -> dict[str, str]:
    """The tables of the page by name, from `benchmarks/results/bodies.json`."""
    conditions = "{device}, {versions}; {num_envs} environments".format(**measured)
    return {
        "scenarios": study.table(
            ["scenario", "agents", "actions per agent", "full", "k = 0", "k = 1", "engine, backend"],
            map(row, scenarios.FACTORIES),
        ),
        "differences": study.table(["body", "on its default engine"], map(difference_row, scenarios.BODIES)),
        "checks": study.table(
            ["body", 'default engine, `obs="full"`', "default engine, `obs=1`", '`engine="mjx"`'],
            map(check_row, scenarios.BODIES),
        ),
        "machine": conditions,
        "speed": study.table(
            ["body", "engine, backend", "default", "env steps/s", "compile, s", "moves", "error", "error, 99 %"],
            map(speed_row, measured["rows"]),
        ),
    }


def main() -> None:
    page = Path("docs/scenarios.md")
    measured = json.loads(Path("benchmarks/results/bodies.json").read_text())
    write_file(page, study.with_tables(page.read_text(), tables(measured)))


if __name__ == "__main__":
    main()
