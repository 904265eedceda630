"""Loggers: every row once and in order, whatever stopped the run, and no run that ends for a dashboard."""

import json
import struct
import sys
import types
import warnings

import numpy as np
import pandas as pd
import pytest

import marl_kl
from marl_kl.cli import main
from marl_kl.storage.run_folder import RunWarning
from marl_kl.training import loggers
from tests.support import synthetic
from tests.support.counting_env import counting_env
from tests.support.shared_programs import programs_are_shared  # noqa: F401  for all tests here

SMALL = {
    "num_envs": 4, "rollout_length": 8, "hidden_sizes": (8,), "critic_minibatches": 2, "eval_episodes": 4,
    "chunk_updates": 3, "eval_interval": 4, "seeds": [4, 7], "progress": "none",
}  # fmt: skip


class Recorder:
    """A logger that keeps what it was given: one entry of `opened`, `rows` and `closed` per process."""

    def __init__(self):
        self.opened, self.rows, self.closed = [], [], 0

    def __call__(self, about):
        self.opened.append(about)
        self.rows.append([])
        return self

    def write(self, rows):
        self.rows[-1] += rows

    def close(self):
        self.closed += 1


def failing_at(moment):
    """A logger that raises at its opening, its second write or its closing."""
    calls = []

    def fail_if(now):
        if now == moment:
            raise OSError(f"no network at {moment}\nand a long story")

    class Sink:
        def write(self, rows):
            calls.append("write")
            fail_if("write" if calls.count("write") == 2 else "")

        def close(self):
            calls.append("close")
            fail_if("close")

    def logger(about):
        fail_if("open")
        return Sink()

    logger.__name__ = f"failing_at_{moment}"
    logger.calls = calls
    return logger


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run of ten updates with every kind of logger, resumed to be twelve long: folder, recorder, failing ones, what
    was said."""
    out, recorder = tmp_path_factory.mktemp("runs") / "walk", Recorder()
    failing = [failing_at(moment) for moment in ("open", "write", "close")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RunWarning)
        options = {"out": out, "resume": True, **SMALL}
        given = ["tensorboard", *failing, recorder]
        marl_kl.train(counting_env(), "hatrpo_w", total_env_steps=320, loggers=given, **options)
        marl_kl.train(counting_env(), "hatrpo_w", total_env_steps=384, loggers=["tensorboard", recorder], **options)
    return out, recorder, failing, [str(w.message) for w in said if issubclass(w.category, RunWarning)]


def test_the_stream_has_the_tables_numbers(logged):
    out = logged[0]
    lines = [json.loads(line) for line in (out / loggers.STREAM).read_text().splitlines()]
    training = pd.DataFrame([line for line in lines if "kl_total" in line]).astype(float)
    table = pd.read_csv(out / "metrics.csv").sort_values(["update", "seed"], ignore_index=True).astype(float)
    pd.testing.assert_frame_equal(training, table[training.columns], check_exact=True)
    assert set(table.columns) == {*training.columns, "wall_time_s"}
    evaluations = [line for line in lines if "evaluation_return" in line]
    means = pd.read_csv(out / "evaluation.csv").groupby(["update", "seed"]).episode_return.mean()
    assert [(line["update"], line["seed"]) for line in evaluations] == list(means.index)
    np.testing.assert_allclose([line["evaluation_return"] for line in evaluations], means, rtol=1e-6)
    order = [(line["update"], "evaluation_return" in line) for line in lines]
    assert order == sorted(order) and order[0] == (0, True) and order[-1] == (12, True)


def test_a_logger_gets_the_run_from_its_first_row_on_in_every_process(logged):
    """The second process trained two updates; the row of the evaluation at the first one's end is kept."""
    out, recorder, _, _ = logged
    first, second = recorder.rows
    assert second[: len(first)] == first and recorder.closed == 2
    keys = [(row.seed, row.update, row.kind) for row in second]
    assert len(set(keys)) == len(keys) == 2 * (12 + 5)
    assert [row.update for row in second if row.kind == "evaluation" and row.seed == 7] == [0, 4, 8, 10, 12]
    assert all(row.env_steps == 32 * row.update for row in second)
    assert recorder.opened[0].id == recorder.opened[1].id
    about = recorder.opened[1]
    assert (about.group, about.name, about.seeds, about.folder) == ("walk", "walk", (4, 7), out)
    assert about.facts["algorithm"] == "hatrpo_w" and about.facts["num_envs"] == 4


