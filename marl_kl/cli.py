"""The command line: `marl-kl train`, `resume`, `sweep`, `evaluate`, `render`, `envs` and `algorithms`.

The options of `train` are the fields of the algorithm's config class, with their help, range and default; there is
no second list of them. Bad input ends in one sentence on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import datetime
import difflib
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Sequence

import jax
import numpy as np

import marl_kl
from envs.types import Env, EnvSpec
from marl_kl import algorithms, checkpoints, loading, results, run_folder, sweep_file
from marl_kl.config import Config
from marl_kl.progress import MODES

DEFAULT_ALGORITHM = "hatrpo_w"

_EXAMPLE = """example:
  marl-kl train ant_4x2 --algorithm hatrpo_w --seeds 4 --total-env-steps 2e6 --out runs/ant --env backend=spring
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `marl-kl`; None: those of this process.

    Returns:
        The exit code: 0; 1 if every seed failed; 2 for bad input, said in one sentence; 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = _parse(argv)
        return arguments.command(arguments)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        is_fault = isinstance(error, ModuleNotFoundError) and error.name is not None
        if is_fault or len(str(error).splitlines()) > 1:
            raise  # not one of our sentences but a fault, whose traceback is wanted
        print(f"marl-kl: {error}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, without the usage of forty options before it."""

    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="marl-kl",
        description="Multi-agent RL: trust regions with one joint KL budget, and first-order methods beside them.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"marl-kl {marl_kl.__version__} (jax {jax.__version__})")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(commands, _algorithm_in(argv))
    _add_resume(commands)
    _add_sweep(commands)
    _add_evaluate(commands)
    _add_render(commands)
    for name, command, text in (
        ("envs", _envs, "list the environments"),
        ("algorithms", _algorithms, "list the algorithms"),
    ):
        commands.add_parser(name, help=text, description=text, allow_abbrev=False).set_defaults(command=command)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen = next(p for p in commands.choices.values() if p.get_default("command") is arguments.command)
        known = [option for action in chosen._actions for option in action.option_strings]
        raise ValueError(_unknown_word(unknown[0], known))
    return arguments


def _algorithm_in(argv: list[str]) -> algorithms.Entry:
    """The algorithm asked for: which options exist depends on it, so it is looked up before they are parsed."""
    first_look = _Parser(prog="marl-kl", add_help=False, allow_abbrev=False)
    first_look.add_argument("--algorithm", default=DEFAULT_ALGORITHM)
    return algorithms.get(first_look.parse_known_args(argv)[0].algorithm)


def _unknown_word(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word.split("=")[0], known, n=1)
    kind = "option" if word.startswith("-") else "argument"
    hint = f"did you mean {near[0]}?" if near else "see --help"
    return f"unknown {kind} {word}; {hint}"


# train


def _add_train(commands, algorithm: algorithms.Entry) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        usage="marl-kl train ENV [--algorithm NAME] [--seeds N] [--out FOLDER] [--env KEY=VALUE ...] [config options]",
        help="train a team and write metrics, pictures and the learned policies to a folder",
        description=f"Trains one team per seed. Options below are those of --algorithm {algorithm.name}.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=_train, config_class=algorithm.config_class)
    parser.add_argument("env_name", metavar="ENV", help="environment (see marl-kl envs)")
    parser.add_argument(
        "--algorithm", default=DEFAULT_ALGORITHM, metavar="NAME",
        help=f"one of {', '.join(algorithms.names())} (default: {DEFAULT_ALGORITHM})",
    )
    parser.add_argument(
        "--seeds", default="1", metavar="N", help="how many seeds (0, 1, ...), or which: 3,5,8 (default: 1)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="new folder for the run (default: runs/ENV-ALGORITHM-TIME)"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="KEY=VALUE", dest="env_options",
        help="option of the environment, such as backend=spring or obs=1; may be repeated",
    )
    _add_progress(parser)
    shared = {field.name for field in dataclasses.fields(Config)}
    groups = {
        True: parser.add_argument_group("config of every algorithm"),
        False: parser.add_argument_group(f"config of {algorithm.name}"),
    }
    for field in dataclasses.fields(algorithm.config_class):
        _add_field(groups[field.name in shared], field)
    return parser


def _add_command(
    commands, command: Callable[[argparse.Namespace], int], usage: str, text: str, more: str, **options
) -> argparse.ArgumentParser:
    """A command whose help is `text` and whose description goes on with `more`; `usage` begins with its name."""
    parser = commands.add_parser(
        usage.split()[0],
        usage=f"marl-kl {usage}",
        help=text,
        description=f"{text[0].upper()}{text[1:]}{more}",
        allow_abbrev=False,
        **options,
    )
    parser.set_defaults(command=command)
    return parser


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress", default="auto", choices=MODES,
        help="auto: a bar on a terminal, lines elsewhere; plain: lines; none: silence (default: auto)",
    )


