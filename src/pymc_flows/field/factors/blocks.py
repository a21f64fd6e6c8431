"""Cholesky factors of many small blocks at once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from pymc_flows.field.factors.base import Factor, Factoring, Factors, NotPositiveDefinite, cholesky

# Blocks of no more rows are computed entry by entry, all of them together: a call of LAPACK or BLAS
# for each takes ten times as long.
SMALL = 4


@dataclass(frozen=True, eq=False)
class BlockFactor(Factor):
    """Cholesky factors of many small blocks, batched by size; R is L' of each."""

    n: int
    indices: tuple[np.ndarray, ...]
    lowers: tuple[np.ndarray, ...]
    inverses: tuple[np.ndarray, ...]

    @property
    def half_log_det(self) -> float:
        """½ log|Q|, in nats."""
        return float(sum(np.log(np.einsum("bii->bi", low)).sum() for low in self.lowers))

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b."""
        return self.color(self._apply(self.inverses, b))

    def color(self, noise: np.ndarray) -> np.ndarray:
        """L'⁻¹ noise."""
        return self._apply(self.inverses, noise, transpose=True)

    def whiten(self, delta: np.ndarray) -> np.ndarray:
        """L' delta."""
        return self._apply(self.lowers, delta, transpose=True)

    def inverse(self) -> scipy.sparse.csr_matrix:
        """Q⁻¹, which is as sparse as the blocks."""
        rows, columns, values = [], [], []
        for index, root in zip(self.indices, self.inverses, strict=True):
            k = index.shape[1]
            rows.append(np.repeat(index, k, axis=1).ravel())
            columns.append(np.tile(index, (1, k)).ravel())
            values.append((root.transpose(0, 2, 1) @ root).ravel())
        entries = (np.concatenate(rows), np.concatenate(columns))
        return scipy.sparse.csr_matrix((np.concatenate(values), entries), shape=(self.n, self.n))

    def _apply(
        self, matrices: tuple[np.ndarray, ...], rows: np.ndarray, *, transpose: bool = False
    ) -> np.ndarray:
        flat = rows.reshape(-1, self.n)
        found = np.empty_like(flat, dtype=float)
        for index, matrix in zip(self.indices, matrices, strict=True):
            if index.shape[1] <= SMALL:
                found[:, index] = times(matrix, flat[:, index], transpose=transpose)
                continue
            factor = matrix.transpose(0, 2, 1) if transpose else matrix
            vectors = np.moveaxis(flat[:, index], 0, 2)  # (blocks, size, rows)
            found[:, index] = np.moveaxis(factor @ vectors, 2, 0)
        return found.reshape(rows.shape)


