import io

import pytest

from marl_kl import devices
from marl_kl.cli import joining, lost_process, main

LOG = """compiling 0 %
E1127 19:16:16.450591    1934 coordination_service.cc:1549] [143] Use error polling to propagate the following error
1
F1127 19:16:16.451047    1945 client.h:80] Terminating process because the JAX distributed service detected fatal errors.
*** Check failure stack trace: ***
    @     0x7f73d8040634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""


@pytest.mark.parametrize(
    "options, message",
    [
        (["--coordinator", "here"], "coordinator='here'; it must be HOST:PORT of process 0, 'auto' or 'none'"),
        (["--coordinator", "here:99999", "--num-processes", "2", "--process-id", "0"], "coordinator='here:99999'; it"),
        (["--num-processes", "2"], "num_processes=2 needs coordinator, HOST:PORT of process 0"),
        (["--coordinator", "here:1", "--process-id", "0"], "num_processes=None; it must be at least 1"),
        (
            ["--coordinator", "here:1", "--num-processes", "2", "--process-id", "2"],
            "process_id=2; it must be from 0 to 1",
        ),
    ],
)
def test_bad_options_are_one_line(options, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert main.main(["train", "matrix_game", "--out", str(out), *options]) == 2
    assert capsys.readouterr().err.startswith(f"marl-kl: {message}") and not out.exists()


@pytest.mark.parametrize(
    "variables, options",
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
    ],
)
def test_processes_that_a_launcher_starts_together_join(variables, options, monkeypatch):
    for name in joining._LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert joining._chosen(None, None, None) == options
    assert joining._chosen("none", None, None) is None
    here = {"coordinator_address": "here:1", "num_processes": 2, "process_id": 1}
    assert joining._chosen("here:1", 2, 1) == here


@pytest.mark.parametrize(
    "written, shown",
    [
        (LOG, "compiling 0 %\nmarl-kl: lost\n"),
        (f"{LOG}marl-kl: interrupted\n", "compiling 0 %\nmarl-kl: interrupted\n"),
        ("a\nmarl-kl: b\nE1127 of something else\n", "a\nmarl-kl: b\nE1127 of something else\n"),
        ("", ""),
    ],
)
def test_what_the_runtime_writes_about_a_lost_process_is_one_line(written, shown):
    out = io.StringIO()
    lost_process.copy(io.StringIO(written), out, "lost")
    assert out.getvalue() == shown


@pytest.mark.parametrize(
    "num_seeds, num_envs, count, num_processes, shape",
    [(4, 8, 4, 1, (4, 1)), (3, 8, 4, 2, (1, 4)), (3, 8, 6, 3, (3, 2)), (2, 1, 4, 2, (2, 1)), (1, 6, 8, 2, (1, 6))],
)
def test_each_process_gives_as_many_devices(num_seeds, num_envs, count, num_processes, shape):
    assert devices._shape(num_seeds, num_envs, count, num_processes) == shape


def test_runs_that_cannot_be_divided_among_processes_are_refused():
    message = "seeds=3 cannot be divided among 2 processes, nor each seed's environments, of which 5 can be spread"
    with pytest.raises(ValueError, match=message):
        devices._shape(3, 5, 4, 2)
