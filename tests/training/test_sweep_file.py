"""`marl-kl sweep FILE.toml`: what it passes on, and that a bad file is one sentence."""

import textwrap

import pytest

import envs
import marl_kl
from marl_kl.cli import main
from marl_kl.training import sweep_file as sweep_file

HEAD = 'env = "matrix_game"\nalgorithm = "hatrpo_w"\n'


@pytest.fixture
def calls(monkeypatch):
    """Replaces `marl_kl.sweep` by a record of its calls; they end as Ctrl-C does."""
    made = []

    def sweep(env, algorithm, **options):
        made.append((env, algorithm, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(marl_kl, "sweep", sweep)
    return made


def written(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return str(path)


def test_the_fields_of_the_file_are_passed_to_sweep(calls, tmp_path, capsys):
    text = (
        HEAD
        + """
        seeds = [3, 5]
        samples = 4
        [env_options]
        num_agents = 3
        steps = 5
        [grid]
        hidden_sizes = [[8], [4, 4]]
        [random]
        kl_budget = { log_uniform = [0.01, 0.3] }
        activation = { choice = ["tanh", "relu"] }
        [config]
        total_env_steps = 1e6
        """
    )
    path = written(tmp_path, textwrap.dedent(text))
    assert main.main(["sweep", path, "--progress", "none"]) == 130
    assert capsys.readouterr().err == "marl-kl: interrupted\n"
    ((env, algorithm, options),) = calls
    assert algorithm == "hatrpo_w" and env.spec == envs.make("matrix_game", num_agents=3, steps=5).spec
    assert str(options.pop("out")).startswith("sweeps/matrix_game-hatrpo_w-2")
    random = {name: distribution.text for name, distribution in options.pop("random").items()}
    assert random == {"kl_budget": "log_uniform(0.01, 0.3)", "activation": "choice(['tanh', 'relu'])"}
    assert options == {
        "slurm": None,
        "seeds": [3, 5],
        "samples": 4,
        "grid": {"hidden_sizes": [[8], [4, 4]]},
        "progress": "none",
        "loggers": [],
        "resume": False,
        "total_env_steps": 1e6,
    }


def test_a_search_is_passed_to_sweep(calls, tmp_path):
    text = "samples = 4\nrounds = 3\nsampler = 'optuna.samplers:GPSampler'\n[search]\ngamma = { uniform = [0.8, 1] }\n"
    assert main.main(["sweep", written(tmp_path, HEAD + text), "--progress", "none"]) == 130
    ((_, _, options),) = calls
    assert options["search"]["gamma"].text == "uniform(0.8, 1)" and not options["grid"] and not options["random"]
    assert (options["samples"], options["rounds"], options["sampler"]) == (4, 3, "optuna.samplers:GPSampler")


def test_it_goes_on_where_it_was_interrupted(calls, tmp_path, capsys):
    path, out = written(tmp_path, HEAD + "[grid]\ngamma = [0.9]"), tmp_path / "sweep"
    assert main.main(["sweep", path, "--resume"]) == 2
    assert capsys.readouterr().err.startswith("marl-kl: --resume needs --out FOLDER")
    out.mkdir()
    (out / "sweep.json").touch()
    assert main.main(["sweep", path, "--resume", "--out", str(out)]) == 130
    assert f"marl-kl sweep {path} --out {out} --resume" in capsys.readouterr().err
    ((_, _, options),) = calls
    assert options["resume"] and options["out"] == out


def test_the_example_is_one(tmp_path):
    text = textwrap.dedent(sweep_file.EXAMPLE.removeprefix("example:\n"))
    plan = sweep_file.read(tmp_path / written(tmp_path, text))
    assert plan.env == "ant_4x2" and plan.options["seeds"] == 8 and plan.env_options == {"backend": "spring"}


_BAD = {
    "env = ": "is not a TOML file",
    HEAD.replace("env", "evn"): "unknown key 'evn'; did you mean env",
    'env = "matrix_game"': "algorithm must be there",
    "algorithm = 3\n" + 'env = "matrix_game"': "algorithm must be there",
    HEAD.replace("hatrpo_w", "hatrpo_v"): "unknown algorithm 'hatrpo_v'",
    HEAD.replace("game", "gme") + "[grid]\ngamma = [0.9]": "unknown env 'matrix_gme'",
    HEAD + "[env_options]\ncolour = 1\n[grid]\ngamma = [0.9]": "unknown option 'colour'",
    HEAD + "grid = 3": "grid must be a table, written [grid]",
    HEAD + "[gird]": "unknown key 'gird'; did you mean grid",
    HEAD + "[grid]\nkl_bugdet = [0.1]": "unknown config field 'kl_bugdet' for TrustRegionConfig; did you mean kl_bud",
    HEAD + "[config]\nseeds = 3": "unknown config field 'seeds'",
    HEAD + "[config]\ngamma = 2\n[grid]\nkl_budget = [0.1]": "gamma=2.0; it must be",
    HEAD + "[random]\ngamma = 0.9": "random.gamma=0.9; it must be written as in gamma = { log_uniform = [0.01, 0.3] }",
    HEAD + "[random]\ngamma = { unifrom = [0, 1] }": "unknown distribution 'unifrom'; did you mean uniform",
    HEAD + "[random]\ngamma = { uniform = [0] }": "random.gamma: uniform is [0]; it must be [low, high]",
    HEAD + "[search]\ngamma = 0.9": "search.gamma=0.9; it must be written as in gamma = { log_uniform = [0.01, 0.3] }",
    HEAD + "[search]\ngamma = { uniform = [0.5, 0.9] }": "samples=None; it must be an integer >= 1",
    HEAD + "rounds = 2\n[grid]\ngamma = [0.9]": "rounds=2, but there is nothing to search",
    HEAD: "there is nothing to sweep",
    HEAD + "seeds = 0\n[grid]\ngamma = [0.9]": "seeds=0; it must be",
}


@pytest.mark.parametrize("text", _BAD)
def test_a_bad_file_gives_a_one_line_error_and_exit_code_2(text, tmp_path, capsys):
    assert main.main(["sweep", written(tmp_path, text), "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert _BAD[text] in captured.err and captured.out == ""
    assert captured.err.startswith("marl-kl: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_file_gives_a_one_line_error(tmp_path, capsys):
    assert main.main(["sweep", str(tmp_path / "none.toml")]) == 2
    assert "no such file" in capsys.readouterr().err