def _add_field(group, field: dataclasses.Field) -> None:
    name = f"--{field.name.replace('_', '-')}"
    # The metavar already says that it is a number.
    range_text = field.metadata["check"][1].removeprefix("a finite number ").removeprefix("a number ")
    notes = "; ".join(part for part in (range_text, f"default: {_default_text(field.default)}") if part)
    text = f"{field.metadata['help']} ({notes})".replace("%", "%%")
    # SUPPRESS: only what was given reaches the config, whose own defaults hold for the rest.
    if isinstance(field.default, bool):
        group.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    metavar = {int: "N", float: "X", str: "NAME", tuple: "N,N,..."}[type(field.default)]
    group.add_argument(name, default=argparse.SUPPRESS, metavar=metavar, help=text)


def _default_text(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _train(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    fields = {
        field.name: _parsed(field, given[field.name])
        for field in dataclasses.fields(arguments.config_class)
        if field.name in given
    }
    _use_all_cpu_cores()
    arguments.config_class().replace(**fields)  # refuses bad values before an environment is built
    env = _make_env(arguments.env_name, _env_options(arguments.env_options))
    out = arguments.out or _default_out(arguments.env_name, arguments.algorithm)
    return _exit_code(
        lambda: marl_kl.train(
            env, arguments.algorithm, seeds=_seeds(arguments.seeds), out=out, progress=arguments.progress, **fields
        ),
        out,
    )


def _use_all_cpu_cores() -> None:
    with contextlib.suppress(RuntimeError):  # an embedding program that has used jax keeps its devices
        marl_kl.use_all_cpu_cores()


def _make_env(name: str, options: dict[str, Any]) -> Env:
    import envs

    try:
        return envs.make(name, **options)
    except TypeError as error:
        raise ValueError(f"env '{name}' does not take {options}: {error}") from error


def _exit_code(train: Callable[[], marl_kl.TrainResult], out: Path) -> int:
    try:
        result = train()
    except KeyboardInterrupt:
        goes_on = f"; what was done until then is in {out}, and marl-kl resume {out} goes on"
        kept = goes_on if run_folder.holds_run(out) else ""
        print(f"marl-kl: interrupted{kept}", file=sys.stderr)
        return 130
    return 1 if len(result.failures) == len(result.seeds) else 0


def _parsed(field: dataclasses.Field, text: Any):
    """The value that `text` means for `field`; text that means none goes on to the config, which knows what to say."""
    kind = type(field.default)
    with contextlib.suppress(ValueError):
        if kind is int:
            return _whole(text)
        if kind is tuple:
            return tuple(_whole(part) for part in text.strip("()[] ").rstrip(",").split(","))
        if kind is float:
            return float(text)
    return text


def _whole(text: str) -> int | float:
    """An int where it is one; 2e6 as a float, which the config turns into an int or refuses."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _seeds(text: str) -> int | list[int]:
    try:
        seeds = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"seeds={text!r}; it must be a number of seeds, such as 4, or seeds such as 3,5,8") from None
    return seeds if "," in text else seeds[0] if seeds else 0


def _env_options(pairs: list[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"--env {pair}: it must be KEY=VALUE, such as backend=spring")
        options[name.strip()] = _literal(text)
    return options


def _literal(text: str):
    """A Python literal where `text` is one (1, 0.5, True, (2, 3), None), else `text` itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _default_out(env_name: str, algorithm: str, parent: str = "runs") -> Path:
    return Path(parent) / f"{env_name}-{algorithm}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


# resume


def _add_resume(commands) -> None:
    text = "go on with a run from its newest checkpoint, as if it had never stopped"
    parser = _add_command(commands, _resume, "resume RUN [--total-env-steps N] [--progress MODE]", text, ". Environment, algorithm, config and seeds are those of the run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that has stopped")
    parser.add_argument(
        "--total-env-steps", metavar="N",
        help="env steps per seed, those already taken included: makes a run longer (default: as it was)",
    )
    _add_progress(parser)


def _resume(arguments: argparse.Namespace) -> int:
    out = arguments.run
    record = run_folder.read_record(out)
    config = record.config
    if arguments.total_env_steps is not None:
        field = next(f for f in dataclasses.fields(config) if f.name == "total_env_steps")
        config = config.replace(total_env_steps=_parsed(field, arguments.total_env_steps))
    _use_cores_as_before(record)
    call = f"marl_kl.train(env, {record.algorithm!r}, ..., out={str(out)!r}, resume=True)"
    env = _made_again(record, out, f"resume it from Python: {call}")
    with _warnings_as_sentences():
        return _exit_code(
            lambda: marl_kl.train(
                env, record.algorithm, seeds=record.seeds, config=config, out=out, resume=True,
                progress=arguments.progress,
            ),
            out,
        )


def _use_cores_as_before(record: run_folder.RunRecord) -> None:
    """As many devices as the run had, for the same bits."""
    if run_folder.last_session(record.document)["device"]["count"] > 1:
        _use_all_cpu_cores()


def _made_again(record: run_folder.RunRecord, out: Path, from_python: str) -> Env:
    """The environment of a run; where it cannot be made by name, `from_python` says what can be done instead."""
    import envs

    spec = record.spec
    env = None if spec.options is None else envs.make(spec.name, **dict(spec.options))
    if env is None or checkpoints.digest(env.params) != record.document.get("env_params"):
        raise ValueError(
            f"the environment '{spec.name}' of {out} is not one that envs.make can make again; {from_python}"
        )
    return env


@contextlib.contextmanager
def _warnings_as_sentences():
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


# sweep


def _add_sweep(commands) -> None:
    text = "train many settings side by side, as a TOML file says"
    parser = _add_command(
        commands, _sweep, "sweep FILE.toml [--out FOLDER] [--progress MODE]", text, ".",
        epilog=sweep_file.EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", type=Path, metavar="FILE", help="the sweep's description, see below")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="new folder for the tables (default: sweeps/ENV-ALGORITHM-TIME)"
    )
    _add_progress(parser)


def _sweep(arguments: argparse.Namespace) -> int:
    plan = sweep_file.read(arguments.file)
    _use_all_cpu_cores()
    env = _make_env(plan.env, plan.env_options)
    out = arguments.out or _default_out(plan.env, plan.algorithm, "sweeps")
    try:
        result = marl_kl.sweep(env, plan.algorithm, out=out, progress=arguments.progress, **plan.options, **plan.config)
    except KeyboardInterrupt:
        print("marl-kl: interrupted; a sweep keeps nothing before its end", file=sys.stderr)
        return 130
    return 1 if len(result.failures) == len(result.settings) * len(result.seeds) else 0


# evaluate, render


def _add_evaluate(commands) -> None:
    text = "evaluate the teams of a run again, in their training physics and, if wanted, in MuJoCo's C engine"
    parser = _add_command(commands, _evaluate, "evaluate RUN [--episodes N] [--seed S] [--in mujoco]", text, ". All policies are deterministic.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--episodes", type=int, metavar="N", help="episodes per seed (default: the run's eval_episodes)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="only the team that this seed trained (default: all)")
    parser.add_argument(
        "--in", choices=("mujoco",), dest="physics",
        help="mujoco: also in the Gymnasium v5 environment of the body (needs the extra `mujoco`)",
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from marl_kl import evaluate, reporting, summary

    run, env = _run_and_env(arguments.run, "evaluate it from Python: marl_kl.evaluate.evaluate_again(env, ...)")
    config = run.config
    if arguments.episodes is not None:
        if arguments.episodes < 1:
            raise ValueError(f"episodes={arguments.episodes}; it must be at least 1")
        config = config.replace(eval_episodes=arguments.episodes)
    seeds = run.seeds if arguments.seed is None else (arguments.seed,)
    learners = [run.learner_of(seed) for seed in seeds]
    there = None
    if arguments.physics == "mujoco":
        from marl_kl import mujoco_check

        there = mujoco_check.counterpart(env)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *learners)
    scores = [summary.Scores(_physics(run.spec), evaluate.evaluate_again(env, config, seeds, run.update, stacked))]
    episodes = f"{config.eval_episodes} episodes per seed, mean ± std"
    notes = [f"after {run.update:,} updates; {episodes}; deterministic policies"]
    if there is not None:
        per_seed = (
            mujoco_check.evaluate(there, env, config, learner, seed, config.eval_episodes)
            for seed, learner in zip(seeds, learners)
        )
        scores.append(summary.Scores("C MuJoCo", jax.tree.map(lambda *s: np.stack(s), *per_seed)))
        notes.append(f"C MuJoCo is Gymnasium's {there.name}; known differences: {'; '.join(there.differences)}")
    title = f"{run.algorithm} on {run.spec.name}"
    reporting.wide_console().print(summary.evaluation_table(title, seeds, scores, notes))
    return 0


def _physics(spec: EnvSpec) -> str:
    facts = dict(spec.metadata)
    return "training" if "engine" not in facts else " ".join(dict.fromkeys((facts["engine"], facts["backend"])))


def _run_and_env(path: Path, from_python: str) -> tuple[loading.Run, Env]:
    """A stored run and the environment it was trained in, made again."""
    record = run_folder.read_record(path)
    _use_cores_as_before(record)
    env = _made_again(record, path, from_python)
    stored, made = ({"env": run_folder.env_identity(dataclasses.asdict(spec))} for spec in (record.spec, env.spec))
    other = run_folder.difference(stored, made)
    if other:
        raise run_folder.RunFolderError(f"the environment '{record.spec.name}' of {path} is another one now: {other}")
    for failure in record.failures:
        what = results.what_failed(failure)
        print(f"marl-kl: seed {failure.seed} failed ({what}); its team is the last finite one", file=sys.stderr)
    return loading.load(path), env


def _add_render(commands) -> None:
    text = "draw one episode of a trained team as an animated GIF, limbs coloured by agent"
    parser = _add_command(commands, _render, "render RUN [--seed S] [--steps N] [--out FILE]", text, "; for environments that are bodies. The policies are deterministic.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--seed", type=int, metavar="S", help="the team that this seed trained (default: the first)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="env steps at most (default: 300)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file (default: RUN/episode-seedS.gif)")


def _render(arguments: argparse.Namespace) -> int:
    from marl_kl import drawing, evaluate, recording

    out = arguments.out
    if out is not None and (out.suffix != ".gif" or not out.parent.is_dir()):
        raise ValueError(f"out={str(out)!r}; it must be a .gif file in a folder that exists")
    run, env = _run_and_env(arguments.run, "draw it from Python: marl_kl.drawing.animation(env, ...)")
    seed = run.seeds[0] if arguments.seed is None else arguments.seed
    key = evaluate.keys((seed,), run.update)[0]
    episode = recording.record(env, run.config, run.learner_of(seed), key, arguments.steps)
    out = out or arguments.run / f"episode-seed{seed}.gif"
    run_folder.write_file(out, drawing.animation(env, episode, f"{run.spec.name}   {run.algorithm}   seed {seed}"))
    ended = episode.ended or "cut"
    print(f"{out}: {len(episode.poses) - 1} steps ({ended}), return {episode.episode_return[-1]:.1f}")
    return 0


# envs, algorithms


def _envs(arguments: argparse.Namespace) -> int:
    import envs

    print("\n".join(envs.names()))
    return 0


def _algorithms(arguments: argparse.Namespace) -> int:
    width = max(map(len, algorithms.names()))
    for name in algorithms.names():
        print(f"{name:<{width}}  {algorithms.get(name).summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
