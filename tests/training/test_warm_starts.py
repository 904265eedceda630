"""A run that starts from the learners of another one is otherwise a new run, or is refused in one line."""

import dataclasses

import numpy as np
import pytest

import marl_kl
from marl_kl.cli import main, show
from marl_kl.storage import array_trees, checkpoints, run_record
from marl_kl.storage.run_folder import RunFolderError
from marl_kl.training import warm_start
from marl_kl.training.programs import Programs
from marl_kl.training.shard_loop import ShardLoop
from tests.support import random_run, small_run
from tests.support.counting_env import counting_env
from tests.support.kills import assert_same_run

UPDATE = 32
"""Env steps of one."""


def train(out, **options):
    return small_run.train(counting_env(), out=out, **{"total_env_steps": UPDATE, "chunk_updates": 1, **options})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a run of two seeds, with best teams."""
    return random_run.store(tmp_path_factory.mktemp("source") / "run", counting_env(), (4, 7), best_updates=(2, 5))


def started(source, which="last", algorithm="hatrpo_w", seeds=2, env=None, **fields):
    """The flat learners that a run with these arguments starts from."""
    algorithm = marl_kl.algorithms.get(algorithm)
    config = algorithm.config_class(**{**small_run.SMALL, **fields})
    found = warm_start.start(warm_start.entries(source, which), (env or counting_env()).spec, algorithm, config, seeds)
    return array_trees.subtree(found.state, "learner")


def stored(out):
    """The flat learners of the newest checkpoint."""
    return array_trees.subtree(checkpoints.load(out).state, "learner")


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_the_first_state_has_the_stored_learners_and_is_otherwise_new(source, tmp_path, monkeypatch):
    states = []
    start = ShardLoop._start

    def only_start(loop):
        start(loop)
        states.append(array_trees.flatten_tree(loop.state))
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardLoop, "_start", only_start)
    monkeypatch.setattr(Programs, "compile", lambda self: setattr(self, "_init", self._init_program()))
    monkeypatch.setattr(Programs, "bytes_per_run", 0)
    out = tmp_path / "new"
    for options in ({"out": out, "init_from": source}, {"out": None}):
        with pytest.raises(KeyboardInterrupt):
            train(**options, seeds=[1, 2])
    warm, cold = states
    assert_same(array_trees.subtree(warm, "learner"), stored(source))
    assert any(np.any(cold[name] != leaf) for name, leaf in warm.items() if name.startswith("learner.actors"))
    new = [{name: leaf for name, leaf in state.items() if not name.startswith("learner.")} for state in states]
    assert_same(*new)
    record = run_record.read_record(out)
    assert (record.document["init_from"], record.document["init_which"]) == (str(source), "last")
    assert any(str(source) in line for line in show.record_lines(record))
    cold_record = {name: value for name, value in record.document.items() if name not in run_record.WARM_START}
    for other in (cold_record, {**record.document, "init_which": "best"}):
        assert run_record.first_mismatch(*map(run_record.fingerprint, (other, record.document))).startswith("init_")


def test_which_learners_of_which_seeds(source):
    assert_same(started(source, "best"), checkpoints.load(source).best.learner)
    other = started(source, algorithm="hatrpo")
    assert_same(other, {name: leaf for name, leaf in started(source).items() if not name.startswith("algorithm.")})
    assert {name.split(".")[0] for name in other} == {"actors", "critic", "obs_moments", "state_moments"}


def test_a_source_of_one_seed_starts_all(tmp_path):
    one = random_run.store(tmp_path / "one", counting_env(), (3,))
    assert_same(started(one), {name: np.repeat(leaf, 2, axis=0) for name, leaf in stored(one).items()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_sizes": (16,)}, r"hidden_sizes=\(16,\); it must be \(8,\) as in init_from="),
        ({"recurrent": True}, "recurrent=True; it must be False"),
        ({"algorithm": "hatrpo", "share_parameters": True}, "share_parameters=True; it must be False"),
        ({"algorithm": "ippo"}, r"\(hatrpo_w\) does not fit ippo: .*'critic\..*this run needs"),
        ({"seeds": 3}, "3 seeds; there must be 2, as many as in init_from="),
        ({"init_which": "first"}, "init_which='first'; it must be 'last' or 'best'"),
        ({"init_from": None, "init_which": "best"}, "init_which='best' needs init_from"),
        ({"init_from": "nowhere"}, "there is no run folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(source, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(Programs, "compile", None)
    with pytest.raises(ValueError, match=message) as error:
        train(tmp_path / "new", **{"seeds": 2, "init_from": source, **options})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_other_agents_are_refused(source):
    env = counting_env()
    other = env._replace(spec=dataclasses.replace(env.spec, agents=("b", "a")))
    with pytest.raises(ValueError, match=r"agents=\('b', 'a'\); it must be \('a', 'b'\) as in init_from="):
        started(source, env=other)


@pytest.mark.slow
def test_a_resumed_warm_start_has_the_same_bits(source, tmp_path, monkeypatch):
    fields = {"seeds": [1, 2], "total_env_steps": 4 * UPDATE, "save_interval": 1, "eval_interval": 2}

    def stop(loop):
        if loop.now.update == 2:
            raise KeyboardInterrupt
        advance(loop)

    advance = ShardLoop._advance
    train(tmp_path / "whole", init_from=source, **fields)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardLoop, "_advance", stop)
        train(tmp_path / "stopped", init_from=source, **fields)
    with pytest.raises(RunFolderError, match="another run: init_from is .* there and '/elsewhere' here"):
        train(tmp_path / "stopped", resume=True, init_from="/elsewhere", **fields)
    monkeypatch.setattr(warm_start.loading, "load", None)  # its own checkpoints are enough
    train(tmp_path / "stopped", resume=True, **fields)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_the_command_line_passes_the_source_on(tmp_path, capsys):
    command = ["train", "matrix_game", "--init-from", str(tmp_path / "gone"), "--init-which", "best"]
    assert main.main([*command, "--out", str(tmp_path / "new"), "--progress", "none"]) == 2
    assert f"there is no run folder '{tmp_path / 'gone'}'" in capsys.readouterr().err
