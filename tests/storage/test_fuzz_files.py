"""Run, sweep and preset files of any content: each is a plan, or ends in one sentence."""

import contextlib
import dataclasses
import datetime
import inspect
import io
import itertools
import math
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import envs
import marl_kl
from marl_kl.cli import main
from marl_kl.core import algorithms
from marl_kl.training import host_loop, presets, run_file, sweeper, toml_file
from marl_kl.training import sweep_file as sweep_file
from tests.support import synthetic

PROFILE = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

FIELDS = sorted({name for entry in ("hatrpo_w", "happo") for name in vars(algorithms.get(entry).config_class())})
GAMES = ("matrix_game", "bilinear", "parameter_sharing", "two_peaks", "digits")
OPTIONS = ("num_agents", "num_actions", "payoff", "steps", "per_agent", "digits_of", "num_choices", "bound")

TEXTS = st.text(max_size=6) | st.sampled_from(
    ["", "inf", "nan", "ant_4x2", "tanh", "1", "a\nb", "é🦵", "\x00", "\u2028", '"', "\\"]
)
NUMBERS = (
    st.sampled_from([0, 1, -1, 2, 4, 64, 2**31, 2**63, 10**30, 10**400, True, False])
    | st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.5, 1e-320, 1e300, 1.7e308, -1.7e308, math.inf, -math.inf, math.nan])
    | st.integers(-3, 70)
)
DATES = st.sampled_from([datetime.date(2020, 2, 29), datetime.datetime(1, 1, 1), datetime.time(1, 2, 3)])
SCALARS = NUMBERS | TEXTS | DATES
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)


def _wild(extra):
    """Of keys that are known, mostly, and of values of all kinds."""
    right = {
        "env": st.sampled_from([*GAMES, "matrix_gam", "ant_3x3", "Ant-v2-9x9"]) | TEXTS,
        "algorithm": st.sampled_from([*algorithms.names(), "hatrpo_v"]) | TEXTS,
    }
    return st.fixed_dictionaries(right, optional=dict.fromkeys((*extra, "seeds", "config", "é"), VALUES))


def _changed(good, places):
    """A good file in which one or two values are others: what is behind the first look at a file."""

    def change(changes):
        document = {name: dict(value) if isinstance(value, dict) else value for name, value in good.items()}
        for (table, name), value in changes:
            if table is None:
                document[name] = value
            else:
                document.setdefault(table, {})[name] = value
        return document

    one = st.one_of(*(st.tuples(st.tuples(st.just(table), names), values) for table, names, values in places))
    return st.lists(one, min_size=1, max_size=2).map(change)


_GOOD = {"env": "matrix_game", "algorithm": "hatrpo_w", "seeds": 2, "config": {"num_envs": 4}}
_LISTS = st.lists(SCALARS | st.lists(NUMBERS, max_size=2), max_size=3)
_DISTRIBUTIONS = st.dictionaries(
    st.sampled_from(["uniform", "log_uniform", "choice"]),
    st.lists(SCALARS, min_size=1, max_size=2),
    min_size=1,
    max_size=1,
)
_NAMES = st.sampled_from(FIELDS)
_PLACES = [
    (None, st.sampled_from(["algorithm", "env"]), st.sampled_from([*algorithms.names(), *GAMES])),
    (None, st.just("seeds"), VALUES | st.lists(NUMBERS, max_size=3)),
    ("env_options", st.sampled_from(OPTIONS) | TEXTS, VALUES),
    ("config", _NAMES, SCALARS),
    ("config", _NAMES | TEXTS, VALUES),
]
RUN_FILES = _wild(["env_options"]) | _changed(_GOOD, _PLACES) | _changed({**_GOOD, "algorithm": "happo"}, _PLACES)
_OPTIONS = ["samples", "search_seed", "runs_at_once"]
_GOOD_SWEEP = {
    **_GOOD, "grid": {"critic_lr": [0.1, 0.2]}, "random": {"gae_lambda": {"uniform": [0, 1]}}, "samples": 2,
}  # fmt: skip
SWEEP_FILES = _wild(["env_options", "grid", "random", *_OPTIONS]) | _changed(
    _GOOD_SWEEP,
    [
        *_PLACES,
        ("grid", _NAMES, _LISTS),
        ("grid", _NAMES | TEXTS, VALUES),
        ("random", _NAMES, _DISTRIBUTIONS),
        ("random", _NAMES | TEXTS, VALUES),
        (None, st.sampled_from(_OPTIONS), SCALARS),
    ],
)