class BlockFactors(Factors[BlockFactor]):
    """Cholesky factors of the blocks of several matrices.

    Parameters
    ----------
    n : int
    indices : tuple of ndarray
        Elements of the blocks (blocks, size), by size.
    lowers, inverses : list of ndarray
        Factors (m, blocks, size, size) and their inverses, by size.
    """

    def __init__(
        self,
        n: int,
        indices: tuple[np.ndarray, ...],
        lowers: list[np.ndarray],
        inverses: list[np.ndarray],
    ):
        parts = zip(zip(*lowers, strict=True), zip(*inverses, strict=True), strict=True)
        super().__init__([BlockFactor(n, indices, *both) for both in parts])
        self._indices, self._inverses = indices, inverses

    def solve(self, rows: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b for vectors b (k, n), each with the matrix of one of the rows (k,)."""
        found = np.empty(b.shape)
        for index, inverses in zip(self._indices, self._inverses, strict=True):
            root, part = inverses[rows], b[:, index]
            found[:, index] = times(root, times(root, part), transpose=True)
        return found


class BlockFactoring(Factoring):
    """Batched Cholesky factors of the connected components of a pattern.

    Parameters
    ----------
    pattern : csc_matrix, shape (n, n)
    labels : ndarray of int, shape (n,)
        Component of each element.
    """

    def __init__(self, pattern: scipy.sparse.csc_matrix, labels: np.ndarray):
        super().__init__(pattern)
        order = np.argsort(labels, kind="stable")
        sizes = np.bincount(labels)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        within = np.empty(self.n, int)
        within[order] = np.arange(self.n) - np.repeat(starts, sizes)
        rows, columns = self.indices, self.columns
        blocks_of: list[np.ndarray] = []
        self._entries: list[tuple[np.ndarray, np.ndarray]] = []
        number = np.empty(len(sizes), int)
        for size in np.unique(sizes):
            blocks = np.flatnonzero(sizes == size)
            number[blocks] = np.arange(len(blocks))
            blocks_of.append(order[starts[blocks][:, None] + np.arange(size)])
            entries = np.flatnonzero(sizes[labels[rows]] == size)
            r, c = rows[entries], columns[entries]
            places = (number[labels[r]] * size + within[r]) * size + within[c]
            self._entries.append((entries, places))
        self._blocks = tuple(blocks_of)

    def factors(self, entries: np.ndarray) -> Factors[Any]:
        """Factor matrices with entries (m, nnz), in one call if all of them have factors."""
        with suppress(NotPositiveDefinite):
            return BlockFactors(self.n, self._blocks, *self._batches(entries))
        return super().factors(entries)

    def factor(self, entries: np.ndarray) -> BlockFactor:
        """Factor the blocks, batched by size, in about Σ size³ multiplications."""
        lowers, inverses = self._batches(entries[None])
        return BlockFactor(
            self.n, self._blocks, tuple(x[0] for x in lowers), tuple(x[0] for x in inverses)
        )

    def _batches(self, entries: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Factors (m, blocks, size, size) and their inverses, by size."""
        lowers, inverses = [], []
        for index, (kept, places) in zip(self._blocks, self._entries, strict=True):
            count, size = index.shape
            blocks = np.zeros((len(entries), count * size * size))
            blocks[:, places] = entries[:, kept]
            blocks = blocks.reshape(-1, count, size, size)
            with np.errstate(all="ignore"):  # what is not finite is not positive definite
                lower = small_cholesky(blocks) if size <= SMALL else cholesky(blocks)
            lowers.append(lower)
            inverses.append(small_inverse(lower) if size <= SMALL else np.linalg.inv(lower))
        return lowers, inverses


# --------------------------------------------------------------------- triangles of a few rows each


def small_cholesky(matrices: np.ndarray) -> np.ndarray:
    """Cholesky factors (..., k, k) of small matrices, entry by entry of all of them.

    Raises
    ------
    NotPositiveDefinite
        If one of them has no factor.
    """
    lower, size = np.zeros_like(matrices), matrices.shape[-1]
    for j in range(size):
        for i in range(j, size):
            rest = matrices[..., i, j]
            for k in range(j):
                rest = rest - lower[..., i, k] * lower[..., j, k]
            lower[..., i, j] = np.sqrt(_positive(rest)) if i == j else rest / lower[..., j, j]
    return lower


def small_inverse(lower: np.ndarray) -> np.ndarray:
    """Inverses (..., k, k) of small lower triangular matrices."""
    inverse, size = np.zeros_like(lower), lower.shape[-1]
    for i in range(size):
        inverse[..., i, i] = 1 / lower[..., i, i]
        for j in range(i):
            total = sum(lower[..., i, k] * inverse[..., k, j] for k in range(j, i))
            inverse[..., i, j] = -total * inverse[..., i, i]
    return inverse


def times(lower: np.ndarray, vectors: np.ndarray, *, transpose: bool = False) -> np.ndarray:
    """Lower triangular matrices, or their transposes, times vectors (..., k).

    Matrices (..., k, k) may lack leading axes of the vectors, but not the other way round.
    """
    size = vectors.shape[-1]
    if size > SMALL:
        factor = lower.swapaxes(-1, -2) if transpose else lower
        return (factor @ vectors[..., None])[..., 0]
    found = np.empty_like(vectors, dtype=float)
    for i in range(size):
        if transpose:
            found[..., i] = sum(lower[..., j, i] * vectors[..., j] for j in range(i, size))
        else:
            found[..., i] = sum(lower[..., i, j] * vectors[..., j] for j in range(i + 1))
    return found


def _positive(values: np.ndarray) -> np.ndarray:
    if not (values > 0).all() or not np.isfinite(values).all():
        raise NotPositiveDefinite("the matrix is not positive definite")
    return values
