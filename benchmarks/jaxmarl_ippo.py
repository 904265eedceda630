"""Training env steps per second of every algorithm beside JaxMARL's own IPPO, same environment, same process.

    python -m benchmarks.jaxmarl_ippo --jaxmarl-baselines PATH [--env jaxmarl/MPE_simple_spread_v3]
                                      [--algorithms hatrpo_w ippo] [--seeds 1 4] [--num-envs 16]
                                      [--rollout-length 128] [--updates 10] [--json FILE]

JaxMARL's wheel has no baselines: PATH is a checkout of https://github.com/FLAIROx/JaxMARL, its folder `baselines`, or
the script `ippo_ff_mpe.py` with its `config/` beside it. `benchmarks/throughput.py --jaxmarl-baselines PATH` measures
the same behind its own table.

A run is `--updates` updates of all seeds from their keys on, initialisation included, in one program; both sides are
compiled for the same devices by the same code and run in turn; medians over repeats. Parallel environments and rollout
length are equal (by default those of JaxMARL's script); all else is each side's default:

- JaxMARL's: one actor and one critic of the observation for all agents, both in one loss; the time limit is a
  termination. Its call to wandb at every update stays, and does nothing. Of SMAX it ignores the action masks.
- Ours: a network per agent, running moments, a time limit that truncates. `ippo as JaxMARL's` is ours told to do that
  work: shared networks, no moments, and the epochs, minibatches, step sizes and coefficients of that script's config.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import yaml

import envs
import marl_kl
from benchmarks.timing import compiled, in_turn, machine, versions
from envs.adapters import jaxmarl
from marl_kl import devices
from marl_kl.core import algorithms

JAXMARL = "JaxMARL's IPPO"
ALIKE = "ippo as JaxMARL's"
UPDATES = 10
"""Of a run, by default."""
_SCRIPT = Path("IPPO", "ippo_ff_mpe.py")

Run = Callable[[jax.Array], Any]
"""A training run: from a typed key to the metrics of its updates."""


class Baseline(NamedTuple):
    """JaxMARL's IPPO as its script has it.

    Attributes:
        make_train: `make_train(settings)(key)`, the script's own; it changes `settings`.
        settings: its config file.
    """

    make_train: Callable[[dict[str, Any]], Run]
    settings: dict[str, Any]


def load_baseline(path: Path) -> Baseline:
    """JaxMARL's IPPO from a checkout, its folder `baselines`, or the script.

    Raises:
        ValueError: it is not there, its config file is not beside it, or what it needs is not installed.
    """
    candidates = (path, path / "baselines" / _SCRIPT, path / _SCRIPT)
    script = next((candidate for candidate in candidates if candidate.is_file()), None)
    if script is None:
        raise ValueError(
            f"--jaxmarl-baselines {path}: no {_SCRIPT} there; it must be a checkout of JaxMARL "
            "(https://github.com/FLAIROx/JaxMARL; its wheel has no baselines), its folder 'baselines', or that script"
        )
    config = script.parent / "config" / script.with_suffix(".yaml").name
    if not config.is_file():
        raise ValueError(f"--jaxmarl-baselines {path}: {script.name} is there, but its config file {config} is not")
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    try:
        with _stood_in():
            spec.loader.exec_module(module)
    except ImportError as error:
        raise ValueError(f"--jaxmarl-baselines {path}: {script.name} cannot be imported: {error}") from error
    module.jaxmarl = types.SimpleNamespace(make=_make_env)
    return Baseline(module.make_train, yaml.safe_load(config.read_text()))


def _make_env(name: str):
    """JaxMARL's environment or SMAX map. The script's actions have an axis of length 1, which SMAX does not take."""
    import jaxmarl as package

    registered, arguments = jaxmarl.constructor_call(name, {})
    env = package.make(registered, **arguments)
    step_env = env.step_env
    env.step_env = lambda key, state, actions: step_env(key, state, jax.tree.map(jnp.squeeze, actions))
    return env


@contextlib.contextmanager
def _stood_in():
    """Keeps what the script has only for its command line and its logging from being needed."""
    stand_ins = {
        "hydra": types.SimpleNamespace(main=lambda **_: lambda function: function),
        "omegaconf": types.SimpleNamespace(OmegaConf=None),
        "wandb": types.SimpleNamespace(log=lambda metrics: None),
    }
    own = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(own)


def baseline_run(baseline: Baseline, env_name: str, num_envs: int, rollout_length: int, updates: int) -> Run:
    """`updates` updates of JaxMARL's IPPO on the environment that JaxMARL calls `env_name`."""
    sizes = {"NUM_ENVS": num_envs, "NUM_STEPS": rollout_length, "TOTAL_TIMESTEPS": updates * num_envs * rollout_length}
    train = baseline.make_train(baseline.settings | sizes | {"ENV_NAME": env_name, "ENV_KWARGS": {}})
    # JaxMARL's keys are arrays of two numbers
    return lambda key: train(jax.random.key_data(key))["metrics"]


def our_run(env: envs.Env, algorithm: str, config: marl_kl.Config, updates: int) -> Run:
    """`updates` updates of ours."""
    train = marl_kl.make_train(env, algorithm, config)
    return lambda key: jax.lax.scan(lambda state, _: train.update(state), train.init(key), None, updates)[1]


