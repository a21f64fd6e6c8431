"""Posteriors of hierarchies, in NumPy, with known answers."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import sparse, special

from pymc_flows.field import Posterior


def normal(x, sd):
    """Log density of N(0, sd²)."""
    return -0.5 * (x / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def variances(factor, n):
    """Diagonal of the inverse of a factored matrix (n, n)."""
    return np.square(factor.color(np.eye(n))).sum(axis=0)


@dataclass(frozen=True)
class Parts:
    """Structure of a posterior: hyperparameters first, then the field."""

    hyperparameters: np.ndarray
    field: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, n_hyper, groups):
        return cls(np.arange(n_hyper), n_hyper + np.arange(len(groups)), np.asarray(groups))


class LinearMixed:
    """y = Σ exp(g_k) Z_k x + exp(g_s) e with standard normal x, e and g: non-centred.

    With ``centred``, the field is u = exp(g_0) x instead (of one term).
    """

    def __init__(self, y, designs, groups, *, centred=False):
        self.y, self.designs, self.centred = y, [np.asarray(z, float) for z in designs], centred
        self.groups = np.asarray(groups)
        self.n_hyper = len(designs) + 1
        dense = np.eye(len(groups)) + sum(np.abs(z) for z in designs).T @ sum(
            np.abs(z) for z in designs
        )
        self.pattern = sparse.csc_matrix(dense != 0)
        rows = sum(np.abs(z) for z in designs) != 0
        owner = np.where(self.groups >= 0, self.groups, -1)
        self.row_group = np.array([max(owner[row], default=-1) for row in rows])

    def _design(self, g):
        scales = [1.0] if self.centred else np.exp(g[:-1])
        return sum(s * z for s, z in zip(scales, self.designs, strict=True))

    def _prior_sd(self, g):
        return np.exp(g[0]) if self.centred else 1.0

    def _terms(self, points):
        """Log density of hyperparameters (n,), rows (n, rows) and field (n, n_field)."""
        g, x = points[:, : self.n_hyper], points[:, self.n_hyper :]
        scales = np.exp(0 * g[:, :-1] if self.centred else g[:, :-1])
        parts = [s[:, None] * (x @ z.T) for s, z in zip(scales.T, self.designs, strict=True)]
        rest = self.y - sum(parts)
        s, tau = np.exp(g[:, -1:]), np.exp(g[:, :1] * self.centred)
        return normal(g, 1).sum(axis=1), normal(rest, s), normal(x, tau), (parts, rest, s, tau)

    def value_and_grad(self, points):
        hyper, rows, elements, (parts, rest, s, tau) = self._terms(points)
        g, x = points[:, : self.n_hyper], points[:, self.n_hyper :]
        gradient = np.concatenate([-g, -x / tau**2], axis=1)
        last = self.n_hyper - 1
        gradient[:, last] += (rest**2 / s**2 - 1).sum(axis=1)
        for k, (part, z) in enumerate(zip(parts, self.designs, strict=True)):
            scale = 1 if self.centred else np.exp(g[:, k : k + 1])
            gradient[:, self.n_hyper :] += scale * (rest / s**2) @ z
            if self.centred:
                gradient[:, k] += (x**2 / tau**2 - 1).sum(axis=1)
            else:
                gradient[:, k] += (part * rest / s**2).sum(axis=1)
        return hyper + rows.sum(axis=1) + elements.sum(axis=1), gradient

    def by_group(self, points):
        hyper, rows, elements, _ = self._terms(points)
        owners = np.concatenate([self.row_group, self.groups])
        terms = np.concatenate([rows, elements], axis=1)
        groups = np.arange(self.groups.max(initial=-1) + 1)
        own = [terms[:, owners == i].sum(axis=1) for i in groups]
        shared = hyper + terms[:, owners < 0].sum(axis=1)
        return shared, np.reshape(own, (len(groups), len(points))).T

    def curvature(self, point):
        g = point[: self.n_hyper]
        z = self._design(g)
        dense = z.T @ z / np.exp(2 * g[-1]) + np.eye(z.shape[1]) / self._prior_sd(g) ** 2
        rows, columns = self.pattern.nonzero()
        found = sparse.csc_matrix((dense[rows, columns], (rows, columns)), shape=dense.shape)
        found.sort_indices()
        return found

    def log_marginal(self, g):
        """Log density (n,) of g (n, n_hyper) and y, the field integrated out; for one design."""
        [z] = self.designs
        values, vectors = np.linalg.eigh(z @ z.T)
        variances = np.exp(2 * g[:, :1]) * values + np.exp(2 * g[:, 1:])
        return normal(vectors.T @ self.y, np.sqrt(variances)).sum(axis=1) + normal(g, 1).sum(axis=1)

    def posterior(self):
        start = np.zeros(self.n_hyper + len(self.groups))
        structure = Parts.of(self.n_hyper, self.groups)
        return Posterior(structure, self.value_and_grad, self.curvature, self.by_group, start)


class Bernoulli:
    """Rows y_ij = 1 with logit g_0 + exp(g_1) x_i; standard normal x and g."""

    def __init__(self, successes, trials):
        self.k, self.n = np.asarray(successes, float), np.asarray(trials, float)

    def _terms(self, points):
        g, x = points[:, :2], points[:, 2:]
        eta = g[:, :1] + np.exp(g[:, 1:]) * x
        own = self.k * eta - self.n * np.logaddexp(0, eta) + normal(x, 1)
        return normal(g, 1).sum(axis=1), own, eta

    def value_and_grad(self, points):
        shared, own, eta = self._terms(points)
        slope = self.k - self.n * special.expit(eta)
        scale = np.exp(points[:, 1:2])
        gradient = np.empty_like(points)
        gradient[:, 2:] = slope * scale - points[:, 2:]
        gradient[:, 0] = slope.sum(axis=1) - points[:, 0]
        gradient[:, 1] = (slope * scale * points[:, 2:]).sum(axis=1) - points[:, 1]
        return shared + own.sum(axis=1), gradient

    def by_group(self, points):
        shared, own, _ = self._terms(points)
        return shared, own

    def curvature(self, point):
        p = special.expit(point[0] + np.exp(point[1]) * point[2:])
        return sparse.diags(1 + np.exp(2 * point[1]) * self.n * p * (1 - p), format="csc")

    def log_marginal(self, g):
        """Log density (n,) of g (n, 2) and the data: quadrature with 200 points in each group."""
        x, w = np.polynomial.hermite_e.hermegauss(200)
        eta = g[:, :1] + np.exp(g[:, 1:]) * x
        total = normal(g, 1).sum(axis=1)
        for (k, n), count in Counter(zip(self.k, self.n, strict=True)).items():
            like = np.exp(k * eta - n * np.logaddexp(0, eta))
            total += count * np.log(like @ w / np.sqrt(2 * np.pi))
        return total

    def posterior(self):
        structure = Parts.of(2, np.arange(len(self.k)))
        start = np.zeros(2 + len(self.k))
        return Posterior(structure, self.value_and_grad, self.curvature, self.by_group, start)


class Counts:
    """One Poisson count in each group, of rate exp(g_0 + exp(g_1) x_i); standard normal x and g."""

    def __init__(self, counts):
        self.k = np.asarray(counts, float)

    def by_group(self, points):
        eta = points[:, :1] + np.exp(points[:, 1:2]) * points[:, 2:]
        own = self.k * eta - np.exp(eta) + normal(points[:, 2:], 1)
        return normal(points[:, :2], 1).sum(axis=1), own

    def value_and_grad(self, points):
        shared, own = self.by_group(points)
        x, scale = points[:, 2:], np.exp(points[:, 1:2])
        slope = self.k - np.exp(points[:, :1] + scale * x)
        gradient = np.empty_like(points)
        gradient[:, 2:] = slope * scale - x
        gradient[:, 0] = slope.sum(axis=1) - points[:, 0]
        gradient[:, 1] = (slope * scale * x).sum(axis=1) - points[:, 1]
        return shared + own.sum(axis=1), gradient

    def curvature(self, point):
        rate = np.exp(point[0] + np.exp(point[1]) * point[2:])
        return sparse.diags(1 + np.exp(2 * point[1]) * rate, format="csc")

    def log_marginal(self, g):
        """Log density (n,) of g (n, 2) and the counts, by the trapezoid rule in each group."""
        x, step = np.linspace(-12, 12, 6001, retstep=True)
        eta = g[:, :1] + np.exp(g[:, 1:]) * x
        total = normal(g, 1).sum(axis=1)
        for k, count in Counter(self.k).items():
            with np.errstate(over="ignore"):
                density = np.exp(k * eta - np.exp(eta) + normal(x, 1))
            total += count * np.log(density.sum(axis=1) * step)
        return total

    def posterior(self):
        structure = Parts.of(2, np.arange(len(self.k)))
        start = np.zeros(2 + len(self.k))
        return Posterior(structure, self.value_and_grad, self.curvature, self.by_group, start)


class Funnel:
    """Neal's: v ~ N(0, 3²), x_i ~ N(0, exp(v))."""

    def __init__(self, n):
        self.n = n

    def by_group(self, points):
        v, x = points[:, 0], points[:, 1:]
        own = -0.5 * (x**2 * np.exp(-v[:, None]) + v[:, None] + np.log(2 * np.pi))
        return normal(v, 3), own

    def value_and_grad(self, points):
        shared, own = self.by_group(points)
        v, x = points[:, :1], points[:, 1:]
        gradient = np.concatenate([v, x], axis=1)
        gradient[:, 1:] = -x * np.exp(-v)
        gradient[:, :1] = -v / 9 + 0.5 * (x**2 * np.exp(-v) - 1).sum(axis=1, keepdims=True)
        return shared + own.sum(axis=1), gradient

    def curvature(self, point):
        return sparse.diags(np.full(self.n, np.exp(-point[0])), format="csc")

    def posterior(self):
        structure = Parts.of(1, np.arange(self.n))
        start = np.zeros(1 + self.n)
        return Posterior(structure, self.value_and_grad, self.curvature, self.by_group, start)


