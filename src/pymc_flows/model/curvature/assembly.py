"""The sum of weighted products of Jacobian rows, whose places in the Hessian are found once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy

from pymc_flows.model.curvature.jacobians import Matrix, binned
from pymc_flows.model.curvature.kernels import outer_products
from pymc_flows.model.structure.rows import (
    Floats,
    Ints,
    Pattern,
    Rows,
    distinct_rows,
    indptr_of,
    ranges,
)

# So few products need no kernel: loading numba and the kernel takes longer than many Hessians.
FEW = 1_000
# From so many pairs of rows and columns of one pattern on, products of dense matrices are quicker.
_MIN_DENSE_ROWS, _MIN_DENSE_COLUMNS = 16, 6
# Numbers of these at once, which stay in the caches of the processor.
_DENSE_NUMBERS = 2**17


@dataclass(frozen=True)
class Product:
    """Uᵀ diag(w) V, and its transpose unless U and V are the same rows.

    Parameters
    ----------
    left, right : Rows
        Jacobians, element by element of w.
    slot : int
        Slot of w.
    same : bool
        Whether U and V are the same rows.
    elements : ndarray of int, optional
        Elements of the slot; None for all.
    """

    left: Rows[Matrix]
    right: Rows[Matrix]
    slot: int
    same: bool
    elements: Ints | None = None


@dataclass(frozen=True)
class _Pairs:
    """The distinct pairs of rows of a product, grouped by their columns.

    Parameters
    ----------
    product : Product
    pair : ndarray of int, optional
        The pair of each element of w; None if all are distinct.
    left, right : ndarray of int
        Rows of the pairs.
    table : ndarray of int
        The table of each pair.
    begin : ndarray of int
        Where tables begin.
    keys : ndarray of int
        Row · n + column of all entries of all tables, in the lower triangle.
    """

    product: Product
    pair: Ints | None
    left: Ints
    right: Ints
    table: Ints
    begin: Ints
    keys: Ints

    @property
    def size(self) -> int:
        """Number of products of two entries."""
        return int(np.diff(self.begin)[self.table].sum())


@dataclass(frozen=True)
class _Listed:
    """Products of two entries and a weight, one by one.

    Parameters
    ----------
    pairs : _Pairs
    weight, left, right, place : ndarray of int
        Positions of the three factors, and of the product.
    times : ndarray
        2 for an entry of the diagonal that stands for both triangles, else 1.
    """

    pairs: _Pairs
    weight: Ints
    left: Ints
    right: Ints
    place: Ints
    times: Floats

    @classmethod
    def of(cls, pairs: _Pairs, places: Ints) -> _Listed:
        """List the products of pairs of rows."""
        product = pairs.product
        one, other = product.left.matrix.pattern, product.right.matrix.pattern
        weight, left, right = _outer(one, other, pairs.left, pairs.right, same=product.same)
        sizes = np.diff(pairs.begin)[pairs.table]
        place = places[ranges(pairs.begin[pairs.table], sizes)]
        twice = False if product.same else one.indices[left] == other.indices[right]
        return cls(pairs, weight, left, right, place, np.where(twice, 2.0, 1.0))

    def sums(self, w: Floats, n: int) -> Floats:
        """Sums (points, n) of the products, with weights (points, pairs)."""
        left, right = self.pairs.product.left.matrix.data, self.pairs.product.right.matrix.data
        products = w[:, self.weight] * left[..., self.left] * right[..., self.right] * self.times
        return binned(self.place, products, n)


def _pairs(product: Product, n: int) -> _Pairs:
    a, b = product.left, product.right
    width = b.matrix.pattern.n_rows
    code = a.index * width + b.index
    distinct, index = np.unique(code, return_inverse=True)
    if len(distinct) == len(code):
        left, right, pair = a.index, b.index, None
    else:
        left, right, pair = distinct // width, distinct % width, index
    one, other = a.matrix.pattern, b.matrix.pattern
    kinds = _kinds(one, left), _kinds(other, right)
    table_code = kinds[0] * (int(kinds[1].max(initial=0)) + 1) + kinds[1]
    _, first, table = np.unique(table_code, return_index=True, return_inverse=True)
    owner, i, j = _outer(one, other, left[first], right[first], same=product.same)
    rows, columns = one.indices[i], other.indices[j]
    keys = np.maximum(rows, columns) * n + np.minimum(rows, columns)
    begin = indptr_of(np.bincount(owner, minlength=len(first)))
    return _Pairs(product, pair, left, right, table, begin, keys)


def _kinds(pattern: Pattern, rows: Ints) -> Ints:
    """Number the patterns of rows: equal numbers mean equal columns."""
    used, index = np.unique(rows, return_inverse=True)
    return distinct_rows(pattern, used)[index]


def _outer(
    one: Pattern, other: Pattern, left: Ints, right: Ints, *, same: bool
) -> tuple[Ints, Ints, Ints]:
    """Products of entries of pairs of rows, in the order of the kernel.

    Returns
    -------
    pair, left, right : ndarray of int
        The pair that each product is of, and the positions of its two entries.
    """
    starts = one.indptr[left], other.indptr[right]
    widths = one.indptr[left + 1] - starts[0], other.indptr[right + 1] - starts[1]
    sizes = widths[0] * widths[1]
    pair = np.repeat(np.arange(len(sizes)), sizes)
    row, column = np.divmod(ranges(np.zeros_like(sizes), sizes), widths[1][pair])
    if same:
        kept = column <= row
        pair, row, column = pair[kept], row[kept], column[kept]
    return pair, starts[0][pair] + row, starts[1][pair] + column


class Assembly:
    """Adds products up to a symmetric sparse matrix of fixed pattern.

    Parameters
    ----------
    products : sequence of Product
    n : int
        Number of rows and of columns.
    extra : ndarray of int
        Further entries, as row · n + column in the lower triangle.
    """

    def __init__(self, products: Sequence[Product], n: int, extra: Ints):
        self._n = n
        pairs = [_pairs(product, n) for product in products]
        diagonal = np.arange(n) * (n + 1)
        distinct = [_ascending(p.keys) for p in pairs]
        self._keys = _ascending(np.concatenate([diagonal, extra, *distinct]))
        no_keys = np.zeros(0, dtype=np.intp)  # they take much memory
        self._pairs = [(replace(p, keys=no_keys), self.positions(p.keys)) for p in pairs]
        self._listed = [_Listed.of(*p) for p in self._pairs] if self.size <= FEW else None
        row, column = np.divmod(self._keys, n)
        off = row != column
        number = np.arange(len(self._keys))
        full = scipy.sparse.coo_array(
            (
                np.concatenate([number, number[off]]) + 1,
                (np.concatenate([row, column[off]]), np.concatenate([column, row[off]])),
            ),
            shape=(n, n),
        ).tocsc()
        full.sort_indices()
        self._lower = full.data - 1
        self._indices, self._indptr = full.indices, full.indptr

    def positions(self, keys: Ints) -> Ints:
        """Positions of entries in the lower triangle."""
        small = len(self._keys) < 2**31
        found = np.searchsorted(self._keys, keys)
        return found.astype(np.int32) if small else found

    @property
    def size(self) -> int:
        """Number of products of entries that are added up."""
        return sum(pairs.size for pairs, _ in self._pairs)

    @property
    def n_entries(self) -> int:
        """Number of entries of the whole matrix."""
        return len(self._indices)

    def lower(self, slots: Sequence[Floats], n_points: int) -> Floats:
        """Entries of the lower triangle of the sum of all products, a row for each point.

        Slots have a row for each point, or one for all.
        """
        out = np.zeros((n_points, len(self._keys)))
        for k, (pairs, places) in enumerate(self._pairs):
            w = slots[pairs.product.slot]
            if pairs.product.elements is not None:
                w = w[:, pairs.product.elements]
            if pairs.pair is not None:
                w = binned(pairs.pair, w, len(pairs.left))
            w = np.ascontiguousarray(np.broadcast_to(w, (n_points, w.shape[1])), dtype=float)
            if self._listed is None:
                _add(out, w, pairs, places)
            else:
                out += self._listed[k].sums(w, len(self._keys))
        return out

    def entries(self, lower: Floats) -> Floats:
        """Entries (..., n_entries) of symmetric matrices, in the order of `matrix`."""
        found: Floats = lower[..., self._lower]
        return found

    def matrix(self, entries: npt.NDArray[np.generic]) -> scipy.sparse.csc_matrix:
        """The matrix with these entries (n_entries,)."""
        return scipy.sparse.csc_matrix(
            (entries, self._indices, self._indptr), shape=(self._n, self._n)
        )


def _ascending(keys: Ints) -> Ints:
    """Distinct keys in order: `np.unique` takes ten times as long for tens of millions."""
    ordered = np.sort(keys)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _add(out: Floats, w: Floats, pairs: _Pairs, places: Ints) -> None:
    left, right = pairs.product.left.matrix, pairs.product.right.matrix
    same = pairs.product.same
    if len(pairs.begin) == 2 and w.shape[1] >= _MIN_DENSE_ROWS:
        if _width(left.pattern, pairs.left) >= _MIN_DENSE_COLUMNS:
            values = (np.broadcast_to(m.data, (len(w), m.data.shape[-1])) for m in (left, right))
            for mine, weights, u, v in zip(out, w, *values, strict=True):
                _add_dense(mine, weights, u, v, pairs, places)
            return
    outer_products()(
        out,
        w,
        pairs.left,
        pairs.right,
        pairs.table,
        pairs.begin,
        places,
        same,
        left.pattern.indptr,
        left.pattern.indices,
        np.ascontiguousarray(np.atleast_2d(left.data)),
        right.pattern.indptr,
        right.pattern.indices,
        np.ascontiguousarray(np.atleast_2d(right.data)),
    )


def _add_dense(
    out: Floats, w: Floats, left_values: Floats, right_values: Floats, pairs: _Pairs, places: Ints
) -> None:
    """Add products at one point, if all rows have the same columns."""
    left, right = pairs.product.left.matrix, pairs.product.right.matrix
    full: Floats = np.zeros(())
    size = max(1, _DENSE_NUMBERS // _width(left.pattern, pairs.left))
    for begin in range(0, len(w), size):
        rows = slice(begin, begin + size)
        u = v = _taken(left_values, left.pattern, pairs.left[rows])
        if not pairs.product.same:
            v = _taken(right_values, right.pattern, pairs.right[rows])
        full = full + (u * w[rows, None]).T @ v
    if pairs.product.same:
        out[places] += full[np.tril_indices(len(full))]
        return
    mine = left.pattern.indices[_entries(left.pattern, pairs.left[:1])[0]]
    theirs = right.pattern.indices[_entries(right.pattern, pairs.right[:1])[0]]
    full = np.where(mine[:, None] == theirs, 2 * full, full)
    out += np.bincount(places, weights=full.ravel(), minlength=len(out))


def _taken(values: Floats, pattern: Pattern, rows: Ints) -> Floats:
    """Values of rows of one width, a row for each; a view of consecutive ones."""
    if (np.diff(rows) == 1).all():
        return values[pattern.indptr[rows[0]] : pattern.indptr[rows[-1] + 1]].reshape(len(rows), -1)
    return values[_entries(pattern, rows)]


def _entries(pattern: Pattern, rows: Ints) -> Ints:
    """Positions of the entries of rows of one width, row by row."""
    return pattern.indptr[rows][:, None] + np.arange(_width(pattern, rows))


def _width(pattern: Pattern, rows: Ints) -> int:
    """Number of entries in each of these rows, which have equally many."""
    return int(pattern.indptr[rows[0] + 1] - pattern.indptr[rows[0]])
