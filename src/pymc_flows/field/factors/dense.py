"""Cholesky factors of full matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from pymc_flows.field.factors.base import Factor, Factoring, Factors, NotPositiveDefinite


@dataclass(frozen=True, eq=False)
class DenseFactor(Factor):
    """A Cholesky factor L of Q with its elements in ``order``; R is L' in that order."""

    lower: np.ndarray
    order: np.ndarray | None = None

    @property
    def half_log_det(self) -> float:
        """½ log|Q|, in nats."""
        return float(np.log(np.diagonal(self.lower)).sum())

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b."""
        ordered = b if self.order is None else b[..., self.order]
        return self._back(_solved(self.lower, ordered))

    def color(self, noise: np.ndarray) -> np.ndarray:
        """L'⁻¹ noise."""
        ordered = noise if self.order is None else noise[..., self.order]
        return self._back(_triangular(self.lower, ordered))

    def whiten(self, delta: np.ndarray) -> np.ndarray:
        """L' delta."""
        if self.order is None:
            return delta @ self.lower
        return self._back(delta[..., self.order] @ self.lower)

    def _back(self, rows: np.ndarray) -> np.ndarray:
        """Rows in the order of Q."""
        if self.order is None:
            return rows
        found = np.empty_like(rows)
        found[..., self.order] = rows
        return found


# LAPACK is called directly, since SciPy's wrappers take longer than small systems do. LAPACK stores
# matrices by columns, and gets the upper triangle L'.


def _triangular(lower: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """L'⁻¹ times each row."""
    from scipy.linalg.lapack import dtrtrs

    found, _ = dtrtrs(lower.T, rows.reshape(-1, rows.shape[-1]).T, lower=0)
    return found.T.reshape(rows.shape)


def _solved(lower: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(L L')⁻¹ times each row."""
    from scipy.linalg.lapack import dpotrs

    found, _ = dpotrs(lower.T, rows.reshape(-1, rows.shape[-1]).T, lower=0)
    return found.T.reshape(rows.shape)


class DenseFactoring(Factoring):
    """Cholesky factors of full matrices.

    Parameters
    ----------
    pattern : csc_matrix
    order : ndarray of int, shape (n,), optional
        Order in which elements are eliminated; by default that of the matrix.
    """

    def __init__(self, pattern: scipy.sparse.csc_matrix, order: np.ndarray | None = None):
        super().__init__(pattern)
        self.order = order
        rank = np.arange(self.n) if order is None else np.argsort(order)
        self._places = rank[self.indices] * self.n + rank[self.columns]

    def factor(self, entries: np.ndarray) -> DenseFactor:
        """Factor in n³/3 multiplications."""
        found = self.factors(entries[None])[0]
        if found is None:
            raise NotPositiveDefinite("the matrix is not positive definite")
        return found

    def factors(self, entries: np.ndarray) -> Factors[DenseFactor]:
        """Factor matrices with entries (m, nnz)."""
        from scipy.linalg.lapack import dpotrf

        full = np.zeros((len(entries), self.n * self.n))
        full[:, self._places] = entries
        found: list[DenseFactor | None] = [None] * len(entries)
        for i in np.flatnonzero(np.isfinite(entries).all(axis=1)):
            upper, failed = dpotrf(full[i].reshape(self.n, self.n).T, lower=0)
            if not failed:
                found[i] = DenseFactor(upper.T, self.order)
        return Factors(found)
