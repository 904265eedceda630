"""The API pages and the benchmarks page are complete."""

import importlib.util
import re
from pathlib import Path

import marl_kl
from marl_kl import envs

DOCS = Path(__file__).parents[2] / "docs"


def test_every_public_name_has_its_entry():
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE)) | {"marl_kl.envs", "envs.EnvState"}
    public = {f"marl_kl.{name}" for name in marl_kl.__all__} | {f"envs.{name}" for name in envs.__all__}
    public = public - {"envs.check"} | {"envs.check.check"}
    assert public - shown == set()


def test_the_benchmarks_are_those_of_the_stored_results():
    spec = importlib.util.spec_from_file_location("benchmark_tables", DOCS / "figures" / "benchmark_tables.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (DOCS / "benchmarks.md").read_text()
    assert script.filled(page) == page