def _toml(value) -> str:
    """Inline, so that any nesting can be written."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x20 or c in '"\\\x7f' else c for c in value) + '"'
    return toml_file.text({"x": value}).removeprefix("x = ").strip()


def as_file(document) -> bytes:
    return "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in document.items()).encode()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_trained():
    """Everything up to the first compilation is as it is; runs and sweeps then end as if they had been made."""
    patch = pytest.MonkeyPatch()
    train, sweep = marl_kl.train, marl_kl.sweep

    def interrupted(_):
        raise KeyboardInterrupt

    patch.setattr(host_loop, "_completed", lambda run: synthetic.result())
    patch.setattr(sweeper._Sweep, "result", interrupted)
    patch.setattr(marl_kl, "train", lambda *arguments, **options: train(*arguments, **{**options, "out": None}))
    patch.setattr(marl_kl, "sweep", lambda *arguments, **options: sweep(*arguments, **{**options, "out": None}))
    yield patch
    patch.undo()


def check(words, content: bytes):
    """The command line makes a plan of this file, or says one sentence."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said):
        path = Path(folder) / "file.toml"
        path.write_bytes(content)
        code = main.main([*words, str(path), "--progress", "none", "--out", str(Path(folder) / "out")])
    text = said.getvalue()
    is_one_sentence = text.startswith("marl-kl: ") and len(text.splitlines()) == 1
    assert (code == 0 and not text) or (code == 130 and is_one_sentence) or (code == 2 and is_one_sentence), text


RUN, SWEEP = ["train", "--config"], ["sweep"]

_EXTREMES = [
    0, -1, 2**16 + 1, 2**31, 2**63, 10**30, 10**400, True, 0.0, 1.5, 1e-320, 1e39, 1e300, math.inf, -math.inf, math.nan, "",
    "inf", "a\nb", [], [[]], [-1], [2**40], ["a"], [1, 1], {}, {"a": 1}, datetime.date(2020, 2, 29),
]  # fmt: skip
_RANGES = [[0, 2**31], [-1.7e308, 1.7e308], [0, 10**400], [1e-320, 1], [1, math.nan], ["a", "b"], [[1], [2]], [1, 0]]


@pytest.mark.parametrize("algorithm", ["hatrpo_w", "happo"])
def test_every_field_at_every_extreme(algorithm):
    """Those that are accepted fit the device's numbers, so that a program can be made of them."""
    for field in dataclasses.fields(algorithms.get(algorithm).config_class):
        for value in _EXTREMES:
            config = _made(algorithm, {field.name: value})
            if config is None:
                continue
            numbers = np.asarray(list(config.traced_fields.values()), np.float32)
            assert np.all(np.isfinite(numbers) | (np.asarray(list(config.traced_fields.values())) == math.inf)), (
                field.name
            )
            assert 0 < config.batch_size < 2**31 and np.int64(config.num_updates * config.batch_size) > 0, field.name
            if field.metadata["static"] and field.name != "total_env_steps":
                np.asarray(getattr(config, field.name) if isinstance(value, (int, float, list)) else 0, np.float32)


@pytest.mark.parametrize("value", _EXTREMES, ids=lambda value: repr(value)[:40])
def test_every_other_key_at_every_extreme(value):
    for words, key in ((RUN, "seeds"), (SWEEP, "seeds"), *((SWEEP, option) for option in _OPTIONS)):
        check(words, as_file({**_GOOD_SWEEP, key: value} if words == SWEEP else {**_GOOD, key: value}))
    for game in GAMES:
        accepted = inspect.signature(getattr(envs.games, game)).parameters
        for option in accepted:
            check(RUN, as_file({**_GOOD, "env": game, "env_options": {option: value}}))
    check(RUN, as_file({**_GOOD, "env": "reacher_2x1", "env_options": {"episode_length": value}}))


@pytest.mark.parametrize("bounds", _RANGES, ids=lambda bounds: repr(bounds)[:40])
def test_every_distribution_at_every_extreme(bounds):
    for name in ("uniform", "log_uniform", "choice"):
        for field in ("gae_lambda", "critic_lr", "num_envs"):
            check(SWEEP, as_file({**_GOOD_SWEEP, "random": {field: {name: bounds}}}))


def test_grids_beyond_all_bounds():
    values = [i / 1000 for i in range(1, 300)]
    check(SWEEP, as_file({**_GOOD_SWEEP, "grid": dict.fromkeys(("critic_lr", "gamma", "init_std"), values)}))


@PROFILE
@given(RUN_FILES)
@example({**_GOOD, "env": "jaxmarl/a\nb"})
@example({**_GOOD, "env": "ant_a\nb"})
@example({**_GOOD, "env": "a\nb", "env_options": {"a\nb": 1}})
def test_run_files(document):
    check(RUN, as_file(document))


