"""Cholesky factors of full matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from pymc_flows.field.factors.base import Factor, Factoring, cholesky


@dataclass(frozen=True, eq=False)
class DenseFactor(Factor):
    """A Cholesky factor; R is L'."""

    lower: np.ndarray

    @property
    def half_log_det(self) -> float:
        """½ log|Q|, in nats."""
        return float(np.log(np.diagonal(self.lower)).sum())

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b."""
        return self.color(_triangular(self.lower, b, trans=0))

    def color(self, noise: np.ndarray) -> np.ndarray:
        """L'⁻¹ noise."""
        return _triangular(self.lower, noise, trans=1)

    def whiten(self, delta: np.ndarray) -> np.ndarray:
        """L' delta."""
        return delta @ self.lower

    def variances(self) -> np.ndarray:
        """Diagonal of Q⁻¹, by n³/3 multiplications."""
        inverse = _triangular(self.lower, np.eye(len(self.lower)), trans=0)
        return np.square(inverse).sum(axis=1)


def _triangular(lower: np.ndarray, rows: np.ndarray, *, trans: int) -> np.ndarray:
    from scipy.linalg import solve_triangular

    shape = rows.shape
    columns = rows.reshape(-1, shape[-1]).T
    found = solve_triangular(lower, columns, lower=True, trans=trans, check_finite=False)
    return found.T.reshape(shape)


@dataclass(frozen=True)
class DenseFactoring(Factoring):
    """Cholesky factors of full matrices."""

    n: int

    def factor(self, matrix: scipy.sparse.csc_matrix) -> DenseFactor:
        """n³/3 multiplications."""
        return DenseFactor(cholesky(matrix.toarray()))
