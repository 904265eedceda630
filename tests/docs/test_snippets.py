"""The code in README and docs runs: Python blocks of a page in order, in one namespace, in an empty folder, at small size; lines
of `marl-kl` are parsed.

A block that cannot run has a comment before it: `<!-- not run: reason -->`.
"""

import argparse
import dataclasses
import functools
import re
import shlex
from pathlib import Path

import pytest

import envs
import marl_kl
from marl_kl.cli import main
from marl_kl.core import algorithms
from marl_kl.training import run_file, sweep_file
from tests.support.shared_programs import programs_are_shared  # noqa: F401  for all tests here

ROOT = Path(__file__).parents[2]
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
BLOCK = re.compile(r"^(?P<note><!--.*-->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \w.* -->")
SMALL = dict(
    num_envs=4,
    rollout_length=8,
    hidden_sizes=(8,),
    total_env_steps=64,
    eval_episodes=2,
    eval_interval=1,
    critic_epochs=1,
    critic_minibatches=1,
)


def blocks(page, language):
    """Code of the page that is to run, with the lines before it, so that tracebacks have the page's numbers."""
    text = PAGES[page]
    for match in BLOCK.finditer(text):
        if match["language"] == language and not NOT_RUN.match(match["note"] or ""):
            yield "\n" * text.count("\n", 0, match.start("code")) + match["code"]


SLOW = ("README", "environments", "extending", "getting_started", "runs", "tutorial", "your_own_environment")
"""Pages whose programs are many."""


def with_blocks(language):
    return [page for page in sorted(PAGES) if any(blocks(page, language))]


def maybe_slow(page):
    return pytest.param(page, marks=pytest.mark.slow if Path(page).stem in SLOW else ())


def made_small(function):
    """`train` or `sweep` with a tiny schedule and tiny networks; what the call sweeps stays."""

    def call(*args, **options):
        known = {field.name for field in dataclasses.fields(algorithms.get(args[1]).config_class)}
        fields = {name: SMALL[name] for name in known & SMALL.keys() - options.get("grid", {}).keys()}
        if options.get("config") is not None:
            fields["config"] = options["config"]
        seeds = options.get("seeds", 1)
        fields["seeds"] = min(seeds, 2) if isinstance(seeds, int) else seeds[:2]
        return function(*args, **{**options, **fields, "progress": "none"})

    return call


_make = envs.make
_make_once = functools.cache(_make)


def made_once(name, **options):
    """`envs.make`, but the same environment for the same options: its programs are then shared by all pages."""
    try:
        hash(tuple(options.items()))
    except TypeError:
        return _make(name, **options)
    return _make_once(name, **options)


@pytest.mark.parametrize("page", [maybe_slow(page) for page in with_blocks("python")])
def test_python(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(marl_kl, "use_all_cpu_cores", lambda: None)  # jax is in use
    for name in ("train", "sweep"):
        monkeypatch.setattr(marl_kl, name, made_small(getattr(marl_kl, name)))
    monkeypatch.setattr(envs, "make", made_once)
    make_train = marl_kl.make_train
    small = lambda env, algorithm, config: make_train(env, algorithm, config.replace(**SMALL))  # noqa: E731
    monkeypatch.setattr(marl_kl, "make_train", small)
    names = {"__name__": "page"}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)


class Parsed(Exception):
    """The whole command line was understood."""


@pytest.fixture
def only_parsed(tmp_path, monkeypatch):
    """In a folder with the files that commands name, `main` ends by `Parsed` instead of running the command."""
    monkeypatch.chdir(tmp_path)
    Path("runs/ant").mkdir(parents=True)
    Path("runs/ant/config.toml").write_text(run_file.EXAMPLE.split("\n", 1)[1])
    Path("sweep.toml").write_text(sweep_file.EXAMPLE.split("\n", 1)[1])
    parse = argparse.ArgumentParser.parse_known_args

    def parse_only(parser, *args, **options):
        arguments, unknown = parse(parser, *args, **options)
        if parser.prog == "marl-kl" and not unknown:
            raise Parsed
        return arguments, unknown

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)


def commands(page):
    """The words after `marl-kl` of every command in the page's shell blocks."""
    for code in blocks(page, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                if words and Path(words[0]).name == "marl-kl":
                    yield words[1:]


def test_every_command_is_one(only_parsed):
    found = [(page, words) for page in with_blocks("bash") for words in commands(page)]
    assert len(found) > 20
    for page, words in found:
        try:
            code = main.main(words)
        except (Parsed, SystemExit):
            continue
        pytest.fail(f"{page}: marl-kl {' '.join(words)} ends with {code}")


def test_no_block_is_left_out_without_a_reason():
    for page, text in PAGES.items():
        for match in BLOCK.finditer(text):
            if match["note"] and "not run" in match["note"]:
                assert NOT_RUN.match(match["note"]), page


def test_every_link_to_a_file_works():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", text):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"
