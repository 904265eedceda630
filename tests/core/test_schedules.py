"""Linear schedules against a loop in which every update has its own constants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marl_kl
from marl_kl.config import SCHEDULED, free_schedule
from marl_kl.core import algorithms
from marl_kl.core.trainer import TrainState, make_train
from marl_kl.storage.run_record import with_current_fields
from marl_kl.training.shard_loop import ShardLoop
from tests.support import small_run
from tests.support.counting_env import counting_env

UPDATES = 3
FRACTIONS = {"kl_budget": 0.1, "actor_lr": 0.0, "critic_lr": 0.5, "ent_coef": 3.0}


def config_of(name):
    small = {"hidden_sizes": (4,), "num_envs": 2, "rollout_length": 4, "critic_minibatches": 1, "critic_epochs": 1}
    own = {"ent_coef": 0.1} if name == "happo" else {}
    return algorithms.get(name).config_class(**small, **own, total_env_steps=8 * UPDATES)


@functools.cache
def program(name):
    """`run(start values, final fractions, state) -> state` after an update."""
    config = config_of(name)

    @jax.jit
    def update(fields, state):
        return make_train(counting_env(), name, config.replace(**fields)).update(state)

    return config, update


@pytest.mark.slow
@pytest.mark.parametrize("name", ["happo", "hatrpo"])
def test_every_update_has_its_own_values(name):
    config, update = program(name)
    names = [field for field in SCHEDULED if field in config.traced_fields]
    assert len(names) == (3 if name == "happo" else 2)
    ends = {f"{field}_final_fraction": FRACTIONS[field] for field in names}
    scheduled = state = jax.jit(make_train(counting_env(), name, config).init)(jax.random.key(0))
    for done in range(UPDATES + 1):  # the last one after the end of the run
        share = min(done / UPDATES, 1.0)
        values = {field: getattr(config, field) * (1 + (FRACTIONS[field] - 1) * share) for field in names}
        constant = {f"{field}_final_fraction": 1.0 for field in names}
        scheduled, metrics = update({field: getattr(config, field) for field in names} | ends, scheduled)
        state, expected = update(values | constant, state)
        assert scheduled.updates == done + 1
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
        jax.tree.map(close, (scheduled.learner, metrics), (state.learner, expected))
        if name == "hatrpo":
            np.testing.assert_allclose(np.sum(metrics["kl_threshold"]), values["kl_budget"], rtol=1e-5)


def test_values_change_linearly_and_end_with_the_run():
    config = config_of("happo").replace(
        actor_lr_final_fraction=0.0, critic_lr_final_fraction=0.5, ent_coef_final_fraction=3.0
    )
    for done, actor_lr, critic_lr, ent_coef in ((0, 5e-4, 1e-3, 0.1), (2, 2.5e-4, 7.5e-4, 0.2), (9, 0.0, 5e-4, 0.3)):
        progress = TrainState(None, None, None, None, (), np.int32(done), np.int32(4)).progress
        got = jax.jit(lambda p: [getattr(config.at(p), name) for name in ("actor_lr", "critic_lr", "ent_coef")])(
            progress
        )
        np.testing.assert_allclose(got, [actor_lr, critic_lr, ent_coef], rtol=1e-6)


def test_a_constant_is_exactly_that():
    config = config_of("hatrpo")
    assert config.at(jnp.float32(0.3)) == config
    at = jax.jit(lambda fraction: config.replace(kl_budget_final_fraction=fraction).at(jnp.float32(0.3)).kl_budget)
    assert at(1.0) == np.float32(config.kl_budget)


def test_what_depends_on_the_length_of_a_run():
    for name in ("happo", "hatrpo"):
        fields = vars(config_of(name))
        assert "total_env_steps" in free_schedule(fields)
        assert "total_env_steps" not in free_schedule(fields | {"critic_lr_final_fraction": 0.0})


def test_a_schedule_of_another_family_is_refused():
    with pytest.raises(ValueError, match="unknown config field 'kl_budget_final_fraction' for FirstOrderConfig"):
        marl_kl.train(counting_env(), "mappo", kl_budget_final_fraction=0.5)
    with pytest.raises(ValueError, match="ent_coef_final_fraction=-1.0; it must be a finite number >= 0"):
        marl_kl.train(counting_env(), "mappo", ent_coef_final_fraction=-1)


def test_version_0_1_called_one_of_them_anneal_lr():
    stored = {"config": {"actor_lr": 0.1, "anneal_lr": True}, "settings": [{"anneal_lr": False}], "seeds": [1]}
    assert with_current_fields(stored) == {
        "config": {"actor_lr": 0.1, "actor_lr_final_fraction": 0.0},
        "settings": [{"actor_lr_final_fraction": 1.0}],
        "seeds": [1],
    }


@pytest.mark.rare
def test_a_resumed_schedule_has_the_same_bits(tmp_path, monkeypatch):
    def train(out, **options):
        fields = {"total_env_steps": 4 * 32, "chunk_updates": 1, "save_interval": 1, "eval_interval": 0}
        ends = {"kl_budget_final_fraction": 0.1, "critic_lr_final_fraction": 0.0}
        return small_run.train(counting_env(), "hatrpo", out=out, **fields, **ends, **options)

    def stop(loop):
        if loop.now.update == 2:
            raise KeyboardInterrupt
        advance(loop)

    advance = ShardLoop._advance
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardLoop, "_advance", stop)
        train(tmp_path / "stopped")
    resumed = train(tmp_path / "stopped", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.metrics, whole.metrics)
    np.testing.assert_allclose(
        whole.metrics["kl_threshold"].sum(-1), 0.08 * np.array([[1, 0.775, 0.55, 0.325]]), rtol=1e-5
    )
