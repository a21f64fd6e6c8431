"""A Gaussian over the field, for one value of the hyperparameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pymc_flows.field.factors import Factor


@dataclass(frozen=True, eq=False)
class FieldGaussian:
    """N(mean, Q⁻¹) over the field given hyperparameters.

    Attributes
    ----------
    hyper : ndarray, shape (n_hyper,)
    mean : ndarray, shape (n_field,)
    factor : Factor
        Of the precision matrix Q.
    log_joint : float
        Log density of the model at (hyper, mode), in nats.
    shift : ndarray, shape (n_field,), optional
        Mean − mode, in the coordinates of the noise; by default 0.
    averages : tuple of float and ndarray, optional
        Log density in nats and its gradient (dim,), averaged over this Gaussian; None if unknown.
    excess : ndarray, shape (n_entries,), optional
        Entries of Q minus those of the curvature at the mean. Only the Gaussian nearest to the
        field has them, see `nearest_gaussian`.
    """

    hyper: np.ndarray
    mean: np.ndarray
    factor: Factor
    log_joint: float
    shift: np.ndarray | None = None
    averages: tuple[float, np.ndarray] | None = None
    excess: np.ndarray | None = None

    @property
    def log_marginal(self) -> float:
        """Approximation of the log density of the hyperparameters and the data, in nats.

        Laplace's, which is exact if the field given them is Gaussian; for the Gaussian nearest to
        the field, the lower bound.
        """
        if self.excess is not None and self.averages is not None:
            return self.averages[0] + self.log_normalizer + 0.5 * len(self.mean)
        return self.log_joint + self.log_normalizer

    @property
    def log_normalizer(self) -> float:
        """½ n_field log 2π − ½ log|Q|, in nats."""
        return 0.5 * len(self.mean) * math.log(2 * math.pi) - self.factor.half_log_det

    @property
    def mode(self) -> np.ndarray:
        """Mode of the field (n_field,)."""
        return self.mean if self.shift is None else self.mean - self.factor.color(self.shift)

    def moved(self, by: np.ndarray) -> FieldGaussian:
        """The Gaussian with its mean moved by a vector (n_field,) in coordinates of the noise."""
        shift = by if self.shift is None else self.shift + by
        mean = self.mean + self.factor.color(by)
        return replace(self, mean=mean, shift=shift, averages=None)

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Draws (n, n_field) from standard normal noise (n, n_field)."""
        return self.mean + self.factor.color(noise)

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        """Log density (n,) of the field (n, n_field), in nats."""
        noise = self.factor.whiten(field - self.mean)
        return -0.5 * np.square(noise).sum(axis=-1) - self.log_normalizer
