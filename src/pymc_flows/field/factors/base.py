"""Factors of sparse positive-definite matrices whose pattern never changes.

A precision matrix Q is factored as Q = R'R; each factorisation has its own R. It gives solutions of
Q x = b, draws R⁻¹ε, their inverse map R δ, and the determinant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy


class NotPositiveDefinite(ArithmeticError):
    """A matrix is not positive definite, or not finite, and so has no factor."""


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


class Factors[F: Factor]:
    """Factors of several matrices with the same pattern.

    Parameters
    ----------
    factors : sequence of Factor or None
        None for a matrix that is not positive definite.
    """

    def __init__(self, factors: Sequence[F | None]):
        self._factors = factors

    def __getitem__(self, i: int) -> F | None:
        """The factor of one matrix."""
        return self._factors[i]

    @property
    def exist(self) -> np.ndarray:
        """Which matrices (m,) have a factor."""
        return np.array([factor is not None for factor in self._factors], dtype=bool)

    def solve(self, rows: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b for vectors b (k, n), each with the matrix of one of the rows (k,)."""
        found = np.empty(b.shape)
        for k, i in enumerate(rows.tolist()):
            factor = self._factors[i]
            assert factor is not None
            found[k] = factor.solve(b[k])
        return found


class Factoring(ABC):
    """Factors matrices with the same pattern.

    Parameters
    ----------
    pattern : csc_matrix, shape (n, n)
        With sorted indices; its values do not matter.
    """

    def __init__(self, pattern: scipy.sparse.csc_matrix):
        self.n = pattern.shape[0]
        self.indices, self.indptr = pattern.indices, pattern.indptr

    @property
    def columns(self) -> np.ndarray:
        """Column of each entry."""
        return np.repeat(np.arange(self.n), np.diff(self.indptr))

    def matrix(self, entries: np.ndarray) -> scipy.sparse.csc_matrix:
        """The matrix with entries (nnz,)."""
        return scipy.sparse.csc_matrix((entries, self.indices, self.indptr), (self.n, self.n))

    @abstractmethod
    def factor(self, entries: np.ndarray) -> Factor:
        """Factor a matrix with entries (nnz,), in the order of the pattern.

        Raises
        ------
        NotPositiveDefinite
        """

    def factors(self, entries: np.ndarray) -> Factors[Any]:
        """Factor matrices with entries (m, nnz), in the order of the pattern."""
        found: list[Factor | None] = []
        for row in entries:
            try:
                found.append(self.factor(row))
            except NotPositiveDefinite:
                found.append(None)
        return Factors(found)


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """Lower Cholesky factors of matrices (..., n, n).

    Raises
    ------
    NotPositiveDefinite
    """
    if not np.isfinite(matrix).all():
        raise NotPositiveDefinite("the matrix is not finite")
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError as error:
        raise NotPositiveDefinite("the matrix is not positive definite") from error
