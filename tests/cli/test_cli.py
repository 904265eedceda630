"""The command line: arguments passed to the Python functions, help texts, and one-line errors."""

import dataclasses
import datetime
import subprocess
import sys
import warnings

import numpy as np
import pytest

import envs
import marl_kl
from marl_kl.cli import main, options
from marl_kl.config import TrustRegionConfig
from marl_kl.core import algorithms
from marl_kl.results import Failure
from marl_kl.storage import array_trees, run_folder, run_record
from tests.support import synthetic
from tests.support.counting_env import counting_env


@pytest.fixture
def trained(monkeypatch):
    """Replaces `marl_kl.train` by a record of its calls."""
    calls = []

    def train(env, algorithm, **options):
        calls.append((env, algorithm, options))
        return synthetic.result()

    monkeypatch.setattr(marl_kl, "train", train)
    return calls


def test_only_the_given_options_are_passed_to_train(trained, tmp_path):
    words = "train matrix_game --algorithm hatrpo_g --seeds 4 --total-env-steps 2e6 --kl-budget 0.1"
    words += f" --hidden-sizes 64,32 --no-normalize-observations --activation relu --value-clip inf --out {tmp_path}"
    words += " --progress none"
    words += " --env num_agents=3 --env steps=5"
    assert main.main(words.split()) == 0
    ((env, algorithm, options),) = trained
    assert algorithm == "hatrpo_g" and env.spec == envs.make("matrix_game", num_agents=3, steps=5).spec
    assert options == {
        "seeds": 4,
        "out": tmp_path,
        "progress": "none",
        "loggers": [],
        "init_from": None,
        "init_which": "last",
        "devices": None,
        "total_env_steps": 2e6,
        "kl_budget": 0.1,
        "hidden_sizes": (64, 32),
        "normalize_observations": False,
        "activation": "relu",
        "value_clip": float("inf"),
    }


def test_defaults(trained):
    assert main.main(["train", "matrix_game", "--seeds", "3,5,8"]) == 0
    ((_, algorithm, options),) = trained
    assert algorithm == "hatrpo_w" and options["seeds"] == [3, 5, 8] and options["progress"] == "auto"
    assert str(options["out"]).startswith("runs/matrix_game-hatrpo_w-2")
    assert set(options) == {"seeds", "out", "progress", "loggers", "init_from", "init_which", "devices"}


@pytest.mark.parametrize(
    "text, value",
    [
        ("spring", "spring"),
        ("1", 1),
        ("0.5", 0.5),
        ("True", True),
        ("(1,2)", (1, 2)),
        ("None", None),
        ("'1'", "1"),
        ("a b", "a b"),
        ("", ""),
        ("x=y", "x=y"),
    ],
)
def test_env_options_are_literals_or_text(text, value):
    assert options.parse_pairs([f"key={text}"]) == {"key": value}


_BAD = {
    "trian": "invalid choice: 'trian'",
    "train": "required: ENV",
    "train matrix_gme": "unknown env 'matrix_gme'; did you mean matrix_game",
    "train matrix_game --algorithm hatrpo_ww": "unknown algorithm 'hatrpo_ww'; did you mean hatrpo_w",
    "train matrix_game --kl-budgt 1": "unknown option --kl-budgt; did you mean --kl-budget?",
    "train matrix_game --kl 1": "unknown option --kl; did you mean --kl-budget?",
    "train matrix_game --lr 1": "unknown option --lr; did you mean --critic-lr?",
    "train matrix_game --hidden-sizes 64 64": "the numbers of one option are written with commas: 64,64",
    "train matrix_game --algorithm happo --kl-budget 1": "option --kl-budget belongs to hatrpo, hatrpo_w,",
    "train matrix_game --algorithm HATRPO-N --greedy-share all": "option --greedy-share belongs to hatrpo_g",
    "train --config {full}": "cannot read {full}: is a directory",
    "train --config {full}/none": "none: no such file or directory",
    "train matrix_game more": "unknown argument more",
    "train matrix_game --kl-budget": "--kl-budget: expected one argument",
    "train matrix_game --kl-budget=-1": "kl_budget=-1.0; it must be",
    "train matrix_game --kl-budget nan": "kl_budget=nan; it must be",
    "train matrix_game --num-envs lots": "num_envs='lots'; it must be",
    "train matrix_game --num-envs 2.5": "num_envs=2.5; it must be",
    "train matrix_game --num-envs inf": "num_envs=inf; it must be",
    "train matrix_game --total-env-steps 0": "total_env_steps=0; it must be",
    "train matrix_game --hidden-sizes 64,x": "hidden_sizes='64,x'; it must be",
    "train matrix_game --hidden-sizes ,": "hidden_sizes=','; it must be",
    "train matrix_game --activation tan": "activation='tan'; it must be",
    "train matrix_game --critic-minibatches 7": "critic_minibatches=7 does not divide",
    "train matrix_game --seeds four": "seeds='four'; it must be",
    "train matrix_game --seeds 0": "seeds=0; it must be",
    "train matrix_game --seeds 1,1": "seeds=[1, 1]; it must be",
    "train matrix_game --env steps": "--env steps: it must be KEY=VALUE",
    "train matrix_game --env colour=red": "unknown option 'colour'; accepted: num_agents",
    "train matrix_game --progress loud": "invalid choice: 'loud'",
    "train matrix_game --out {file}": "is a file",
    "train matrix_game --out {file}/run": "not a directory",
    "train matrix_game --out {full}": "is not empty",
    "resume": "required: RUN",
    "resume {full}": "is not a run folder",
    "resume {full}/none": "there is no run folder",
    "resume {full} --total-env-step 5": "unknown option --total-env-step; did you mean --total-env-steps?",
    "resume {full} --gamma 0.9": "option --gamma belongs to train, not to resume",
    "envs matrix_gme": "unknown env 'matrix_gme'; did you mean matrix_game",
    "envs matrix_game more": "unknown argument more",
}


