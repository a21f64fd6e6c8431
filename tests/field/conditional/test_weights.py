import numpy as np
import pytest
from scipy import stats

from posteriors import Bernoulli, LinearMixed, Parts
from pymc_flows.field import Posterior
from pymc_flows.field.conditional.judge import judge
from pymc_flows.field.conditional.mapping import ConditionalField, Surface
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.conditional.noise import NormalNoise, quadrature
from pymc_flows.field.conditional.weights import GroupWeights, weigh_groups
from pymc_flows.field.factors import factoring


def conditional_of(posterior, rng, *, corrects=True):
    modes = FieldModes(posterior, factoring(posterior.pattern, posterior.groups))
    surface = Surface(posterior.start[posterior.hyper], posterior.start[posterior.field])
    points = quadrature(posterior.groups, 8, rng)
    return ConditionalField(modes, surface, points, corrects=corrects)


@pytest.fixture(scope="module")
def two_rows():
    """Groups with two rows each: far from Gaussian."""
    rng = np.random.default_rng(3)
    return Bernoulli(rng.integers(0, 3, 40), np.full(40, 2))


@pytest.mark.parametrize("g", [(0.3, 0.0), (-0.5, 1.5)])
def test_weights_by_group_correct_the_marginal(two_rows, g, rng):
    posterior = two_rows.posterior()
    [gaussian] = conditional_of(posterior, rng).at(np.array([g]))
    noise = NormalNoise.make(posterior.groups, 1024, rng)
    weights = weigh_groups(posterior, gaussian, noise)
    expected = two_rows.log_marginal(np.array([g]))[0]
    assert abs(gaussian.log_marginal - expected) > 0.1  # Laplace's approximation is off
    assert abs(weights.log_marginal - expected) < max(4 * weights.error, 0.02)
    assert not weights.is_even


def test_resampled_groups_have_the_moments_of_the_posterior(two_rows, rng):
    posterior = two_rows.posterior()
    g = np.array([0.3, 0.8])
    [gaussian] = conditional_of(posterior, rng).at(g[None])
    noise = NormalNoise.make(posterior.groups, 2048, rng)
    weights = weigh_groups(posterior, gaussian, noise, keep=True)
    draws = gaussian.place(weights.resample(4096, rng, posterior.groups))
    x = np.linspace(-8, 8, 4001)
    eta = g[0] + np.exp(g[1]) * x[:, None]
    log_p = two_rows.k * eta - two_rows.n * np.logaddexp(0, eta) + stats.norm.logpdf(x[:, None])
    p = np.exp(log_p)
    p /= p.sum(axis=0)
    mean = x @ p
    sd = np.sqrt((x**2) @ p - mean**2)
    np.testing.assert_allclose((draws.mean(axis=0) - mean) / sd, 0, atol=0.06)
    np.testing.assert_allclose(draws.std(axis=0) / sd, 1, atol=0.06)
    # Groups are drawn independently of each other.
    correlation = np.corrcoef(draws.T) - np.eye(40)
    assert abs(correlation).max() < 0.1


def crossed(rng):
    """Five rows of four columns, one of each: the columns separate the rows."""
    rows, columns = np.divmod(np.arange(20), 4)
    design = np.zeros((20, 9))
    design[np.arange(20), rows] = 1
    design[np.arange(20), 5 + columns] = 1
    groups = np.array([0, 1, 2, 3, 4, -1, -1, -1, -1])
    return LinearMixed(rng.standard_normal(20), [design], groups)


def test_a_gaussian_field_has_even_weights_with_a_separator(rng):
    target = crossed(rng)
    posterior = target.posterior()
    g = np.array([0.2, -0.1])
    [gaussian] = conditional_of(posterior, rng).at(g[None])
    noise = NormalNoise.make(posterior.groups, 4 * 8, rng)
    weights = weigh_groups(posterior, gaussian, noise, n_outer=4, keep=True)
    assert weights.is_even
    assert weights.log_marginal == pytest.approx(target.log_marginal(g[None])[0])
    assert weights.error == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(weights.ess, 8)


def test_the_corrected_marginal_has_the_gradient_by_fishers_identity(rng):
    target = crossed(rng)
    posterior = target.posterior()
    conditional = conditional_of(posterior, rng)
    g = np.array([0.4, -0.3])
    [gaussian] = conditional.at(g[None])
    [expected] = conditional.expect([gaussian])
    step = 1e-5 * np.eye(2)
    differences = (target.log_marginal(g + step) - target.log_marginal(g - step)) / 2e-5
    np.testing.assert_allclose(expected.gradient, differences, rtol=1e-5)
    assert expected.elbo == pytest.approx(target.log_marginal(g[None])[0])


