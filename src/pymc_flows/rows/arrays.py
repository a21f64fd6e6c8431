"""Rows of arrays: NumPy's and its memory maps, zarr's, Dask's, HDF5's."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from pymc_flows.errors import ArgumentError
from pymc_flows.rows.source import BLOCK_BYTES, Arrays, Column, dtype_of


class ArraySource:
    """Arrays of one length, by name: anything with ``shape``, ``dtype`` and slices.

    Blocks are the chunks along the first axis, of the array that has the largest chunks; without
    chunks, a block takes a megabyte.

    Parameters
    ----------
    arrays : mapping of str to array

    Raises
    ------
    ArgumentError
        If there are none, one is no array of numbers or has masked values, or lengths differ.
    """

    def __init__(self, arrays: Mapping[str, Any]):
        if not isinstance(arrays, Mapping) or not arrays:
            raise ArgumentError(f"arrays must be a dict of arrays by name, got {arrays!r:.200}")
        self._arrays = {name: _as_array(array, name) for name, array in arrays.items()}
        self.columns = {
            name: Column(tuple(map(int, a.shape[1:])), dtype_of(a.dtype, repr(name)))
            for name, a in self._arrays.items()
        }
        lengths = {name: int(a.shape[0]) for name, a in self._arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ArgumentError(f"arrays must have one length, got {lengths}")
        total = next(iter(lengths.values()))
        self._bounds = _bounds(list(self._arrays.values()), total, self.columns)
        self.lengths = tuple(b - a for a, b in pairwise(self._bounds))
        kinds = {type(a).__module__.partition(".")[0] for a in self._arrays.values()}
        self.label = f"arrays ({', '.join(sorted(kinds))})"

    def read(self, block: int, out: Arrays) -> None:
        """Copy slices; Dask computes those of its arrays together."""
        rows = slice(*self._bounds[block : block + 2])
        parts = {name: array[rows] for name, array in self._arrays.items()}
        if any(type(part).__module__.startswith("dask") for part in parts.values()):
            from dask.base import compute  # slow to import

            parts = dict(zip(parts, compute(*parts.values()), strict=True))
        for name, array in out.items():
            array[...] = parts[name]

    def where(self, block: int) -> str:
        """Its first row."""
        return f"the rows from {self._bounds[block]:,} on"


def _as_array(array: Any, name: str) -> Any:
    """Return an array as it is, and lists and pandas objects as NumPy arrays."""
    if np.ma.is_masked(array):
        raise ArgumentError(
            f"{name!r} has masked values\n"
            "Leave out rows with missing values, or fill them in, before the fit."
        )
    if not all(hasattr(array, a) for a in ("shape", "dtype", "__getitem__")) or hasattr(
        array, "iloc"
    ):
        array = np.asarray(array)
    if not len(array.shape) or not isinstance(array.shape[0], int | np.integer):
        raise ArgumentError(
            f"{name!r} must be an array whose first axis is rows, got shape {array.shape}\n"
            "For a Dask array of unknown length, call its compute_chunk_sizes() first."
        )
    return array


def _bounds(arrays: list[Any], total: int, columns: Mapping[str, Column]) -> list[int]:
    """The rows at which blocks begin, and the end of the last block."""
    chunks = [c for a in arrays if (c := _chunks(a, total))]
    if chunks:
        bounds = np.cumsum([0, *min(chunks, key=len)]).tolist()
    else:
        size = max(1, BLOCK_BYTES // max(1, sum(c.nbytes for c in columns.values())))
        bounds = [*range(0, total, size), total]
    return list(dict.fromkeys(bounds))


def _chunks(array: Any, total: int) -> list[int]:
    """Lengths of the chunks of an array along its first axis; empty if it has no chunks."""
    found = getattr(array, "chunks", None)
    if not found:
        return []
    first = found[0]
    if isinstance(first, tuple):
        return [int(n) for n in first]
    return [min(int(first), total - i) for i in range(0, total, int(first))]
