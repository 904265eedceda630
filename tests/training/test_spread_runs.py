"""One run on several devices equals the run on one; slow, because each case is a process with so many CPU devices."""

import numpy as np
import pytest

import marl_kl
from marl_kl.storage import run_record
from tests.support import topology


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm, counts, fields",
    [
        ("hatrpo_w", (2, 4), {"utility": "cross_fitted"}),
        ("hatrpo", (2,), {"recurrent": True, "recurrent_critic": True}),
        ("hatrpo", (4,), {"share_parameters": True}),
        ("ippo", (4,), {"actor_minibatches": 2}),
    ],
)
def test_spread_over_devices_the_first_update_is_the_same(algorithm, counts, fields):
    """To rounding: sums over the batch are then sums over devices."""
    lines = f"""
jax.config.update("jax_enable_x64", True)
from tests.support import spread_runs
spread_runs.print_distances({algorithm!r}, {counts}, **{fields})"""
    distances = [float(line) for line in topology.run(lines, devices=4).split()]
    assert len(distances) == len(counts) and max(distances) < 1e-12


@pytest.mark.slow
def test_seeds_are_spread_first_and_then_their_environments(tmp_path):
    """Two seeds on four devices, in float32; interrupted and resumed it has the same bits, on one device nearly so."""
    lines = """
import marl_kl
from marl_kl import devices
from tests.support import kills, spread_runs

assert devices.run_mesh(2, 4, 4).shape == {"seed": 2, "env": 2}
assert devices.run_mesh(3, 4, 4).shape == {"seed": 1, "env": 4}  # all four rather than three
assert devices.run_mesh(2, 1, 4).shape == {"seed": 2}
assert devices.seed_mesh(6).shape == {"seed": 3}
mesh = devices.run_mesh(2, 4, 4)
assert devices.placement(mesh, 2) == "4 of 4 devices: 1 seed on each 2, with a part of the environments on each device"
assert devices.placement(devices.seed_mesh(4), 8) == "4 of 4 devices: 2 seeds on each"
spread_runs.print_distances("hatrpo_w", (4,), 2)
kills.train(sys.argv[1], devices=4, total_env_steps=32 * 20)
kills.train(sys.argv[2], devices=4, total_env_steps=32 * 13)
kills.train(sys.argv[2], devices=4, total_env_steps=32 * 20, resume=True)
kills.train(sys.argv[3], devices=1, total_env_steps=32 * 20)"""
    folders = [tmp_path / name for name in ("whole", "resumed", "one")]
    assert float(topology.run(lines, *folders, devices=4)) < 1e-5
    whole, resumed, one = (np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True) for folder in folders)
    np.testing.assert_array_equal(whole["kl_total"], resumed["kl_total"])
    np.testing.assert_allclose(whole["kl_total"][:2], one["kl_total"][:2], rtol=1e-3)
    device = run_record.read_record(folders[0]).document["device"]
    assert (device["count"], device["used"], device["per_seed"]) == (4, 4, 2)


def test_more_devices_than_there_are_are_refused(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"devices=99; it must be from 1 to \d+, the cpu devices of this process"):
        marl_kl.train(marl_kl.envs.make("matrix_game"), "hatrpo", devices=99, out=out)
    assert not out.exists()


@pytest.mark.slow
def test_environments_on_the_host_are_not_spread_but_their_seeds_are(tmp_path):
    lines = """
import envs
from tests.envs.test_pettingzoo import Walk
from tests.support import small_run

env = envs.from_pettingzoo(Walk, 6)
try:
    small_run.train(env, devices=2, total_env_steps=64, out=sys.argv[1])
except ValueError as error:
    print(error)
assert small_run.train(env, seeds=2, devices=2, total_env_steps=64).env_steps[-1] == 64"""
    out = tmp_path / "run"
    message = topology.run(lines, out, devices=2)
    assert message.startswith("devices=2 would spread the environments of") and not out.exists()
