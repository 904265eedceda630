"""Back from a run folder to what a command needs of it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import warnings
from pathlib import Path

import envs
from envs.base import Env
from marl_kl import results
from marl_kl.cli.options import use_all_cpu_cores
from marl_kl.storage import checkpoints, loading, run_folder
from marl_kl.storage import stored_sweeps as sweep_folders


def use_cores_as_before(record: run_folder.RunRecord) -> None:
    """As many devices as the run had, for the same bits."""
    if run_folder.last_session(record.document)["device"]["count"] > 1:
        use_all_cpu_cores()


def made_again(record: run_folder.RunRecord, out: Path, from_python: str) -> Env:
    """The environment of a run; where it cannot be made by name, `from_python` says what can be done instead."""
    spec = record.spec
    env = None if spec.options is None else envs.make(spec.name, **dict(spec.options))
    if env is None or checkpoints.digest(env.params) != record.document.get("env_params"):
        raise ValueError(
            f"the environment '{spec.name}' of {out} is not one that envs.make can make again; {from_python}"
        )
    return env


def add_setting(parser: argparse.ArgumentParser) -> None:
    """`--setting`."""
    parser.add_argument("--setting", type=int, metavar="K", help="of a sweep, the setting that is meant, by its index")


def run_and_env(
    path: Path, from_python: str, which: str = "last", setting: int | None = None
) -> tuple[loading.Run, Env]:
    """A stored run, or a setting of a sweep, with its last or its best teams, and the environment it was trained in,
    made again."""
    record = sweep_folders.record_of(path, setting)
    use_cores_as_before(record)
    env = made_again(record, path, from_python)
    stored, made = ({"env": run_folder.env_identity(dataclasses.asdict(spec))} for spec in (record.spec, env.spec))
    other = run_folder.first_mismatch(stored, made)
    if other:
        raise run_folder.RunFolderError(f"the environment '{record.spec.name}' of {path} is another one now: {other}")
    for failure in record.failures:
        what = results.what_failed(failure)
        print(f"marl-kl: seed {failure.seed} failed ({what}); its team is the last finite one", file=sys.stderr)
    return loading.load(path, which, setting), env


@contextlib.contextmanager
def warnings_as_sentences():
    """Our own warnings without the place in the code that they come from."""
    show = warnings.showwarning

    def show_sentence(message, category, *place, **options):
        if issubclass(category, run_folder.RunWarning):
            print(f"marl-kl: {message}", file=sys.stderr)
        else:
            show(message, category, *place, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("always", run_folder.RunWarning)
        warnings.showwarning = show_sentence
        yield
