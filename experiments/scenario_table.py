"""Writes docs/scenarios.md: every body scenario, its sizes, its defaults and how it differs from MA-MuJoCo's.

python experiments/scenario_table.py
"""

from __future__ import annotations

import json
from pathlib import Path

import envs
from envs import bodies
from marl_kl.summary import markdown_row

_DIFFERENCES = {
    "ant": "Euler instead of RK4; starts at a height of 0.55, not 0.75, and its torso cannot touch the floor (kept: it "
    "is Brax's ant); no contact forces in observation and reward; the bonus is paid on the step of a fall too",
    "coupled_halfcheetah": "each agent drives and reads its own cheetah; both see the tendon",
    "halfcheetah": "none but rounding; 3x2 pairs consecutive joints, as the published results did",
    "hopper": "Euler instead of RK4; the bonus is paid on the step of a fall too",
    "humanoid": "Euler instead of RK4; 244 entries instead of 348 (no contact forces, inertia and velocity per link); "
    "controls in [-1, 1] stretched to ±0.4; no contact cost; the bonus is paid on the step of a fall too",
    "humanoidstandup": "as humanoid; the reward is Gymnasium's (Brax's is 5 times smaller in height and 10 times in "
    "control cost), without the impact cost",
    "manyagent_ant": "Euler instead of RK4; joints are named by their own segment",
    "manyagent_swimmer": "Euler instead of RK4; everybody sees the heading",
    "pusher": "Brax's observation; controls in [-1, 1] stretched to the actuators' range",
    "reacher": "Brax's observation: velocity of the tip instead of the joints, and three coordinates instead of two",
    "swimmer": "everybody sees the heading",
    "walker2d": "Euler instead of RK4; friction of the feet 0.9 and 1.9; the bonus is paid on the step of a fall too; "
    "3x2 pairs consecutive joints, as the published results did",
}
_GYMNASIUM_DIFFERENCES = (
    'With `engine="mjx"` all bodies are Gymnasium\'s own models with its v5 rules; what is left of the'
    " differences is float32, Newton's solver everywhere, and after contacts the frames in which friction acts."
)
_SPEED = """
## Speed and fidelity

All bodies on all that they run on, measured by `benchmarks/bodies.py` ({device}, {versions}; {num_envs} environments,
random actions, no policy). The scenarios of a body run the same physics. Error: of one control step from states visited
under random actions, against C MuJoCo in float64 with 100 solver iterations on the same model (norm of the error in q,
median and 99th percentile), beside the distance that the body moves in q in that step.

| body | engine, backend | default | env steps/s | compile, s | moves | error | error, 99 % |
|---|---|---|---|---|---|---|---|
"""
_SLOWEST = """
"spring" and "positional" are other tasks, only faster: their error is as large as the movement. The slowest are the
humanoids and the ant on engine mjx. Gymnasium integrates them by Runge and Kutta's rule, four evaluations of the dynamics
in each of 5 simulation steps where Brax's Euler needs one, each with up to 4 Newton iterations where Brax's
humanoid and ant make 1; and contact forces, which their observations contain, cost one more pass.
"""
_INTRODUCTION = """# Scenarios

Written by `experiments/scenario_table.py`. Sizes of observations are without the agent id, which `obs="full"` appends
(one entry per agent). *full* is also the size of the global state. k = 0 and k = 1 are the local observations of
`obs=0` and `obs=1`, smallest to largest agent. Control step and control limits are those of MA-MuJoCo where nothing
else is said; episodes last 1,000 steps (reacher 50, pusher 100).

Names are read as people write them: `Ant-v2-4x2`, `HalfCheetah 6x1`, `ManySegmentSwimmer-10x2`. The chains exist for
any number of agents and segments: `manyagent_swimmer_<n>x<m>`, `manyagent_ant_<n>x<m>`. Any other way to share out joints
is `envs.make("humanoid", partition=[["abdomen_y", ...], ...])`.

| scenario | agents | actions per agent | full | k = 0 | k = 1 | engine, backend |
|---|---|---|---|---|---|---|
"""


def between(sizes) -> str:
    """ "5" or "5–8"."""
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low}–{high}"


def row(name: str) -> str:
    """One line of the table."""
    env, near, wider = (envs.make(name, obs=obs) for obs in ("full", 0, 1))
    metadata = dict(env.spec.metadata)
    cells = [
        f"`{name}`".replace("|", "\\|"), str(env.spec.num_agents), between(env.spec.action_sizes),
        str(env.spec.state_size), between(near.spec.observation_sizes), between(wider.spec.observation_sizes),
        f"{metadata['engine']}, {metadata['backend']}",
    ]  # fmt: skip
    return markdown_row(cells) + "\n"


def speed_row(measured: dict) -> str:
    """One line of the table of speed and fidelity, from a row of `benchmarks/results/bodies.json`."""
    body, backend = measured["body"], measured["backend"]
    on_gymnasium = backend == "gymnasium"
    engine, backend = ("mjx", "mjx") if on_gymnasium else ("brax", backend)
    facts = dict(envs.make(next(name for name in bodies.FACTORIES if name.startswith(f"{body}_"))).spec.metadata)
    is_default = (facts["engine"], facts["backend"]) == (engine, backend)
    cells = [
        body, f"{engine}, {backend}", "yes" if is_default else "", f"{measured['steps_per_s']:,.0f}",
        f"{measured['compile_s']:.0f}", f"{measured['moved']:.2g}", f"{measured['error']:.1g}",
        f"{measured['error_99']:.1g}",
    ]  # fmt: skip
    return markdown_row(cells) + "\n"


def main():
    measured = json.loads(Path("benchmarks/results/bodies.json").read_text())
    table = _INTRODUCTION + "".join(map(row, bodies.FACTORIES))
    table += "\n## Differences from MA-MuJoCo\n\n| body | on its default engine |\n|---|---|\n"
    table += "".join(f"| {body} | {_DIFFERENCES[body]} |\n" for body in bodies.BODIES)
    table += f"\n{_GYMNASIUM_DIFFERENCES}\n"
    table += _SPEED.format(**measured) + "".join(map(speed_row, measured["rows"])) + _SLOWEST
    Path("docs/scenarios.md").write_text(table)


if __name__ == "__main__":
    main()
