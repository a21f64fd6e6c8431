"""Where weighted products of Jacobian rows go in the Hessian, found once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy

from pymc_flows.model.curvature.jacobians import Floats, Matrix, binned
from pymc_flows.model.curvature.kernels import outer_products
from pymc_flows.model.structure.rows import Ints, Pattern, Rows, distinct_rows, ranges

# So few products need no kernel: to load numba and the kernel takes longer than many Hessians.
FEW = 1_000
# From this many pairs of rows with one pattern on, products of dense matrices are quicker.
_MIN_DENSE_ROWS, _MIN_DENSE_COLUMNS = 16, 6


@dataclass(frozen=True)
class Product:
    """Uᵀ diag(w) V, and its transpose unless U and V are the same rows.

    Parameters
    ----------
    left, right : Rows
        Jacobians, element by element of w.
    slot : int
        Where w is found.
    same : bool
    elements : ndarray of int, optional
        Which elements of what is found there; None for all.
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
        The pair of each element of w; None where all are distinct.
    left, right : ndarray of int
        Rows of the pairs.
    table : ndarray of int
        The table of each pair.
    begin : ndarray of int
        Where tables begin.
    keys : ndarray of int
        Column · n + row of all entries of all tables, lower triangle.
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
        Where the three factors are, and where the product goes.
    times : ndarray
        2 for an entry of the diagonal that stands for both triangles.
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
        one, other = pairs.product.left.matrix.pattern, pairs.product.right.matrix.pattern
        starts = one.indptr[pairs.left], other.indptr[pairs.right]
        widths = one.indptr[pairs.left + 1] - starts[0], other.indptr[pairs.right + 1] - starts[1]
        sizes = widths[0] * widths[1]
        weight = np.repeat(np.arange(len(sizes)), sizes)
        row, column = np.divmod(ranges(np.zeros_like(sizes), sizes), widths[1][weight])
        if pairs.product.same:
            kept = column <= row
            weight, row, column = weight[kept], row[kept], column[kept]
        left, right = starts[0][weight] + row, starts[1][weight] + column
        found = np.diff(pairs.begin)[pairs.table]
        place = places[ranges(pairs.begin[pairs.table], found)]
        twice = one.indices[left] == other.indices[right] if not pairs.product.same else False
        return cls(pairs, weight, left, right, place, np.where(twice, 2.0, 1.0))

    def sums(self, w: Floats, n: int) -> Floats:
        """Sums (points, n) with weights (points, pairs)."""
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
    patterns = a.matrix.pattern, b.matrix.pattern
    kinds = _kinds(patterns[0], left), _kinds(patterns[1], right)
    table_code = kinds[0] * (int(kinds[1].max(initial=0)) + 1) + kinds[1]
    _, first, table = np.unique(table_code, return_index=True, return_inverse=True)
    begin, keys = _tables(patterns, left[first], right[first], n, same=product.same)
    return _Pairs(product, pair, left, right, table, begin, keys)


def _kinds(pattern: Pattern, rows: Ints) -> Ints:
    """Number the patterns of rows: equal numbers, equal columns."""
    used, index = np.unique(rows, return_inverse=True)
    return distinct_rows(pattern, used)[index]


def _tables(
    patterns: tuple[Pattern, Pattern], left: Ints, right: Ints, n: int, *, same: bool
) -> tuple[Ints, Ints]:
    """Entries of the outer products of rows, as the kernel goes through them."""
    starts = patterns[0].indptr[left], patterns[1].indptr[right]
    lengths = patterns[0].indptr[left + 1] - starts[0], patterns[1].indptr[right + 1] - starts[1]
    sizes = lengths[0] * lengths[1]
    offset = ranges(np.zeros_like(sizes), sizes)
    table = np.repeat(np.arange(len(sizes)), sizes)
    row, column = np.divmod(offset, lengths[1][table])
    if same:
        kept = column <= row
        table, row, column = table[kept], row[kept], column[kept]
        sizes = lengths[0] * (lengths[0] + 1) // 2
    first = patterns[0].indices[starts[0][table] + row]
    second = patterns[1].indices[starts[1][table] + column]
    keys = np.maximum(first, second) * n + np.minimum(first, second)
    return np.concatenate([[0], np.cumsum(sizes)]), keys


class Assembly:
    """Adds up products into a symmetric sparse matrix of fixed pattern.

    Parameters
    ----------
    products : sequence of Product
    n : int
        Rows and columns.
    extra : ndarray of int
        Further entries, as row · n + column of the lower triangle.
    """

    def __init__(self, products: Sequence[Product], n: int, extra: Ints):
        self._n = n
        pairs = [_pairs(product, n) for product in products]
        diagonal = np.arange(n) * (n + 1)
        distinct = [_ascending(p.keys) for p in pairs]
        self._keys = _ascending(np.concatenate([diagonal, extra, *distinct]))
        nothing = np.zeros(0, dtype=np.intp)
        self._pairs = [(replace(p, keys=nothing), self.positions(p.keys)) for p in pairs]
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
        """Entries of the lower triangle of the sum of all products, points by rows.

        Slots have as many rows, or one for all points.
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
    """Different keys in order: `np.unique` takes ten times as long for tens of millions."""
    ordered = np.sort(keys)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _add(out: Floats, w: Floats, pairs: _Pairs, places: Ints) -> None:
    left, right = pairs.product.left.matrix, pairs.product.right.matrix
    same = pairs.product.same
    if len(pairs.begin) == 2 and w.shape[1] >= _MIN_DENSE_ROWS:
        width = int(left.pattern.indptr[pairs.left[0] + 1] - left.pattern.indptr[pairs.left[0]])
        if width >= _MIN_DENSE_COLUMNS:
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
    """Add at one point, where all rows have the same columns."""
    left, right = pairs.product.left.matrix, pairs.product.right.matrix
    u = left_values[_entries(left.pattern, pairs.left)]
    if pairs.product.same:
        full = (u * w[:, None]).T @ u
        out[places] += full[np.tril_indices(len(full))]
        return
    full = (u * w[:, None]).T @ right_values[_entries(right.pattern, pairs.right)]
    mine = left.pattern.indices[_entries(left.pattern, pairs.left[:1])[0]]
    theirs = right.pattern.indices[_entries(right.pattern, pairs.right[:1])[0]]
    full = np.where(mine[:, None] == theirs, 2 * full, full)
    out += np.bincount(places, weights=full.ravel(), minlength=len(out))


def _entries(pattern: Pattern, rows: Ints) -> npt.NDArray[np.intp]:
    width = pattern.indptr[rows[0] + 1] - pattern.indptr[rows[0]]
    return pattern.indptr[rows][:, None] + np.arange(width)
