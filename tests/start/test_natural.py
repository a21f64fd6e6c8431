"""The Gaussian with the largest ELBO, by natural gradients."""

import time
from dataclasses import replace

import numpy as np
import pymc as pm
import pytest
from scipy import special, stats

import pymc_flows as pmf
from pymc_flows.flows.frame import Frame
from pymc_flows.model.logp import density_of
from pymc_flows.start.natural import climb_elbo
from pymc_flows.start.options import NATURAL
from pymc_flows.start.search import Candidate
from pymc_flows.start.target import Target
from pymc_flows.support.deadline import Deadline

MEAN = np.array([3.0, -1.0])
COV = np.array([[4.0, 1.5], [1.5, 1.0]])


class Known:
    """A log density with a gradient and a curvature in closed form."""

    n_gradients = 0

    def __init__(self, value, gradient, curvature):
        self._value, self._gradient, self._curvature = value, gradient, curvature

    def value_and_grad(self, points):
        return np.atleast_1d(self._value(points)), self._gradient(points)

    def value_grad_curvature(self, z):
        return (
            np.atleast_1d(self._value(z[None]))[0],
            self._gradient(z[None])[0],
            self._curvature(z),
        )

    @property
    def target(self):
        return Target(self.value_and_grad, curvature=self)


def gaussian():
    precision = np.linalg.inv(COV)
    return Known(
        stats.multivariate_normal(MEAN, COV).logpdf,
        lambda z: -(z - MEAN) @ precision,
        lambda z: precision,
    )


def loggamma(shape):
    """Logs of independent gamma variables."""
    return Known(
        lambda z: stats.loggamma(shape).logpdf(z).sum(axis=1),
        lambda z: shape - np.exp(z),
        lambda z: np.diag(np.exp(z)),
    )


@pytest.mark.parametrize(
    "start",
    [Frame(np.zeros(2)), Frame(MEAN + 2, np.array([0.1, 9.0])), Frame(np.ones(2), 5 * np.eye(2))],
    ids=["no scale", "elementwise", "dense"],
)
def test_a_gaussian_is_found_without_noise(start, rng):
    """Draws and their mirror images know its moments exactly; of the start 2⁻¹⁵ is left."""
    long = replace(NATURAL, stages=((8, 30, 0.5),))
    frame = climb_elbo(gaussian().target, start, rng, options=long)
    np.testing.assert_allclose(frame.center, MEAN, atol=3e-3)
    np.testing.assert_allclose(frame.scale @ frame.scale.T, COV, rtol=3e-3)


def test_the_best_gaussian_of_a_skewed_density_in_many_dimensions(rng):
    """Of a log gamma variable with shape a it has the mean ln a − 1/2a and the variance 1/a."""
    dim, shape = 40, 1.5
    target = loggamma(shape).target
    mode = Frame(np.full(dim, np.log(shape)), np.full(dim, shape**-0.5))
    frame = climb_elbo(target, mode, rng)
    sd = shape**-0.5
    off = (frame.center - np.log(shape) + 0.5 / shape) / sd
    # Half the sum of squares is what is left of noise, in nats.
    assert 0.5 * (off**2).sum() < 0.05
    cov = frame.scale @ frame.scale.T
    np.testing.assert_allclose(np.diagonal(cov), sd**2, rtol=0.15)
    noise = rng.standard_normal((4_000, dim))
    best = Frame(np.full(dim, np.log(shape) - 0.5 / shape), mode.scale)
    elbos = [Candidate.of(target, each, noise).elbo for each in (mode, frame, best)]
    assert elbos[2] - elbos[1] < 0.2 < 2 < elbos[2] - elbos[0]


def test_curvatures_are_counted_and_bounded(rng):
    target = loggamma(1.5).target
    climb_elbo(target, Frame(np.zeros(20)), rng)
    draws = sum(draws * steps for draws, steps, _ in NATURAL.stages)
    assert NATURAL.stages[0][0] * NATURAL.stages[0][1] <= target.evaluations.curvatures <= draws


def test_draws_without_a_density_are_left_out(rng):
    """A wall: half of the curvature at the start, where a draw is behind it, is NaN."""

    def value(z):
        return np.where(z[:, 0] < 4, stats.norm.logpdf(z[:, 0]), np.nan)

    wall = Known(value, lambda z: -z, lambda z: np.where(z[0] < 4, np.eye(1), np.nan))
    moved = climb_elbo(wall.target, Frame(np.array([2.0]), np.array([0.5])), rng)
    assert moved.center[0] == pytest.approx(0, abs=0.3)


def test_nothing_is_returned_that_is_no_better(rng):
    exact = Frame(MEAN, np.linalg.cholesky(COV))
    found = climb_elbo(gaussian().target, exact, rng)
    assert found is None or np.allclose(found.center, MEAN, atol=1e-9)
    options = replace(NATURAL, max_dim=1)
    assert climb_elbo(gaussian().target, Frame(np.zeros(2)), rng, options=options) is None
    over = Deadline(time.perf_counter() - 1)
    assert climb_elbo(gaussian().target, Frame(np.zeros(2)), rng, deadline=over) is None
    # No curvature is finite.
    nowhere = Known(lambda z: np.zeros(len(z)), lambda z: -z, lambda z: np.full((2, 2), np.nan))
    assert climb_elbo(nowhere.target, Frame(np.zeros(2)), rng) is None


def test_a_density_without_a_peak_keeps_a_positive_precision(rng):
    """Of a Student t with few degrees of freedom the curvature in the tails is negative."""
    t = stats.t(1.5)
    student = Known(
        lambda z: t.logpdf(z[:, 0]),
        lambda z: -2.5 * z / (1.5 + z**2),
        lambda z: 2.5 * np.diag((1.5 - z**2) / (1.5 + z**2) ** 2),
    )
    start = Frame(np.array([30.0]), np.array([5.0]))
    found = climb_elbo(student.target, start, rng)
    assert found is None or np.isfinite(found.scale).all()


def test_of_a_separated_regression_expectations_are_those_of_the_best_gaussian(rng):
    """Its expected gradient is 0, and its precision the expected curvature."""
    x = 3 * np.random.default_rng(3).normal(size=(60, 80))
    with pm.Model() as model:
        b = pm.Normal("b", 0, 1, shape=80)
        pm.Bernoulli("y", logit_p=x @ b, observed=(x[:, 0] > 0).astype(int))
    density = density_of(model)
    frame = pmf.find_frame(model, random_seed=1)
    target = Target.of(density, frame.center)
    assert target.is_exact
    found = climb_elbo(target, frame, rng)
    noise = rng.standard_normal((2_000, density.dim))
    before, after = (Candidate.of(target, each, noise).elbo for each in (frame, found))
    assert after > before + 5
    points = found.forward(np.concatenate([noise, -noise]))
    slope = found.scale.T @ target.value_and_grad(points)[1].mean(axis=0)
    assert 0.5 * slope @ slope < 0.2
    chance = special.expit(points @ x.T)
    expected = np.eye(80) + x.T @ ((chance * (1 - chance)).mean(axis=0)[:, None] * x)
    whitened = found.scale.T @ expected @ found.scale
    assert np.abs(np.linalg.eigvalsh(whitened) - 1).max() < 0.4
