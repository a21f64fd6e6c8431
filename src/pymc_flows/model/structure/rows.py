"""Sparse rows, one for each element of an array, where equal ones are kept once.

Ten thousand observations of a hundred groups depend on latents in a hundred ways: what is computed
for each element of an array is computed for each of its *distinct* rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy
from pytensor.graph.basic import Variable

type Bools = npt.NDArray[np.bool_]
type Floats = npt.NDArray[np.float64]
type Hashes = npt.NDArray[np.uint64]
type Ints = npt.NDArray[np.intp]

# If so many values of a sample all differ, there are some 10⁸ different ones.
_SAMPLE = 20_000


@dataclass(frozen=True)
class Pattern:
    """Sorted columns of sparse rows, without values (CSR)."""

    indptr: Ints
    indices: Ints
    n_columns: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1

    def csr(self) -> scipy.sparse.csr_array:
        """The pattern as a matrix of bool."""
        values = np.ones(len(self.indices), dtype=bool)
        shape = self.n_rows, self.n_columns
        return scipy.sparse.csr_array((values, self.indices, self.indptr), shape=shape)


@dataclass(frozen=True)
class Rows[P]:
    """For each element of an array, a row of ``matrix``, by its ``index``."""

    index: Ints
    matrix: P


@dataclass(frozen=True)
class Part[P]:
    """Rows that elements of an output take from one input.

    Element i takes ``rows.index[indices[indptr[i]:indptr[i + 1]]]``, or ``rows.index[indices[i]]``
    without an ``indptr``. Equal ``keys`` mean that rows are multiplied by equal numbers.
    """

    rows: Rows[P]
    indices: Ints
    indptr: Ints | None = None
    keys: Hashes | None = None

    def taken(self) -> Ints:
        """Rows of the matrix, entry after entry."""
        return self.rows.index[self.indices]


@dataclass(frozen=True)
class Merged:
    """Distinct rows made of rows of several parts.

    Parameters
    ----------
    index : ndarray of int
        The distinct row of each element.
    chosen : ndarray of int
        An element that has it, for each distinct row.
    """

    index: Ints
    chosen: Ints


def distinct(parts: Sequence[Part], n: int, n_rows: Sequence[int]) -> Merged:
    """Find the elements that are made of the same rows, times the same numbers.

    Elements are compared by two 64-bit sums over random numbers of their rows: the chance that two
    different ones agree in both is below 1e-25 for 10⁶ of them.
    """
    if n == 0:
        return Merged(np.zeros(0, np.intp), np.zeros(0, np.intp))
    rng = np.random.default_rng(20240229)
    sums = np.zeros((2, n), dtype=np.uint64)
    for part, m in zip(parts, n_rows, strict=True):
        table = rng.integers(0, 2**64, size=(2, m), dtype=np.uint64)
        taken = part.taken()
        for k in range(2):
            values = table[k, taken]
            if part.keys is not None:
                values = _mixed(values ^ _mixed(part.keys))
            if part.indptr is not None:
                values = _segment_sums(values, part.indptr)
            sums[k] += values
    if _all_differ(sums[0]):
        return Merged(np.arange(n), np.arange(n))
    _, chosen, index = np.unique(sums[0], return_index=True, return_inverse=True)
    if not np.array_equal(sums[1][chosen][index], sums[1]):
        chosen = index = np.arange(n)
    # In the order of the elements, so that neighbours stay neighbours.
    order = np.argsort(chosen)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return Merged(place[index], chosen[order])


def _all_differ(values: Hashes) -> bool:
    """Whether many values differ, judged by a sample: sorting all of them takes long."""
    if len(values) < _SAMPLE:
        return False
    sample = values[:: len(values) // _SAMPLE]
    return len(np.unique(sample)) == len(sample)


def _mixed(x: Hashes) -> Hashes:
    """Scatter the bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _segment_sums(values: Hashes, indptr: Ints) -> Hashes:
    ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    return ends[indptr[1:]] - ends[indptr[:-1]]


