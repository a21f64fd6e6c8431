"""Gaussians at modes, improved by the weighted draws of their mixture."""

import numpy as np
from scipy import stats

from pymc_flows.flows.frame import Frame
from pymc_flows.start.weighted.mixture import match_modes

CENTERS = np.array([[-6.0, 0.0], [7.0, 2.0]])
SCALES = np.array([[[1.0, 0.0], [0.6, 0.8]], [[0.5, 0.0], [-0.3, 1.5]]])
SHARES = np.array([0.8, 0.2])
PARTS = [stats.multivariate_normal(m, s @ s.T) for m, s in zip(CENTERS, SCALES, strict=True)]


def log_density(points):
    logs = [p.logpdf(points) + np.log(w) for p, w in zip(PARTS, SHARES, strict=True)]
    return np.logaddexp.reduce(logs, axis=0) + 5.0


def test_gaussians_that_are_right_stay_as_they_are():
    """Matching moments to draws would only add noise."""
    frames = [Frame(m, s) for m, s in zip(CENTERS, SCALES, strict=True)]
    found = match_modes(log_density, frames, np.random.default_rng(1))
    assert all(a is b for a, b in zip(found.frames, frames, strict=True))
    assert found.quality.ess > 0.99 * found.quality.n_draws
    np.testing.assert_allclose(found.quality.log_evidence, 5.0, atol=1e-3)


def test_gaussians_that_are_off_get_the_moments_of_the_modes():
    frames = [Frame(m + 0.5, 1.3 * s) for m, s in zip(CENTERS, SCALES, strict=True)]
    found = match_modes(log_density, frames, np.random.default_rng(2))
    for frame, center, scale in zip(found.frames, CENTERS, SCALES, strict=True):
        np.testing.assert_allclose(frame.center, center, atol=0.12)
        np.testing.assert_allclose(
            frame.scale @ frame.scale.T, scale @ scale.T, rtol=0.15, atol=0.08
        )
    assert found.quality.ess > 0.95 * found.quality.n_draws


def test_where_there_is_no_density_they_stay():
    frames = [Frame(m, s) for m, s in zip(CENTERS, SCALES, strict=True)]
    found = match_modes(
        lambda points: np.full(len(points), -np.inf), frames, np.random.default_rng(3)
    )
    assert all(a is b for a, b in zip(found.frames, frames, strict=True))
    assert not found.quality.is_trusted
