"""Mixtures of Gaussians over curves and modes, from weighted draws of a wide Gaussian."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from pymc_flows.flows.frame import Frame
from pymc_flows.start.weighted import cover as module
from pymc_flows.start.weighted.cover import cover
from pymc_flows.start.weighted.moments import Weighted

MODES = np.array([[-4.0, 0.0], [3.0, 2.0], [0.0, -5.0]])
MASSES = np.array([0.5, 0.3, 0.2])


def modes(points):
    """Log density of three Gaussians, normalised."""
    parts = [stats.multivariate_normal(m, np.diag([0.3, 1.0])) for m in MODES]
    return np.logaddexp.reduce(
        [np.log(w) + p.logpdf(points) for w, p in zip(MASSES, parts, strict=True)], axis=0
    )


def ring(points):
    """Log density of a ring, times e."""
    radius = np.hypot(*points.T)
    # ∫ exp(-(r - 3)²/2·0.04) 2πr dr = 2π·3·√(2π)·0.2, to all digits that matter
    total = 2 * np.pi * 3 * np.sqrt(2 * np.pi) * 0.2
    return -0.5 * ((radius - 3) / 0.2) ** 2 - np.log(total) + 1


def wide(log_density, rng, n=8_000):
    return Weighted.draws(log_density, Frame(np.zeros(2), np.full(2, 4.0)), n, rng)


@pytest.mark.parametrize(("log_density", "evidence"), [(modes, 0.0), (ring, 1.0)])
def test_a_mixture_covers_what_one_gaussian_does_not(log_density, evidence):
    rng = np.random.default_rng(1)
    first = wide(log_density, rng)
    found = cover(log_density, first, rng)
    assert found.quality.share > 0.75
    assert first.quality.share < 0.35
    assert_allclose(found.quality.log_evidence, evidence, atol=0.03)
    assert_allclose(found.weights.sum(), 1)


def test_modes_get_their_masses():
    rng = np.random.default_rng(2)
    found = cover(modes, wide(modes, rng), rng)
    centers = np.stack([frame.center for frame in found.frames[:-2]])
    nearest = np.linalg.norm(centers[:, None] - MODES, axis=2).argmin(axis=1)
    masses = np.bincount(nearest, found.weights[:-2]) / found.weights[:-2].sum()
    assert_allclose(masses, MASSES, atol=0.03)


def test_the_last_gaussians_are_wide():
    rng = np.random.default_rng(3)
    first = wide(ring, rng)
    found = cover(ring, first, rng)
    for frame, weight, factor in zip(
        found.frames[-2:], found.weights[-2:], module.WIDER, strict=True
    ):
        assert_allclose(weight, module.DEFENSIVE, atol=1e-3)
        assert_allclose(frame.scale, first.matched().widened(factor).scale)


def test_tails_beyond_the_gaussians_have_draws():
    """Exponential tails in one coordinate: their standard deviation needs what is far out."""
    rng = np.random.default_rng(6)

    def waves(points):
        x, y = points.T
        return -np.abs(x) / 4 - 0.5 * ((y - np.sin(x)) / 0.4) ** 2

    found = cover(waves, wide(waves, rng), rng)
    assert found.quality.share > 0.5
    state = np.concatenate(
        [
            f.forward(rng.standard_normal((round(40_000 * w), 2)))
            for f, w in zip(found.frames, found.weights, strict=True)
        ]
    )
    log_q = np.logaddexp.reduce(
        [
            np.log(w) + module.log_normal(f, state)
            for f, w in zip(found.frames, found.weights, strict=True)
        ]
    )
    weights = np.exp(waves(state) - log_q)
    sd = np.sqrt(np.average(state[:, 0] ** 2, weights=weights))
    assert_allclose(sd, 4 * np.sqrt(2), rtol=0.05)
    assert weights.max() / weights.sum() < 0.002


def test_nothing_comes_of_draws_without_a_density():
    def nowhere(points):
        return np.full(len(points), -np.inf)

    rng = np.random.default_rng(9)
    assert cover(nowhere, wide(nowhere, rng, n=40), rng) is None


def test_one_gaussian_is_left_where_there_are_far_too_many():
    z = np.random.default_rng(7).standard_normal((200, 2))
    parts = module._Parts.spread_out(z, 40, np.random.default_rng(8))
    fitted = parts.fitted(z, effective=10.0)
    assert_allclose(fitted.shares, [1])
    assert np.isfinite(fitted.log_densities(z)).all()


def test_nothing_comes_of_too_few_draws():
    rng = np.random.default_rng(5)
    assert cover(modes, wide(modes, rng, n=40), rng) is None
