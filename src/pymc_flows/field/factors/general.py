"""Sparse factors of bands, trees and graphs, by SuperLU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from pymc_flows.field.factors.base import Factor, Factoring, NotPositiveDefinite


@dataclass(frozen=True, eq=False)
class SparseFactor(Factor):
    """P Q P' = L D L', by SuperLU without pivoting; R is D^½ L' P."""

    lu: object
    lower: scipy.sparse.csr_matrix
    root: np.ndarray
    order: np.ndarray

    @property
    def half_log_det(self) -> float:
        """½ log|Q|, in nats."""
        return float(np.log(self.root).sum())

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b."""
        return self._columns(self.lu.solve, b)  # type: ignore[attr-defined]

    def color(self, noise: np.ndarray) -> np.ndarray:
        """Q⁻¹ P' L D^½ noise, which is P' L'⁻¹ D^-½ noise."""

        def draw(columns: np.ndarray) -> np.ndarray:
            product = self.lower @ (self.root[:, None] * columns)
            placed = np.empty_like(product)
            placed[self.order] = product
            return self.lu.solve(placed)  # type: ignore[attr-defined]

        return self._columns(draw, noise)

    def whiten(self, delta: np.ndarray) -> np.ndarray:
        """D^½ L' P delta."""

        def inverse(columns: np.ndarray) -> np.ndarray:
            return self.root[:, None] * (self.lower.T @ columns[self.order])

        return self._columns(inverse, delta)

    def variances(self, chunk: int = 256) -> np.ndarray:
        """Diagonal of Q⁻¹, by one solve per element."""
        n = len(self.root)
        found = np.empty(n)
        for begin in range(0, n, chunk):
            rows = np.arange(begin, min(begin + chunk, n))
            units = np.zeros((len(rows), n))
            units[np.arange(len(rows)), rows] = 1.0
            found[rows] = self.solve(units)[np.arange(len(rows)), rows]
        return found

    @staticmethod
    def _columns(map_columns: object, rows: np.ndarray) -> np.ndarray:
        columns = np.asfortranarray(rows.reshape(-1, rows.shape[-1]).T, dtype=float)
        return map_columns(columns).T.reshape(rows.shape)  # type: ignore[operator]


class SparseFactoring(Factoring):
    """Sparse factors with an order that keeps fill low: bands, trees, graphs."""

    def factor(self, entries: np.ndarray) -> SparseFactor:
        """Factor; the order is sought again each time, which SuperLU does not separate."""
        from scipy.sparse import linalg

        if not np.isfinite(entries).all():
            raise NotPositiveDefinite("the matrix is not finite")
        try:
            lu = linalg.splu(
                self.matrix(entries),
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
        except RuntimeError as error:  # exactly singular
            raise NotPositiveDefinite("the matrix is singular") from error
        pivots = lu.U.diagonal()
        if not (pivots > 0).all() or (lu.perm_r != lu.perm_c).any():
            raise NotPositiveDefinite("the matrix is not positive definite")
        return SparseFactor(lu, lu.L.tocsr(), np.sqrt(pivots), np.argsort(lu.perm_c))
