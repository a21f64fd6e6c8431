"""The correction of Laplace's approximation, as a smooth function of the hyperparameters.

The corrected marginal takes many densities at each value of the hyperparameters, Laplace's
approximation one Newton step. Their difference changes slowly, so a polynomial of second degree is
fitted to few values of it, and judged by values that are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Penalties of linear and of quadratic terms, relative to the weight of all values; the last one
# leaves no quadratic terms.
LINEAR, QUADRATIC = (1e-4, 1e-2, 1.0), (1e-4, 1e-2, 1.0, 1e8)
# Fewest effective values for a fit.
FEWEST = 8


@dataclass(frozen=True, eq=False)
class Correction:
    """A polynomial of second degree in the hyperparameters.

    Attributes
    ----------
    center : ndarray, shape (n_hyper,)
    scale : ndarray, shape (n_hyper,)
    coefficients : ndarray, shape (1 + n_hyper + n_hyper (n_hyper + 1) / 2,)
    residual : float
        Root of the weighted mean square of its errors at values left out one by one, in nats.
    """

    center: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    residual: float

    def __call__(self, hyper: np.ndarray) -> np.ndarray:
        """Correction (n,) at values (n, n_hyper), in nats."""
        return quadratic_terms((hyper - self.center) / self.scale) @ self.coefficients


def fit_correction(
    hyper: np.ndarray, lacking: np.ndarray, weights: np.ndarray
) -> Correction | None:
    """Fit a correction by weighted ridge regression; None if there are too few values.

    The penalties of linear and quadratic terms are chosen by leaving out one value at a time.

    Parameters
    ----------
    hyper : ndarray, shape (n, n_hyper)
    lacking : ndarray, shape (n,)
        Corrected marginal − Laplace's approximation, in nats; those that are not finite are
        ignored.
    weights : ndarray, shape (n,)
        Weights of the values, not negative.
    """
    known = np.isfinite(lacking) & (weights > 0)
    hyper, lacking, weights = hyper[known], lacking[known], weights[known]
    if not len(weights) or weights.sum() ** 2 < FEWEST * np.square(weights).sum():
        return None
    weights = weights / weights.sum()
    center = weights @ hyper
    scale = np.sqrt(weights @ np.square(hyper - center))
    scale = np.where(scale > 0, scale, 1.0)
    features, n = quadratic_terms((hyper - center) / scale), hyper.shape[1]
    root = np.sqrt(weights)
    design, target = features * root[:, None], lacking * root
    best: Correction | None = None
    for linear in LINEAR:
        for quadratic in QUADRATIC:
            penalty = np.zeros(features.shape[1])
            penalty[1 : n + 1], penalty[n + 1 :] = linear, quadratic
            solved = np.linalg.solve(design.T @ design + np.diag(penalty), design.T)
            found = solved @ target
            leverage = np.minimum(np.einsum("ij,ji->i", design, solved), 1 - 1e-6)
            left_out = (target - design @ found) / (1 - leverage)
            residual = float(np.sqrt(np.square(left_out).sum()))
            if best is None or residual < best.residual:
                best = Correction(center, scale, found, residual)
    return best


def quadratic_terms(z: np.ndarray) -> np.ndarray:
    """Terms of a polynomial of second degree at points (n, d), the constant first."""
    rows, columns = np.triu_indices(z.shape[1])
    return np.concatenate([np.ones((len(z), 1)), z, z[:, rows] * z[:, columns]], axis=1)
