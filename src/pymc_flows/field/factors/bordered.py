"""Factors of matrices with a border: independent groups, all tied to a separator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from pymc_flows.field.factors.base import Factor, Factoring, cholesky
from pymc_flows.field.factors.blocks import BlockFactor
from pymc_flows.field.factors.dense import DenseFactor

# A product of sparse matrices with a larger share of non-zeros is kept dense.
FULL = 0.2


@dataclass(frozen=True, eq=False)
class BorderedFactor(Factor):
    """Q = [A B; B' C]: a factor of A, V = A⁻¹B, and one of the Schur complement S = C − B'V.

    R maps δ = (x, s) to (R_A (x + V s), R_S s).
    """

    rest: np.ndarray
    separator: np.ndarray
    inner: Factor
    coupling: np.ndarray | scipy.sparse.csr_matrix
    outer: DenseFactor

    @property
    def half_log_det(self) -> float:
        """½ log|Q|, in nats."""
        return self.inner.half_log_det + self.outer.half_log_det

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b."""
        x, s = b[..., self.rest], b[..., self.separator]
        s = self.outer.solve(s - self._times(self.coupling.T, x))
        return self._join(self.inner.solve(x) - self._times(self.coupling, s), s)

    def color(self, noise: np.ndarray) -> np.ndarray:
        """R⁻¹ noise."""
        s = self.outer.color(noise[..., self.separator])
        x = self.inner.color(noise[..., self.rest]) - self._times(self.coupling, s)
        return self._join(x, s)

    def whiten(self, delta: np.ndarray) -> np.ndarray:
        """R delta."""
        x, s = delta[..., self.rest], delta[..., self.separator]
        return self._join(
            self.inner.whiten(x + self._times(self.coupling, s)), self.outer.whiten(s)
        )

    def _join(self, x: np.ndarray, s: np.ndarray) -> np.ndarray:
        found = np.empty((*x.shape[:-1], len(self.rest) + len(self.separator)))
        found[..., self.rest], found[..., self.separator] = x, s
        return found

    @staticmethod
    def _times(matrix: np.ndarray | scipy.sparse.csr_matrix, rows: np.ndarray) -> np.ndarray:
        """The matrix times each row."""
        product = (matrix @ rows.reshape(-1, rows.shape[-1]).T).T
        return np.asarray(product).reshape((*rows.shape[:-1], matrix.shape[0]))


class BorderedFactoring(Factoring):
    """Factors that eliminate the groups, then the separator.

    Parameters
    ----------
    pattern : csc_matrix, shape (n, n)
    rest, separator : ndarray of int
        Indices of both parts.
    inner : Factoring
        Of the rows and columns ``rest``.
    rows : ndarray, shape (k, n), optional
        V of a part V' diag(w) V that is added to the matrix, whose entries are followed by the
        weights w. ``inner`` has the columns ``rest`` of the rows that are not 0 there.
    """

    def __init__(
        self,
        pattern: scipy.sparse.csc_matrix,
        rest: np.ndarray,
        separator: np.ndarray,
        inner: Factoring,
        rows: np.ndarray | None = None,
    ):
        super().__init__(pattern)
        self.rest, self.separator, self.inner = rest, separator, inner
        entries = scipy.sparse.csc_matrix(
            (np.arange(1, pattern.nnz + 1), pattern.indices, pattern.indptr), pattern.shape
        )
        self._inner = _sorted(entries[rest][:, rest])
        self._border = _sorted(entries[rest][:, separator])
        self._outer = _sorted(entries[separator][:, separator])
        rows = np.zeros((0, self.n)) if rows is None else rows
        self._inside = touching(rows, rest)
        self._rows = scipy.sparse.csc_matrix(rows[:, rest]), rows[:, separator]

    def factor(self, entries: np.ndarray) -> BorderedFactor:
        """Factor both parts; the separator costs the cube of its size."""
        weights = entries[len(self.indices) :]
        inner = self.inner.factor(
            np.concatenate([entries[self._inner.data - 1], weights[self._inside]])
        )
        border, outer = _filled(self._border, entries), _filled(self._outer, entries).toarray()
        if len(weights):
            mine, theirs = self._rows
            weighted = weights[:, None] * theirs
            border = (border + mine.T @ scipy.sparse.csc_matrix(weighted)).tocsc()
            outer += theirs.T @ weighted
        coupling: np.ndarray | scipy.sparse.csr_matrix
        if isinstance(inner, BlockFactor):
            coupling = (inner.inverse() @ border).tocsr()
            if coupling.nnz > FULL * coupling.shape[0] * coupling.shape[1]:
                coupling = coupling.toarray()
        else:
            coupling = np.ascontiguousarray(inner.solve(border.T.toarray()).T)
        product = border.T @ coupling
        schur = outer - (product.toarray() if scipy.sparse.issparse(product) else product)
        lower = cholesky((schur + schur.T) / 2)
        return BorderedFactor(self.rest, self.separator, inner, coupling, DenseFactor(lower))


def touching(rows: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """Indices of the rows (k, n) that are not 0 in all of these elements."""
    return np.flatnonzero((rows[:, elements] != 0).any(axis=1))


def _sorted(matrix: scipy.sparse.csc_matrix) -> scipy.sparse.csc_matrix:
    matrix = matrix.tocsc()
    matrix.sort_indices()
    return matrix


def _filled(numbers: scipy.sparse.csc_matrix, entries: np.ndarray) -> scipy.sparse.csc_matrix:
    """Part of a matrix: ``numbers`` holds the places of its values in ``entries``, from 1."""
    data = entries[numbers.data - 1]
    return scipy.sparse.csc_matrix((data, numbers.indices, numbers.indptr), shape=numbers.shape)
