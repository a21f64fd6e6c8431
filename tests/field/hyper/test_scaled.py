"""Fixed effects whose spread follows the scales."""

import numpy as np
import pytest
from scipy import integrate

from pymc_flows.field.hyper.proposal import Proposal
from pymc_flows.field.hyper.scaled import ScaledEffects, large_scale, least_known

# Mean and log standard deviation of an effect: of 1 and of a log scale around −1.
MEAN, SPREAD = (0.5, 0.2), (-0.7, 0.8)


def values(rng, n=4_000):
    """An effect, a log scale, and a coordinate that nothing follows, in another order."""
    scale, other = rng.normal(-1, 0.6, n), rng.normal(2, 0.3, n)
    sd = np.exp(SPREAD[0] + SPREAD[1] * (scale + 1))
    effect = MEAN[0] + MEAN[1] * (scale + 1) + sd * rng.standard_normal(n)
    return np.stack([scale, effect, other], axis=1)


IS_EFFECT = np.array([False, True, False])


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(1)
    return ScaledEffects.fit(values(rng), np.full(4_000, 1 / 4_000), IS_EFFECT)


def test_means_and_spreads_follow_the_scales(fitted):
    at = fitted.scales.loc - [-1, 2]  # coefficients of 1 are those at the location
    np.testing.assert_allclose(fitted.mean[:, 0], [MEAN[0] + MEAN[1] * at[0], MEAN[1], 0], atol=0.1)
    spread = [SPREAD[0] + SPREAD[1] * at[0], SPREAD[1], 0]
    np.testing.assert_allclose(fitted.spread[:, 0], spread, atol=0.1)


def test_draws_are_where_the_variance_of_the_effect_comes_from(fitted, rng):
    """Scales have the location that weights by the square of the effect's spread give them."""
    draws = values(rng, 100_000)
    weights = np.exp(2 * SPREAD[1] * draws[:, 0])
    expected = np.average(draws[:, [0, 2]], axis=0, weights=weights)
    assert expected[0] > -0.5  # the location without weights is −1
    np.testing.assert_allclose(fitted.scales.loc, expected, atol=0.06)


def test_weights_count(fitted, rng):
    """Values of a wider distribution, weighted, give the same fit as values of that one."""
    wide = values(rng, 20_000)
    sd = np.exp(SPREAD[0] + SPREAD[1] * (wide[:, 0] + 1))
    mean = MEAN[0] + MEAN[1] * (wide[:, 0] + 1)
    wide[:, 1] = mean + 1.5 * (wide[:, 1] - mean)
    ratio = np.exp(-0.5 * ((wide[:, 1] - mean) / sd) ** 2 * (1 - 1 / 1.5**2))
    found = ScaledEffects.fit(wide, ratio / ratio.sum(), IS_EFFECT)
    np.testing.assert_allclose(found.spread, fitted.spread, atol=0.1)
    np.testing.assert_allclose(found.mean, fitted.mean, atol=0.1)


def test_the_density_has_mass_one_and_is_that_of_the_draws(fitted, rng):
    two = ScaledEffects(
        IS_EFFECT[:2],
        Proposal(np.array([-1.0]), np.array([[0.6]]), 5.0),
        fitted.mean[:2],
        fitted.spread[:2],
        fitted.lower,
    )

    def mass(scales, effects):
        """By Simpson's rule on a grid."""
        grid = np.stack(np.meshgrid(scales, effects, indexing="ij"), axis=-1)
        density = np.exp(two.log_prob(grid.reshape(-1, 2)).reshape(grid.shape[:2]))
        return integrate.simpson(integrate.simpson(density, x=effects), x=scales)

    def box(low, high):
        return mass(np.linspace(*low, 201), np.linspace(*high, 201))

    assert mass(np.linspace(-12, 10, 801), np.sinh(np.linspace(-9, 9, 801))) == pytest.approx(
        1, abs=0.01
    )
    draws = two.draw(20_000, rng)
    assert draws.shape == (20_000, 2)
    for low, high in (((-1.5, -0.5), (0, 1)), ((0, 3), (1, 9)), ((-4, -1.5), (-1, 0.5))):
        inside = (draws > [low[0], high[0]]) & (draws < [low[1], high[1]])
        assert inside.all(axis=1).mean() == pytest.approx(box(low, high), abs=0.012)


def test_a_spread_is_no_steeper_than_a_scale(rng):
    steep = values(rng)
    steep[:, 1] = np.exp(3 * steep[:, 0]) * rng.standard_normal(len(steep))
    found = ScaledEffects.fit(steep, np.full(len(steep), 1 / len(steep)), IS_EFFECT)
    assert found.spread[1, 0] == 1.0


def test_the_least_known_spread_is_found(rng):
    draws, n = values(rng, 100_000), 100_000
    weights, is_scale = np.full(n, 1 / n), np.array([True, False, True])
    worst, error = least_known(draws, weights, is_scale, is_scale)
    assert worst == 0
    scale = np.exp(draws[:, 0])
    kurtosis = np.mean((scale - scale.mean()) ** 4) / scale.var() ** 2
    assert error == pytest.approx(0.5 * np.sqrt((kurtosis - 1) / n), rel=0.01)
    worst, error = least_known(draws, weights, is_scale, IS_EFFECT)
    assert worst == 1
    assert error < 0.01


def test_large_scales_are_where_their_variance_comes_from(rng):
    """Also where the logarithm has a long tail to the left, whose variance says nothing of it."""
    n = 20_000
    logs = np.log(rng.gamma(0.3, size=n))
    draws = np.column_stack([logs, 0.5 * logs + rng.standard_normal(n)])
    weights = np.full(n, 1 / n)
    found = large_scale(draws, weights, 0)
    # Weights by the square make it a gamma variable of shape 2.3.
    expected = np.log(rng.gamma(2.3, size=n)).mean()
    np.testing.assert_allclose(found.loc, [expected, 0.5 * expected], atol=0.06)
    # So few values that the weights would be those of one.
    few = large_scale(draws[:8], np.full(8, 1 / 8), 0)
    np.testing.assert_allclose(few.loc, draws[:8].mean(axis=0))
