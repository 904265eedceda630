"""Every body, limbs coloured by agent: docs/bodies.png.

python -m experiments.draw_bodies [--out docs/bodies.png] [SCENARIO ...]
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from matplotlib.figure import Figure

import envs
from marl_kl.analysis.bodies import drawing, poses
from marl_kl.storage.files import write_file

SCENARIOS = (
    "ant_4x2", "halfcheetah_2x3", "walker2d_2x3", "hopper_3x1",
    "humanoid_9|8", "humanoidstandup_17x1", "manyagent_ant_2x3", "coupled_halfcheetah_1p1",
    "swimmer_2x1", "manyagent_swimmer_10x2", "reacher_2x1", "pusher_3p",
)  # fmt: skip
"""One split of each body."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--out", type=Path, default=Path("docs/bodies.png"))
    options = parser.parse_args()
    columns = min(4, len(options.scenarios))
    rows = -(-len(options.scenarios) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.4 * rows))
    for index, name in enumerate(options.scenarios):
        env = envs.make(name)
        row, column = divmod(index, columns)
        axes = figure.add_axes((column / columns + 0.006, 1 - (row + 0.93) / rows, 1 / columns - 0.012, 0.8 / rows))
        drawing.still(axes, env, poses.pose(env))
        axes.set_title(f"{name}: {env.spec.num_agents} agents", fontsize=9, loc="left", pad=4)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_file(options.out, content.getvalue())


if __name__ == "__main__":
    main()