def on_grid(log_density, axes):
    """Means, sds and log normaliser of a density on a grid (rectangle rule)."""
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    values = log_density(grid)
    weights = np.exp(values - values.max())
    cell = np.prod([a[1] - a[0] for a in axes])
    evidence = values.max() + np.log(weights.sum() * cell)
    weights /= weights.sum()
    mean = weights @ grid
    return mean, np.sqrt(weights @ (grid - mean) ** 2), evidence


class CentredMeans:
    """Means θ_i ~ N(μ, τ), measured with error; flat μ and log τ ~ N(0, 5²)."""

    def __init__(self, y, error):
        self.y, self.error = np.asarray(y), error

    def by_group(self, points):
        mu, log_tau, theta = points[:, :1], points[:, 1:2], points[:, 2:]
        own = normal(theta - mu, np.exp(log_tau)) + normal(self.y - theta, self.error)
        return normal(log_tau[:, 0], 5), own

    def value_and_grad(self, points):
        shared, own = self.by_group(points)
        mu, log_tau, theta = points[:, :1], points[:, 1:2], points[:, 2:]
        rest = (theta - mu) / np.exp(2 * log_tau)
        gradient = np.empty_like(points)
        gradient[:, 0] = rest.sum(axis=1)
        gradient[:, 1] = (rest * (theta - mu) - 1).sum(axis=1) - log_tau[:, 0] / 25
        gradient[:, 2:] = (self.y - theta) / self.error**2 - rest
        return shared + own.sum(axis=1), gradient

    def curvature(self, point):
        diagonal = np.full(len(self.y), np.exp(-2 * point[1]) + self.error**-2)
        return sparse.diags(diagonal, format="csc")

    def log_marginal(self, g):
        """Log density (n,) of g (n, 2) and the data."""
        sd = np.sqrt(np.exp(2 * g[:, 1:]) + self.error**2)
        return normal(self.y - g[:, :1], sd).sum(axis=1) + normal(g[:, 1], 5)

    def posterior(self):
        structure = Parts.of(2, np.arange(len(self.y)))
        start, locations = np.zeros(2 + len(self.y)), np.array([True, False])
        evaluate = self.value_and_grad, self.curvature, self.by_group
        return Posterior(structure, *evaluate, start, locations)
