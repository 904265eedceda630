"""Whatever is wrong with a file of a run or a sweep, the commands that read it say one sentence."""

import copy
import json
import shutil

import numpy as np
import pytest

import envs
from marl_kl.analysis import sweep_tables as sweep_tables
from marl_kl.cli import main, show
from marl_kl.results import Evaluation
from marl_kl.storage import run_folder, run_record, run_tables
from marl_kl.storage import stored_sweeps as sweep_folders
from marl_kl.storage.run_folder import RunFolderError
from tests.analysis.test_report import sweep
from tests.support import random_run

_VALUES = (None, 3, True, 1e300, "a\nb", [], [3], ["x"], {}, {"a": 1}, [{"a": 1}])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A resumed run with checkpoint and tables."""
    out = random_run.store(tmp_path_factory.mktemp("runs") / "game", envs.make("bilinear"), best_updates=(3, 4))
    document = json.loads((out / "run.json").read_text())
    run_folder.record_resume(out, document, 7)
    episodes = np.ones((2, 2, 3))
    run_tables.write_evaluation(out, (0, 1), Evaluation(np.array([0, 7]), np.array([0, 700]), episodes, episodes))
    run_tables.write_metrics(out, envs.make("bilinear").spec.agents, (0, 1), 100 * np.arange(1, 8), {})
    run_folder.set_status(out, "finished")
    return out


def _places(document):
    """Paths to every entry, to that of the objects in it, and to that of the first object in a list."""
    for name, value in document.items():
        yield (name,)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from ((name, 0, *more) for more in _places(value[0]))
        elif isinstance(value, dict) and name not in ("config", "versions"):
            yield from ((name, *more) for more in _places(value))


def _changed(document, place, *value):
    """Without the entry at `place`, or with another value there."""
    changed = copy.deepcopy(document)
    inner = changed
    for step in place[:-1]:
        inner = inner[step]
    if value:
        inner[place[-1]] = value[0]
    else:
        del inner[place[-1]]
    return changed


def _all_changes(document):
    for place in _places(document):
        yield place, _changed(document, place)
        for value in _VALUES:
            yield (*place, value), _changed(document, place, value)


@pytest.fixture
def damaged(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_every_entry_of_a_run_s_record(damaged):
    """It is refused in one sentence, or what is shown of it can be shown."""
    path = damaged / "run.json"
    document = json.loads(path.read_text())
    for what, changed in _all_changes(document):
        path.write_text(json.dumps(changed))
        try:
            record = run_record.read_record(damaged)
            assert "\n" not in "".join(show.record_lines(record)) or "a\nb" in what, what
            run_record.fingerprint(record.document)
            run_record.first_mismatch(run_record.last_session(document), run_record.last_session(record.document))
        except RunFolderError as error:
            assert len(str(error).splitlines()) == 1 and str(path) in str(error), what


@pytest.mark.parametrize("command", ["show", "report", "compare", "evaluate"])
@pytest.mark.parametrize(
    "name, content",
    [
        ("run.json", {"resumed": 3}),
        ("run.json", {"resumed": [{"versions": None, "device": {"count": 1}}]}),
        ("evaluation.csv", "seed,update,env_steps,episode,episode_return,episode_length\n"),
        ("evaluation.csv", "seed,update,env_steps\n0,0,0\n"),
        ("evaluation.csv", "seed,update,env_steps,episode,episode_return,episode_length\n0,0,0,inf,1,1\n"),
        ("evaluation.csv", "seed,update,env_steps,episode,episode_return,episode_length\n0,0,nan,0,1,1\n"),
        ("evaluation.csv", "seed,update,env_steps,episode,episode_return,episode_length\n0,0,0,-1,1,1\n"),
        ("metrics.csv", "seed,update,env_steps\ninf,1,1\n"),
        ("absolute.csv", "seed,episode_return\nnan,1\n"),
    ],
)
def test_damaged_files_of_a_run(damaged, capsys, command, name, content):
    if name == "run.json":
        content = json.dumps(json.loads((damaged / name).read_text()) | content)
    elif command == "evaluate" or (name == "absolute.csv" and command != "compare"):
        pytest.skip("does not read it")
    (damaged / name).write_text(content)
    assert main.main([command, str(damaged)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("marl-kl: ") and len(said.splitlines()) == 1 and name in said


@pytest.mark.slow
def test_every_entry_of_a_sweep_s_record(tmp_path):
    """All that `report` shows of a sweep is in its tables."""
    sweep(tmp_path / "sweep")
    path = tmp_path / "sweep" / "sweep.json"
    document = json.loads(path.read_text())
    for what, changed in _all_changes(document):
        if what[0] not in ("settings", "timing"):
            continue  # as in a run
        path.write_text(json.dumps(changed))
        try:
            sweep_tables.rows(sweep_folders.read(path.parent))
        except RunFolderError as error:
            assert len(str(error).splitlines()) == 1 and "sweep" in str(error), what


@pytest.mark.parametrize("change", [{"settings": 3}, {"settings": [3]}, {"timing": {}}, {"settings": [{"gamma": "x"}]}])
def test_damaged_files_of_a_sweep(tmp_path, capsys, change):
    sweep(tmp_path / "sweep")
    path = tmp_path / "sweep" / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert main.main(["report", str(path.parent)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("marl-kl: ") and len(said.splitlines()) == 1 and "sweep.json" in said