def test_means_of_a_skewed_field_are_corrected(rng):
    """Poisson-like skewness: 1 success of 9 with a wide prior."""
    target = Bernoulli(np.ones(6), np.full(6, 9))
    posterior = target.posterior()
    g = np.array([0.0, 1.0])
    conditional = conditional_of(posterior, rng)
    [laplace] = conditional.at(g[None])
    [corrected] = conditional.near(g[None], laplace)
    x = np.linspace(-8, 8, 4001)
    eta = g[0] + np.exp(g[1]) * x
    p = np.exp(eta - 9 * np.logaddexp(0, eta) + stats.norm.logpdf(x))
    mean = x @ p / p.sum()
    assert abs(corrected.mean[0] - mean) < 0.15 * abs(laplace.mean[0] - mean)
    np.testing.assert_allclose(corrected.mode, laplace.mean, atol=1e-8)
    # The way from the mode to the mean is predicted elsewhere.
    conditional.shift = Surface(g, corrected.shift)
    [predicted] = conditional.at(g[None])
    np.testing.assert_allclose(predicted.mean, corrected.mean, atol=1e-4)


def test_groups_are_judged_by_the_tails_of_their_weights(rng):
    """Weights exp(k E) of exponential E have a Pareto tail of shape k."""
    log_weights = rng.exponential(size=(1, 4000, 3)) * np.array([0.3, 0.8, 0.0])
    found = judge([GroupWeights(None, np.zeros(1), log_weights)])
    np.testing.assert_allclose(found.khat[:2], [0.3, 0.8], atol=0.15)
    assert found.khat[2] == -np.inf
    np.testing.assert_array_equal(found.worst(2), [1, 0])
    assert found.ess[2] == pytest.approx(4000)


def test_groups_without_a_finite_weight_are_not_trusted():
    log_weights = np.zeros((1, 64, 3))
    log_weights[:, 5, 1], log_weights[:, :, 2] = -np.inf, -np.inf
    found = judge([GroupWeights(None, np.zeros(1), log_weights)])
    np.testing.assert_array_equal(found.is_untrusted, [False, False, True])
    assert found.smallest_ess == 0


def test_a_density_that_is_not_a_number_is_0(two_rows, rng):
    posterior = two_rows.posterior()
    [gaussian] = conditional_of(posterior, rng).at(np.array([[0.3, 0.0]]))
    noise = NormalNoise.make(posterior.groups, 64, rng)
    whole = posterior.by_group

    def broken(points):
        shared, by_group = whole(points)
        by_group[3, 7] = np.nan
        return shared, by_group

    posterior.by_group = broken
    weights = weigh_groups(posterior, gaussian, noise)
    assert np.isfinite([weights.log_marginal, weights.error]).all()
    assert 1 < weights.ess[7] < 64


def test_draws_out_of_range_have_no_weight_and_leave_their_block_one(rng):
    """The density is 0, and its parts by group are 0, if any element is below −0.3."""
    target = Bernoulli([3, 3], [5, 5])

    def by_group(points):
        shared, own = target.by_group(points)
        outside = (points[:, 2:] < -0.3).any(axis=1)
        shared[outside], own[outside] = -np.inf, 0.0
        return shared, own

    parts = Parts.of(2, [0, 1])
    posterior = Posterior(parts, target.value_and_grad, target.curvature, by_group, np.zeros(4))
    [gaussian] = conditional_of(posterior, rng).at(np.zeros((1, 2)))
    noise = NormalNoise.make(posterior.groups, 64, rng)
    found = weigh_groups(posterior, gaussian, noise, keep=True)
    outside = (gaussian.place(found.noise[0]) < -0.3).any(axis=1)
    assert 0 < outside.sum() < 64
    assert np.isneginf(found.by_group[0, outside]).all()
    assert np.isfinite(found.by_group[0, ~outside]).all()
    assert np.isfinite(found.outer).all()


@pytest.mark.parametrize("sd", [0.8, 3.0])
def test_groups_with_few_effective_draws_are_not_trusted(sd):
    # Log weights that are bounded: no tail, but with the larger spread few draws have all weight.
    log_weights = sd * np.minimum(np.random.default_rng(2).standard_normal((1, 2_048, 1)), 2.2)
    found = judge([GroupWeights(None, np.zeros(1), log_weights)])
    assert found.is_trusted == (found.smallest_ess > 2_048 / 16)
    assert found.is_trusted == (sd < 1)