def test_a_failing_logger_gives_one_warning_and_is_dropped(logged):
    _, recorder, failing, said = logged
    ours = [text for text in said if "logging" in text]
    assert sorted(ours) == [
        f"logging to failing_at_{moment} has stopped: no network at {moment}; training continues"
        for moment in ("close", "open", "write")
    ]
    at_open, at_write, at_close = (logger.calls for logger in failing)
    assert at_open == [] and at_write == ["write", "write", "close"] and at_close.count("close") == 1


def _scalars(folder):
    """(tag, step) -> values of the event files in `folder`: TFRecord framing, Event messages."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in folder.glob("events.*"):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found


def test_tensorboard_has_every_number_once(logged):
    out, recorder, _, _ = logged
    for seed in (4, 7):
        found = _scalars(out / "tensorboard" / f"seed{seed}")
        assert all(len(values) == 1 for values in found.values())
        wanted = {
            (name.replace("[", "/").removesuffix("]"), row.env_steps): value
            for row in recorder.rows[-1]
            for name, value in row.values.items()
            if row.seed == seed and not np.isnan(value)
        }
        assert found.keys() == wanted.keys() and ("kl/b", 384) in found
        for key, (value,) in found.items():
            assert value == np.float32(wanted[key]), key


def test_rows_after_some_are_the_rest():
    result = synthetic.result(num_seeds=3, num_updates=6, num_evaluations=3)
    run = result.seeds, result.spec.agents, 4096, result.metrics, result.evaluation
    whole = loggers.rows(*run)
    assert [(row.update, row.kind[0], row.seed) for row in whole[:3]] == [(0, "e", 0), (0, "e", 1), (0, "e", 2)]
    rest = loggers.rows(*run, after=(3, 2))
    assert str(whole[-len(rest) :]) == str(rest) and {row.update for row in rest} == {4, 5, 6}  # they hold NaN
    assert whole[3].values["kl[hip_0+ankle_0]"] == float(str(result.metrics["kl"][0, 0, 0]))
    assert loggers.rows((0,), ("a",), 8, {}, None) == []
    (row,) = loggers.rows((3,), ("a",), 8, {"odd": np.array([[True]]), "other": np.array([[7]])}, None)
    assert row == loggers.Row(3, 1, 8, "training", {"odd": 1.0, "other": 7.0})


def test_dashboards_get_names_that_they_take_and_no_nan():
    values = {"kl[hip_1+ankle 4|x]": 1.0, "episode_return": float("nan"), "factor_max": float("inf")}
    numbers = loggers._numbers(loggers.Row(0, 1, 8, "training", values))
    assert numbers == {"kl/hip_1_ankle_4_x": 1.0, "factor_max": float("inf")}


def _as_module(name, **content):
    module = types.ModuleType(name)
    vars(module).update(content)
    return module


class _FakeWandb:
    """Of wandb, what we use: a run drops what comes for a step before its own, with a warning that nobody wants."""

    def __init__(self):
        self.runs = {}

    def init(self, *, id, **options):
        known = self.runs.get(id)
        logged, step = (known.logged, known.step) if known else ([], 0)
        run = types.SimpleNamespace(options=options, logged=logged, step=step)
        run.finish = lambda: setattr(run, "step", run.step + 1)

        def log(values, step):
            assert step >= run.step
            run.step = step
            run.logged.append((step, values))

        run.log = log
        self.runs[id] = run
        return run


class _FakeMlflow:
    """Of MLflow's client, what we use; metrics that are logged twice are there twice."""

    def __init__(self):
        self.runs = {}

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name) if self.runs else None

    def create_experiment(self, name):
        return name

    def search_runs(self, experiments, filter_string):
        key = filter_string.split("'")[1]
        return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))] if key in self.runs else []

    def create_run(self, experiment, run_name, tags):
        self.runs[tags["marl_kl.id"]] = []
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=tags["marl_kl.id"]))

    def log_param(self, *_):
        pass

    def get_metric_history(self, run, name):
        return [metric for metric in self.runs[run] if metric.key == name]

    def log_batch(self, run, metrics):
        self.runs[run] += metrics

    def set_terminated(self, run):
        pass


