"""Few groups with correlated effects: the factor of their covariance has long tails."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_flows as pmf
from pymc_flows.field import Posterior
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of
from pymc_flows.model.structure import structure

GROUPS, NOISE = 5, 0.5
Y = np.random.default_rng(4).standard_normal((GROUPS, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])


def factor(n=2):
    """A lower triangular matrix, whose numbers are the variable ``factor``."""
    how = {"n": n, "eta": 2, "sd_dist": pm.HalfNormal.dist(2.0)}
    return pm.LKJCholeskyCov("factor", **how)[0]


def hierarchy():
    with pm.Model() as model:
        lower = factor()
        effects = pm.MvNormal("effects", np.zeros(2), chol=lower, shape=(GROUPS, 2))
        pm.Normal("y", effects, NOISE, observed=Y)
    return model


def marginal():
    """The same with the effects integrated out."""
    with pm.Model() as model:
        lower = factor()
        pm.MvNormal("y", np.zeros(2), cov=lower @ lower.T + NOISE**2 * pt.eye(2), observed=Y)
    return model


@pytest.fixture(scope="module")
def exact():
    """Means and standard deviations of the three numbers of the factor, by quadrature."""
    axes = np.linspace(-6, 3, 46), np.linspace(-8, 8, 81), np.linspace(-6, 3, 46)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    log_p = LogDensity(density_of(marginal())).value(points)
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    values = np.stack([np.exp(points[:, 0]), points[:, 1], np.exp(points[:, 2])], axis=1)
    mean = weights @ values
    return mean, np.sqrt(weights @ np.square(values - mean))


@pytest.mark.parametrize("seed", [1, 2])
def test_standard_deviations_come_from_the_tails(exact, seed):
    approx = pmf.fit(model=hierarchy(), random_seed=seed, progressbar=False)
    assert approx.formula.conditional is not None
    found = approx.sample(8_000, random_seed=seed).posterior["factor"].values.reshape(-1, 3)
    mean, sd = exact
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.05 * sd.max())
    np.testing.assert_allclose(found.std(axis=0), sd, rtol=0.06)


def test_a_factor_has_scales_on_its_diagonal():
    with pm.Model() as model:
        lower = factor(3)
        effects = pm.MvNormal("effects", np.zeros(3), chol=lower, shape=(GROUPS, 3))
        pm.Normal("y", effects[:, :2], NOISE, observed=Y)
    density = density_of(model)
    posterior = Posterior.of(density, structure(model))
    assert posterior.scales.tolist() == [True, False, True, False, False, True]
    assert (posterior.locations == ~posterior.scales).all()
