"""Fits of PyMC models, from their graphs."""

import numpy as np
import pymc as pm
import pytest
from scipy import stats

from pymc_flows.field import BatchedGradient, FieldOptions, Posterior, fit_field
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of
from pymc_flows.model.structure import structure

Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


@pytest.fixture(scope="module")
def schools():
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        z = pm.Normal("z", 0, 1, shape=8)
        pm.Normal("y", mu + tau * z, SIGMA, observed=Y)
    return model


def test_gradients_in_batches_are_those_of_the_model(schools, rng):
    density = density_of(schools)
    points = rng.standard_normal((5, density.dim))
    value, gradient = BatchedGradient(density)(points)
    expected_value, expected_gradient = LogDensity(density).value_and_grad(points)
    np.testing.assert_allclose(value, expected_value)
    np.testing.assert_allclose(gradient, expected_gradient)


def test_eight_schools(schools):
    density = density_of(schools)
    posterior = Posterior.of(density, structure(schools))
    options = FieldOptions(rounds=(64, 64), values=128)
    found = fit_field(posterior, options=options, random_seed=0)
    # Both hyperparameters on a grid, the schools integrated out.
    mu = np.linspace(-20, 25, 226)[:, None, None]
    tau = np.exp(np.linspace(-12, 5, 800))[:, None]
    rows = stats.norm.logpdf(Y, mu, np.sqrt(tau**2 + SIGMA**2)).sum(axis=2)
    prior = stats.norm.logpdf(mu[..., 0], 0, 5) + stats.halfcauchy.logpdf(tau[:, 0], 0, 5)
    log_p = rows + prior + np.log(tau[:, 0])
    p = np.exp(log_p - log_p.max())
    evidence = log_p.max() + np.log(p.sum() * 0.2 * 17 / 799)
    p /= p.sum()
    log_tau = p.sum(axis=0) @ np.log(tau[:, 0])
    values = found.values
    assert abs(values.overall.log_evidence - evidence) < 4 * values.overall.log_evidence_error
    hyper = dict(zip(posterior.hyper, np.exp(values.log_weights) @ values.hyper, strict=True))
    expected = {0: p.sum(axis=1) @ mu[:, 0, 0], 1: log_tau}
    for index, mean in expected.items():
        assert hyper[index] == pytest.approx(mean, abs=0.15)
    assert values.quality.elbo > evidence - 0.1


def test_a_field_without_hyperparameters_has_draws(rng):
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=6)
        pm.Poisson("y", pm.math.exp(x), observed=[0, 1, 0, 3, 2, 5])
    density = density_of(model)
    posterior = Posterior.of(density, structure(model, field=["x"]))
    draws = fit_field(posterior, random_seed=0).corrected(100, rng)
    assert draws.shape == (100, 6)
    assert draws[:, 5].mean() > draws[:, 0].mean() + 1
