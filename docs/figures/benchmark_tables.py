"""The tables of docs/benchmarks.md, from benchmarks/results: `python docs/figures/benchmark_tables.py` writes them into the page.

Each table stands between a marker `<!-- table NAME -->` and the next empty line.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"


NAMES_OF_AXES = {
    "seeds": "seeds", "num_envs": "environments", "agents": "agents", "hidden": "hidden units, two layers",
    "env_steps": "env steps of a run",
}  # fmt: skip


KINDS_OF_SCALING = {
    "one": "one seed on one device", "strong": "its environments spread", "weak": "as many more environments",
    "seeds": "a seed on each device",
}  # fmt: skip


def tables() -> dict[str, str]:
    """Markdown tables by the names that their markers have."""

    def read(name, entry="rows"):
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())[entry]

    seconds = ("ours_s", "plain_s", "floor_s", "default_s", "hatrpo_w_s", "hatrpo_g_s")
    updates = [
        [f"{row['agents']}, {'-'.join(map(str, row['hidden']))}", *(f"{row[s]:.3f}" for s in seconds), f"{row['pytorch_s']:g}"]
        for row in read("update_cost")
    ]  # fmt: skip
    training = [
        [row["backend"], row["seeds"], row["devices"], f"{row['bare']:,.0f}", f"{row['rollout']:,.0f}",
         f"{row['training']:,.0f}", f"{row['fraction']:.2f}", f"{row['compile_s']:.0f} s"]
        for row in read("throughput")
    ]  # fmt: skip
    first_minute = [
        [row["backend"], row["cache"], f"{row['seconds']:.0f}", f"{row['other_seconds']:.0f}",
         f"{row['other_seconds'] / row['seconds']:.2f}"]
        for row in read("first_minute")
    ]  # fmt: skip
    off_policy = [
        [row["algorithm"], f"{row['bare']:,.0f}", f"{row['training']:,.0f}", f"{row['gradient_steps']:.1f}",
         f"{row['floor']:.2f}", f"{row['compile_s']:.0f} s"]
        for row in read("off_policy_throughput")
    ]  # fmt: skip
    beside = {}
    for name in ("jaxmarl_ippo", "jaxmarl_ippo_smax"):
        for row in read(name):
            beside.setdefault(row["algorithm"], []).append(f"{row['env_steps_per_s']:,.0f} ({row['ratio']:.2f})")
    ippo = [[algorithm, *cells] for algorithm, cells in beside.items()]
    growth = [
        [NAMES_OF_AXES[axis["axis"]], _ends([f"{row['value']:,}" for row in axis["rows"]]),
         _ends([f"{1e3 * row['seconds']:,.0f}" for row in axis["rows"]]), *_slope(axis, "seconds"),
         _ends([f"{row['bytes'] / 2**20:,.0f}" for row in axis["rows"]]), *_slope(axis, "bytes")]
        for axis in read("growth", "axes")
    ]  # fmt: skip
    scaling = [
        [row["backend"], KINDS_OF_SCALING[row["kind"]], row["devices"], row["num_envs"], f"{1e3 * row['seconds']:.0f}",
         f"{row['efficiency']:.2f}"]
        for row in read("scaling")
    ]  # fmt: skip
    head = ("agents, hidden", "same work", "plain", "floor", "defaults", "HATRPO-W", "HATRPO-G", "PyTorch")
    return {
        "updates": _table(head, updates),
        "training": _table(
            ("backend", "seeds", "devices", "bare env steps/s", "rollouts", "training", "fraction", "compile"), training
        ),
        "first_minute": _table(("backend", "compilation cache", "seconds", "before", "ratio"), first_minute),
        "off_policy": _table(
            ("algorithm", "bare env steps/s", "training env steps/s", "gradient steps/s", "floor", "compile"),
            off_policy,
        ),
        "ippo": _table(("env steps/s (ratio)", "spread, 1 seed", "spread, 4 seeds", "3m, 1 seed", "3m, 4 seeds"), ippo),
        "growth": _table(("axis", "from, to", "update, ms", "exponent", "last", "MiB", "exponent", "last"), growth),
        "scaling": _table(("backend", "what", "devices", "environments per seed", "update, ms", "efficiency"), scaling),
    }


def _ends(values) -> str:
    return f"{values[0]} → {values[-1]}"


def _slope(axis, measured):
    return (f"{exponent:.2f}" for exponent in axis["exponents"][measured])


def _table(head, rows) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def filled(page: str) -> str:
    """The page with the tables of the present results."""
    for name, table in tables().items():
        page, count = re.subn(rf"(<!-- table {name} -->\n\n).*?(?=\n\n)", rf"\g<1>{table}", page, flags=re.DOTALL)
        assert count == 1, name
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
