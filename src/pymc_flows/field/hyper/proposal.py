"""Student-t distributions over hyperparameters, and weighted values of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pymc_flows.field.conditional.noise import sobol
from pymc_flows.formula import Formula

# Effective values per hyperparameter that a covariance needs.
ENOUGH = 5


@dataclass(frozen=True, eq=False)
class Proposal:
    """A Student-t distribution, or, with infinite degrees of freedom, a Gaussian.

    Attributes
    ----------
    loc : ndarray, shape (n_hyper,)
    lower : ndarray, shape (n_hyper, n_hyper)
        Lower-triangular factor of the scale matrix.
    degrees : float
    """

    loc: np.ndarray
    lower: np.ndarray
    degrees: float = math.inf

    @property
    def formula(self) -> Formula:
        """The formula of the Gaussian as a flow."""
        return Formula("tril-loc")

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Map standard normal noise (n, n_hyper) to draws of N(loc, lower lowerᵀ)."""
        return self.loc + noise @ self.lower.T

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``n`` points (n, n_hyper), from a scrambled Sobol' sequence."""
        from scipy.special import ndtri
        from scipy.stats import chi2

        dim = len(self.loc)
        uniform = sobol(n, dim + 1, rng)
        noise = ndtri(uniform[:, :dim])
        if math.isfinite(self.degrees):
            noise *= np.sqrt(self.degrees / chi2.ppf(uniform[:, dim:], self.degrees))
        return self.place(noise)

    def log_prob(self, hyper: np.ndarray) -> np.ndarray:
        """Log density (n,) at points (n, n_hyper), in nats."""
        from scipy.linalg import solve_triangular
        from scipy.special import gammaln

        dim, nu = len(self.loc), self.degrees
        if dim == 0:
            return np.zeros(len(hyper))
        noise = solve_triangular(self.lower, (hyper - self.loc).T, lower=True)
        squares = np.square(noise).sum(axis=0)
        log_det = float(np.log(np.diagonal(self.lower)).sum())
        if not math.isfinite(nu):
            return -0.5 * (squares + dim * math.log(2 * math.pi)) - log_det
        constant = gammaln((nu + dim) / 2) - gammaln(nu / 2) - 0.5 * dim * math.log(nu * math.pi)
        return constant - log_det - 0.5 * (nu + dim) * np.log1p(squares / nu)


def mixture_log_prob(parts: Sequence[tuple[Any, int]], hyper: np.ndarray) -> np.ndarray:
    """Log density (n,) of the mixture of proposals, by the number of draws of each, in nats.

    Draws of several rounds count as draws of this mixture (Cornuet, Marin, Mira & Robert, Adaptive
    Multiple Importance Sampling, Scand. J. Statist. 39(4), 2012).
    """
    total = sum(n for _, n in parts)
    terms = np.stack([p.log_prob(hyper) + math.log(n / total) for p, n in parts])
    top = terms.max(axis=0)
    return top + np.log(np.exp(terms - top).sum(axis=0))


def moments(hyper: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n_hyper,) and covariance (n_hyper, n_hyper) of weighted points; weights sum to 1."""
    mean = weights @ hyper
    rest = (hyper - mean) * np.sqrt(weights)[:, None]
    return mean, rest.T @ rest


def spread_errors(hyper: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Standard errors (n_hyper,) of standard deviations of weighted points, relative to these.

    By the delta method for self-normalised weights (Owen, Monte Carlo theory, methods and examples,
    2013, section 9.2); values of 0 have an error of 0.
    """
    squares = np.square(hyper - weights @ hyper)
    variance = weights @ squares
    errors = np.sqrt(np.square(weights) @ np.square(squares - variance))
    return 0.5 * errors / np.where(variance > 0, variance, 1.0)


def tempered(log_weights: np.ndarray) -> np.ndarray:
    """Normalised square roots of weights; NaN counts as no weight."""
    known = np.where(np.isnan(log_weights), -np.inf, log_weights)
    top = known.max(initial=-np.inf)
    if not np.isfinite(top):
        return np.full(len(known), 1 / max(len(known), 1))
    weights = np.exp((known - top) / 2)
    return weights / weights.sum()


def lower_factor(covariance: np.ndarray) -> np.ndarray:
    """Cholesky factor of a covariance, whose correlations get 1e-10 added to their diagonal."""
    if len(covariance) == 0:
        return covariance
    sd = np.sqrt(np.maximum(np.diagonal(covariance), 1e-300))
    correlation = covariance / sd / sd[:, None] + 1e-10 * np.eye(len(sd))
    return sd[:, None] * np.linalg.cholesky(correlation)
