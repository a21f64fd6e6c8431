"""Cholesky factors of full matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from pymc_flows.field.factors.base import Factor, Factoring, cholesky


@dataclass(frozen=True, eq=False)
class DenseFactor(Factor):
    """A Cholesky factor; R is L', in the order of the elements that it was made in."""

    lower: np.ndarray
    order: np.ndarray | None = None

    @property
    def half_log_det(self) -> float:
        """½ log|Q|, in nats."""
        return float(np.log(np.diagonal(self.lower)).sum())

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b."""
        return self._solve(self._solve(b, trans=0), trans=1)

    def color(self, noise: np.ndarray) -> np.ndarray:
        """L'⁻¹ noise."""
        return self._solve(noise, trans=1)

    def whiten(self, delta: np.ndarray) -> np.ndarray:
        """L' delta."""
        if self.order is None:
            return delta @ self.lower
        return self._back(delta[..., self.order] @ self.lower)

    def variances(self) -> np.ndarray:
        """Diagonal of Q⁻¹, by n³/3 multiplications."""
        inverse = _triangular(self.lower, np.eye(len(self.lower)), trans=0)
        return self._back(np.square(inverse).sum(axis=1))

    def _solve(self, rows: np.ndarray, *, trans: int) -> np.ndarray:
        ordered = rows if self.order is None else rows[..., self.order]
        return self._back(_triangular(self.lower, ordered, trans=trans))

    def _back(self, rows: np.ndarray) -> np.ndarray:
        """In the order of the matrix."""
        if self.order is None:
            return rows
        found = np.empty_like(rows)
        found[..., self.order] = rows
        return found


def _triangular(lower: np.ndarray, rows: np.ndarray, *, trans: int) -> np.ndarray:
    from scipy.linalg import solve_triangular

    shape = rows.shape
    columns = rows.reshape(-1, shape[-1]).T
    found = solve_triangular(lower, columns, lower=True, trans=trans, check_finite=False)
    return found.T.reshape(shape)


@dataclass(frozen=True, eq=False)
class DenseFactoring(Factoring):
    """Cholesky factors of full matrices.

    Attributes
    ----------
    order : ndarray of int, shape (n,), optional
        In which elements are eliminated; by default their own.
    """

    order: np.ndarray | None = None

    def factor(self, matrix: scipy.sparse.csc_matrix) -> DenseFactor:
        """n³/3 multiplications."""
        full = matrix.toarray()
        if self.order is not None:
            full = full[self.order[:, None], self.order]
        return DenseFactor(cholesky(full), self.order)
