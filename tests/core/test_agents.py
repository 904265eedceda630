"""One agent on its own acts as in the team, and its file does so without this package."""

import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

import marl_kl
from envs.base import EnvSpec
from marl_kl.core import agents
from marl_kl.core.trainer import learner_shapes
from marl_kl.storage import files, loading

UNEVEN = EnvSpec("uneven", ("a", "b", "c"), (2, 4, 3), (1, 2, 3), "continuous", 4, 10)
BOUNDED = EnvSpec(
    "bounded", ("a", "b", "c"), (2, 4, 3), (1, 2, 3), "continuous", 4, 10,
    action_low=((0.0,), (-2.0, 1.0), (-1.0,) * 3), action_high=((1.0,), (2.0, 5.0), (1.0,) * 3),
)  # fmt: skip
SEVERAL = EnvSpec(
    "several", ("a", "b", "c"), (2, 4, 3), (3, 6, 6), "multi_discrete", 4, 10, sub_actions=((2,), (3, 2), (2, 2))
)
CHOICES = EnvSpec("choices", ("a", "b", "c"), (2, 4, 3), (2, 4, 3), "discrete", 4, 10)


def _run(spec, algorithm="hatrpo", config=None):
    """Two seeds with random parameters; observations far from standard ones."""
    config = config or marl_kl.TrustRegionConfig(hidden_sizes=(8,))
    generator = np.random.default_rng(0)
    shapes = learner_shapes(spec, algorithm, config)
    learner = jax.tree.map(lambda s: generator.uniform(0.2, 1.0, (2, *s.shape)).astype(s.dtype), shapes)
    signs = jax.tree.map(lambda leaf: generator.choice([-1.0, 1.0], leaf.shape).astype(leaf.dtype), learner.actors)
    actors = jax.tree.map(np.multiply, learner.actors, signs)
    return loading.Run(None, spec, algorithm, config, (4, 7), learner._replace(actors=actors), 0)


def _observations(spec, number=5):
    """[number, N, O], zero where padded."""
    drawn = np.random.default_rng(1).normal(size=(number, spec.num_agents, spec.observation_size))
    return np.where(spec.observation_mask, drawn, 0.0).astype(np.float32)


_SHARED = marl_kl.FirstOrderConfig(hidden_sizes=(8,), share_parameters=True)
_SQUASHED, _RECURRENT = (
    marl_kl.TrustRegionConfig(hidden_sizes=(8,), recurrent_size=6, **{name: True}) for name in ("squash", "recurrent")
)


@pytest.mark.parametrize(
    "run",
    [_run(UNEVEN), _run(CHOICES), _run(UNEVEN, "mappo", _SHARED), _run(BOUNDED, config=_SQUASHED), _run(SEVERAL)],
    ids=["gaussian", "categorical", "shared", "squashed", "several"],
)
def test_an_agent_alone_acts_as_in_the_team(run):
    spec, obs = run.spec, _observations(run.spec)
    team = run.policy(seed=7)
    together = np.stack([team(one) for one in obs])
    for i, name in enumerate(spec.agents):
        alone = run.agent_policy(name, seed=7)
        own = obs[:, i, : spec.observation_sizes[i]]
        size = agents.action_length(spec, i)
        wanted = together[:, i] if size is None else together[:, i, :size]
        np.testing.assert_allclose(alone(own), wanted, rtol=1e-5, atol=1e-6)
    one = run.agent_policy(i, seed=7)(own[0])
    np.testing.assert_allclose(one, wanted[0], rtol=1e-5, atol=1e-6)
    samples = [alone(own, key=jax.random.key(i)) for i in range(4)]
    assert all(sample.shape == wanted.shape for sample in samples)
    assert not all(np.array_equal(sample, wanted) for sample in samples)


