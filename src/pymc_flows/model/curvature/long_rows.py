"""Jacobian rows so long that their products are kept apart from the sparse Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from pymc_flows.model.curvature.assembly import Product
from pymc_flows.model.curvature.jacobians import binned
from pymc_flows.model.structure.rows import Floats, Ints

# Dense factors are quickest for fields up to this size, whatever their pattern.
SMALL = 150
# A row is long if it has this share of the field's elements. At most so many rows are kept apart,
# since each takes a solve with every factor.
SHARE, MOST = 0.05, 16


@dataclass(frozen=True, eq=False)
class LongRows:
    """The part of low rank of a Hessian, Σ wᵢ uᵢ uᵢᵀ.

    A penalty on the sum of a field gives such a part: its row u sees all elements, and u uᵀ is
    full.

    Parameters
    ----------
    rows : ndarray, shape (k, n)
        The u, constant and dense.
    sources : tuple of (int, ndarray of int, ndarray of int)
        Slots of weights, elements of these, and the row that each element belongs to.
    """

    rows: Floats
    sources: tuple[tuple[int, Ints, Ints], ...]

    @classmethod
    def none(cls, n: int) -> LongRows:
        """No rows of n elements."""
        return cls(np.zeros((0, n)), ())

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def largest(self) -> int:
        """Entries that the longest row would have in a sparse Hessian."""
        return int((self.rows != 0).sum(axis=1).max(initial=0)) ** 2

    def weights(self, slots: Sequence[Floats], n_points: int) -> Floats:
        """The w (n_points, k) at points; slots have a row for each point, or one for all."""
        found = np.zeros((n_points, len(self)))
        for slot, elements, row in self.sources:
            found += binned(row, slots[slot][:, elements], len(self))
        return found


@dataclass(frozen=True, eq=False)
class LowRankSum:
    """A matrix (n, n): sparse + rowsᵀ diag(weights) rows.

    Parameters
    ----------
    sparse : csc_matrix, shape (n, n)
    rows : ndarray, shape (k, n)
    weights : ndarray, shape (k,)
    """

    sparse: scipy.sparse.csc_matrix
    rows: Floats
    weights: Floats

    def __matmul__(self, vector: Floats) -> Floats:
        """The matrix times a vector (n,)."""
        found: Floats = self.sparse @ vector + self.rows.T @ (self.weights * (self.rows @ vector))
        return found

    def diagonal(self) -> Floats:
        """Its diagonal (n,)."""
        found: Floats = self.sparse.diagonal() + self.weights @ np.square(self.rows)
        return found

    def toarray(self) -> Floats:
        """All its entries (n, n)."""
        found: Floats = self.sparse.toarray() + (self.rows.T * self.weights) @ self.rows
        return found


def set_apart(products: Sequence[Product], n: int) -> tuple[list[Product], LongRows]:
    """Take the squares of long constant rows out of products of n columns.

    Returns
    -------
    products : list of Product
        The products that are left.
    rows : LongRows
    """
    nothing = list(products), LongRows.none(n)
    if n <= SMALL:
        return nothing
    kept: list[Product] = []
    rows: list[Floats] = []
    sources: list[tuple[int, Ints, Ints]] = []
    for product in products:
        long = _long(product, SHARE * n)
        if len(rows) + len(long) > MOST:
            return nothing
        if not len(long):
            kept.append(product)
            continue
        index = product.left.index
        apart = np.isin(index, long)
        elements = np.flatnonzero(apart)
        sources.append((product.slot, elements, len(rows) + np.searchsorted(long, index[elements])))
        rows.extend(_dense(product, row, n) for row in long)
        if not apart.all():
            elements = np.flatnonzero(~apart)
            left = replace(product.left, index=index[elements])
            kept.append(replace(product, left=left, right=left, elements=elements))
    return kept, LongRows(np.stack(rows), tuple(sources)) if rows else LongRows.none(n)


def _long(product: Product, length: float) -> Ints:
    """Rows of at least a length that the product squares; none if they vary."""
    matrix = product.left.matrix
    if not product.same or matrix.steps:
        return np.zeros(0, np.intp)
    used = np.unique(product.left.index)
    long: Ints = used[np.diff(matrix.pattern.indptr)[used] >= length]
    return long


def _dense(product: Product, row: int, n: int) -> Floats:
    pattern, data = product.left.matrix.pattern, product.left.matrix.data
    entries = slice(*pattern.indptr[row : row + 2])
    found = np.zeros(n)
    found[pattern.indices[entries]] = data[entries]
    return found
