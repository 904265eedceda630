"""`marl_kl.envs`, and another package of the common name `envs` that comes first on the path."""

import subprocess
import sys
from pathlib import Path

import pytest

import envs

ROOT = Path(__file__).parents[2]


def test_marl_kl_envs_is_the_package_envs():
    import marl_kl.envs.games

    assert marl_kl.envs is envs and marl_kl.envs.games is envs.games and marl_kl.envs.make is envs.make
    assert marl_kl.envs.make("matrix_game").spec.num_agents == 4


@pytest.mark.parametrize("file", ["envs.py", "envs/__init__.py"])
@pytest.mark.parametrize(
    "statement",
    ["import marl_kl.envs", "import marl_kl; marl_kl.envs", "import marl_kl; marl_kl.train", "import envs, marl_kl",
     "from marl_kl.core import trainer"],
)  # fmt: skip
def test_another_envs_package_on_the_path_gives_a_one_line_error(statement, file, tmp_path):
    other = tmp_path / file
    other.parent.mkdir(exist_ok=True)
    other.write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; {statement}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = result.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: marl_kl needs its own package 'envs', but {other} comes first")
