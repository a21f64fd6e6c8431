"""Gaussians that one batch of rows has found, moved to the mode and curvature of all rows."""

import numpy as np
import pymc as pm
import pytest

from pymc_flows.flows.frame import Frame
from pymc_flows.model.logp import density_of
from pymc_flows.rows import Rows
from pymc_flows.start.passes import nearly, on_all_rows, share_for
from pymc_flows.start.weighted.moments import match_significant
from pymc_flows.support.deadline import Deadline

RNG = np.random.default_rng(6)


def regression(dim, n):
    """A linear regression on rows, and mean and covariance of its posterior."""
    x = RNG.normal(size=(n, dim))
    y = x @ RNG.normal(size=dim) + RNG.normal(size=n)
    rows = Rows.arrays({"x": x, "y": y}, batch_size=n // 10)
    with pm.Model() as model:
        beta = pm.Normal("beta", 0, 1, shape=dim)
        pm.Normal("y", rows["x"] @ beta, 1, observed=rows["y"], total_size=n)
    precision = x.T @ x + np.eye(dim)
    return density_of(model), np.linalg.solve(precision, x.T @ y), np.linalg.inv(precision)


@pytest.fixture(scope="module")
def small():
    return regression(3, 205)


def test_newton_steps_on_all_rows_are_exact_for_a_regression(small):
    density, mean, cov = small
    far = Frame(mean + 3, 0.3 * np.eye(3))
    found = on_all_rows(density, far)
    np.testing.assert_allclose(found.center, mean, atol=1e-8)
    np.testing.assert_allclose(found.scale @ found.scale.T, cov, rtol=1e-6, atol=1e-10)
    narrow = on_all_rows(density, Frame(mean + 3, np.full(3, 0.3)))
    np.testing.assert_allclose(narrow.center, mean, atol=1e-8)
    np.testing.assert_allclose(narrow.scale, np.diag(np.linalg.inv(cov)) ** -0.5, rtol=1e-6)


def test_the_expansion_of_a_regression_is_its_log_density(small):
    density, mean, cov = small
    log_density = nearly(density, Frame(mean + 0.1, np.full(3, 0.1)))
    points = RNG.multivariate_normal(mean, cov, 5)
    found = log_density(points)
    rest = points - mean
    expected = -0.5 * np.einsum("ni,ij,nj->n", rest, np.linalg.inv(cov), rest)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-6)


def test_there_is_time_for_nothing(small):
    density, _, _ = small
    given = Frame(np.ones(3), np.eye(3))
    assert on_all_rows(density, given, deadline=Deadline.after(0)) is given
    no_scale = Frame(np.ones(3))
    assert on_all_rows(density, no_scale) is no_scale


def test_many_dimensions_go_without_second_derivatives():
    density, mean, cov = regression(310, 1_240)
    sd = np.sqrt(np.diag(cov))
    given = Frame(mean + 20 * sd * RNG.normal(size=310), sd)
    found = on_all_rows(density, given)
    assert np.sqrt(np.mean(((found.center - mean) / sd) ** 2)) < 0.1
    assert found.scale is given.scale


def test_between_modes_a_gaussian_stays_where_it_is():
    rows = Rows.arrays({"y": RNG.normal(4, 1, 60)}, batch_size=20)
    with pm.Model() as model:
        x = pm.Normal("x", 0, 10)
        pm.Normal("y", x**2, 1, observed=rows["y"], total_size=60)
    given = Frame(np.zeros(1), np.ones((1, 1)))
    assert on_all_rows(density_of(model), given) is given


def test_small_data_are_judged_by_all_draws(small):
    assert share_for(small[0]) == 1


def test_only_what_is_no_noise_is_matched():
    def log_density(points):
        skewed = points[:, 0] + 0.3
        return -0.5 * skewed**2 / 1.2**2 - 0.5 * np.square(points[:, 1:]).sum(axis=1)

    found = match_significant(log_density, Frame(np.zeros(40), np.eye(40)), RNG)
    assert found.center[0] == pytest.approx(-0.3, abs=0.05)
    assert found.scale[0, 0] == pytest.approx(1.2, rel=0.05)
    assert (found.center[1:] == 0).all()
    np.testing.assert_array_equal(found.scale[1:, 1:], np.eye(39))
