"""Cholesky factors of many small blocks at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from pymc_flows.field.factors.base import Factor, Factoring, NotPositiveDefinite, cholesky


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

    def variances(self) -> np.ndarray:
        """Diagonal of Q⁻¹."""
        found = np.empty(self.n)
        for index, inverse in zip(self.indices, self.inverses, strict=True):
            found[index] = np.square(inverse).sum(axis=1)
        return found

    def inverse(self) -> scipy.sparse.csr_matrix:
        """Q⁻¹, as sparse as Q."""
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
            if index.shape[1] == 1:
                found[:, index[:, 0]] = flat[:, index[:, 0]] * matrix[:, 0, 0]
                continue
            factor = matrix.transpose(0, 2, 1) if transpose else matrix
            vectors = np.moveaxis(flat[:, index], 0, 2)  # (blocks, size, rows)
            found[:, index] = np.moveaxis(factor @ vectors, 2, 0)
        return found.reshape(rows.shape)


class BlockFactoring(Factoring):
    """Batched Cholesky factors of the components of a pattern, which are found once.

    Parameters
    ----------
    pattern : csc_matrix, shape (n, n)
    labels : ndarray of int, shape (n,)
        Component of each element.
    """

    def __init__(self, pattern: scipy.sparse.csc_matrix, labels: np.ndarray):
        self.n = pattern.shape[0]
        order = np.argsort(labels, kind="stable")
        sizes = np.bincount(labels)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        within = np.empty(self.n, int)
        within[order] = np.arange(self.n) - np.repeat(starts, sizes)
        rows = pattern.indices
        columns = np.repeat(np.arange(self.n), np.diff(pattern.indptr))
        self.indices: list[np.ndarray] = []
        self._entries: list[tuple[np.ndarray, np.ndarray]] = []
        number = np.empty(len(sizes), int)
        for size in np.unique(sizes):
            blocks = np.flatnonzero(sizes == size)
            number[blocks] = np.arange(len(blocks))
            self.indices.append(order[starts[blocks][:, None] + np.arange(size)])
            entries = np.flatnonzero(sizes[labels[rows]] == size)
            r, c = rows[entries], columns[entries]
            places = (number[labels[r]] * size + within[r]) * size + within[c]
            self._entries.append((entries, places))

    def factor(self, matrix: scipy.sparse.csc_matrix) -> BlockFactor:
        """Σ size³ multiplications, in batches."""
        lowers, inverses = [], []
        for index, (entries, places) in zip(self.indices, self._entries, strict=True):
            count, size = index.shape
            blocks = np.zeros(count * size * size)
            blocks[places] = matrix.data[entries]
            blocks = blocks.reshape(count, size, size)
            lower = np.sqrt(_positive(blocks)) if size == 1 else cholesky(blocks)
            lowers.append(lower)
            inverses.append(1 / lower if size == 1 else np.linalg.inv(lower))
        return BlockFactor(self.n, tuple(self.indices), tuple(lowers), tuple(inverses))


def _positive(values: np.ndarray) -> np.ndarray:
    if not (values > 0).all() or not np.isfinite(values).all():
        raise NotPositiveDefinite("the matrix is not positive definite")
    return values