@pytest.mark.parametrize("spec", [UNEVEN, SEVERAL], ids=lambda spec: spec.name)
def test_a_single_recurrent_agent_acts_as_in_the_team(spec):
    run, obs = _run(spec, config=_RECURRENT), _observations(spec)
    team, alone = run.policy(seed=4), run.agent_policy("b", seed=4)
    team_state, state = team.initial_state(), alone.initial_state()
    for one in obs:
        together, team_state = team(one, team_state)
        action, state = alone(one[1, :4], state)
        np.testing.assert_allclose(action, together[1, : agents.action_length(spec, 1)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, team_state[1], rtol=1e-5, atol=1e-6)
    assert np.abs(state).max() > 0.01
    both, _ = alone(np.stack([one[1, :4]] * 2), alone.initial_state())
    assert both.shape[0] == 2


def test_a_choice_that_is_not_available_is_not_made():
    alone = _run(CHOICES).agent_policy("b")
    obs = _observations(CHOICES)[:, 1]
    first = np.asarray(alone(obs))
    without = np.ones((5, 4), bool)
    without[np.arange(5), first] = False
    assert not np.any(np.asarray(alone(obs, action_mask=without)) == first)


def test_an_exported_recurrent_agent_carries_its_hidden_state():
    pytest.importorskip("flatbuffers")
    run = _run(CHOICES, config=_RECURRENT)
    obs, mask = _observations(CHOICES)[:, 1], np.ones((5, 4), bool)
    alone = run.agent_policy("b")
    exported = jax.export.deserialize(bytearray(run.export("b")))
    action, state = exported.call(obs, mask, np.zeros((5, 6), np.float32))
    wanted, wanted_state = alone(obs, alone.initial_state())
    np.testing.assert_array_equal(action, wanted)
    np.testing.assert_allclose(state, wanted_state, rtol=1e-5, atol=1e-6)
    assert exported.call(obs, mask, state)[1].shape == state.shape


@pytest.mark.parametrize("spec", [UNEVEN, CHOICES], ids=lambda spec: spec.name)
def test_an_exported_agent_acts_the_same_without_this_package(spec, tmp_path):
    pytest.importorskip("flatbuffers")
    run = _run(spec)
    obs = _observations(spec)[:, 1]
    mask = np.ones((5, spec.action_sizes[1]), bool)
    mask[:, 0] = spec.action_kind == "continuous"
    files.write_file(tmp_path / "agent.jax", run.export("b"))
    np.save(tmp_path / "obs.npy", obs)
    np.save(tmp_path / "mask.npy", mask)
    code = (
        "import sys, numpy as np\n"
        "from jax import export\n"
        "agent = export.deserialize(bytearray(open('agent.jax', 'rb').read()))\n"
        "inputs = [np.load('obs.npy'), np.load('mask.npy')][: len(agent.in_avals)]\n"
        "np.save('action.npy', agent.call(*inputs))\n"
        "assert np.shape(agent.call(*(x[:1] for x in inputs)))[0] == 1\n"
        "assert not {'marl_kl', 'envs', 'flax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    wanted = run.agent_policy("b")(obs, action_mask=mask)
    np.testing.assert_allclose(np.load(tmp_path / "action.npy"), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda run: run.agent_policy("d"), "agent='d' is not in env 'uneven'; it has a, b, c, or 0 to 2"),
        (lambda run: run.export(3), "agent=3 is not in env 'uneven'"),
        (lambda run: run.agent_policy(True), "agent=True is not in env 'uneven'"),
        (lambda run: run.export("a", seed=0), "seed=0 is not in this run; it has 4, 7"),
        (lambda run: run.agent_policy("b")(np.zeros(3)), r"obs has shape \(3,\); agent 'b' observes \[..., 4\]"),
    ],
)
def test_unknown_agents_give_a_one_line_error(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(_run(UNEVEN))
    assert "\n" not in str(error.value)


def test_a_missing_flatbuffers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs flatbuffers, .* pip install 'marl_kl\[export\]'"):
        _run(UNEVEN).export("a")
