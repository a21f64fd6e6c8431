"""Sparse factors of bands, trees and graphs, by SuperLU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy

from pymc_flows.field.factors.base import Factor, Factoring, NotPositiveDefinite

# SuperLU's options for symmetric matrices: no pivoting.
SYMMETRIC = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}


@dataclass(frozen=True, eq=False)
class SparseFactor(Factor):
    """P Q P' = L D L', by SuperLU without pivoting; R is D^½ L' P."""

    lu: Any
    lower: scipy.sparse.csr_matrix
    root: np.ndarray
    order: np.ndarray

    @property
    def half_log_det(self) -> float:
        """½ log|Q|, in nats."""
        return float(np.log(self.root).sum())

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b."""
        return self._back(self._solved(self._columns(b)[self.order]), b)

    def color(self, noise: np.ndarray) -> np.ndarray:
        """Q⁻¹ P' L D^½ noise, which is P' L'⁻¹ D^-½ noise."""
        product = self.lower @ (self.root[:, None] * self._columns(noise))
        return self._back(self._solved(product), noise)

    def whiten(self, delta: np.ndarray) -> np.ndarray:
        """D^½ L' P delta."""
        white = self.root[:, None] * (self.lower.T @ self._columns(delta)[self.order])
        return white.T.reshape(delta.shape)

    def _solved(self, columns: np.ndarray) -> np.ndarray:
        """(L D L')⁻¹ times each column."""
        found: np.ndarray = self.lu.solve(np.asfortranarray(columns))
        return found

    def _back(self, ordered: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Undo P: columns P x become rows x, in the shape of ``rows``."""
        found = np.empty((ordered.shape[1], len(self.order)))
        found[:, self.order] = ordered.T
        return found.reshape(rows.shape)

    @staticmethod
    def _columns(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(-1, rows.shape[-1]).T.astype(float, copy=False)


class SparseFactoring(Factoring):
    """Sparse factors with an order that keeps fill low: bands, trees, graphs."""

    def factor(self, entries: np.ndarray) -> SparseFactor:
        """Factor in the order that was found for the pattern."""
        from scipy.sparse import linalg

        if not np.isfinite(entries).all():
            raise NotPositiveDefinite("the matrix is not finite")
        order, numbers = self._ordered
        matrix = scipy.sparse.csc_matrix(
            (entries[numbers.data], numbers.indices, numbers.indptr), numbers.shape
        )
        try:
            lu = linalg.splu(matrix, permc_spec="NATURAL", **SYMMETRIC)
        except RuntimeError as error:  # exactly singular
            raise NotPositiveDefinite("the matrix is singular") from error
        pivots = lu.U.diagonal()
        if not (pivots > 0).all() or (lu.perm_r != lu.perm_c).any():
            raise NotPositiveDefinite("the matrix is not positive definite")
        return SparseFactor(lu, lu.L.tocsr(), np.sqrt(pivots), order)

    @cached_property
    def _ordered(self) -> tuple[np.ndarray, scipy.sparse.csc_matrix]:
        """The order of minimum degree, and the matrix of the entries' indices in that order.

        SuperLU would seek the order for each factor, which takes longer than the rest. It keeps an
        order that has been found and then sorted by its elimination tree: hence two passes.
        """
        from scipy.sparse import linalg

        diagonal = self.indices == self.columns
        dominant = self.matrix(np.where(diagonal, 1.0 + self.n, -1.0))
        numbers = self.matrix(np.arange(1, len(self.indices) + 1))
        order = np.arange(self.n)
        for spec in ("MMD_AT_PLUS_A", "NATURAL"):
            found = linalg.splu(dominant[order][:, order].tocsc(), permc_spec=spec, **SYMMETRIC)
            order = order[np.argsort(found.perm_c)]
        numbers = numbers[order][:, order].tocsc()
        numbers.sort_indices()
        numbers.data -= 1
        return order, numbers
