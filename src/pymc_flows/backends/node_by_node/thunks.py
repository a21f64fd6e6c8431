"""What runs a single node on arrays: the NumPy call, with little around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from pytensor import scalar as ps
from pytensor.graph.basic import Apply

from pymc_flows.backends.node_by_node.arrays import WITH_MEMORY
from pymc_flows.backends.node_by_node.indices import Positions, leading_axes
from pymc_flows.support.compat import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    CAReduce,
    Elemwise,
)

type Cell = list[Any]
"""Where a variable's array is: the only element of a list."""
type Thunk = Callable[[], None]

# Ops whose thunks may write into memory that is given to them.
MEMORY = (AdvancedSubtensor, CAReduce, Elemwise)
# Sums and the like along a last axis that is no longer than this go column by column, if there are
# at least so many numbers: NumPy calls its loop for each row.
SHORT, MANY = 8, 2**10


class Memory(Protocol):
    """Memory for the result of a node."""

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """An array in row-major order; None if a new one is better."""


class _Fresh:
    """Leaves results to NumPy."""

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """None, always."""


def thunk_of(
    node: Apply, inputs: Sequence[Cell], outputs: Sequence[Cell], memory: Memory | None
) -> Thunk | None:
    """A thunk for a node, or None if PyTensor's own must do.

    Parameters
    ----------
    node : Apply
    inputs, outputs : sequence of list
        Cells of its variables.
    memory : Memory, optional
        For its result, where that does not leave the function.
    """
    for kind, make in _MAKERS.items():
        if isinstance(node.op, kind):
            return make(node, inputs, outputs[0], memory or _Fresh())
    return None


# -------------------------------------------------------------------------------------- elementwise


def _elementwise(node: Apply, inputs: Sequence[Cell], out: Cell, memory: Memory) -> Thunk | None:
    op = node.op
    if op.inplace_pattern or len(node.outputs) != 1:
        return None
    is_of_many = isinstance(op.scalar_op, ps.Add | ps.Mul) and len(inputs) > 2
    if op.nfunc is None or not (is_of_many or op.nfunc_spec[1:] == (len(inputs), 1)):
        return None
    function: Any
    if isinstance(op.scalar_op, ps.Switch):
        function = partial(_switch, is_full=_is_full(node.inputs[1].type, node))
    elif is_of_many:
        is_same = all(x.type.dtype == node.outputs[0].type.dtype for x in node.inputs)
        function = partial(_folded, op.nfunc, _first_full(node) if is_same else len(inputs))
    elif hasattr(node.tag, "sig"):  # integers as numbers of the result's type
        function = partial(op.nfunc, sig=node.tag.sig)
    elif isinstance(op.nfunc, np.ufunc) or op.nfunc in WITH_MEMORY:
        function = op.nfunc
    else:  # a function that takes no memory
        function, memory = op.nfunc, _Fresh()
    dtype, layout = np.dtype(node.outputs[0].type.dtype), _Layout(node)
    is_plain = True  # until a result has the right type

    def run() -> None:
        nonlocal is_plain
        arrays = [cell[0] for cell in inputs]
        if layout.is_doubtful(arrays):  # PyTensor raises an error
            op.perform(node, arrays, [out])
            return
        if not is_plain and layout.is_ordered(arrays):
            array = memory.array(layout.shape(arrays), dtype)
            if array is not None:
                out[0] = function(*arrays, out=array)
                return
        found = function(*arrays)
        if type(found) is not np.ndarray or found.dtype != dtype:
            out[0] = np.array(found, dtype=dtype)
        else:
            is_plain = False
            out[0] = found if found.flags.owndata else found.copy()

    return run


class _Layout:
    """How the inputs of an elementwise node broadcast."""

    def __init__(self, node: Apply):
        types = [x.type for x in node.inputs]
        self._sources: list[int | None] = []
        self._doubts: list[tuple[int, list[int]]] = []
        for axis in range(node.outputs[0].type.ndim):
            long = [i for i, kind in enumerate(types) if not kind.broadcastable[axis]]
            self._sources.append(long[0] if long else None)
            if len(long) > 1 and any(types[i].shape[axis] is None for i in long):
                self._doubts.append((axis, long))
        full = [i for i, kind in enumerate(types) if _is_full(kind, node)]
        self._full = full[0] if full else None

    def shape(self, arrays: Sequence[np.ndarray]) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(
            1 if i is None else arrays[i].shape[axis] for axis, i in enumerate(self._sources)
        )

    def is_ordered(self, arrays: Sequence[np.ndarray]) -> bool:
        """Whether NumPy would give the result in row-major order."""
        return self._full is None or bool(arrays[self._full].flags.c_contiguous)

    def is_doubtful(self, arrays: Sequence[np.ndarray]) -> bool:
        """Whether some lengths of an axis are 1, which must not be broadcast, and others not."""
        for axis, sources in self._doubts:
            lengths = [arrays[i].shape[axis] for i in sources]
            if 1 in lengths and lengths.count(1) != len(lengths):
                return True
        return False


def _is_full(kind: Any, node: Apply) -> bool:
    """Whether an input has the shape of the result."""
    return bool(kind.broadcastable == node.outputs[0].type.broadcastable)


def _first_full(node: Apply) -> int:
    """Number of leading inputs that have the shape of the result when they are combined."""
    open_axes = [axis for axis, b in enumerate(node.outputs[0].type.broadcastable) if not b]
    for i, x in enumerate(node.inputs):
        open_axes = [axis for axis in open_axes if x.type.broadcastable[axis]]
        if not open_axes:
            return i + 1
    return len(node.inputs)


