"""The map that skews draws of a separator: its density, and weights that become even."""

import numpy as np
import pytest

from pymc_flows.field.conditional.skew import Skew


def skewed():
    return Skew(
        shift=np.array([0.2, 0.0, -0.1]),
        slant=np.array([0.5, -0.7, 0.0]),
        pairs=np.array([[0, 2], [1, 2]]),
        bend=np.array([0.3, -0.2]),
    )


def jacobian(function, z, step=1e-6):
    """Central differences of a map at one point."""
    steps = step * np.eye(len(z))
    return (function(z + steps)[0] - function(z - steps)[0]) / (2 * step)


def test_the_log_determinant_is_that_of_the_jacobian(rng):
    found = skewed()
    draws = 2 * rng.standard_normal((20, 3))
    expected = [np.linalg.slogdet(jacobian(found, z))[1] for z in draws]
    np.testing.assert_allclose(found(draws)[1], np.negative(expected), atol=1e-6)


def test_draws_have_the_shift_a_variance_of_one_and_the_skewness(rng):
    x, _ = skewed()(rng.standard_normal((40_000, 3)))
    np.testing.assert_allclose(x.mean(axis=0), [0.2, 0.0, -0.1 + 0.3 * 0.04], atol=0.02)
    np.testing.assert_allclose(x[:, :2].std(axis=0), 1, atol=0.02)
    assert np.mean((x[:, 0] - 0.2) ** 3) == pytest.approx(-np.mean(x[:, 1] ** 3) * 0.7, rel=0.2)


class LogGammas:
    """Logarithms of gamma variables: some of shape 20, and some whose rates are exp(b x²)."""

    def __init__(self, n, b):
        self.n, self.b, self.shape = n, b, 20.0

    def log_density(self, z):
        x, y = z[:, : self.n], z[:, self.n :]
        centred = y - self.b * (x**2 - 1)
        root = self.shape**0.5
        own = root * x - self.shape * np.exp(x / root)
        return (own - 0.5 * centred**2).sum(axis=1)

    def score(self, z, step=1e-5):
        return np.stack(
            [
                (self.log_density(z + e) - self.log_density(z - e)) / (2 * step)
                for e in step * np.eye(2 * self.n)
            ],
            axis=1,
        )


def test_weights_become_even(rng):
    target = LogGammas(30, 0.1)
    noise = rng.standard_normal((1_024, 60))
    found = Skew.fit(noise, target.score(noise))
    # log of a gamma variable of shape k has a skewness of −1 / √k, nearly
    assert found.slant[:30].mean() == pytest.approx(-(20**-0.5) / 1.6, rel=0.15)
    assert not found.slant[30:].any()
    right = found.pairs[:, 1] == found.pairs[:, 0] + 30
    assert right.sum() >= 25
    assert found.bend[right].mean() == pytest.approx(0.1, rel=0.15)
    fresh = rng.standard_normal((2_000, 60))
    plain = target.log_density(fresh) + 0.5 * np.square(fresh).sum(axis=1)
    x, change = found(fresh)
    skew = target.log_density(x) + 0.5 * np.square(fresh).sum(axis=1) - change
    assert plain.var() > 1.0
    assert skew.var() < 0.3 * plain.var()


def test_a_normal_density_needs_none(rng):
    noise = rng.standard_normal((1_024, 40))
    assert Skew.fit(noise, -noise) is None
    assert Skew.fit(noise[:20], -noise[:20]) is None
    # A shift alone is no skewness; a few of 1,600 coefficients are four errors from 0 by chance.
    found = Skew.fit(noise, 1 - noise + 0.3 * rng.standard_normal(noise.shape))
    np.testing.assert_allclose(found.shift, 1, atol=0.1)
    assert np.count_nonzero(found.slant) + len(found.pairs) < 4
    np.testing.assert_allclose(found.bend, 0, atol=0.05)


def test_scores_that_are_not_finite_do_not_count(rng):
    target = LogGammas(10, 0.1)
    noise = rng.standard_normal((512, 20))
    scores = target.score(noise)
    scores[7], scores[9, 3] = np.nan, np.inf
    found = Skew.fit(noise, scores)
    finite = np.isfinite(scores).all(axis=1)
    np.testing.assert_allclose(found.slant, Skew.fit(noise[finite], scores[finite]).slant)
    assert np.count_nonzero(found.slant) >= 9
