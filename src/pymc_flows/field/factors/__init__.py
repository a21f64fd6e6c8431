"""Factors of precision matrices with a fixed sparse pattern.

`base` has the contract. Which factorisation is cheap depends on the pattern alone, so `factoring`
chooses it once.
"""

from __future__ import annotations

import numpy as np
import scipy

from pymc_flows.field.factors.base import Factor, Factoring, Factors, NotPositiveDefinite
from pymc_flows.field.factors.blocks import BlockFactoring
from pymc_flows.field.factors.bordered import BorderedFactoring, touching
from pymc_flows.field.factors.dense import DenseFactoring
from pymc_flows.field.factors.general import SparseFactoring
from pymc_flows.field.factors.low_rank import LowRankFactoring

__all__ = ["Factor", "Factoring", "Factors", "NotPositiveDefinite", "factoring"]

# Largest matrix for which a dense Cholesky factor is the fastest; the same with a separator, which
# takes many small arrays otherwise.
DENSE, DENSE_BORDERED = 150, 100
# Largest size of blocks that are factored in batches.
MAX_BLOCK = 64
# A matrix with a larger share of non-zeros is factored as a dense one.
DENSE_SHARE = 0.3


def factoring(
    pattern: scipy.sparse.csc_matrix,
    groups: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> Factoring:
    """Choose how matrices with a pattern are factored.

    Parameters
    ----------
    pattern : csc_matrix, shape (n, n)
        Symmetric, with sorted indices; its values do not matter.
    groups : ndarray of int, shape (n,), optional
        Label of each element's group, −1 for elements of the separator. Elements of different
        groups must not be connected. Without it, or without a separator, groups are the
        components of the pattern.
    rows : ndarray, shape (k, n), optional
        V of a part of low rank, V' diag(w) V, that is added to each matrix; entries are followed
        by the weights w. Each row is 0 outside of one group and the separator.

    Returns
    -------
    Factoring
        With a separator, the whitened coordinates of a group depend on its elements and the
        separator alone, and those of the separator on the separator alone.
    """
    n = pattern.shape[0]
    rows = np.zeros((0, n)) if rows is None else rows
    if groups is None or (groups >= 0).all() or (groups < 0).all():
        return _without_separator(pattern, rows)
    rest, separator = np.flatnonzero(groups >= 0), np.flatnonzero(groups < 0)
    if n <= DENSE_BORDERED and not len(rows):
        return DenseFactoring(pattern, np.concatenate([rest, separator]))
    inner = pattern[rest][:, rest]
    inner.sort_indices()
    inside = rows[touching(rows, rest)][:, rest]
    return BorderedFactoring(pattern, rest, separator, _without_separator(inner, inside), rows)


def _without_separator(pattern: scipy.sparse.csc_matrix, rows: np.ndarray) -> Factoring:
    if len(rows):
        return LowRankFactoring(_without_separator(pattern, rows[:0]), rows)
    n = pattern.shape[0]
    n_blocks, labels = scipy.sparse.csgraph.connected_components(pattern, directed=False)
    largest = int(np.bincount(labels).max(initial=0))
    if n_blocks > 1 and largest <= MAX_BLOCK:
        return BlockFactoring(pattern, labels)
    if n <= DENSE or pattern.nnz > DENSE_SHARE * n * n:
        return DenseFactoring(pattern)
    return SparseFactoring(pattern)