def indptr_of(lengths: npt.NDArray[np.generic]) -> Ints:
    """Where rows of these lengths begin, and where the last one ends (CSR)."""
    return np.concatenate([np.zeros(1, np.intp), np.cumsum(lengths, dtype=np.intp)])


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Concatenate arange(start, start + length) for each pair."""
    begins = indptr_of(lengths)
    return np.arange(begins[-1]) + np.repeat(starts - begins[:-1], lengths)


@dataclass(frozen=True)
class Entries:
    """Entries of distinct rows, before and after equal columns are joined.

    Parameters
    ----------
    source : list of ndarray of int, one for each part
        Positions in the part's matrix.
    item : list of ndarray of int
        Positions in the part's ``indices``.
    target : list of ndarray of int
        Positions in the joined pattern.
    pattern : Pattern
    """

    source: list[Ints]
    item: list[Ints]
    target: list[Ints]
    pattern: Pattern


def union(parts: Sequence[Part], patterns: Sequence[Pattern], merged: Merged) -> Entries:
    """Find the columns of the distinct rows, from those of all parts."""
    n_rows = len(merged.chosen)
    rows, columns, sources, items = [], [], [], []
    for part, pattern in zip(parts, patterns, strict=True):
        if part.indptr is None:
            item, row = merged.chosen, np.arange(n_rows)
        else:
            lengths = np.diff(part.indptr)[merged.chosen]
            item = ranges(part.indptr[merged.chosen], lengths)
            row = np.repeat(np.arange(n_rows), lengths)
        taken = part.rows.index[part.indices[item]]
        lengths = np.diff(pattern.indptr)[taken]
        source = ranges(pattern.indptr[taken], lengths)
        sources.append(source)
        items.append(np.repeat(item, lengths))
        rows.append(np.repeat(row, lengths))
        columns.append(pattern.indices[source])
    n_columns = patterns[0].n_columns
    if len(parts) == 1 and parts[0].indptr is None:  # each row is a row of the one part
        indptr = indptr_of(np.bincount(rows[0], minlength=n_rows))
        target = np.arange(len(columns[0]))
        return Entries(sources, items, [target], Pattern(indptr, columns[0], n_columns))
    pattern, target = _joined(np.concatenate(rows), np.concatenate(columns), n_rows, n_columns)
    cuts = np.cumsum([len(c) for c in columns])[:-1]
    return Entries(sources, items, np.split(target, cuts), pattern)


def _joined(rows: Ints, columns: Ints, n_rows: int, n_columns: int) -> tuple[Pattern, Ints]:
    """Sort entries by row and column and join equal ones; also return where each has gone."""
    order = np.argsort(rows, kind="stable")
    indptr = indptr_of(np.bincount(rows, minlength=n_rows))
    # SciPy sorts within rows in compiled code. The values number the entries as they come.
    csr = scipy.sparse.csr_array(
        (order, columns[order], indptr), shape=(n_rows, n_columns), copy=False
    )
    csr.sort_indices()
    line = np.repeat(np.arange(n_rows), np.diff(indptr))
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (csr.indices[1:] != csr.indices[:-1]) | (line[1:] != line[:-1])
    target = np.empty(len(rows), dtype=np.intp)
    target[csr.data] = np.cumsum(first) - 1
    indptr = indptr_of(np.bincount(line[first], minlength=n_rows))
    return Pattern(indptr, csr.indices[first].astype(np.intp), n_columns), target


def identity(columns: Ints, n_columns: int) -> Rows[Pattern]:
    """Rows of a variable whose elements are columns; −1 marks an element that is no column."""
    has = columns >= 0
    return Rows(np.arange(len(columns)), Pattern(indptr_of(has), columns[has], n_columns))


def stacked(arrays: Sequence[Rows[Pattern]]) -> Rows[Pattern]:
    """Rows of several arrays, one array after the other."""
    patterns = [rows.matrix for rows in arrays]
    starts = np.cumsum([0, *(p.n_rows for p in patterns)])
    index = np.concatenate([r.index + s for r, s in zip(arrays, starts[:-1], strict=True)])
    lengths = np.concatenate([np.diff(p.indptr) for p in patterns])
    indices = np.concatenate([p.indices for p in patterns])
    used, index = np.unique(index, return_inverse=True)
    taken = ranges(indptr_of(lengths)[used], lengths[used])
    return Rows(index, Pattern(indptr_of(lengths[used]), indices[taken], patterns[0].n_columns))


def distinct_rows(pattern: Pattern, rows: Ints) -> Ints:
    """Number the sets of columns of some rows: rows with the same columns get the same number."""
    lengths = np.diff(pattern.indptr)[rows]
    entries = ranges(pattern.indptr[rows], lengths)
    part = Part(Rows(pattern.indices, pattern), entries, indptr_of(lengths))
    return distinct([part], len(rows), [pattern.n_columns]).index


# -------------------------------------------------------------------------------------- relations


@dataclass(frozen=True)
class Coefficients:
    """Numbers that the elements of an input are multiplied by, one for each entry of a relation.

    Parameters
    ----------
    source : ndarray or Variable
        The numbers, or the variable that they are values of at each evaluation.
    index : ndarray of int, optional
        Positions of the entries in the flattened source; None where they are aligned.
    """

    source: Floats | Variable
    index: Ints | None = None


@dataclass(frozen=True)
class Relation:
    """What each element of an output takes from one input, as rows of a sparse matrix.

    Parameters
    ----------
    indices : ndarray of int
        Elements of the flattened input, row after row.
    indptr : ndarray of int, optional
        Where rows begin; None where each has exactly one entry.
    coefficients : Coefficients, optional
        Values of the entries; None where they are 1, or where only the pattern is known.
    """

    indices: Ints
    indptr: Ints | None = None
    coefficients: Coefficients | None = None


@dataclass(frozen=True)
class Blocks:
    """An output that depends on its inputs in unknown ways, block by block.

    Parameters
    ----------
    inputs : list of Relation or None
        Which elements of an input each block reads; None where the input does not matter.
    block : ndarray of int
        The block of each element of the output.
    name : str or None
        Name of the Op if nothing is known about it; None if its blocks are exact.
    """

    inputs: list[Relation | None]
    block: Ints
    name: str | None


type Relations = list[Relation | None] | Blocks


def spread(shape: tuple[int, ...], into: tuple[int, ...]) -> Ints:
    """Flat indices of an array of one shape, broadcast to another shape and flattened."""
    index = positions(shape)
    return index.ravel() if shape == into else np.broadcast_to(index, into).ravel()


def positions(shape: tuple[int, ...]) -> Ints:
    """Flat indices of the elements of an array, in its shape."""
    return np.arange(int(np.prod(shape)), dtype=np.intp).reshape(shape)
