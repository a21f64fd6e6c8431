"""Gaussians with the moments of weighted draws."""

import numpy as np
import pytest
from scipy import stats

from pymc_flows.flows.frame import Frame
from pymc_flows.start.weighted import moments
from pymc_flows.start.weighted.moments import FACTORS, PROBES, ROUNDS, Weighted, match_moments

MEAN = np.array([3.0, -1.0])
COV = np.array([[4.0, 1.5], [1.5, 1.0]])


def covariance(frame):
    return frame.scale @ frame.scale.T


class Counted:
    """A log density that knows at how many points it was evaluated."""

    def __init__(self, log_density):
        self.log_density, self.points = log_density, 0

    def __call__(self, z):
        self.points += len(z)
        return self.log_density(z)


def test_a_gaussian_that_is_off_gets_the_moments_of_a_gaussian(rng):
    target = stats.multivariate_normal(MEAN, COV)
    start = Frame(MEAN + 0.5, np.linalg.cholesky(2.0 * COV))
    frame = match_moments(target.logpdf, start, rng)
    # Four standard errors of the moments of as many draws.
    error, sd = 4 / np.sqrt(min(ROUNDS)), np.sqrt(np.diag(COV))
    np.testing.assert_allclose((frame.center - MEAN) / sd, 0, atol=error)
    off = (covariance(frame) - COV) / np.outer(sd, sd)
    np.testing.assert_allclose(off, 0, atol=np.sqrt(2) * error)


def test_of_a_skewed_target_too(rng):
    """log of a gamma variable: the mean is a quarter of a standard deviation below the mode."""
    shape = 4.0
    start = Frame(np.log([shape]), np.array([[0.8]]))
    frame = match_moments(lambda z: stats.loggamma(shape).logpdf(z[:, 0]), start, rng)
    mean, variance = stats.loggamma(shape).stats("mv")
    assert frame.center[0] == pytest.approx(mean, abs=0.02)
    assert covariance(frame)[0, 0] == pytest.approx(variance, rel=0.06)


def test_a_gaussian_that_is_exact_stays(rng):
    target = Counted(stats.multivariate_normal(MEAN, COV).logpdf)
    start = Frame(MEAN, np.linalg.cholesky(COV))
    assert match_moments(target, start, rng) is start
    assert target.points == ROUNDS[0] + PROBES * len(FACTORS)


@pytest.mark.parametrize("shift", [0.02, 0.15])
def test_moments_are_taken_if_they_differ_by_more_than_noise(shift, rng, monkeypatch):
    """In 60 dimensions those of 4,000 draws are a quarter of a nat off."""
    monkeypatch.setattr(moments, "FACTORS", FACTORS[:1])
    mean = np.zeros(60)
    mean[7] = shift
    target = Counted(lambda z: stats.norm(mean).logpdf(z).sum(axis=1))
    match_moments(target, Frame(np.zeros(60), np.ones(60)), rng)
    assert target.points == ROUNDS[0] + PROBES + (shift > 0.1) * ROUNDS[1]


@pytest.mark.parametrize(
    "log_density",
    [
        lambda z: stats.t(1).logpdf(z).sum(axis=1),
        lambda z: np.full(len(z), -np.inf),
        lambda z: np.where(z[:, 0] > 0, np.nan, 0.0),
    ],
    ids=["heavy tails", "nowhere", "NaN"],
)
def test_weights_that_cannot_be_trusted_change_nothing(log_density, rng):
    start = Frame(np.zeros(12), 0.3 * np.eye(12))
    assert match_moments(log_density, start, rng) is start


def test_too_few_effective_draws_for_a_covariance_change_nothing(rng):
    dim = 60
    target = stats.multivariate_normal(np.full(dim, 0.3), np.eye(dim))
    start = Frame(np.zeros(dim), np.eye(dim))
    assert match_moments(target.logpdf, start, rng) is start


def uniform_curve(z):
    """x uniform on (−20, 20), y normal around sin x: log Z = log 40."""
    inside = np.abs(z[:, 0]) < 20
    return np.where(inside, stats.norm.logpdf(z[:, 1], np.sin(z[:, 0]), 0.4), -np.inf)


def far_apart(z):
    modes = [stats.multivariate_normal([x, x], 0.25 * np.eye(2)).logpdf(z) for x in (0, 3)]
    return np.logaddexp(*modes) - np.log(2)


@pytest.mark.parametrize(
    ("target", "mean", "sd"),
    [(uniform_curve, [0, 0], [40 / 12**0.5, 0.81]), (far_apart, [1.5, 1.5], [1.58, 1.58])],
)
def test_a_gaussian_that_lacks_mass_is_widened(target, mean, sd, rng):
    start = Frame(np.zeros(2), 0.5 * np.eye(2))
    frame = match_moments(target, start, rng)
    np.testing.assert_allclose(frame.center / sd, np.divide(mean, sd), atol=0.1)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance(frame))), sd, rtol=0.1)


def test_an_evidence_is_not_blurred_by_draws_far_off(rng):
    frame = Frame(np.zeros(1), np.array([[3.0]]))
    found = Weighted.draws(lambda z: -np.exp(6 * z[:, 0]) - z[:, 0] ** 2, frame, 4_000, rng)
    assert found.quality.elbo < -1e12
    assert found.quality.log_evidence_error < 0.1


def test_in_high_dimensions_only_variances_are_matched(rng, monkeypatch):
    monkeypatch.setattr("pymc_flows.start.search.MAX_DENSE", 1)
    target = stats.multivariate_normal(MEAN, np.diag(np.diag(COV)))
    frame = match_moments(target.logpdf, Frame(MEAN + 0.4, np.array([1.5, 1.2])), rng)
    assert frame.scale.ndim == 1
    np.testing.assert_allclose(frame.scale, np.sqrt(np.diag(COV)), rtol=0.05)
