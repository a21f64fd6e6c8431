"""Gaussians nearest to fields that are far from one."""

import numpy as np
import pytest
from scipy import sparse, special

from posteriors import Bernoulli, Parts, normal, variances
from pymc_flows.field import FieldOptions, Posterior, fit_field
from pymc_flows.field.conditional.mapping import ConditionalField, Surface
from pymc_flows.field.conditional.nearest import nearest_gaussian
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.conditional.noise import NormalNoise, quadrature
from pymc_flows.field.conditional.weights import weigh_groups
from pymc_flows.field.factors import factoring
from pymc_flows.field.record import arrays_of, restored
from pymc_flows.formula import Formula

PRIOR_SD = 0.5


class Loadings:
    """y_ij = exp(α_j) θ_i + exp(g) e_ij: abilities times loadings, as in item response models.

    With the θ integrated out, rows are normal with covariance aa' + exp(2g) I, a = exp(α).
    """

    def __init__(self, n, log_loadings, rng):
        self.p = len(log_loadings)
        self.n = n
        self.y = np.outer(rng.standard_normal(n), np.exp(log_loadings))
        self.y += rng.standard_normal(self.y.shape)
        dense = np.eye(n + self.p)
        dense[:n, n:] = dense[n:, :n] = 1
        self.pattern = sparse.csc_matrix(dense != 0)

    def _terms(self, points):
        g, theta, alpha = points[:, :1], points[:, 1 : 1 + self.n], points[:, 1 + self.n :]
        rest = self.y - theta[:, :, None] * np.exp(alpha)[:, None]
        shared = normal(g, 1).sum(axis=1) + normal(alpha, PRIOR_SD).sum(axis=1)
        own = normal(theta, 1) + normal(rest, np.exp(g)[:, :, None]).sum(axis=2)
        return shared, own, (g, theta, alpha, rest)

    def value_and_grad(self, points):
        shared, own, (g, theta, alpha, rest) = self._terms(points)
        precision = np.exp(-2 * g)
        scaled = rest * np.exp(alpha)[:, None] * precision[:, :, None]
        gradient = np.concatenate(
            [
                -g + (rest**2 * precision[:, :, None] - 1).sum(axis=(1, 2))[:, None],
                -theta + scaled.sum(axis=2),
                -alpha / PRIOR_SD**2 + (scaled * theta[:, :, None]).sum(axis=1),
            ],
            axis=1,
        )
        return shared + own.sum(axis=1), gradient

    def by_group(self, points):
        return self._terms(points)[:2]

    def curvature(self, point):
        _, _, (g, [theta], [alpha], [rest]) = self._terms(point[None])
        a, precision = np.exp(alpha), np.exp(-2 * g[0, 0])
        dense = np.zeros(self.pattern.shape)
        dense[: self.n, self.n :] = (np.outer(theta, a**2) - rest * a) * precision
        dense += dense.T
        last = 1 / PRIOR_SD**2 + (a**2 * (theta @ theta) - a * (theta @ rest)) * precision
        first = np.full(self.n, 1 + (a @ a) * precision)
        dense[np.diag_indices(self.n + self.p)] = np.concatenate([first, last])
        rows, columns = self.pattern.nonzero()
        found = sparse.csc_matrix((dense[rows, columns], (rows, columns)), shape=dense.shape)
        found.sort_indices()
        return found

    def posterior(self):
        groups = np.concatenate([np.arange(self.n), np.full(self.p, -1)])
        start = np.zeros(1 + self.n + self.p)
        start[1 : 1 + self.n] = self.y.mean(axis=1)
        structure = Parts.of(1, groups)
        return Posterior(structure, self.value_and_grad, self.curvature, self.by_group, start)

    def log_joint(self, g, alpha):
        """Log density of g (n,), α (n, p) and the data."""
        a, s2 = np.exp(alpha), np.exp(2 * g)
        norm = (a**2).sum(axis=1)
        products = np.einsum("ni,ij,nj->n", a, self.y.T @ self.y, a)
        log_det = (self.p - 1) * np.log(s2) + np.log(s2 + norm)
        squares = ((self.y**2).sum() - products / (s2 + norm)) / s2
        rows = -0.5 * (squares + self.n * (log_det + self.p * np.log(2 * np.pi)))
        return rows + normal(g, 1) + normal(alpha, PRIOR_SD).sum(axis=1)


def grid(axes):
    """Points (n, d) of a grid, and the log of the volume of each."""
    points = np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")], axis=1)
    return points, sum(np.log(axis[1] - axis[0]) for axis in axes)


def weighted(log_p, points, log_volume):
    """Mean, standard deviation and log mass."""
    mass = special.logsumexp(log_p)
    weights = np.exp(log_p - mass)
    mean = weights @ points
    return mean, np.sqrt(weights @ (points - mean) ** 2), mass + log_volume


