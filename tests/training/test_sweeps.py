"""A sweep is its single runs, side by side: same numbers, one program, tables of all; and what it refuses."""

import dataclasses
import json
import signal
import types
import warnings

import jax
import numpy as np
import pandas as pd
import pytest

import envs
import marl_kl
from marl_kl import devices
from marl_kl.analysis import sweep_tables
from marl_kl.analysis.statistics import interquartile_mean
from marl_kl.results import SweepFailure
from marl_kl.storage import run_folder, stored_sweeps
from marl_kl.training import programs, sweeper
from marl_kl.training.adaptive_search import make_search
from marl_kl.training.programs import Programs
from marl_kl.training.sweeper import shard_size
from tests.support import kills
from tests.support.counting_env import counting_env
from tests.support.grids import slow_unless
from tests.support.shared_programs import programs_are_shared  # noqa: F401  for all tests here
from tests.support.small_run import SMALL
from tests.training.test_runner import never_compile

BUDGETS = (0.02, 0.08, 0.3)


def sweep(env=None, algorithm="hatrpo_w", **options):
    # chunks of 3: the last of the 7 updates stand alone
    options = {
        "progress": "none",
        "seeds": [4, 7],
        "total_env_steps": 224,
        "chunk_updates": 3,
        "eval_interval": 0,
        **SMALL,
        **options,
    }
    return marl_kl.sweep(counting_env() if env is None else env, algorithm, **options)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return sweep(grid={"kl_budget": BUDGETS}, out=tmp_path_factory.mktemp("sweeps") / "counting")


def assert_same_up_to_rounding(got, wanted, name=""):
    """The tolerance of test_trainer: batches of other sizes sum in another order, and training amplifies that."""
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4, err_msg=name)


def test_axes(swept):
    assert [setting["kl_budget"] for setting in swept.settings] == list(BUDGETS) and swept.seeds == (4, 7)
    assert swept.metrics["episode_return"].shape == (3, 2, 7) and swept.metrics["kl"].shape == (3, 2, 7, 2)
    assert swept.untrained.episode_return.shape == swept.final.episode_length.shape == (3, 2, 4)
    np.testing.assert_array_equal(swept.env_steps, np.tile(32 * np.arange(1, 8), (3, 1)))
    assert "nonfinite" not in swept.metrics and swept.failures == ()
    assert np.all(np.diff(swept.metrics["kl_total"].mean((1, 2))) > 0), "a larger budget is used"


@pytest.mark.parametrize("index", slow_unless({1}, range(3)))
def test_a_run_of_a_sweep_is_the_single_run(swept, index):
    fields = {"seeds": swept.seeds, "config": swept.config.replace(**swept.settings[index])}
    single = marl_kl.train(counting_env(), "hatrpo_w", progress="none", **fields)
    for name, values in single.metrics.items():
        assert_same_up_to_rounding(swept.metrics[name][index], values, name)
    for k, episodes in enumerate((swept.untrained, swept.final)):
        assert_same_up_to_rounding(episodes.episode_return[index], single.evaluation.episode_return[:, k])


def _collecting(streams):
    """A logger that adds what it is told, the rows it gets and whether it was closed to `streams`."""

    def collect(about):
        stream = {"about": about, "rows": [], "closed": 0}
        streams.append(stream)
        close = lambda: stream.update(closed=stream["closed"] + 1)  # noqa: E731
        return types.SimpleNamespace(write=stream["rows"].extend, close=close)

    return collect