@pytest.mark.parametrize("words", _BAD)
def test_bad_input_gives_a_one_line_error_and_exit_code_2(words, capsys, tmp_path):
    (tmp_path / "file").touch()
    arguments = words.format(file=tmp_path / "file", full=tmp_path).split()
    if words.startswith("train") and "{" not in words:
        arguments += ["--out", str(tmp_path / "run")]
    assert main.main(arguments) == 2
    captured = capsys.readouterr()
    assert _BAD[words].format(full=tmp_path) in captured.err
    assert captured.out == "" and captured.err.startswith("marl-kl: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_explains_every_field_with_its_default(capsys):
    for name in algorithms.names():
        with pytest.raises(SystemExit) as stop:
            main.main(["train", "--algorithm", name, "--help"])
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        for field in dataclasses.fields(algorithms.get(name).config_class):
            option = f"--{field.name.replace('_', '-')}"
            if field.name in algorithms.get(name).unused:
                assert option not in text
                continue
            assert option in text
            assert field.metadata["help"] in text and f"default: {options.default_text(field.default)}" in text


def test_without_a_command_the_help_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([])
    assert stop.value.code == 0 and "usage: marl-kl" in capsys.readouterr().out


@pytest.mark.slow
def test_python_m_marl_kl_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "marl_kl", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"marl-kl {marl_kl.__version__}")


