"""Sparse Jacobians whose patterns are found once and whose values are computed at each point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pymc_flows.model.structure.rows import (
    Floats,
    Hashes,
    Ints,
    Part,
    Pattern,
    Rows,
    distinct,
    union,
)


@dataclass(frozen=True)
class Numbers:
    """Factors of the entries of a relation.

    Parameters
    ----------
    source : ndarray or int
        The numbers (size,), or the slot that has them at each evaluation (points or 1, size).
    index : ndarray of int, optional
        Positions of the entries in the source; None if they are aligned.
    """

    source: Floats | int
    index: Ints | None = None

    def keys(self, n: int) -> Hashes:
        """Keys of n entries, equal if their numbers are."""
        if not isinstance(self.source, int):
            values = self.source if self.index is None else self.source[self.index]
            return np.ascontiguousarray(values, dtype=float).view(np.uint64)
        index = np.arange(n) if self.index is None else self.index
        return index.astype(np.uint64) + (np.uint64(self.source + 1) << np.uint64(40))

    def picked(self, items: Ints) -> Numbers:
        """The numbers of some of the entries."""
        return Numbers(self.source, items if self.index is None else self.index[items])

    def values(self, slots: Sequence[Floats]) -> Floats:
        """The numbers at points."""
        source = slots[self.source] if isinstance(self.source, int) else self.source
        found: Floats = source if self.index is None else source[..., self.index]
        return found


@dataclass(frozen=True)
class Step:
    """Entries of one matrix, times numbers, that are added to entries of another.

    Parameters
    ----------
    source : Matrix
    take : ndarray of int
        Positions of the entries in the source.
    put : ndarray of int, optional
        Positions in the result; None if they are aligned.
    numbers : Numbers, optional
        None if they are 1.
    """

    source: Matrix
    take: Ints
    put: Ints | None
    numbers: Numbers | None

    @property
    def is_constant(self) -> bool:
        """Whether it adds the same at all points."""
        varies = self.numbers is not None and isinstance(self.numbers.source, int)
        return not self.source.steps and not varies

    def weights(self, slots: Sequence[Floats]) -> Floats:
        """The products that are added, entry by entry (..., n)."""
        found: Floats = self.source.data[..., self.take]
        return found if self.numbers is None else found * self.numbers.values(slots)


@dataclass(eq=False)
class Matrix:
    """A sparse matrix of fixed pattern.

    Parameters
    ----------
    pattern : Pattern
    data : ndarray
        Values of the entries: (n,) if they are constant, else (points or 1, n) at the last points.
    steps : list of Step
        Steps that compute the values; none if they are constant.
    """

    pattern: Pattern
    data: Floats
    steps: list[Step] = field(default_factory=list)

    def update(self, slots: Sequence[Floats]) -> None:
        """Compute the values at the points of the slots."""
        if self.steps:
            self.data = added(self.steps, slots, self.data.shape[-1])


def added(steps: Sequence[Step], slots: Sequence[Floats], n: int) -> Floats:
    """Sum (..., n) of all steps."""
    if len(steps) == 1 and steps[0].put is None:
        return steps[0].weights(slots)
    total = np.zeros(n)
    for step in steps:
        weights = step.weights(slots)
        total = total + (weights if step.put is None else binned(step.put, weights, n))
    return total


def binned(put: Ints, weights: Floats, n: int) -> Floats:
    """Sums (..., n) of weights (..., k) by their positions (k,) in the result."""
    if weights.ndim == 1:
        return np.bincount(put, weights, minlength=n)
    count = len(weights)
    where = (put + n * np.arange(count)[:, None]).ravel()
    return np.bincount(where, weights.ravel(), minlength=count * n).reshape(count, n)


@dataclass(frozen=True)
class Taken:
    """A part of a Jacobian: rows taken from one input, times numbers."""

    part: Part[Matrix]
    numbers: Numbers | None


def jacobian(taken: Sequence[Taken], n: int, n_columns: int) -> Rows[Matrix]:
    """Jacobian of an output of n elements, the sum of the parts taken from its inputs."""
    taken = [t for t in taken if len(t.part.rows.matrix.pattern.indices)]
    if not taken:
        nothing = Pattern(np.zeros(2, np.intp), np.zeros(0, np.intp), n_columns)
        return Rows(np.zeros(n, np.intp), Matrix(nothing, np.zeros(0)))
    if len(taken) == 1 and taken[0].numbers is None and taken[0].part.indptr is None:
        part = taken[0].part
        return Rows(part.taken(), part.rows.matrix)
    parts = [
        replace(t.part, keys=t.numbers.keys(len(t.part.indices))) if t.numbers else t.part
        for t in taken
    ]
    patterns = [part.rows.matrix.pattern for part in parts]
    merged = distinct(parts, n, [p.n_rows for p in patterns])
    entries = union(parts, patterns, merged)
    n_entries = len(entries.pattern.indices)
    steps = []
    for t, source, item, put in zip(
        taken, entries.source, entries.item, entries.target, strict=True
    ):
        aligned = np.array_equal(put, np.arange(n_entries))
        numbers = t.numbers and t.numbers.picked(item)
        steps.append(Step(t.part.rows.matrix, source, None if aligned else put, numbers))
    matrix = Matrix(entries.pattern, np.zeros(n_entries))
    if all(step.is_constant for step in steps):
        matrix.data = added(steps, (), n_entries)
    else:
        matrix.steps = steps
    return Rows(merged.index, matrix)
