"""Hessians of known pattern by differences of the gradient, several columns at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy

from pymc_flows.model.structure.rows import Bools, Floats, Ints


def colours(pattern: scipy.sparse.csr_array) -> Ints:
    """Colour columns so that no two of one colour have a row in common (Curtis et al. 1974).

    The colouring is greedy, largest column first.

    Parameters
    ----------
    pattern : csr_array, shape (n, n)
        Symmetric.

    Returns
    -------
    ndarray of int, shape (n,)
        Colours, from 0.
    """
    n = pattern.shape[0]
    found = np.full(n, -1, dtype=np.intp)
    used: list[Bools] = []
    for column in np.argsort(-np.diff(pattern.indptr), kind="stable"):
        rows = pattern.indices[pattern.indptr[column] : pattern.indptr[column + 1]]
        if not len(rows):
            continue
        free = (i for i, taken in enumerate(used) if not taken[rows].any())
        colour = next(free, len(used))
        if colour == len(used):
            used.append(np.zeros(n, dtype=bool))
        used[colour][rows] = True
        found[column] = colour
    return found


class ColouredHessian:
    """Hessian by central differences of a gradient, one pair for each colour.

    Its relative error is about 1e-10, the precision to the power of two thirds.

    Parameters
    ----------
    pattern : csr_array, shape (n, n)
        Symmetric.
    """

    def __init__(self, pattern: scipy.sparse.csr_array):
        self._colour = colours(pattern)
        full = pattern.tocoo()
        kept = full.row >= full.col
        self.row, self.column = full.row[kept], full.col[kept]

    @property
    def n_colours(self) -> int:
        """Number of colours, half that of the gradients that one Hessian takes."""
        return int(self._colour.max(initial=-1)) + 1

    def __call__(self, gradient: Callable[[Floats], Floats], x: Floats) -> Floats:
        """Return the entries of the Hessian's lower triangle at x (n,)."""
        step = np.finfo(float).eps ** (1 / 3) * np.maximum(1.0, np.abs(x))
        differences = np.empty((self.n_colours, len(x)))
        for colour in range(self.n_colours):
            shift = np.where(self._colour == colour, step, 0.0)
            differences[colour] = gradient(x + shift) - gradient(x - shift)
        # Both triangles have the entry: their mean is symmetric.
        a = differences[self._colour[self.column], self.row] / (2 * step[self.column])
        b = differences[self._colour[self.row], self.column] / (2 * step[self.row])
        found: Floats = (a + b) / 2
        return found