def _assert_logged(streams, result):
    """A stream per setting and seed, in one group; the run that pads the last shard has none."""
    abouts = [stream["about"] for stream in streams]
    assert [(about.group, about.name, about.seeds) for about in abouts] == [
        ("counting-hatrpo_w", f"counting-hatrpo_w-setting{k}", (4,)) for k in range(3)
    ]
    assert [about.facts["kl_budget"] for about in abouts] == list(BUDGETS) and len({a.id for a in abouts}) == 3
    for k, stream in enumerate(streams):
        kinds = [(row.update, row.env_steps // 32, row.kind, row.seed) for row in stream["rows"]]
        training = [(update, update, "training", 4) for update in range(1, 8)]
        assert kinds == [(0, 0, "evaluation", 4), *training, (7, 7, "evaluation", 4)] and stream["closed"] == 1
        kl = [row.values["kl[b]"] for row in stream["rows"] if row.kind == "training"]
        np.testing.assert_allclose(kl, result.metrics["kl"][k, 0, :, 1], rtol=1e-6)
        np.testing.assert_allclose(
            stream["rows"][-1].values["evaluation_return"], result.final.episode_return[k].mean(), rtol=1e-6
        )


def test_the_stream_of_a_sweep(swept):
    """A line per setting, seed and update, and one per evaluation, in the order in which they came to be."""
    lines = [json.loads(text) for text in (swept.out / "log.jsonl").read_text().splitlines()]
    assert [(line["setting"], line["seed"]) for line in lines] == [(k, s) for k in range(3) for s in (4, 7)] * 9
    assert [line["update"] for line in lines[::6]] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    for k, s in ((0, 0), (2, 1)):
        own = [line for line in lines if (line["setting"], line["seed"]) == (k, swept.seeds[s])]
        np.testing.assert_allclose([line["kl[b]"] for line in own[1:-1]], swept.metrics["kl"][k, s, :, 1], rtol=1e-6)
        returns = [own[place]["evaluation_return"] for place in (0, -1)]
        wanted = swept.evaluations[k].episode_return[s].mean(-1)
        np.testing.assert_allclose(returns, wanted, rtol=1e-6)


@pytest.mark.slow
def test_a_logger_with_files_has_a_folder_per_run(tmp_path):
    """Seeds of one setting are open side by side, and must not write into one file."""
    options = {"loggers": [marl_kl.training.loggers.JsonLines], "total_env_steps": 64}
    sweep(grid={"kl_budget": BUDGETS}, out=tmp_path / "run", **options)
    for k in range(3):
        for seed in (4, 7):
            path = tmp_path / "run" / f"setting{k}" / f"seed{seed}" / "log.jsonl"
            lines = [json.loads(text) for text in path.read_text().splitlines()]
            assert [(line["update"], line["seed"]) for line in lines] == [(u, seed) for u in (0, 1, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["open", "write", "close"])
def test_a_failing_logger_gives_one_warning(moment, tmp_path):
    """Not once per setting and seed, nor again in the next shard."""

    def fails(*_):
        raise OSError("no network")

    def failing(about):
        sink = types.SimpleNamespace(write=lambda rows: None, close=lambda: None)
        if moment == "open":
            fails()
        setattr(sink, moment, fails)
        return sink

    good = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = sweep(
            grid={"kl_budget": BUDGETS}, loggers=[failing, _collecting(good)], runs_at_once=2, out=tmp_path / "run",
            total_env_steps=64,
        )  # fmt: skip
    said = [str(warning.message) for warning in said if issubclass(warning.category, run_folder.RunWarning)]
    assert said == ["logging to failing has stopped: no network; training continues"]
    assert len(good) == 6 and all(len(stream["rows"]) == 4 for stream in good) and not result.failures
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 6 * 4


def test_shards_are_the_whole(swept, capsys):
    """Shards of two runs, as the single runs have two seeds; the last one is padded."""
    streams = []
    parts = sweep(
        grid={"kl_budget": BUDGETS}, seeds=[4], runs_at_once=2, progress="plain", loggers=[_collecting(streams)]
    )
    _assert_logged(streams, parts)
    for name, values in parts.metrics.items():
        assert_same_up_to_rounding(values, swept.metrics[name][:, :1], name)
    assert_same_up_to_rounding(parts.untrained.episode_return, swept.untrained.episode_return[:, :1])
    assert_same_up_to_rounding(parts.final.episode_return, swept.final.episode_return[:, :1])
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "shards" in line]
    assert said.startswith("3 runs in 2 shards of 2 (") and said.endswith("MiB a run, runs_at_once=2)")


@pytest.mark.slow
def test_a_sweep_that_does_not_fit_into_memory_is_split(swept, monkeypatch, capsys):
    """Memory for 2.5 runs, by the account of the program that was compiled for all 6."""
    accounts = []
    account = Programs.bytes_per_run.fget

    def noted(self):
        assert account(self) > self.state_bytes > 0
        accounts.append(account(self))
        return accounts[-1]

    monkeypatch.setattr(Programs, "bytes_per_run", property(noted))
    monkeypatch.setattr(devices, "free_bytes", lambda mesh: int(2.5 * accounts[0] / 0.8) if accounts else 2**60)
    cut = sweep(grid={"kl_budget": BUDGETS}, progress="plain")
    assert "6 runs in 3 shards of 2 (" in capsys.readouterr().out
    assert_same_up_to_rounding(cut.metrics["kl"], swept.metrics["kl"])


@pytest.mark.parametrize(
    ("num_runs", "at_most", "num_devices", "size"),
    [(6, 6, 1, 6), (6, 5, 1, 3), (7, 6, 1, 4), (9, 9, 2, 10), (9, 8, 2, 6), (6, 3, 2, 2), (3, 9, 4, 3), (5, 1, 8, 1)],
)
def test_shard_size(num_runs, at_most, num_devices, size):
    assert shard_size(num_runs, at_most, num_devices) == size


def test_free_memory_is_known_on_linux():
    assert devices.free_bytes(devices.seed_mesh(1)) > 2**20


@pytest.mark.slow
def test_one_trace_per_combination_of_static_settings(monkeypatch):
    """TracedFields, those of the first state included, and seeds share a program; fewer updates end in NaN."""
    traces = {"init": 0, "update": 0}

    def counted(name, function):
        def call(argument):
            traces[name] += 1
            return function(argument)

        return call

    def counting_train(*arguments):
        train = marl_kl.make_train(*arguments)
        return marl_kl.Train(counted("init", train.init), counted("update", train.update))

    monkeypatch.setattr(programs, "make_train", counting_train)
    grid = {"init_std": [0.1, 0.37, 1.0], "rollout_length": [8, 16]}
    config = marl_kl.FirstOrderConfig(**SMALL, total_env_steps=64, chunk_updates=3)
    result = marl_kl.sweep(counting_env(), "mappo", grid=grid, seeds=2, config=config, progress="none")
    assert traces == {"init": 2, "update": 2}
    lengths = np.array([setting["rollout_length"] for setting in result.settings])
    np.testing.assert_array_equal(np.isnan(result.metrics["kl_total"][:, 1]).sum(-1), np.where(lengths == 16, 1, 0))
    np.testing.assert_array_equal(result.env_steps, [[64, 64] if length == 16 else [32, 64] for length in lengths])
    entropy = result.metrics["entropy"][:, :, 0].mean((1, 2))
    np.testing.assert_allclose(np.diff(entropy[lengths == 8]), np.log([3.7, 1 / 0.37]), atol=0.5)


@pytest.mark.slow
def test_four_budgets_and_eight_seeds_compile_once_and_are_the_32_single_runs(monkeypatch):
    """The single runs are one program too, of one run each, and made of nothing but `make_train`: its numbers are
    traced."""
    traces, compiled = [], []

    def counting_train(*arguments):
        train = marl_kl.make_train(*arguments)
        return train._replace(update=lambda state: traces.append(1) or train.update(state))

    lowered = Programs._chunk_program
    monkeypatch.setattr(programs, "make_train", counting_train)
    monkeypatch.setattr(Programs, "_chunk_program", lambda self: compiled.append(self.num_runs) or lowered(self))
    env, budgets, seeds = envs.make("matrix_game", num_agents=2), [0.01, 0.03, 0.1, 0.3], range(8)
    # directions fitted to halves of so small a batch amplify rounding beyond what this test allows
    config = marl_kl.TrustRegionConfig(**SMALL, total_env_steps=160, chunk_updates=2, utility="first_order")
    swept = marl_kl.sweep(env, "hatrpo_w", grid={"kl_budget": budgets}, seeds=8, config=config, progress="none")
    assert len(traces) == 1 and compiled == [32], "one trace, one program of 32 runs"

    @jax.jit
    def single(kl_budget, seed):
        traces.append("single")
        train = marl_kl.make_train(env, "hatrpo_w", config.replace(kl_budget=kl_budget))
        return jax.lax.scan(lambda state, _: train.update(state), train.init(jax.random.key(seed)), length=5)[1]

    for k, budget in enumerate(budgets):
        for s in seeds:
            run = single(np.float32(budget), np.uint32(s))
            for name, values in swept.metrics.items():
                assert_same_up_to_rounding(values[k, s], run[name], f"{name} of budget {budget}, seed {s}")
    assert traces.count("single") == 1
    assert len(np.unique(swept.metrics["entropy"][:, :, -1, 0])) == 32, "no two runs are the same"


@pytest.mark.slow
def test_a_nan_is_named_and_leaves_the_others_alone(swept, tmp_path):
    """Episodes that start above a bound pay NaN, which seed 4 meets: at every budget, since resets are the same."""
    result = sweep(counting_env(nan_start_above=0.95), grid={"kl_budget": BUDGETS}, out=tmp_path / "run")
    failed = {(failure.setting, failure.seed) for failure in result.failures}
    assert {seed for _, seed in failed} and len(failed) == 3 and {setting for setting, _ in failed} == {0, 1, 2}
    assert all(failure.quantity == "reward" for failure in result.failures)
    healthy = next(s for s, seed in enumerate(result.seeds) if (0, seed) not in failed)
    for name, values in swept.metrics.items():
        assert_same_up_to_rounding(result.metrics[name][:, healthy], values[:, healthy], name)
    table = pd.read_csv(tmp_path / "run" / "table.csv")
    first = result.failures[0]
    assert table.failure.notna().sum() == 3
    assert f"reward was not finite in update {first.update + 1}" == table.failure.dropna().iloc[0]
    document = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert document["failures"][0] == first._asdict()
    assert f"setting 0, seed {first.seed} failed: reward" in (tmp_path / "run" / "summary.md").read_text()


def test_the_folder(swept):
    assert {entry.name for entry in swept.out.iterdir()} == {
        "table.csv", "curves.csv", "summary.md", "settings.png", "log.jsonl", "sweep.json", "pieces", ".lock",
    }  # fmt: skip
    table = pd.read_csv(swept.out / "table.csv")
    assert list(table.setting) == [0, 0, 1, 1, 2, 2] and list(table.seed) == [4, 7] * 3
    np.testing.assert_array_equal(table.kl_budget, np.repeat(BUDGETS, 2))
    means = swept.final.episode_return.astype(np.float64).mean(-1)
    np.testing.assert_array_equal(table.final_return, means.reshape(-1))
    np.testing.assert_array_equal(table.final_length, 5)
    assert table.failure.isna().all()
    rows = [line.split(" | ") for line in (swept.out / "summary.md").read_text().splitlines()[4:7]]
    order = [int(row[0].strip("| ")) for row in rows]
    assert order == np.argsort(-interquartile_mean(means, axis=1)).tolist()
    document = json.loads((swept.out / "sweep.json").read_text())
    assert document["status"] == "finished" and document["grid"] == {"kl_budget": list(BUDGETS)}
    assert document["settings"][1] == {"kl_budget": 0.08} and document["versions"]["jax"] == jax.__version__


def test_settings_without_a_figure_come_last(swept):
    """Setting 0 failed with both seeds, setting 2 with one, whose return does not count."""
    failures = (SweepFailure(0, 4, 1, "actor"), SweepFailure(0, 7, 0, "actor"), SweepFailure(2, 4, 3, "reward"))
    returns = np.arange(24.0).reshape(3, 2, 4)
    evaluations = [
        evaluation._replace(episode_return=np.stack([evaluation.episode_return[:, 0], final], axis=1))
        for evaluation, final in zip(swept.evaluations, returns)
    ]
    changed = dataclasses.replace(swept, failures=failures, evaluations=tuple(evaluations))
    text = sweep_tables.markdown(changed)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[4:7]]
    assert [row[0] for row in rows] == ["2", "1", "0"]
    assert rows[0][3:] == ["21.5", "21.5", "1"] and rows[1][3] == "11.5 ± 2.83" and rows[2][2:] == ["-", "-", "-", "2"]


def test_an_interrupted_sweep_leaves_no_table(monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Programs, "compile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(grid={"kl_budget": BUDGETS}, out=tmp_path / "run")
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == {"sweep.json", "log.jsonl", ".lock"}
    assert json.loads((tmp_path / "run" / "sweep.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {}}, "there is nothing to sweep; give grid="),
        ({"grid": [0.1]}, r"grid=\[0.1\]; it must be a dict"),
        ({"grid": {"kl_bugdet": [0.1]}}, "unknown config field 'kl_bugdet' .* did you mean kl_budget"),
        ({"grid": {"kl_budget": 0.1}}, r"grid\['kl_budget'\] is 0.1; it must be a list"),
        ({"grid": {"kl_budget": []}}, r"grid\['kl_budget'\] is \[\]; it must be a list"),
        ({"grid": {"kl_budget": [0.1, 0.1]}}, r"grid\['kl_budget'\] is \[0.1, 0.1\]; .* none of them twice"),
        ({"grid": {"kl_budget": [0.1, -1]}}, "kl_budget=-1.0; it must be"),
        ({"grid": {"kl_budget": jax.numpy.array([-1.0])}}, "kl_budget=-1.0; it must be"),
        ({"grid": {"gamma": [0.9]}, "critic_minibatches": 3}, "critic_minibatches=3 does not divide"),
        ({"grid": {"share_parameters": [False, True]}, "algorithm": "hatrpo_w"}, "share_parameters=True; one network"),
        ({"grid": {"save_interval": [10, 20]}}, "'save_interval' cannot be swept"),
        ({"grid": {"gamma": [0.9]}, "gamma": 0.8}, "gamma=0.8 is given, and swept as well"),
        ({"grid": {"gamma": [0.9]}, "random": {"gamma": marl_kl.uniform(0, 1)}, "samples": 2}, "'gamma' is in grid"),
        ({"grid": {"gamma": [0.9]}, "samples": 2}, "samples=2, but there is nothing to draw"),
        ({"random": {"gamma": marl_kl.uniform(0, 1)}}, "samples=None; it must be an integer >= 1"),
        ({"random": {"gamma": (0, 1)}, "samples": 2}, r"random\['gamma'\]=\(0, 1\); it must be marl_kl.log_uniform"),
        ({"random": {"gamma": marl_kl.uniform(0, 1)}, "samples": 2, "search_seed": -1}, "search_seed=-1; it must be"),
        ({"runs_at_once": 0}, "runs_at_once=0; it must be an integer >= 1"),
        ({"seeds": 0}, "seeds=0; it must be"),
        ({"progress": "loud"}, "progress='loud'"),
        ({"algorithm": "hatrpo_v"}, "unknown algorithm 'hatrpo_v'"),
        ({"env": "ant_4x2"}, "env='ant_4x2'; it must be an environment"),
        ({"config": marl_kl.OnPolicyConfig(), "grid": {"gamma": [0.9]}}, "needs a TrustRegionConfig"),
    ],
)
def test_bad_input_gives_a_one_line_error_before_compilation(options, message, monkeypatch, tmp_path):
    monkeypatch.setattr(Programs, "compile", never_compile)
    options = options if {"grid", "random"} & set(options) else {"grid": {"kl_budget": [0.1]}, **options}
    with pytest.raises(ValueError, match=message) as caught:
        sweep(out=tmp_path / "run", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_sweep_is_refused(swept, monkeypatch):
    monkeypatch.setattr(Programs, "compile", never_compile)
    with pytest.raises(FileExistsError, match="already holds another sweep"):
        sweep(grid={"kl_budget": BUDGETS}, out=swept.out)


# Searches

SEARCH = {"search": {"kl_budget": marl_kl.log_uniform(0.02, 0.3)}, "samples": 3, "rounds": 2, "search_seed": 5}


def test_rounds_are_one_program_and_one_sweep(monkeypatch, tmp_path):
    """And resume to the same where one was interrupted between two rounds."""
    made, init = [], Programs.__init__
    monkeypatch.setattr(Programs, "__init__", lambda self, *args: made.append(args) or init(self, *args))
    whole = sweep(**SEARCH, out=tmp_path / "whole")
    assert len(made) == 1, "one program for both rounds"
    assert len(whole.settings) == 6 and whole.final.episode_return.shape == (6, 2, 4)
    scores = sweeper.sweep_tables.scores(whole)
    plan = make_search(whole.config, {}, SEARCH["search"], 3, 2, "tpe", 5)
    first = tuple(map(plan.setting, whole.settings[:3]))
    assert whole.settings[3:] == tuple(setting.fields for setting in plan.next_round(first, scores[:3]))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweeper._Sweep, "_choose", lambda *_: signal.raise_signal(signal.SIGINT))
        sweep(**SEARCH, out=tmp_path / "parts")
    assert len(stored_sweeps.read(tmp_path / "parts").settings) == 3
    parts = sweep(**SEARCH, out=tmp_path / "parts", resume=True)
    assert parts.settings == whole.settings
    kills.assert_same_sweep(tmp_path / "parts", tmp_path / "whole")
    for other in ({"search_seed": 6}, {"search": {"kl_budget": marl_kl.uniform(0.02, 0.3)}}):
        with pytest.raises(ValueError, match="holds another sweep: search(_seed|.kl_budget) is .* there and .* here"):
            sweep(**{**SEARCH, **other}, out=tmp_path / "parts", resume=True)
