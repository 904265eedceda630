"""Writes docs/scenarios.md: every body scenario, its sizes, its defaults and how it differs from MA-MuJoCo's.

python experiments/scenario_table.py
"""

from __future__ import annotations

import json
from pathlib import Path

import envs
from envs.bodies import scenarios
from marl_kl.analysis.bodies import mujoco_check
from marl_kl.analysis.text_tables import markdown_row

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
"""On the default engine, beside what `mujoco_check` derives from the models and knows of Brax."""
_DIFFERENCES = """
## Differences from MA-MuJoCo

| body | on its default engine |
|---|---|
"""
_MODEL_FILES = """
## Where the models come from

`engine="mjx"`: ant, halfcheetah, hopper, humanoid, humanoidstandup, pusher, reacher and walker2d are Gymnasium's files,
coupled_halfcheetah is gymnasium-robotics' file; reading them takes the extra `mujoco`. The swimmer and the
`manyagent_*` chains are generated here, with the numbers of Gymnasium's and of Multi-Agent MuJoCo's files.
Observations, rewards, ends and starts are Gymnasium's v5 (the coupled cheetahs': gymnasium-robotics'). What is left
of the differences: float32; Newton's solver for all, with at most 4 iterations and a line search of 8 (Gymnasium's
humanoids have PGS), which is enough but in rare steps; where a capsule meets the floor, the directions in which
friction acts; after a step by Runge and Kutta's rule the positions of bodies and the contact forces are those of
its first stage, in C of its last; Euler's rule for the `manyagent_*` chains.

These bodies have engine mjx only:

- swimmer and `manyagent_swimmer`: Brax's fluid forces fail with the versions of jax used here (they call
  `clip(..., a_min=)`), and its approximate inverse of the mass matrix is wrong by radians on a chain of 20;
- `manyagent_ant` and coupled_halfcheetah: Brax has no such body, and its own backends know no tendon.

These have both, and mjx by default, because Brax's are other tasks (`engine="brax"`):

- reacher: targets at a uniform radius, so most are near the shoulder (mean radius 0.10 of 0.2; uniform on the disc,
  as Gymnasium's, 0.13); what is shown as the velocity of the tip is not the tip's (it differs from the difference of
  the tip's positions in size and sign); three coordinates of the way to the target instead of two;
- pusher: each step is paid for the state before it, so the first reward knows no action and the last is never paid;
  37 % of the objects start on the circle of 0.17 around the goal; the tip that is observed and paid is the centre of
  the wrist's flexing link, not the tip of the arm.
"""
_SLIPS = """
## Slips of Brax's bodies

| slip | here |
|---|---|
| humanoidstandup: height is paid over the control step of 5 simulation steps, control at 0.01 | corrected; \
`corrected=False` gives Brax's |
| ant: the torso and the legs cannot touch the floor, only the feet | kept: it is Brax's ant; `engine="mjx"` |
| halfcheetah: torso, bshin and fshin cannot touch the floor; hopper, walker2d, humanoids: as counted above | kept, \
for the pace, and as trained by all who use Brax; `engine="mjx"` |
| ant, halfcheetah, hopper, walker2d on backend mjx: positions of bodies are one simulation step old when reward \
and fall are read off them (a fifth or a fourth of a control step; over an episode it sums up to next to nothing). \
Gymnasium reads the ant's velocity so too, not those of the other three | kept |
| ant, humanoid on backend mjx: 1 Newton iteration, explicit damping | kept: 4 iterations halve the speed |
| ant, hopper, humanoid, walker2d: the bonus for being upright is paid on the step of a fall | kept |
| swimmer: `clip(a_min=)` in the fluid forces | not offered on Brax |
| generalized: an approximate inverse of the mass matrix | the exact one, always |
| reacher, pusher: see above | mjx is their default |
"""
_SEEN = """
## What agents see, where it is not as in Multi-Agent MuJoCo

Agents' joints, action indices and the entries at k = 0 and 1 equal the tables of gymnasium-robotics 1.4.2
(`tests/envs/test_kinematics.py`), but for:

| scenario | difference | reason |
|---|---|---|
| `humanoid_17x1`, `humanoidstandup_17x1` | k = 0: abdomen_y and abdomen_z, 2 of 17 agents | the library \
swaps the coordinates of these two joints |
| the same | k = 1: 13 of 17 agents. Ours have hips and shoulders see those of the other side; theirs have hips see \
abdomen_y and abdomen_z, shoulders see abdomen_x, and these joints see them | its graph has no edge between \
left and right, which touch the same body, and ties all three joints of the abdomen to hips and shoulders, though \
abdomen_x is at the pelvis and the other two at the waist |
| `humanoid_9\\|8`, `humanoidstandup_9\\|8` | k = 1: the legs see abdomen_x, in the library all three, 1 of 2 agents \
| the same |
| `swimmer_2x1`, `manyagent_swimmer` | everybody sees the heading and the root's velocities | the root is \
shown to everybody on every other body, and a swimmer is paid along x: without its heading no agent can know where \
that is |
| `halfcheetah_3x2`, `walker2d_3x2` | consecutive pairs of joints | as the published results ran them; the \
library does not ship them, and its rule would pair joints by the alphabet |
| `ant_2x4d` | as the library's, legs 1 and 4 against 2 and 3, which is front and back and not the diagonal of its \
name | kept, to be comparable |
| `manyagent_ant_2x3` | joints and actions as the library's; observations by the joints' own segments | the \
library's joint indices are wrong throughout: agent 0 reads joints of segment 3, agent 1 those of segment 0 |
| `coupled_halfcheetah_1p1` | joints and actions as the library's; each agent sees its own cheetah | \
the library's agent 0 reads the second cheetah |
| `reacher_2x1` | everybody sees the tip's way to the target, in two coordinates | the library shows it, in three of \
which one is 0, to the agent of the second joint alone, though both are paid for it |
| all | an agent's entries are in the order of the full observation, its actions in joint order | \
the library sorts by the alphabet |
| all | `obs="full"` shows everything to a team | the library's `agent_obsk=None` makes one agent of the team |
"""
_CHECK = """
## Which teams `marl-kl evaluate RUN --in mujoco` takes

It plays Gymnasium's v5 environments, which step C MuJoCo, with the wiring of agents used in training. (Not with
gymnasium-robotics' Multi-Agent wrapper, for its mistakes above.) Entries that Brax observes and Gymnasium does not
can't be shown to the policies:

| body | default engine, `obs="full"` | default engine, `obs=1` | `engine="mjx"` |
|---|---|---|---|
"""
_SPEED = """
## Speed and fidelity

All bodies on all that they run on, measured by `benchmarks/scenarios.py` ({device}, {versions}; {num_envs} environments,
random actions, no policy). The scenarios of a body run the same physics. Compile time is that of bare stepping, of the
one program of the body. Error: of one control step from states visited under random actions, against C MuJoCo in
float64 with 100 solver iterations *on the same model* (norm of the error in q, median and 99th percentile), beside the
distance that the body moves in q in that step: Brax's bodies against C MuJoCo on Brax's models, so it says nothing
of the differences above.

| body | engine, backend | default | env steps/s | compile, s | moves | error | error, 99 % |
|---|---|---|---|---|---|---|---|
"""
_SLOWEST = """
"spring" and "positional" are other tasks, only faster: their error is as large as the movement. The slowest are the
humanoids and the ant on engine mjx. Gymnasium integrates them by Runge and Kutta's rule, four evaluations of the
dynamics in each of 5 simulation steps where Brax's Euler needs one, each with up to 4 Newton iterations where Brax's
humanoid and ant make 1; and contact forces, which their observations contain, cost one more pass.
"""
_INTRODUCTION = """# Scenarios

Written by `experiments/scenario_table.py`. Sizes of observations are without the agent id, which `obs="full"` appends
(one entry per agent). *full* is also the size of the global state. k = 0 and k = 1 are the local observations of
`obs=0` and `obs=1`, smallest to largest agent. Control step and control limits are those of MA-MuJoCo where nothing
else is said; episodes last 1,000 steps (reacher 50, pusher 100).

Names are read as people write them: `Ant-v2-4x2`, `HalfCheetah 6x1`, `ManySegmentSwimmer-10x2`. The chains exist for
any number of agents and segments: `manyagent_swimmer_<n>x<m>`, `manyagent_ant_<n>x<m>`. Any other way to share out
joints is `envs.make("humanoid", partition=[["abdomen_y", ...], ...])`.

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


def scenario(body: str) -> str:
    """The first of its scenarios."""
    return f"{body}_{scenarios.BODIES[body].splits[0]}"


def difference_row(body: str) -> str:
    """One line of the table of differences; what can touch what is counted in the models."""
    facts = dict(envs.make(scenario(body)).spec.metadata)
    derived = () if facts["engine"] == "mjx" else mujoco_check.counterpart(envs.make(scenario(body), obs=1)).differences
    phrases = (*derived, *_MORE_DIFFERENCES.get(body, ()))
    return markdown_row([body, "; ".join(phrases) if phrases else "none but rounding"]) + "\n"


def check_row(body: str) -> str:
    """One line of the table of teams that the check in MuJoCo takes."""
    engines = ({}, {"obs": 1}, {"engine": "mjx"})
    return markdown_row([body, *(_taken(envs.make(scenario(body), **options)) for options in engines)]) + "\n"


def _taken(env: envs.Env) -> str:
    try:
        return mujoco_check.counterpart(env).name
    except ValueError as error:
        reason = str(error)
    if "Brax's observation" in reason:
        return f"no: {reason[reason.index('agents see') : reason.index(';')]}"
    return f"no: {reason.rsplit(': ', 1)[1]}"


def speed_row(measured: dict) -> str:
    """One line of the table of speed and fidelity, from a row of `benchmarks/results/scenarios.json`."""
    body, backend = measured["body"], measured["backend"]
    on_gymnasium = backend == "gymnasium"
    engine, backend = ("mjx", "mjx") if on_gymnasium else ("brax", backend)
    facts = dict(envs.make(next(name for name in scenarios.FACTORIES if name.startswith(f"{body}_"))).spec.metadata)
    is_default = (facts["engine"], facts["backend"]) == (engine, backend)
    cells = [
        body, f"{engine}, {backend}", "yes" if is_default else "", f"{measured['steps_per_s']:,.0f}",
        f"{measured['compile_s']:.0f}", f"{measured['moved']:.2g}", f"{measured['error']:.1g}",
        f"{measured['error_99']:.1g}",
    ]  # fmt: skip
    return markdown_row(cells) + "\n"


def main():
    measured = json.loads(Path("benchmarks/results/scenarios.json").read_text())
    table = _INTRODUCTION + "".join(map(row, scenarios.FACTORIES))
    table += _DIFFERENCES + "".join(map(difference_row, scenarios.BODIES))
    table += _MODEL_FILES + _SLIPS + _SEEN + _CHECK + "".join(map(check_row, scenarios.BODIES))
    table += _SPEED.format(**measured) + "".join(map(speed_row, measured["rows"])) + _SLOWEST
    Path("docs/scenarios.md").write_text(table)


if __name__ == "__main__":
    main()
