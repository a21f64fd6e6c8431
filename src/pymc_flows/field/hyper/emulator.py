"""An emulator of the log marginal: a quadratic in the hyperparameters plus a Gaussian process.

With large fields each value of the marginal takes tens of milliseconds to seconds, and thousands
of them are wanted. In a few hyperparameters the log marginal is smooth, and a hundred values tell
the others (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, section 2.7). The
errors at values left out, one by one, say whether they do (Dubrule, Cross validation of kriging in
a unique neighborhood, Mathematical Geology 15(6), 1983).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pymc_flows.field.hyper.correction import quadratic_terms
from pymc_flows.field.hyper.proposal import lower_factor, moments

# Lengths of correlation that are tried, in standard deviations of the posterior, and variances of
# the noise, as shares of that of the process.
LENGTHS, NOISES = (2.0, 3.0, 4.5, 7.0, 10.0), (1e-6, 1e-4, 1e-2)
# Values this far below the largest, in nats, have no weight. No prediction is trusted near them: a
# value with weight must be nearer by this factor.
DEPTH, NEARER = 15.0, 3.0
# Least standard deviation of the process, in nats: else a quadratic would be trusted anywhere.
LEAST = 0.01
# Fewest values for each coefficient of the quadratic, and most values that are used.
FEWEST, MOST = 2, 400


@dataclass(frozen=True, eq=False)
class Emulator:
    """Predicts the log marginal from known values of it.

    Attributes
    ----------
    center : ndarray, shape (n_hyper,)
    lower : ndarray, shape (n_hyper, n_hyper)
        Factor of the covariance by which hyperparameters are scaled.
    knots : ndarray, shape (n, n_hyper)
        Scaled hyperparameters of the known values.
    empty : ndarray, shape (m, n_hyper)
        Those of known values without weight.
    length, noise, scale : float
        Length of correlation; variance of the noise, as a share of that of the process; standard
        deviation of the process, in nats.
    inverse : ndarray, shape (n, n)
        Inverse of the correlations of the known values, with their noise.
    basis : ndarray, shape (p, n)
        What multiplies values of the process to give the coefficients of the quadratic.
    gram : ndarray, shape (p, p)
        Covariance of these coefficients, as a share of the variance of the process.
    coefficients : ndarray, shape (p,)
    weights : ndarray, shape (n,)
        Of the correlations with the known values.
    error : float
        Root of the weighted mean square of the errors at values left out, in nats.
    """

    center: np.ndarray
    lower: np.ndarray
    knots: np.ndarray
    empty: np.ndarray
    length: float
    noise: float
    scale: float
    inverse: np.ndarray
    basis: np.ndarray
    gram: np.ndarray
    coefficients: np.ndarray
    weights: np.ndarray
    error: float

    def __call__(self, hyper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means (m,) and standard deviations (m,) of predictions at values (m, n_hyper).

        Standard deviations are infinite near known values without weight.
        """
        z = _scaled(hyper, self.center, self.lower)
        near, design = _correlation(z, self.knots, self.length), quadratic_terms(z)
        mean = design @ self.coefficients + near @ self.weights
        rest = design - near @ self.basis.T
        known = ((near @ self.inverse) * near).sum(axis=1)
        unknown = ((rest @ self.gram) * rest).sum(axis=1)
        sd = self.scale * np.sqrt(np.maximum(1 + self.noise - known + unknown, 0.0))
        if len(self.empty):
            away, near = (_squares(z, x).min(axis=1) for x in (self.empty, self.knots))
            sd[away < NEARER**2 * near] = np.inf
        return mean, sd


def fit_emulator(hyper: np.ndarray, log_p: np.ndarray, weights: np.ndarray) -> Emulator | None:
    """Fit an emulator; None if there are too few values.

    Length and noise are chosen by leaving out one value at a time.

    Parameters
    ----------
    hyper : ndarray, shape (n, n_hyper)
    log_p : ndarray, shape (n,)
        Log marginal, in nats.
    weights : ndarray, shape (n,)
        Weights of the values, not negative: for the scale of the hyperparameters and the errors.
    """
    top = log_p.max(initial=-np.inf)
    is_known = (log_p > top - DEPTH) & (log_p < np.inf)
    known, empty = np.flatnonzero(is_known), hyper[~is_known]
    if len(known) > MOST:  # as many of the largest as of the smallest
        known = known[np.argsort(log_p[known], kind="stable")]
        known = known[np.linspace(0, len(known) - 1, MOST).astype(int)]
    hyper, log_p, weights = hyper[known], log_p[known], weights[known]
    n_hyper = hyper.shape[1]
    n_coefficients = 1 + n_hyper + n_hyper * (n_hyper + 1) // 2
    if not n_hyper or len(known) < FEWEST * n_coefficients or not weights.any():
        return None
    weights = weights / weights.sum()
    center, covariance = moments(hyper, weights)
    lower = lower_factor(covariance)
    z = _scaled(hyper, center, lower)
    design, best = quadratic_terms(z), None
    for length in LENGTHS:
        correlation = _correlation(z, z, length)
        for noise in NOISES:
            found = _solved(design, correlation + noise * np.eye(len(z)), log_p)
            if found is None:
                continue
            inverse, basis, gram, coefficients = found
            left = inverse @ (log_p - design @ coefficients)
            # Without value i, its error is left[i] / projected[i, i].
            projected = inverse - basis.T @ gram @ basis
            errors = left / np.diagonal(projected)
            error = float(np.sqrt(weights @ np.square(errors)))
            if not math.isfinite(error) or (best is not None and error >= best.error):
                continue
            degrees = len(z) - n_coefficients
            variance = float((log_p - design @ coefficients) @ left) / degrees
            scale = max(math.sqrt(max(variance, 0.0)), LEAST)
            best = Emulator(
                center,
                lower,
                z,
                _scaled(empty, center, lower),
                length,
                noise,
                scale,
                inverse,
                basis,
                gram,
                coefficients,
                left,
                error,
            )
    return best


def _solved(
    design: np.ndarray, correlation: np.ndarray, log_p: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Generalised least squares: the inverse, the basis, its Gram matrix, and coefficients."""
    try:
        lower = np.linalg.cholesky(correlation)
    except np.linalg.LinAlgError:
        return None
    from scipy.linalg import cho_solve

    inverse = cho_solve((lower, True), np.eye(len(lower)))
    inner = inverse @ design
    gram = np.linalg.pinv(design.T @ inner, hermitian=True)
    return inverse, inner.T, gram, gram @ (inner.T @ log_p)


def _scaled(hyper: np.ndarray, center: np.ndarray, lower: np.ndarray) -> np.ndarray:
    from scipy.linalg import solve_triangular

    return solve_triangular(lower, (hyper - center).T, lower=True).T


def _correlation(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    """Correlations (m, n) of the process between places (m, d) and (n, d)."""
    return np.exp(-0.5 * _squares(a, b) / length**2)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (m, n) between places (m, d) and (n, d)."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.maximum(squares, 0.0)