def alike(settings: dict[str, Any], config: marl_kl.FirstOrderConfig) -> marl_kl.FirstOrderConfig:
    """`config` with what JaxMARL's script is told, for the work to be the same."""
    return config.replace(
        gamma=settings["GAMMA"],
        gae_lambda=settings["GAE_LAMBDA"],
        activation=settings["ACTIVATION"],
        share_parameters=True,
        agent_ids=False,
        normalize_observations=False,
        actor_lr=settings["LR"],
        critic_lr=settings["LR"],
        actor_lr_final_fraction=0.0 if settings["ANNEAL_LR"] else 1.0,
        actor_epochs=settings["UPDATE_EPOCHS"],
        critic_epochs=settings["UPDATE_EPOCHS"],
        actor_minibatches=settings["NUM_MINIBATCHES"],
        critic_minibatches=settings["NUM_MINIBATCHES"],
        actor_max_grad_norm=settings["MAX_GRAD_NORM"],
        critic_max_grad_norm=settings["MAX_GRAD_NORM"],
        clip_eps=settings["CLIP_EPS"],
        ent_coef=settings["ENT_COEF"],
    )


def runs(env: envs.Env, baseline: Baseline, names, num_envs: int, rollout_length: int, updates: int) -> dict[str, Run]:
    """JaxMARL's IPPO, ours alike, and the algorithms called `names` with their defaults.

    Raises:
        ValueError: the environment is not one of JaxMARL's, or an algorithm is not known.
    """
    prefix, env_name = jaxmarl.PREFIX, env.spec.name.removeprefix(jaxmarl.PREFIX)
    if prefix + env_name != env.spec.name:
        raise ValueError(f"env '{env.spec.name}'; it must be one of JaxMARL's: {prefix}MPE_simple_spread_v3, ...")
    sizes = {
        "num_envs": num_envs, "rollout_length": rollout_length, "total_env_steps": updates * num_envs * rollout_length,
    }  # fmt: skip
    like_theirs = alike(baseline.settings, marl_kl.FirstOrderConfig(**sizes))
    defaults = {name: algorithms.get(name).config_class(**sizes) for name in names}
    return {
        JAXMARL: baseline_run(baseline, env_name, num_envs, rollout_length, updates),
        ALIKE: our_run(env, "ippo", like_theirs, updates),
        **{name: our_run(env, name, config, updates) for name, config in defaults.items()},
    }


def measure(runs: dict[str, Run], cpu_options, num_seeds: int, env_steps: int, repeats: int) -> list[dict]:
    """One row per run; `env_steps` is what one seed takes in it."""
    mesh = devices.seed_mesh(num_seeds)
    keys = devices.shard(jax.vmap(jax.random.key)(jnp.arange(num_seeds)), mesh)
    programs, compile_seconds = {}, {}
    for name, run in runs.items():
        jitted = devices.over_seeds(jax.vmap(run), mesh, (devices.SEEDS,), devices.SEEDS, cpu_options)
        programs[name], compile_seconds[name] = compiled(jitted, keys)
    medians = in_turn({name: lambda program=program: program(keys) for name, program in programs.items()}, repeats)
    return [
        {
            "algorithm": name, "seeds": num_seeds, "devices": mesh.size,
            "env_steps_per_s": num_seeds * env_steps / medians[name], "ratio": medians[JAXMARL] / medians[name],
            "compile_s": compile_seconds[name],
        }
        for name in runs
    ]  # fmt: skip


def table(
    env: envs.Env, compared: dict[str, Run], seeds: Sequence[int], num_envs: int, rollout_length: int, updates: int,
    repeats: int,
) -> dict[str, Any]:  # fmt: skip
    """Measures `compared` (of `runs`, with the same sizes) for each number of seeds, prints it, and returns it."""
    where = f"{machine()}, {versions()}, jaxmarl {dict(env.spec.metadata).get('jaxmarl')}"
    print(f"{where}; {env.spec.name}, runs of {updates} updates of {num_envs} x {rollout_length} env steps")
    print(f"{'algorithm':>18} {'seeds':>5} {'devices':>7} {'env steps/s':>11} {'ratio':>6} {'compile s':>9}")
    rows = []
    env_steps = updates * num_envs * rollout_length
    for num_seeds in seeds:
        for row in measure(compared, env.spec.cpu_compiler_options, num_seeds, env_steps, repeats):
            rows.append(row)
            print(f"{row['algorithm']:>18} {row['seeds']:5d} {row['devices']:7d} {row['env_steps_per_s']:11.0f} "
                  f"{row['ratio']:6.2f} {row['compile_s']:9.1f}", flush=True)  # fmt: skip
    return {
        "machine": where, "env": env.spec.name, "num_envs": num_envs, "rollout_length": rollout_length,
        "updates": updates, "repeats": repeats, "rows": rows,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jaxmarl-baselines", type=Path, required=True, help="a checkout of JaxMARL, or the script")
    parser.add_argument(
        "--env", default="jaxmarl/MPE_simple_spread_v3", help="one of JaxMARL's with agents alike: MPE, SMAX"
    )
    parser.add_argument("--algorithms", nargs="+", default=list(algorithms.names(marl_kl.OnPolicyConfig)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--rollout-length", type=int, default=128)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args()
    marl_kl.use_all_cpu_cores()
    try:
        # in this order: with JaxMARL not installed, envs.make says how to
        env, baseline = envs.make(options.env), load_baseline(options.jaxmarl_baselines)
        sizes = (options.num_envs, options.rollout_length, options.updates)
        compared = runs(env, baseline, options.algorithms, *sizes)
    except ValueError as error:
        parser.error(str(error))
    figures = table(env, compared, options.seeds, *sizes, options.repeats)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