def _folded(
    ufunc: np.ufunc, first_full: int, *arrays: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """Combine arrays from left to right; partial results go where the last one goes."""
    found = arrays[0]
    for i, array in enumerate(arrays[1:], 2):
        if i < first_full:
            found = ufunc(found, array)
        else:
            found = ufunc(found, array, out=out)
            out = found if found.ndim else None
    return found


def _switch(
    condition: np.ndarray,
    yes: np.ndarray,
    no: np.ndarray,
    out: np.ndarray | None = None,
    *,
    is_full: bool,
) -> np.ndarray:
    """`numpy.where` into given memory; ``yes`` is copied where a check of parameters holds."""
    is_check = is_full and 0 < 8 * condition.size < yes.size and yes.dtype == no.dtype
    if is_check and _fit(yes, condition, no) and condition.all():
        if out is None:
            return yes.copy()
        np.copyto(out, yes)
    elif out is None or condition.dtype != bool:
        return np.where(condition, yes, no)
    else:
        np.copyto(out, no)
        np.copyto(out, yes, where=condition)
    return out


def _fit(array: np.ndarray, *others: np.ndarray) -> bool:
    """Whether arrays of as many axes broadcast to the shape of the first."""
    return all(
        n in (1, length)
        for other in others
        for n, length in zip(other.shape, array.shape, strict=True)
    )


# --------------------------------------------------------------------------------------- reductions


def _reduction(node: Apply, inputs: Sequence[Cell], out: Cell, memory: Memory) -> Thunk | None:
    op, kind = node.op, node.inputs[0].type
    dtype = np.dtype(node.outputs[0].type.dtype)
    if kind.dtype != dtype or (op.acc_dtype or dtype) != dtype:
        return None
    if op.ufunc.types == ["OO->O"]:  # a Python function of two numbers
        return None
    [source], ufunc, axis = inputs, op.ufunc, op.axis
    is_last = axis == (kind.ndim - 1,) and kind.ndim > 1

    def run() -> None:
        x = source[0]
        if is_last and 1 < x.shape[-1] <= SHORT and x.size >= MANY:
            array = memory.array(x.shape[:-1], dtype) if x.flags.c_contiguous else None
            found = ufunc(x[..., 0], x[..., 1], out=array)
            for i in range(2, x.shape[-1]):
                ufunc(found, x[..., i], out=found)
            out[0] = found
        else:
            out[0] = np.asarray(ufunc.reduce(x, axis=axis, dtype=dtype))

    return run


# ----------------------------------------------------------------------------- gathers and scatters


def _gather(node: Apply, inputs: Sequence[Cell], out: Cell, memory: Memory) -> Thunk | None:
    """Take elements by integers."""
    lead = leading_axes(node.op.idx_list, node.inputs[1:])
    if lead is None:
        return None
    source, *cells = inputs
    positions, dtype = Positions(node.inputs[1:], cells), np.dtype(node.outputs[0].type.dtype)
    end = lead + len(cells)

    def run() -> None:
        x = source[0]
        if len(cells) == 1 and not positions.are_fixed:  # NumPy checks the range
            out[0] = x.take(cells[0][0], axis=lead)
            return
        lengths = x.shape[lead:end]
        flat = positions.flat(lengths)
        if flat is None:  # for PyTensor's error
            node.op.perform(node, [cell[0] for cell in inputs], [out])
            return
        before, after = x.shape[:lead], x.shape[end:]
        array = memory.array((*before, *flat.shape, *after), dtype)
        rows = x.reshape(*before, math.prod(lengths), *after)
        # With the mode "raise" NumPy would write into other memory first.
        out[0] = rows.take(flat, axis=lead, out=array, mode="clip")

    return run


def _scatter(node: Apply, inputs: Sequence[Cell], out: Cell, memory: Memory) -> Thunk | None:
    """Add numbers at integers, by `numpy.bincount`; `numpy.add.at` takes ten times as long."""
    op, kinds = node.op, [x.type for x in node.inputs[:2]]
    lead = leading_axes(op.idx_list, node.inputs[2:])
    if lead is None or op.inplace or op.set_instead_of_inc or op.ignore_duplicates:
        return None
    if kinds[0].dtype != kinds[1].dtype or kinds[0].dtype not in ("float32", "float64"):
        return None
    target, source, *cells = inputs
    positions, end = Positions(node.inputs[2:], cells), lead + len(cells)

    def run() -> None:
        x, y = target[0], source[0]
        lengths, after = x.shape[lead:end], x.shape[end:]
        n_after = math.prod(after)
        flat = positions.flat(lengths, n_after)
        # Whatever is broadcast, or refused, is left to PyTensor.
        if flat is None or y.shape != (*x.shape[:lead], *positions.shape, *after):
            op.perform(node, [cell[0] for cell in inputs], [out])
            return
        n = math.prod(lengths) * n_after
        rows = y.reshape(-1, flat.size) if flat.size else y.reshape(0, 0)
        added = np.empty((len(rows), n))
        for row, weights in zip(added, rows, strict=True):
            row[:] = np.bincount(flat, weights, minlength=n)
        out[0] = x + added.reshape(x.shape).astype(x.dtype, copy=False) if len(rows) else x.copy()

    return run


_MAKERS = {
    Elemwise: _elementwise,
    CAReduce: _reduction,
    AdvancedSubtensor: _gather,
    AdvancedIncSubtensor: _scatter,
}
