"""Arrays of integers as one flat index, computed once where they do not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pytensor.graph.basic import Constant, Variable

# Longest index that is kept beside those that it was made from.
LONGEST = 2**18


def leading_axes(entries: Sequence[Any], indices: Sequence[Variable]) -> int | None:
    """Number of axes before those with indices.

    None if the axes do not follow each other, or something else than integers picks from them.
    """
    lead = next((k for k, e in enumerate(entries) if not isinstance(e, slice)), len(entries))
    if list(entries) != [slice(None)] * lead + list(range(len(indices))):
        return None
    are_integers = all(i.type.dtype.startswith(("int", "uint")) for i in indices)
    return lead if are_integers and any(i.type.ndim for i in indices) else None


class Positions:
    """Where the elements of some axes are among all of them, for a gather or a scatter.

    Parameters
    ----------
    indices : sequence of Variable
    cells : sequence of list
        Where their arrays are. A read-only array is taken to keep its numbers.
    """

    def __init__(self, indices: Sequence[Variable], cells: Sequence[list[Any]]):
        self._are_constant = [isinstance(index, Constant) for index in indices]
        self._cells = cells
        self._known: tuple[tuple[Any, ...], list[np.ndarray], np.ndarray] | None = None

    def flat(self, lengths: tuple[int, ...], n_after: int | None = None) -> np.ndarray | None:
        """Index along the product of axes of these lengths; None if it is out of range.

        With the number of elements of the axes that follow, the index (n,) is along these, too.
        """
        arrays, key = [cell[0] for cell in self._cells], (lengths, n_after)
        if self._known is not None and self._known[0] == key:
            if all(a is b for a, b in zip(arrays, self._known[1], strict=True)):
                return self._known[2]
            self._known = None
        found = _flat(arrays, lengths)
        if found is None:
            return None
        if n_after is not None:
            found = found.ravel()
            if n_after != 1:
                found = (found[:, None] * n_after + np.arange(n_after)).ravel()
        if self.are_fixed and (found.size <= LONGEST or found is arrays[0]):
            self._known = key, arrays, found
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the indices together."""
        return np.broadcast_shapes(*(cell[0].shape for cell in self._cells))

    @property
    def are_fixed(self) -> bool:
        """Whether no number will change in these arrays."""
        return all(
            is_constant or not cell[0].flags.writeable
            for is_constant, cell in zip(self._are_constant, self._cells, strict=True)
        )


def _flat(arrays: Sequence[np.ndarray], lengths: Sequence[int]) -> np.ndarray | None:
    found = None
    for array, n in zip(arrays, lengths, strict=True):
        if array.size and (array.min() < -n or array.max() >= n):
            return None
        index = array.astype(np.intp, copy=False)
        if array.size and array.min() < 0:
            index = np.where(index < 0, index + n, index)
        found = index if found is None else found * n + index
    return found
