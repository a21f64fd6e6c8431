"""Groups of latents that are independent of each other once others are given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy

from pymc_flows.model.structure.rows import Bools, Ints

# The largest group may have this share of the divided elements, or this many elements.
MAX_SHARE, MAX_ELEMENTS = 0.1, 20
# A hub is connected to at least this share of the other elements of the field, and this number.
HUB_SHARE, MIN_HUB = 0.2, 5
NEARLY_ALL = 0.9


def pattern_of(incidence: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Pattern of the Hessian, BᵀB: pairs of latents that share a factor."""
    counts = incidence.astype(np.int32)
    found = (counts.T @ counts).tocsr()
    found.data = np.ones(len(found.data), dtype=bool)
    found.sort_indices()
    return found


def degrees(pattern: scipy.sparse.csr_array) -> Ints:
    """Number of others that each element is connected to."""
    return np.diff(pattern.indptr) - (pattern.diagonal() != 0)


def hubs_of(pattern: scipy.sparse.csr_array) -> Bools:
    """Elements that are connected to a large share of the others; none if most of them are.

    Elements that are connected to nearly all others are taken out first: many fixed effects would
    make hubs of all that they touch.
    """
    n = pattern.shape[0]
    hubs = np.zeros(n, dtype=bool)
    for share in (NEARLY_ALL, HUB_SHARE):
        rest = np.flatnonzero(~hubs)
        found = degrees(pattern[rest][:, rest]) >= max(share * (len(rest) - 1), MIN_HUB)
        if hubs.sum() + found.sum() <= n / 2:
            hubs[rest[found]] = True
    return hubs


def partition(pattern: scipy.sparse.csr_array, hubs: Bools, variables: Sequence[Ints]) -> Ints:
    """Divide a field into groups that are independent given the rest, the separator.

    The separator is empty if that suffices. Else it is the hubs, and then also the smallest
    variables, one after the other, until the rest falls apart.

    Parameters
    ----------
    pattern : sparse matrix of bool, shape (n, n)
    hubs : ndarray of bool, shape (n,)
    variables : sequence of ndarray of int
        Elements of each variable, without the hyperparameters.

    Returns
    -------
    ndarray of int, shape (n,)
        The group of each element, from 0; −1 in the separator, which is empty if nothing helps.
    """
    whole = _components(pattern, np.zeros_like(hubs))
    if _divides(whole):
        return whole
    removed = np.zeros_like(hubs)
    for elements in (np.flatnonzero(hubs), *sorted(variables, key=len)[:-1]):
        removed[elements] = True
        found = _components(pattern, removed)
        if _divides(found):
            return found
    return whole


def _components(pattern: scipy.sparse.csr_array, removed: Bools) -> Ints:
    from scipy.sparse.csgraph import connected_components

    kept = np.flatnonzero(~removed)
    label = np.full(pattern.shape[0], -1, dtype=np.intp)
    if len(kept):
        part = pattern if len(kept) == len(removed) else pattern[kept][:, kept]
        label[kept] = connected_components(part, directed=False)[1]
    return label


def _divides(label: Ints) -> bool:
    sizes = np.bincount(label[label >= 0])
    if len(sizes) < 2:
        return False
    n = sizes.sum()
    return bool(sizes.max() <= max(MAX_SHARE * n, min(n / 2, MAX_ELEMENTS)))