@pytest.fixture(scope="module")
def loadings():
    return Loadings(120, np.array([0.0, 0.3]), np.random.default_rng(6))


def conditional_of(posterior, rng):
    modes = FieldModes(posterior, factoring(posterior.pattern, posterior.groups))
    surface = Surface(posterior.start[posterior.hyper], posterior.start[posterior.field])
    points = quadrature(posterior.groups, 16, rng)
    return ConditionalField(modes, surface, points, corrects=False)


def test_mean_and_precision_are_expectations_under_the_gaussian_itself(rng):
    target = Bernoulli(np.array([0, 1, 2, 2]), np.full(4, 2))
    posterior = target.posterior()
    conditional = conditional_of(posterior, rng)
    g = np.array([0.3, 0.8])
    [mode] = conditional.at(g[None])
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    weights = weights / weights.sum()
    uniform = (np.arange(500) + 0.5) / 500
    points = np.stack([rng.permutation(special.ndtri(uniform)) for _ in range(4)], axis=1)
    found = nearest_gaussian(
        conditional.modes, mode, np.concatenate([points, -points]), steps=30, tolerance=1e-9
    )
    sd = np.sqrt(variances(found.factor, 4))
    x = found.mean + sd * nodes[:, None]
    p = special.expit(g[0] + np.exp(g[1]) * x)
    slope = weights @ ((target.k - 2 * p) * np.exp(g[1]) - x)
    precision = weights @ (1 + 2 * np.exp(2 * g[1]) * p * (1 - p))
    np.testing.assert_allclose(slope * sd, 0, atol=0.01)
    np.testing.assert_allclose(precision * sd**2, 1, atol=0.01)
    # The entries of its precision are those of the curvature at the mean and the excess.
    [at_mean] = posterior.entries(posterior.join(g, found.mean))
    np.testing.assert_allclose((at_mean + found.excess) * sd**2, 1)


def test_the_mean_of_a_bilinear_field_is_found_where_its_mode_is_far(loadings, rng):
    posterior = loadings.posterior()
    conditional = conditional_of(posterior, rng)
    g = np.array([0.1])
    [mode] = conditional.at(g[None], steps=100)
    found = conditional.nearest(mode)
    points, volume = grid([np.linspace(-1.5, 1.5, 201)] * 2)
    log_p = loadings.log_joint(np.full(len(points), g[0]), points)
    mean, sd, evidence = weighted(log_p, points, volume)
    assert (abs((mode.mean[-2:] - mean) / sd) > 1).all()
    np.testing.assert_allclose((found.mean[-2:] - mean) / sd, 0, atol=0.3)
    # A Gaussian below the density is narrower than it.
    ratio = np.sqrt(variances(found.factor, len(found.mean))[-2:]) / sd
    assert ((ratio > 0.7) & (ratio < 1)).all()
    # Never above the log marginal, and near to it.
    assert evidence - 2 < found.log_marginal < evidence
    noise = NormalNoise.make(posterior.groups, 64 * 16, rng)
    weights = weigh_groups(posterior, found, noise, n_outer=64)
    assert abs(weights.log_marginal - evidence) < 4 * weights.error
    assert weights.error < 0.2


@pytest.fixture(scope="module")
def fitted(loadings):
    # So few points that no quadrature is exact, as with many loadings.
    options = FieldOptions(rounds=(64, 64), values=64, quadrature_pairs=2, flow_rounds=0)
    return fit_field(loadings.posterior(), options=options, random_seed=2)


def test_a_bilinear_field_has_the_exact_marginal_of_its_hyperparameter(loadings, fitted, rng):
    axes = [np.linspace(-0.6, 0.6, 61), *[np.linspace(-1.5, 1.5, 61)] * 2]
    points, volume = grid(axes)
    mean, sd, evidence = weighted(loadings.log_joint(points[:, 0], points[:, 1:]), points, volume)
    values = fitted.values
    assert fitted.marginal.conditional.is_far
    error = np.hypot(values.overall.log_evidence_error, values.error)
    assert abs(values.overall.log_evidence - evidence) < 4 * error
    draws = fitted.corrected(800, rng)[:, [0, -2, -1]]
    np.testing.assert_allclose((draws.mean(axis=0) - mean) / sd, 0, atol=0.2)
    np.testing.assert_allclose(draws.std(axis=0) / sd, 1, atol=0.15)


def test_a_fit_with_a_predicted_precision_comes_back_from_its_arrays(loadings, fitted, rng):
    arrays = arrays_of(fitted)
    formula = Formula(f"{fitted.values.flow.formula} | laplace")
    again = restored(loadings.posterior(), formula, lambda name, shape, dtype: arrays[name])
    points, log_q = fitted.draw(20, rng)
    np.testing.assert_allclose(fitted.log_prob(points), log_q, rtol=1e-8)
    np.testing.assert_allclose(again.log_prob(points), log_q, rtol=1e-8)
