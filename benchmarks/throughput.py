"""Training env steps per second as a fraction of bare environment stepping in the same process.

    python -m benchmarks.throughput [--env ant_4x2] [--backends mjx spring] [--algorithms hatrpo mappo ...]
                                    [--seeds 1 4] [--num-envs 64] [--rollout-length 64] [--json FILE]
    python -m benchmarks.throughput --env jaxmarl/MPE_simple_spread_v3 --jaxmarl-baselines PATH

Bare: as many parallel environments, on the same devices, uniformly random actions, no policy, no resets, no
learning. Rollout: with the policies, bookkeeping and resets of on-policy training, without learning. Training: whole
updates (rollout with resets, advantages, actors, critic) with each algorithm's default config otherwise. All run in turn; medians over repeats. Compile time is that of one training update; peak memory is
that of the process so far. All algorithms by default; the backends by default are mjx and spring for Brax's bodies, and
`none` for what has no backends.

Off-policy algorithms are measured without their warm-up, with a replay of 100,000 transitions. For them the table also has the
gradient steps per second, and which share of the time the least work takes: bare stepping, and the arithmetic of the
networks at the rate of plain matrix products of the same shape (`floor`).

With `--jaxmarl-baselines`, a checkout of JaxMARL, the same process then measures the same algorithms, sizes and seeds
beside JaxMARL's own IPPO, on one of JaxMARL's environments: see `benchmarks/jaxmarl_ippo.py`.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import envs
import marl_kl
from benchmarks import jaxmarl_ippo
from benchmarks.timing import compiled, in_turn, machine, versions
from envs.base import EnvSpec, with_declared_dtypes
from marl_kl import devices
from marl_kl.core import algorithms
from marl_kl.core.policies import init_actors, init_obs_moments, input_size, make_actor
from marl_kl.core.rollout import init_env_batch, rollout
from marl_kl.core.trainer import make_train


def random_actions(spec: EnvSpec, key: jax.Array, num_envs: int) -> jax.Array:
    """[num_envs, *spec.action_shape] uniform: choices whatever the masks say, or numbers in [-1, 1]."""
    shape = (num_envs, *spec.action_shape)
    if spec.action_kind == "continuous":
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    choices = np.asarray(spec.action_sizes)
    if spec.action_kind == "multi_discrete":
        choices = spec.action_mask.reshape(*spec.action_shape, -1).sum(-1)
    # padded sub-actions are 0
    return jax.random.randint(key, shape, 0, np.maximum(choices, 1))


def bare_stepping(env, mesh, num_seeds: int, num_envs: int, length: int):
    """A compiled program that takes `length` steps in [seed, num_envs] environments, and its first argument."""
    options = env.spec.cpu_compiler_options
    reset = jax.vmap(jax.vmap(env.reset, (0, None)), (0, None))
    step = jax.vmap(env.step, (0, 0, 0, None))

    def one_seed(key, env_state):
        def env_step(env_state, key):
            action = random_actions(env.spec, key, num_envs)
            return step(jax.random.split(key, num_envs), env_state, action, env.params)[0], None

        return jax.lax.scan(env_step, env_state, jax.random.split(key, length))[0]

    keys = jax.random.split(jax.random.key(0), (num_seeds, num_envs))
    start = devices.over_seeds(lambda k: reset(k, env.params)[0], mesh, (devices.SEEDS,), devices.SEEDS, options)(
        devices.shard(keys, mesh)
    )
    keys = devices.shard(jax.random.split(jax.random.key(1), num_seeds), mesh)
    program = devices.over_seeds(jax.vmap(one_seed), mesh, (devices.SEEDS, devices.SEEDS), devices.SEEDS, options)
    return lambda: program(keys, start)


def rollouts(env, config: marl_kl.OnPolicyConfig, mesh, num_seeds: int):
    """A function for one on-policy rollout of all seeds."""
    env = with_declared_dtypes(env)
    actor = make_actor(env.spec, config)

    def start(key):
        hidden = actor.initial_carry((env.spec.num_agents, config.num_envs))
        return init_actors(key, env.spec, config), init_env_batch(key, env, config.num_envs, hidden)

    def one_seed(key, actors, env_batch):
        moments = init_obs_moments(env.spec, config)
        env_batch, trajectory = rollout(key, env, actor, actors, moments, env_batch, config.rollout_length)
        # all of it is used, as in training
        return env_batch, jax.tree.map(jnp.sum, trajectory)

    options = env.spec.cpu_compiler_options
    keys = devices.shard(jax.vmap(jax.random.key)(jnp.arange(num_seeds)), mesh)
    begun = devices.over_seeds(jax.vmap(start), mesh, (devices.SEEDS,), devices.SEEDS, options)(keys)
    program = devices.over_seeds(jax.vmap(one_seed), mesh, (devices.SEEDS,) * 3, devices.SEEDS, options)
    return lambda: program(keys, *begun)


def training(env, algorithm: str, config, mesh, num_seeds: int):
    """A function for one update of all seeds, its compiled program, and the seconds of compiling."""
    options = env.spec.cpu_compiler_options
    train = make_train(env, algorithm, config)
    keys = devices.shard(jax.vmap(jax.random.key)(jnp.arange(num_seeds)), mesh)
    state = devices.over_seeds(jax.vmap(train.init), mesh, (devices.SEEDS,), devices.SEEDS, options)(keys)
    jax.block_until_ready(state)
    update = devices.over_seeds(
        jax.vmap(train.update), mesh, (devices.SEEDS,), devices.SEEDS, options, donate_argnums=0
    )
    program, compile_seconds = compiled(update, state)
    box = [state]

    def step():
        box[0], metrics = program(box[0])
        return metrics

    return step, program, compile_seconds


REPLAY = 100_000


def config_of(name: str, num_envs: int, rollout_length: int) -> marl_kl.Config:
    """The defaults at these sizes; off-policy without a warm-up, so that every update learns."""
    config_class = algorithms.get(name).config_class
    own = {}
    if issubclass(config_class, marl_kl.OffPolicyConfig):
        own = {"warmup_steps": 0, "replay_size": max(REPLAY, 2 * num_envs * rollout_length)}
    return config_class(num_envs=num_envs, rollout_length=rollout_length, **own)


def gradient_flops(spec: EnvSpec, name: str, config: marl_kl.OffPolicyConfig) -> float:
    """Floating-point operations of the matrix products in a gradient step, with its share of the actors' steps.

    A backward pass costs two forward passes, or one if it is for the inputs alone.
    """
    algorithm = algorithms.get(name).build(make_actor(spec, config), config)
    num_agents, sizes = spec.num_agents, config.hidden_sizes

    def forward(inputs: int, outputs: int) -> int:
        widths = (inputs, *sizes, outputs)
        return 2 * sum(a * b for a, b in zip(widths, widths[1:]))

    critic = forward(spec.state_size + int(spec.action_mask.sum()), 1)
    actor = forward(input_size(spec, config), spec.action_size)
    critics = algorithm.num_critics * (1 if spec.team_reward else num_agents)
    of_critics = 4 * critics * critic + num_agents * actor
    of_actors = num_agents * (3 * actor + 2 * critic)
    return config.minibatch_size * (of_critics + of_actors / algorithm.policy_freq)


def matrix_products(mesh, num_seeds: int, rows: int, width: int):
    """A compiled chain of `PRODUCTS` matrix products per seed, [rows, width] times [width, width]."""

    def chain(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, PRODUCTS)[0]

    x, w = jnp.ones((num_seeds, rows, width)), jnp.full((num_seeds, width, width), 1 / width)
    program = devices.over_seeds(jax.vmap(chain), mesh, (devices.SEEDS, devices.SEEDS), devices.SEEDS)
    arguments = devices.shard((x, w), mesh)
    return lambda: program(*arguments)


PRODUCTS = 50


def measure(env, names: Sequence[str], num_envs: int, rollout_length: int, num_seeds: int, repeats: int) -> list[dict]:
    """One row per algorithm."""
    mesh = devices.seed_mesh(num_seeds)
    calls = {"bare": bare_stepping(env, mesh, num_seeds, num_envs, rollout_length)}
    compile_seconds = {}
    configs = {name: config_of(name, num_envs, rollout_length) for name in names}
    for name, config in configs.items():
        calls[name], _, compile_seconds[name] = training(env, name, config, mesh, num_seeds)
    on_policy = [config for config in configs.values() if isinstance(config, marl_kl.OnPolicyConfig)]
    if on_policy:
        calls["rollout"] = rollouts(env, on_policy[0], mesh, num_seeds)
    off_policy = {name: config for name, config in configs.items() if isinstance(config, marl_kl.OffPolicyConfig)}
    for config in off_policy.values():
        rows, width = config.minibatch_size, max(config.hidden_sizes)
        calls["products"] = matrix_products(mesh, num_seeds, rows, width)
        flops = PRODUCTS * num_seeds * 2 * rows * width**2
    steps = num_seeds * num_envs * rollout_length
    seconds = in_turn(calls, repeats)
    rates = {name: steps / median for name, median in seconds.items()}
    floors = {name: {} for name in names}
    for name, config in off_policy.items():
        count = num_seeds * config.gradient_steps
        arithmetic = count * gradient_flops(env.spec, name, config) * seconds["products"] / flops
        floors[name] = {
            "gradient_steps": count / seconds[name], "floor": (seconds["bare"] + arithmetic) / seconds[name],
        }  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        {
            "algorithm": name, "seeds": num_seeds, "devices": mesh.size, "bare": rates["bare"],
            "rollout": None if name in off_policy else rates["rollout"], "training": rates[name],
            "fraction": rates[name] / rates["bare"], "compile_s": compile_seconds[name], "peak_gib": peak, **floors[name],
        }
        for name in names
    ]  # fmt: skip


def default_backends(env) -> tuple[str, ...]:
    """The backends to measure of an environment: only Brax's bodies have several."""
    return ("mjx", "spring") if dict(env.spec.metadata).get("engine") == "brax" else ("none",)


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="ant_4x2")
    parser.add_argument("--backends", nargs="+", help="default: mjx and spring for Brax's bodies, none for others")
    parser.add_argument("--algorithms", nargs="+", default=list(algorithms.names()), choices=algorithms.names())
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--rollout-length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--jaxmarl-baselines", type=Path, help="a checkout of JaxMARL: measure its IPPO as well")
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args(arguments)
    marl_kl.use_all_cpu_cores()
    sizes = (options.num_envs, options.rollout_length)
    compared = None
    try:
        env = envs.make(options.env)
        if options.jaxmarl_baselines is not None:
            baseline = jaxmarl_ippo.load_baseline(options.jaxmarl_baselines)
            comparable = [name for name in options.algorithms if name in algorithms.names(marl_kl.OnPolicyConfig)]
            compared = jaxmarl_ippo.runs(env, baseline, comparable, *sizes, jaxmarl_ippo.UPDATES)
    except ValueError as error:
        parser.error(str(error))
    print(f"{machine()}, {versions()}; {options.num_envs} envs per seed")
    print(f"{'env':>18} {'algorithm':>10} {'seeds':>5} {'devices':>7} {'bare/s':>9} {'rollout/s':>9} {'training/s':>10} {'fraction':>8} "
          f"{'compile s':>9} {'peak GiB':>8} {'gradient/s':>10} {'floor':>6}")  # fmt: skip
    rows = []
    for backend in options.backends or default_backends(env):
        built = envs.make(options.env, **({} if backend == "none" else {"backend": backend}))
        for num_seeds in options.seeds:
            for row in measure(built, options.algorithms, *sizes, num_seeds, options.repeats):
                rows.append({"env": options.env, "backend": backend, **row})
                print(f"{options.env + '/' + backend:>18} {row['algorithm']:>10} {row['seeds']:5d} {row['devices']:7d} "
                      f"{row['bare']:9.0f} {row['rollout'] or np.nan:9.0f} {row['training']:10.0f} {row['fraction']:8.2f} {row['compile_s']:9.1f} "
                      f"{row['peak_gib']:8.2f} {row.get('gradient_steps', np.nan):10.1f} "
                      f"{row.get('floor', np.nan):6.2f}", flush=True)  # fmt: skip
    figures = {"versions": versions(), "num_envs": options.num_envs, "rows": rows}
    if compared is not None:
        figures["beside JaxMARL"] = jaxmarl_ippo.table(
            env, compared, options.seeds, *sizes, jaxmarl_ippo.UPDATES, options.repeats
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
