"""The graph of one tile: the terms of a sum over rows, computed from a tile of each array of data.

A rule for each Op says which axes of its inputs the axis of rows comes from. A graph with an Op
that no rule covers cannot be computed tile by tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import singledispatchmethod
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor import scalar as ps
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.op import Op
from pytensor.graph.traversal import ancestors
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY
from pymc_flows.backends.products import DataProduct
from pymc_flows.backends.simplify import constant_value, is_elementwise
from pymc_flows.support.compat import (
    AdvancedSubtensor,
    All,
    ARange,
    CAReduce,
    CumOp,
    DimShuffle,
    Dot,
    Elemwise,
    Join,
    LogSoftmax,
    MakeVector,
    Softmax,
    SpecifyShape,
    Subtensor,
    ViewOp,
)


class NotLocalError(Exception):
    """A part of a sum over rows needs other rows than its own."""


class Tile:
    """Builds the graph of a tile.

    Parameters
    ----------
    length : int
        Rows of a tile.
    dependent : set of Variable
        Variables that differ from draw to draw.

    Attributes
    ----------
    begin : TensorVariable
        The row at which the tile begins, an integer.
    rows : dict of (Variable, int) to TensorVariable
        Arrays and their axis of rows, with an input for a tile of each.
    whole : dict of Variable to TensorVariable
        Variables that all rows share, with an input for each.
    n : int
        Number of rows; 0 before an array of data has been met.
    """

    def __init__(self, length: int, dependent: Set[Variable]):
        self.length = length
        self.begin = pt.scalar("begin", dtype="int64")
        self.rows: dict[tuple[TensorVariable, int], TensorVariable] = {}
        self.whole: dict[TensorVariable, TensorVariable] = {}
        self.n = 0
        self._dependent = dependent
        self._done: dict[tuple[Variable, int], TensorVariable] = {}

    # ------------------------------------------------------------------------------ kinds of parts

    def part(self, var: TensorVariable, axis: int) -> TensorVariable:
        """A variable for the rows of a tile, which are on the given axis.

        Raises
        ------
        NotLocalError
            If it cannot be computed from these rows alone.
        """
        key = var, axis
        if key not in self._done:
            if var in self._dependent:
                if var.owner is None:
                    raise NotLocalError
                self._done[key] = self._rule(var.owner.op, var.owner, axis)
            else:
                self._done[key] = self._data(var, axis)
        return self._done[key]

    def _data(self, var: TensorVariable, axis: int) -> TensorVariable:
        n = _length(var, axis)
        if self.n not in (0, n):
            raise NotLocalError
        self.n = n
        shape = list(var.type.shape)
        shape[axis] = self.length
        found = self.rows[var, axis] = pt.tensor(dtype=var.dtype, shape=shape)
        return found

    def all_of(self, var: Variable) -> Variable:
        """A variable that all rows share, or its stand-in."""
        if isinstance(var, Constant):
            return var
        is_size = getattr(var.type, "dtype", "").startswith("int") and var.type.ndim == 0
        if not isinstance(var, TensorVariable) or is_size:  # JAX must know it, also in a loop
            raise NotLocalError
        return self.whole.setdefault(var, var.type())

    def check(self) -> None:
        """Raise `NotLocalError` if what rows share is computed from all of them."""
        for var in ancestors([v for v in self.whole if v in self._dependent]):
            if var in self._dependent and self.n in var.type.shape:
                raise NotLocalError

    def _broadcast(self, var: TensorVariable, axis: int) -> Variable:
        return self.all_of(var) if var.type.broadcastable[axis] else self.part(var, axis)

    def _guard(self, var: TensorVariable) -> Variable:
        """A condition without which the sum is not finite, checked for the rows of the tile alone.

        If it fails in one tile, the whole sum is −∞ or NaN.
        """
        node = var.owner
        if var not in self._dependent or node is None:
            return self.all_of(var)
        op: Any = node.op
        if isinstance(op, DimShuffle | MakeVector) or is_elementwise(node, ps.AND):
            return op(*map(self._guard, node.inputs))
        if isinstance(op, All):
            [inner] = node.inputs
            if inner.owner is not None and isinstance(inner.owner.op, MakeVector):
                return op(self._guard(inner))
            for axis in range(inner.ndim) if op.axis is None else op.axis:
                with self._attempt():
                    return op(self.part(inner, axis))
        return self.all_of(var)

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """Catch a `NotLocalError` of a block, and undo what the block has done."""
        kept = dict(self.rows), dict(self.whole), self.n, dict(self._done)
        try:
            yield
        except NotLocalError:
            self.rows, self.whole, self.n, self._done = kept

    # ------------------------------------------------------------------------------- rules for Ops

    @singledispatchmethod
    def _rule(self, op: Op, node: Apply, axis: int) -> TensorVariable:
        """The output of a node for a tile."""
        raise NotLocalError

    @_rule.register
    def _(self, op: Elemwise, node: Apply, axis: int) -> TensorVariable:
        if len(node.outputs) > 1:
            raise NotLocalError
        if is_elementwise(node, ps.Switch):
            condition, if_true, if_false = node.inputs
            if condition.type.broadcastable[axis] and _is_no_number(if_false):
                parts = [if_true, if_false]
                return op(self._guard(condition), *(self._broadcast(x, axis) for x in parts))
        return op(*(self._broadcast(x, axis) for x in node.inputs))

    @_rule.register
    def _(self, op: DimShuffle, node: Apply, axis: int) -> TensorVariable:
        if op.new_order[axis] == "x":
            raise NotLocalError
        return op(self.part(node.inputs[0], op.new_order[axis]))

    @_rule.register(ViewOp)
    @_rule.register(SpecifyShape)
    def _(self, op: Op, node: Apply, axis: int) -> TensorVariable:
        return self.part(node.inputs[0], axis)

    @_rule.register
    def _(self, op: DataProduct, node: Apply, axis: int) -> TensorVariable:
        matrix, vectors = node.inputs
        if vectors.ndim > 1:
            raise NotLocalError
        return op(self.part(matrix, int(op.is_transposed)), self.all_of(vectors))

    @_rule.register
    def _(self, op: Dot, node: Apply, axis: int) -> TensorVariable:
        left, right = node.inputs
        if axis == 0:
            return op(self.part(left, 0), self.all_of(right))
        return op(self.all_of(left), self.part(right, 1))

    @_rule.register
    def _(self, op: CAReduce, node: Apply, axis: int) -> TensorVariable:
        [x] = node.inputs
        if op.axis is None:
            raise NotLocalError
        kept = [i for i in range(x.ndim) if i not in op.axis]
        return op(self.part(x, kept[axis]))

    @_rule.register(Softmax)
    @_rule.register(LogSoftmax)
    @_rule.register(CumOp)
    def _(self, op: Any, node: Apply, axis: int) -> TensorVariable:
        [x] = node.inputs
        along = range(x.ndim) if op.axis is None else np.atleast_1d(op.axis) % x.ndim
        if axis in along:
            raise NotLocalError
        return op(self.part(x, axis))

    @_rule.register
    def _(self, op: Join, node: Apply, axis: int) -> TensorVariable:
        if op.axis % node.outputs[0].ndim == axis:
            raise NotLocalError
        return op(*(self.part(x, axis) for x in node.inputs))

    @_rule.register
    def _(self, op: Subtensor, node: Apply, axis: int) -> TensorVariable:
        x, *indices = node.inputs
        entries = [*op.idx_list, *[slice(None)] * (x.ndim - len(op.idx_list))]
        kept = [i for i, entry in enumerate(entries) if isinstance(entry, slice)]
        if entries[kept[axis]] != slice(None):
            raise NotLocalError
        return op(self.part(x, kept[axis]), *map(self.all_of, indices))

    @_rule.register
    def _(self, op: AdvancedSubtensor, node: Apply, axis: int) -> TensorVariable:
        x, *indices = node.inputs
        if any(isinstance(entry, slice) for entry in op.idx_list) or any(
            i.dtype == "bool" for i in indices
        ):
            raise NotLocalError
        n_axes = max(i.ndim for i in indices)
        if axis >= n_axes:
            return op(
                self.part(x, axis - n_axes + len(indices)), *(self.all_of(i) for i in indices)
            )
        # Each row takes elements of an array that all share, or its own row of an array of rows.
        places = [axis - n_axes + i.ndim for i in indices]
        parts = [
            self.all_of(i) if k < 0 else self._broadcast(i, k)
            for i, k in zip(indices, places, strict=True)
        ]
        if x in self._dependent and places[0] >= 0 and _counts_rows(indices[0], places[0]):
            return op(self.part(x, 0), parts[0] - self.begin, *parts[1:])
        return op(self.all_of(x), *parts)


def _is_no_number(var: Variable) -> bool:
    """Whether a variable is a constant of one value that is infinite or NaN."""
    value = constant_value(var) if isinstance(var, Constant) else None
    return value is not None and not np.isfinite(value)


def _length(var: TensorVariable, axis: int) -> int:
    """Length of an array of data."""
    known = var.type.shape[axis]
    if known is not None:
        return int(known)
    if isinstance(var, SharedVariable):
        return int(var.get_value(borrow=True).shape[axis])
    return int(function_of([], var.shape[axis], mode=NUMPY)())


def _counts_rows(index: TensorVariable, axis: int) -> bool:
    """Whether an index is always 0, 1, 2, … along an axis."""
    if not all(is_one or i == axis for i, is_one in enumerate(index.type.broadcastable)):
        return False
    while index.owner is not None and isinstance(index.owner.op, DimShuffle):
        [index] = index.owner.inputs
    if index.owner is not None and isinstance(index.owner.op, ARange):
        start, _, step = index.owner.inputs
        return constant_value(start) == 0 and constant_value(step) == 1
    if not getattr(index.tag, "is_constant", False):
        return False
    value = np.ravel(index.get_value(borrow=True))
    return bool((value == np.arange(value.size)).all())