@pytest.fixture
def interrupted():
    """What two processes write, the first of which was killed after update 3: about, and rows per process."""
    result = synthetic.result(num_seeds=2, num_updates=6, num_evaluations=3)
    rows = loggers.rows(result.seeds, result.spec.agents, 4096, result.metrics, result.evaluation)
    about = loggers.About("walks", "walk", "id", result.seeds, None, {"gamma": 0.9})
    return about, [[row for row in rows if row.update <= 3], rows]


def _write(logger, about, processes):
    for rows in processes:
        sink = logger(about)
        sink.write(rows)
        sink.close()


@pytest.mark.parametrize("project", [None, "mine"])
def test_wandb_gets_every_step_once_in_a_run_per_seed(monkeypatch, interrupted, project):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if project:
        monkeypatch.setenv("WANDB_PROJECT", project)
    about, processes = interrupted
    fake = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", _as_module("wandb", init=fake.init))
    _write(loggers._Wandb, about, processes)
    assert list(fake.runs) == ["id-0", "id-1"]
    run = fake.runs["id-1"]
    assert (run.options["group"], run.options["name"]) == ("walks", "walk-seed1")
    assert run.options["project"] == (project or loggers.PROJECT)
    assert run.options["config"] == {"gamma": 0.9, "seed": 1}
    wanted = [(row.env_steps, row.update) for row in processes[-1] if row.seed == 1]
    assert [(step, values["update"]) for step, values in run.logged] == wanted


def test_mlflow_gets_every_step_once_in_a_run_per_seed(monkeypatch, interrupted):
    about, processes = interrupted
    fake = _FakeMlflow()
    metric = lambda key, value, time, step: types.SimpleNamespace(key=key, value=value, step=step)  # noqa: E731
    monkeypatch.setitem(sys.modules, "mlflow", _as_module("mlflow", MlflowClient=lambda: fake))
    monkeypatch.setitem(sys.modules, "mlflow.entities", _as_module("mlflow.entities", Metric=metric))
    _write(loggers._Mlflow, about, processes)
    for seed in about.seeds:
        logged = [(metric.key, metric.step, metric.value) for metric in fake.runs[f"id-{seed}"]]
        wanted = [
            entry
            for row in processes[-1]
            if row.seed == seed
            for entry in (
                *((name, row.env_steps, value) for name, value in loggers._numbers(row).items()),
                (f"{row.kind}_update", row.env_steps, row.update),
            )
        ]
        assert logged == wanted


@pytest.mark.parametrize(
    "given, message",
    [
        (["tensorbord"], "unknown logger 'tensorbord'; did you mean tensorboard"),
        ("wandb", r"loggers='wandb'; it must be a list, such as \['wandb'\]"),
        ([3], "loggers: 3 must be one of tensorboard, wandb, mlflow, or a function"),
        (["tensorboard"], "logging to tensorboard needs out, the run folder"),
        (["wandb"], r"logging to wandb needs wandb, which is not installed; pip install 'marl_kl\[wandb\]'"),
    ],
)
def test_bad_loggers_give_a_one_line_error_before_the_run(given, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises((ValueError, ModuleNotFoundError), match=message) as error:
        marl_kl.train(counting_env(), "hatrpo_w", loggers=given, **SMALL)
    assert "\n" not in str(error.value)


def test_the_command_line_passes_them_on(monkeypatch, tmp_path, capsys):
    asked = []

    def train(*_, loggers, **__):
        asked.append(loggers)
        warnings.warn("logging to wandb has stopped", RunWarning)
        return synthetic.result()

    monkeypatch.setattr(marl_kl, "train", train)
    assert main.main(["train", "bilinear", "--log", "tensorboard", "wandb", "--out", str(tmp_path / "run")]) == 0
    assert asked == [["tensorboard", "wandb"]]
    assert capsys.readouterr().err == "marl-kl: logging to wandb has stopped\n"
    assert main.main(["train", "bilinear", "--log", "paper"]) == 2
    assert "invalid choice: 'paper'" in capsys.readouterr().err
