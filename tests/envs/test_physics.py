"""What both physics engines share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.bodies.physics import DIVERGED, BodyTimeStep, Physics, stop_on_divergence


def counting_physics():
    """Observes the control, is paid its second entry, counts its steps, never terminates."""

    def step(state, control):
        return state + 1, BodyTimeStep(control, control[1], jnp.zeros((), bool))

    return Physics(tree=None, reset=None, step=step, pose=None, model=None, seconds=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2 * DIVERGED])
@pytest.mark.parametrize("place", [0, 1])
def test_a_diverged_step_ends_the_episode(place, value):
    physics = stop_on_divergence(counting_physics())
    controls = np.asarray([[1.0, 2.0], [1.0, 2.0]], np.float32)
    controls[1, place] = value
    states, steps = jax.vmap(physics.step, (None, 0))(jnp.asarray(7), controls)
    np.testing.assert_array_equal(states, [8, 7])
    np.testing.assert_array_equal(steps.terminated, [False, True])
    np.testing.assert_array_equal(steps.observation, [[1.0, 2.0], [0.0, 0.0]])
    np.testing.assert_array_equal(steps.reward, [2.0, 0.0])
