"""Densities whose hyperparameters determine a large matrix."""

import numpy as np
import pymc as pm
import pytest

from pymc_flows.field import BatchedGradient, Posterior
from pymc_flows.field.shared import SharedDensity
from pymc_flows.model.logp import density_of
from pymc_flows.model.structure import structure


@pytest.fixture(scope="module")
def process():
    rng = np.random.default_rng(3)
    x = np.linspace(0, 4, 55)[:, None]
    with pm.Model() as model:
        length = pm.InverseGamma("length", 5, 5)
        scale = pm.HalfNormal("scale", 1)
        latent = pm.gp.Latent(cov_func=scale**2 * pm.gp.cov.Matern52(1, length))
        pm.Poisson("y", pm.math.exp(latent.prior("f", X=x)), observed=rng.poisson(2, 55))
    return model


def test_points_that_share_hyperparameters_have_the_gradients_of_the_model(process, rng):
    density = density_of(process)
    found = structure(process)
    posterior = Posterior.of(density, found)
    hyper = 0.1 * rng.standard_normal((2, 2))
    points = posterior.join(hyper[[0, 1, 0, 1, 0]], 0.3 * rng.standard_normal((5, 55)))
    value, gradient = posterior.value_and_grad(points)
    expected_value, expected_gradient = BatchedGradient(density)(points)
    np.testing.assert_allclose(value, expected_value)
    field = posterior.field
    np.testing.assert_allclose(gradient[:, field], expected_gradient[:, field], atol=1e-8)
    for rows in ([0, 2, 4], [1, 3]):
        mean = expected_gradient[np.ix_(rows, posterior.hyper)].mean(axis=0)
        np.testing.assert_allclose(gradient[np.ix_(rows, posterior.hyper)] - mean, 0, atol=1e-6)
    shared, by_group = posterior.by_group(points)
    np.testing.assert_allclose(shared + by_group.sum(axis=1), expected_value)


def test_it_pays_where_hyperparameters_determine_a_large_matrix(process):
    found = structure(process)
    assert SharedDensity(density_of(process), found.hyperparameters).pays
    with pm.Model() as plate:
        tau = pm.HalfNormal("tau", 1)
        x = pm.Normal("x", 0, tau, shape=3_000)
        pm.Normal("y", x, 1, observed=np.zeros(3_000))
    density = density_of(plate)
    assert not SharedDensity(density, structure(plate).hyperparameters).pays
    # An element of a variable is no hyperparameter by itself.
    assert not SharedDensity(density_of(process), np.array([0, 1, 2])).pays
