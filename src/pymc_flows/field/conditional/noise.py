"""Standard normal noise for the field: points of a quadrature, and low-discrepancy draws.

Groups are independent given the hyperparameters (and the separator), so one set of points
integrates over all of them at once. What counts is the dimension of a group, not of the field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

# Most dimensions of the Sobol' points behind draws; further dimensions are pseudo-random.
MAX_SOBOL = 1_024
# Draws of no more than this many numbers in all are kept once they have been computed.
MOST_KEPT = 2_000_000


def ranks(groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the elements within each group from 0, and those of the separator after the largest.

    Parameters
    ----------
    groups : ndarray of int, shape (n_field,)
        −1 in the separator.

    Returns
    -------
    ranks : ndarray of int, shape (n_field,)
    size : int
        Number of distinct ranks.
    """
    order = np.argsort(groups, kind="stable")
    _, first, counts = np.unique(groups[order], return_index=True, return_counts=True)
    found = np.empty(len(groups), int)
    found[order] = np.arange(len(groups)) - np.repeat(first, counts)
    inside = groups >= 0
    largest = int(found[inside].max(initial=-1)) + 1
    found[~inside] += largest
    return found, int(found.max(initial=-1)) + 1


def quadrature(groups: np.ndarray, max_pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Equally weighted points ±ε with the moments of a standard normal, up to degree 3.

    The signs are the columns of a Hadamard matrix, an orthogonal array: E ε = 0 and E εᵢεⱼ = δᵢⱼ
    for all pairs within a group and the separator, if these have no more than ``max_pairs``
    elements, else for most pairs (McNamee & Stenger, Construction of fully symmetric numerical
    integration formulas, Numer. Math. 10, 1967).

    Returns
    -------
    ndarray, shape (2 pairs, n_field)
        The second half is minus the first.
    """
    from scipy.linalg import hadamard

    rank, size = ranks(groups)
    pairs = 1
    while pairs < min(size, max_pairs):
        pairs *= 2
    signs = rng.choice([-1.0, 1.0], size=len(groups))
    column = rank if size <= pairs else rank % pairs
    points = hadamard(pairs)[:, column] * signs
    if size > pairs:  # elements with the same column must not always have the same sign
        points = points * rng.choice([-1.0, 1.0], size=points.shape)
    return np.concatenate([points, -points])


@dataclass(frozen=True, eq=False)
class NormalNoise:
    """Randomised low-discrepancy draws of a standard normal.

    The elements of a group take different dimensions of one Sobol' sequence, each with a random
    shift of its own (Cranley & Patterson, SIAM J. Numer. Anal. 13(6), 1976). So averages over one
    group have small errors, which differ from group to group. A row is no draw of all groups
    together, since groups share the sequence.

    Attributes
    ----------
    points : ndarray, shape (n, dimensions)
        Sobol' points in the unit cube.
    dimension : ndarray of int, shape (n_field,)
        Dimension that each element takes; −1 for pseudo-random elements of a large group.
    shift : ndarray, shape (n_field,)
    seed : int
        Seed of the pseudo-random numbers, which each row draws from a stream of its own.
    """

    points: np.ndarray
    dimension: np.ndarray
    shift: np.ndarray
    seed: int

    @classmethod
    def make(cls, groups: np.ndarray, n: int, rng: np.random.Generator) -> NormalNoise:
        """Prepare ``n`` draws."""
        rank, size = ranks(groups)
        points = sobol(n, min(size, MAX_SOBOL), rng)
        dimension = np.where(rank < MAX_SOBOL, rank, -1)
        return cls(points, dimension, rng.random(len(groups)), int(rng.integers(2**62)))

    def shifted(self, rng: np.random.Generator) -> NormalNoise:
        """As many other draws, with new shifts and another seed."""
        shift, seed = rng.random(len(self.shift)), int(rng.integers(2**62))
        return replace(self, shift=shift, seed=seed)

    def __len__(self) -> int:
        """Number of draws."""
        return len(self.points)

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Draws ``begin`` to ``end`` (n, n_field); the caller may change them."""
        if len(self) * len(self.dimension) <= MOST_KEPT:
            return self._all[begin:end].copy()
        return self._made(begin, end)

    @cached_property
    def _all(self) -> np.ndarray:
        """All draws, since the same ones serve at many values of the hyperparameters."""
        return self._made(0, len(self))

    def _made(self, begin: int, end: int) -> np.ndarray:
        from scipy.special import ndtri

        points = self.points[begin:end]
        ordered = self.dimension >= 0
        uniform = np.empty((len(points), len(self.dimension)))
        uniform[:, ordered] = (points[:, self.dimension[ordered]] + self.shift[ordered]) % 1.0
        for i in range(len(points) if not ordered.all() else 0):
            stream = np.random.Generator(np.random.Philox(self.seed, counter=[0, 0, begin + i, 0]))
            uniform[i, ~ordered] = stream.random(np.count_nonzero(~ordered))
        return ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))


def sobol(n: int, dimensions: int, rng: np.random.Generator) -> np.ndarray:
    """The first n points (n, dimensions) of a scrambled Sobol' sequence, inside the unit cube."""
    from scipy.stats import qmc

    if dimensions == 0:
        return np.empty((n, 0))
    points = qmc.Sobol(dimensions, rng=rng).random_base2(int(n - 1).bit_length())[:n]
    return np.clip(points, 1e-12, 1 - 1e-12)