def test_lists_and_version(capsys):
    assert main.main(["envs"]) == 0
    assert capsys.readouterr().out.split() == list(envs.names())
    assert main.main(["envs", "matrix_game"]) == 0
    facts = " ".join(capsys.readouterr().out.split())
    assert "agents 4: agent_0, agent_1" in facts and "actions discrete, 3 per agent" in facts
    assert "options num_agents, num_actions, payoff, steps, per_agent" in facts
    assert main.main(["algorithms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(algorithms.names())
    assert all(algorithms.get(line.split()[0]).summary in line for line in lines)
    with pytest.raises(SystemExit):
        main.main(["--version"])
    assert capsys.readouterr().out.startswith(f"marl-kl {marl_kl.__version__}")


def test_a_shell_completes_options_and_names(tmp_path, capsys):
    assert main.main(["completion", "bash"]) == 0
    (tmp_path / "marl-kl.bash").write_text(capsys.readouterr().out)
    words = {
        "train ant_4": {"ant_4x2"},
        "train ant_4x2 --allocation-e": {"--allocation-epsilon"},
        "train --algorithm hatrpo_": {"hatrpo_w", "hatrpo_g", "hatrpo_n"},
        "comp": {"compare", "completion"},
    }
    for line, expected in words.items():
        ask = f'source ./marl-kl.bash; COMP_WORDS=(marl-kl {line}); COMP_CWORD={len(line.split())}; _shtab_marl_kl; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == expected


def test_completion_names_the_extra_that_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main.main(["completion", "zsh"]) == 2 and "pip install 'marl_kl[completion]'" in capsys.readouterr().err


def test_ctrl_c_prints_one_line_and_exits_with_130(monkeypatch, capsys, tmp_path):
    def interrupted(*_, out, **__):
        (out / "run.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(marl_kl, "train", interrupted)
    assert main.main(["train", "matrix_game", "--out", str(tmp_path)]) == 130
    message = f"interrupted; the run is saved in {tmp_path}, continue with: marl-kl resume {tmp_path}"
    assert capsys.readouterr().err == f"marl-kl: {message}\n"


def _stopped(out, env):
    digest = array_trees.digest(env.params)
    document = run_record.record(env.spec, "hatrpo_g", TrustRegionConfig(kl_budget=0.3), (4, 7), digest)
    with run_folder.lock_folder(out, document):
        return out


def test_resume_makes_environment_and_config_of_the_run_again(trained, tmp_path):
    env = envs.make("matrix_game", num_agents=3, steps=5)
    out = _stopped(tmp_path / "run", env)
    assert main.main(["resume", str(out), "--progress", "none", "--total-env-steps", "3e6"]) == 0
    assert main.main(["resume", str(out)]) == 0
    for (again, algorithm, given), steps in zip(trained, (3_000_000, 1_000_000)):
        assert again.spec == env.spec and algorithm == "hatrpo_g" and given["seeds"] == (4, 7)
        assert given["config"] == TrustRegionConfig(kl_budget=0.3, total_env_steps=steps)
        assert given["out"] == out and given["resume"] is True
    assert [given["progress"] for _, _, given in trained] == ["none", "auto"]


def test_resume_with_no_device_is_refused(tmp_path, capsys):
    out = _stopped(tmp_path / "run", envs.make("matrix_game"))
    assert main.main(["resume", str(out), "--devices", "0"]) == 2
    assert capsys.readouterr().err.startswith("marl-kl: devices=0; it must be from 1 to ")


@pytest.mark.parametrize(
    "env",
    [counting_env(), envs.make("matrix_game", payoff=np.eye(2)), envs.make("bilinear")._replace(params=np.ones(2))],
    ids=lambda env: env.spec.name,
)
def test_resume_of_another_s_environment_points_to_python(trained, tmp_path, capsys, env):
    out = _stopped(tmp_path / "run", env)
    assert main.main(["resume", str(out)]) == 2 and trained == []
    error = capsys.readouterr().err
    assert f"resume it from Python: marl_kl.train(env, 'hatrpo_g', ..., out='{out}', resume=True)" in error
    assert (
        error.startswith(f"marl-kl: envs.make cannot make the environment '{env.spec.name}' of {out}")
        and error.count("\n") == 1
    )


def test_warnings_of_a_resumed_run_take_one_line_each(monkeypatch, tmp_path, capsys):
    def train(*_, **__):
        warnings.warn("an older checkpoint is used", run_folder.RunWarning)
        return synthetic.result()

    monkeypatch.setattr(marl_kl, "train", train)
    out = _stopped(tmp_path / "run", envs.make("bilinear"))
    assert main.main(["resume", str(out)]) == 0
    assert capsys.readouterr().err == "marl-kl: an older checkpoint is used\n"


def test_a_fault_keeps_its_traceback(monkeypatch):
    def fault(*_, **__):
        raise ValueError("shapes\ndo not\nmatch")

    monkeypatch.setattr(marl_kl, "train", fault)
    with pytest.raises(ValueError, match="shapes"):
        main.main(["train", "matrix_game"])


def test_exit_code_1_when_every_seed_failed(monkeypatch):
    failures = [Failure(0, 1, "reward"), Failure(1, 1, "reward")]
    for count, code in ((1, 0), (2, 1)):
        result = synthetic.result(num_seeds=2, failures=failures[:count])
        monkeypatch.setattr(marl_kl, "train", lambda *_, **__: result)
        assert main.main(["train", "matrix_game"]) == code


def test_help_needs_neither_brax_nor_matplotlib():
    code = (
        "import sys, marl_kl.cli.main\n"
        "try: marl_kl.cli.main.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('brax', 'mujoco', 'matplotlib', 'orbax.checkpoint')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_a_folder_of_a_clock_that_stands_still_is_another_one(tmp_path, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2001, 2, 3, 4, 5, 6)

    monkeypatch.setattr(options.datetime, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    for name in ("a-b-20010203-040506", "a-b-20010203-040506-2", "a-b-20010203-040506-3"):
        with options.chosen_out(None, "a", "b") as out:
            assert str(out) == f"runs/{name}"
            (out / "run.json").touch()


def test_a_folder_to_which_nothing_was_written_is_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError), options.chosen_out(None, "my.module:make", "b", announce=True) as out:
        assert out.is_dir() and out.name.startswith("my.module-make-b-")
        raise ValueError
    assert not out.exists() and capsys.readouterr().out == f"{out}\n"
    with options.chosen_out(tmp_path / "given", "a", "b") as out:
        assert not out.exists()
