"""Surrogate objectives against closed forms: values, slopes, where their maximum is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl_kl.core import surrogates

EPS = 0.2
RATIOS = np.linspace(0.05, 4.0, 78)  # none at a kink of the clipped one
SURROGATES = (surrogates.clipped, surrogates.quadratic, surrogates.ratio_symmetric)
PENALTY = (1 + EPS) ** 2 / (EPS * (2 + EPS))


def value_and_slope(surrogate, ratio, advantage):
    objective = lambda r: jnp.sum(surrogate(r, advantage, EPS))  # noqa: E731
    ratio = jnp.asarray(ratio)
    return surrogate(ratio, advantage, EPS), jax.grad(objective)(ratio)


@pytest.mark.parametrize("advantage", [2.5, -2.5])
def test_values_and_slopes_are_those_of_the_closed_forms(advantage, float64):
    r, a, size = RATIOS, advantage, abs(advantage)
    # PPO: held, and flat, beyond the side that the advantage pulls to
    held = (r > 1 + EPS) if a > 0 else (r < 1 - EPS)
    closed_forms = {
        surrogates.clipped: (np.where(held, a * (1 + np.sign(a) * EPS), a * r), np.where(held, 0.0, a)),
        surrogates.quadratic: (a * r - size / (2 * EPS) * (r - 1) ** 2, a - size / EPS * (r - 1)),
        surrogates.ratio_symmetric: (
            a * r - PENALTY * size * (r + 1 / r - 2), a - PENALTY * size * (1 - 1 / r**2),
        ),
    }  # fmt: skip
    assert set(closed_forms) == set(SURROGATES)
    for surrogate, (value, slope) in closed_forms.items():
        got_value, got_slope = value_and_slope(surrogate, r, a)
        np.testing.assert_allclose(got_value, value, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got_slope, slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_all_agree_with_the_plain_surrogate_at_ratio_one(surrogate, float64):
    advantage = jnp.array([3.0, -0.5, 0.0])
    value, slope = value_and_slope(surrogate, jnp.ones(3), advantage)
    np.testing.assert_allclose(value, advantage, rtol=1e-12)
    np.testing.assert_allclose(slope, advantage, rtol=1e-12)


@pytest.mark.parametrize(
    "surrogate, if_good, if_bad",
    [
        (surrogates.quadratic, 1 + EPS, 1 - EPS),
        (surrogates.ratio_symmetric, 1 + EPS, (1 + EPS) / np.sqrt(2 * (1 + EPS) ** 2 - 1)),
    ],
)
def test_the_maximum_is_where_the_docstrings_say(surrogate, if_good, if_bad, float64):
    fine = np.linspace(0.01, 4.0, 399_001)  # steps of 1e-5
    for advantage, best in ((1.7, if_good), (-1.7, if_bad)):
        assert abs(fine[np.argmax(surrogate(jnp.asarray(fine), advantage, EPS))] - best) <= 1e-5
        _, slope = value_and_slope(surrogate, jnp.array([best]), advantage)
        np.testing.assert_allclose(slope, 0.0, atol=1e-12)


def test_the_penalty_of_mars_is_the_same_for_a_ratio_and_its_inverse_and_has_no_bound_at_zero(float64):
    penalty = lambda r: r - surrogates.ratio_symmetric(r, 1.0, EPS)  # noqa: E731
    r = jnp.asarray(RATIOS)
    np.testing.assert_allclose(penalty(r), penalty(1 / r), rtol=1e-9)
    assert penalty(1e-6) > 1e6
    # SPO's is bounded there, and neither lets an outlier's slope vanish as clipping does
    assert 0.0 - surrogates.quadratic(0.0, 1.0, EPS) == pytest.approx(1 / (2 * EPS))
    slopes = [value_and_slope(surrogate, jnp.array([30.0]), 1.0)[1].item() for surrogate in SURROGATES]
    assert slopes[0] == 0 and slopes[1] < -1 and slopes[2] < -1


def test_the_penalty_of_mars_is_accurate_near_one():
    """In float32, where r + 1/r - 2 would be 0 or rounding noise."""
    small = 1e-3
    value = surrogates.ratio_symmetric(jnp.float32(1 + small), jnp.float32(1.0), jnp.float32(EPS))
    expected = (1 + small) - PENALTY * small**2 / (1 + small)
    np.testing.assert_allclose(float(value) - 1, expected - 1, rtol=1e-3)


# As functions of the log-ratio


def of_log_ratio(surrogate, log_ratio, advantage):
    """Value and slope in the log-ratio, [] each."""
    return jax.value_and_grad(lambda x: surrogates.of_log_ratio(surrogate, x, advantage, EPS))(log_ratio)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_within_the_bound_nothing_changes(surrogate, float64):
    for log_ratio in (-9.5, -3.0, np.log(1.1), 0.4, 4.0, 9.5):
        for advantage in (1.5, -1.5, 0.0):
            ratio = jnp.exp(log_ratio)
            value, slope = value_and_slope(surrogate, ratio, advantage)
            got_value, got_slope = of_log_ratio(surrogate, log_ratio, advantage)
            np.testing.assert_allclose(got_value, value, rtol=1e-14)
            np.testing.assert_allclose(got_slope, ratio * slope, rtol=1e-12)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("size", [30.0, 60.0, 120.0])
@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_far_from_one_values_and_slopes_are_finite_and_pull_back(surrogate, size, side, advantage):
    """In float32, where exp(90), the square of exp(45) and that of 1 / exp(-45) overflow."""
    value, slope = of_log_ratio(surrogate, jnp.float32(side * size), jnp.float32(advantage))
    assert value.dtype == jnp.float32 and np.isfinite(value) and np.isfinite(slope)
    assert abs(slope) < 1e10, "its square is summed to a gradient's norm"
    if advantage == 0:
        assert value == 0 and slope == 0
    elif surrogate is not surrogates.clipped:
        assert np.sign(slope) == -side
    elif side == advantage:
        # clipping holds what has gone far in the direction of its advantage, and calls nothing back
        assert slope == 0 and value == pytest.approx(advantage * (1 + advantage * EPS))
    else:
        assert np.sign(slope) == advantage


def test_the_penalty_of_mars_stays_symmetric_and_without_a_bound(float64):
    both = lambda x: sum(of_log_ratio(surrogates.ratio_symmetric, x, a)[0] for a in (1.0, -1.0))  # noqa: E731
    penalty = [-both(x) / 2 for x in (5.0, 11.0, 30.0, 120.0)]
    np.testing.assert_allclose([-both(-x) / 2 for x in (5.0, 11.0, 30.0, 120.0)], penalty, rtol=1e-9)
    assert np.all(np.diff(penalty) > 0) and penalty[0] == pytest.approx(PENALTY * 2 * (np.cosh(5.0) - 1))
