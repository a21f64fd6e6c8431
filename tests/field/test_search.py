"""The objective of the search over hyperparameters, and the correction that is predicted."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from posteriors import Bernoulli
from pymc_flows.field import FieldOptions, fit_field
from pymc_flows.field.conditional.mapping import ConditionalField, Surface
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.conditional.noise import quadrature
from pymc_flows.field.factors import factoring
from pymc_flows.field.hyper.correction import fit_correction
from pymc_flows.field.hyper.objective import LaplaceMarginal, objective_of
from pymc_flows.field.record import arrays_of, restored
from pymc_flows.formula import Formula


def conditional_of(posterior, pairs):
    modes = FieldModes(posterior, factoring(posterior.pattern, posterior.groups))
    surface = Surface(posterior.start[posterior.hyper], posterior.start[posterior.field])
    points = quadrature(posterior.groups, pairs, np.random.default_rng(0))
    return ConditionalField(modes, surface, points)


@pytest.fixture(scope="module")
def bernoulli():
    rng = np.random.default_rng(3)
    return Bernoulli(rng.integers(0, 5, 30), np.full(30, 4))


def test_the_slope_of_laplaces_approximation_is_that_of_its_values(bernoulli):
    conditional = conditional_of(bernoulli.posterior(), 1)
    objective = LaplaceMarginal(conditional)
    g = np.array([0.4, -0.2])
    steps = 1e-3 * np.eye(2)
    hyper = np.concatenate([g[None], g + steps, g - steps])
    found = conditional.modes.find(hyper, np.zeros((5, 30)), steps=50, tolerance=1e-24)
    values = np.array([gaussian.log_marginal for gaussian in found])
    [expected] = objective.expect(found[:1])
    np.testing.assert_allclose(expected.gradient, (values[1:3] - values[3:]) / 2e-3, rtol=1e-4)
    assert expected.elbo == pytest.approx(values[0])


def test_the_bound_is_maximised_where_points_are_exact_within_groups(bernoulli):
    posterior = bernoulli.posterior()
    exact = conditional_of(posterior, 1)
    assert objective_of(exact) is exact
    posterior.groups = np.zeros(30, int)
    posterior.n_groups = 1
    assert isinstance(objective_of(conditional_of(posterior, 8)), LaplaceMarginal)


@pytest.mark.parametrize(
    ("n_hyper", "separator", "is_laplace"),
    [(4, 1_200, True), (4, 2_000, False), (40, 1_200, False), (400, 300, True)],
)
def test_determinants_are_differenced_where_their_factors_are_little_work(
    n_hyper, separator, is_laplace
):
    groups = np.append(np.full(separator, -1), np.zeros(50, int))
    posterior = SimpleNamespace(groups=groups, n_hyper=n_hyper, factor_products=separator**3 // 3)
    conditional = SimpleNamespace(
        is_far=False, posterior=posterior, points=np.zeros((16, 1)), chunk=1
    )
    assert isinstance(objective_of(conditional), LaplaceMarginal) == is_laplace


def test_a_smooth_correction_is_predicted_and_a_rough_one_is_known_to_be_missed(rng):
    hyper = rng.standard_normal((40, 3)) * [1, 10, 0.1] + [0, 100, 3]
    z = (hyper - [0, 100, 3]) / [1, 10, 0.1]
    smooth = 1 + 0.5 * z[:, 0] - 0.2 * z[:, 1] * z[:, 2] + 0.1 * z[:, 0] ** 2
    weights = rng.random(40)
    found = fit_correction(hyper[:30], smooth[:30], weights[:30])
    np.testing.assert_allclose(found(hyper[30:]), smooth[30:], atol=0.02)
    assert found.residual < 0.02
    rough = smooth + rng.standard_normal(40)
    found = fit_correction(hyper, rough, weights)
    assert 0.7 < found.residual < 2.0
    # Values without a density do not count, and too few tell nothing.
    rough[:35] = np.nan
    assert fit_correction(hyper, rough, weights) is None


def test_predicted_corrections_give_the_values_that_weights_give(bernoulli):
    options = FieldOptions(rounds=(128, 64), values=64, flow_rounds=0)
    found = fit_field(bernoulli.posterior(), options=options, random_seed=0)
    never = replace(options, correction_error=-1.0)
    direct = fit_field(bernoulli.posterior(), options=never, random_seed=0)
    assert found.evaluations.densities < 0.5 * direct.evaluations.densities
    a, b = found.values, direct.values
    assert a.overall.log_evidence == pytest.approx(b.overall.log_evidence, abs=0.05)
    mean, other = np.exp(a.log_weights) @ a.hyper, np.exp(b.log_weights) @ b.hyper
    sd = np.sqrt(np.exp(b.log_weights) @ (b.hyper - other) ** 2)
    np.testing.assert_allclose((mean - other) / sd, 0, atol=0.1)
    assert a.error < 0.3
    # A file keeps the way from the modes to the means.
    arrays = arrays_of(found)

    def read(name, shape, dtype):
        return np.asarray(arrays[name], dtype)

    again = restored(bernoulli.posterior(), Formula("tril-loc | laplace"), read)
    points = found.draw(5, np.random.default_rng(0))[0]
    np.testing.assert_allclose(again.log_prob(points), found.log_prob(points), rtol=1e-6)
    assert again.marginal.conditional.shift is not None