@PROFILE
@given(SWEEP_FILES)
def test_sweep_files(document):
    check(SWEEP, as_file(document))


@PROFILE
@given(
    st.binary(max_size=40) | st.text("[]{}=\",.#'x1e-:\n ", max_size=40).map(str.encode), st.sampled_from([RUN, SWEEP])
)
@example(b"x = " + b"[" * 10_000, RUN)
@example(b"\xef\xbb\xbfenv = 1", SWEEP)
def test_random_files(content, words):
    check(words, content)


def _of_a_run() -> bytes:
    spec = envs.make("matrix_game", num_agents=2, steps=3).spec
    return run_file.text(spec, "happo", algorithms.get("happo").config_class(), (0, 1)).encode()


_REAL = [(RUN, _of_a_run()), (SWEEP, textwrap.dedent(sweep_file.EXAMPLE.removeprefix("example:\n")).encode())]


@pytest.mark.parametrize("words, content", _REAL, ids=["run", "sweep"])
@PROFILE
@given(st.data())
def test_damaged_real_files(words, content, data):
    """Cut off, or with one byte that is another."""
    content = content.replace(b"ant_4x2", b"matrix_game").replace(b'backend = "spring"', b"steps = 2")
    place = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.just(b"") | st.binary(min_size=1, max_size=1))
    check(words, content[:place] + (other and other + content[place + 1 :]))


def _made(algorithm, fields):
    """The config, or None where one sentence is said."""
    try:
        return algorithms.get(algorithm).config_class().replace(**fields)
    except ValueError as error:
        assert str(error) and len(str(error).splitlines()) == 1
        return None


@PROFILE
@given(st.sampled_from(["hatrpo_w", "happo"]), st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=3))
def test_configs(algorithm, fields):
    """From Python, where a field may be anything."""
    config = _made(algorithm, fields)
    assert config is None or (config == config.replace() and config.num_updates >= 1)


@PROFILE
@given(*[st.sampled_from(list(known)) | TEXTS for known in (presets.names(), ["ant_4x2"], algorithms.names())])
def test_presets(name, scenario, algorithm):
    try:
        presets.config(name, scenario, algorithm)
    except ValueError as error:
        assert str(error) and len(str(error).splitlines()) == 1


_TINY = {"num_envs": 4, "rollout_length": 4, "total_env_steps": 32, "hidden_sizes": [4], "eval_episodes": 2}
_SMALL_VALUES = {
    "gamma": st.floats(0, 1), "gae_lambda": st.floats(0, 1),
    "init_std": st.floats(0.05, 5), "critic_lr": st.floats(1e-6, 1),
    "normalize_observations": st.booleans(), "hidden_sizes": st.lists(st.integers(1, 4), min_size=1, max_size=2),
    "chunk_updates": st.integers(1, 3), "eval_interval": st.integers(0, 2), "save_interval": st.integers(1, 3),
}  # fmt: skip


@st.composite
def _valid(draw, is_sweep):
    """A file of a tiny run or sweep in which every key is one that is known, and every value one that is allowed."""
    config = {**_TINY, **draw(st.fixed_dictionaries({}, optional=_SMALL_VALUES))}
    document = {
        "env": "matrix_game", "env_options": {"num_agents": draw(st.integers(2, 3)), "steps": draw(st.integers(1, 3))},
        "algorithm": draw(st.sampled_from(algorithms.names())), "seeds": draw(st.integers(1, 2)), "config": config,
    }  # fmt: skip
    if not is_sweep:
        return document
    field = draw(st.sampled_from(["gamma", "critic_lr", "init_std"]))
    config.pop(field, None)
    swept = st.lists(_SMALL_VALUES[field], min_size=1, max_size=2, unique=True)
    return document | {"grid": {field: draw(swept)}, "runs_at_once": draw(st.integers(1, 3))}


@pytest.mark.slow
@pytest.mark.parametrize("words, is_sweep", [(RUN, False), (SWEEP, True)], ids=["run", "sweep"])
def test_valid_files_really_train(words, is_sweep, nothing_is_trained, tmp_path):
    """Few, since each compiles; what they leave is finished and can be shown."""
    nothing_is_trained.undo()
    folders = itertools.count()

    @settings(PROFILE, max_examples=2)
    @given(_valid(is_sweep))
    def train(document):
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        (folder / "file.toml").write_bytes(as_file(document))
        command = [*words, str(folder / "file.toml"), "--progress", "none", "--out", str(folder / "out")]
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            codes = main.main(command), main.main(["show", str(folder / "out")])
        assert codes == (0, 0) and "status       finished" in said.getvalue(), said.getvalue()

    train()
    assert next(folders) >= 2
