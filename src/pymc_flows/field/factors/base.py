"""Factors of sparse positive-definite matrices whose pattern never changes.

A precision matrix Q of a Gaussian is factored as Q = R'R, whatever R is; what is needed of it are
solutions of Q x = b, draws R⁻¹ε, their inverse map R δ, and the determinant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy


class NotPositiveDefinite(ArithmeticError):
    """A matrix has no factor: it is not positive definite, or not finite."""


class Factor(ABC):
    """R with R'R = Q, for one Q (n, n).

    Vectors are rows: arrays (..., n).
    """

    @property
    @abstractmethod
    def half_log_det(self) -> float:
        """½ log|Q|, in nats."""

    @abstractmethod
    def solve(self, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b."""

    @abstractmethod
    def color(self, noise: np.ndarray) -> np.ndarray:
        """R⁻¹ noise: draws of N(0, Q⁻¹) from standard normal noise."""

    @abstractmethod
    def whiten(self, delta: np.ndarray) -> np.ndarray:
        """R delta, the inverse of `color`."""

    @abstractmethod
    def variances(self) -> np.ndarray:
        """The diagonal of Q⁻¹ (n,); its cost grows with the fill of R times n."""


class Factoring(ABC):
    """Makes factors of matrices with one pattern."""

    @abstractmethod
    def factor(self, matrix: scipy.sparse.csc_matrix) -> Factor:
        """Factor a matrix with the pattern.

        Raises
        ------
        NotPositiveDefinite
        """


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """Lower factors of matrices (..., n, n); raise `NotPositiveDefinite`."""
    if not np.isfinite(matrix).all():
        raise NotPositiveDefinite("the matrix is not finite")
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError as error:
        raise NotPositiveDefinite("the matrix is not positive definite") from error
