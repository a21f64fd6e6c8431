"""Which elements of its inputs each element of an Op's output is computed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.linalg import Cholesky, Det, Eigh, Eigvalsh, MatrixInverse, SLogDet

from pymc_flows.backends.ops import op_name
from pymc_flows.model.structure import selections
from pymc_flows.model.structure.graph import AXIS_OPS, Facts, is_elementwise, is_switch
from pymc_flows.model.structure.rows import (
    Blocks,
    Coefficients,
    Floats,
    Ints,
    Relation,
    Relations,
    indptr_of,
    positions,
    spread,
)
from pymc_flows.support.compat import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    Alloc,
    Blockwise,
    CAReduce,
    CumOp,
    DimShuffle,
    Dot,
    ExtractDiag,
    IncSubtensor,
    Join,
    MakeVector,
    Repeat,
    Reshape,
    ScalarFromTensor,
    SolveBase,
    SortOp,
    SpecifyShape,
    Split,
    Subtensor,
    Sum,
    TensorFromScalar,
    TypeCastingOp,
    ViewOp,
)

# Ops that only copy elements of their first input.
_SELECTIONS = (
    Alloc,
    AdvancedSubtensor,
    DimShuffle,
    ExtractDiag,
    Repeat,
    Reshape,
    SpecifyShape,
    Split,
    Subtensor,
)
_IDENTITIES = (ScalarFromTensor, TensorFromScalar, TypeCastingOp, ViewOp)
# Ops of matrices whose outputs depend on all elements.
_ALGEBRA = (Cholesky, Det, Eigh, Eigvalsh, MatrixInverse, SLogDet, SolveBase)


def relations(node: Apply, output: int, known: Facts, depends: set[Variable]) -> Relations:
    """Return how an output depends on each input: linearly, or by blocks.

    Parameters
    ----------
    node : Apply
    output : int
        Position among the outputs.
    known : Facts
    depends : set of Variable
        Variables that vary.

    Returns
    -------
    list of Relation or None
        If the output is linear in the inputs, or the Op elementwise, which gives no coefficients:
        an entry for each input, None for one that does not vary or does not matter.
    Blocks
        Otherwise.
    """
    live = [v in depends for v in node.inputs]
    rule = _rule(node)
    found = rule and rule(node, output, known, live)
    return _blocks(node, output, known, live) if found is None else found


def _elementwise(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    shape = known.shapes[node.outputs[output]]
    given = [spread(known.shapes[v], shape) for v in node.inputs]
    found = [Relation(i) if on else None for i, on in zip(given, live, strict=True)]
    if is_switch(node) and node.inputs[0] in known.fixed:  # data choose a side for good
        chosen = np.asarray(known.values[node.inputs[0]], dtype=bool).ravel()[given[0]]
        for k, mine in ((1, chosen), (2, ~chosen)):
            if live[k] and not mine.all():
                found[k] = Relation(given[k][mine], indptr_of(mine))
    return found


type _Rule = Callable[[Apply, int, Facts, list[bool]], Relations | None]


def _rule(node: Apply) -> _Rule | None:
    if is_elementwise(node):
        return _elementwise
    core = node.op.core_op if isinstance(node.op, Blockwise) else node.op
    for ops, rule in _OF_BLOCKS:
        if isinstance(core, ops):
            return rule
    for ops, rule in _RULES:
        if isinstance(node.op, ops):
            return rule
    return _sparse_rule(node)


def _sparse_rule(node: Apply) -> _Rule | None:
    if not type(node.op).__module__.startswith("pytensor.sparse"):
        return None
    from pytensor import sparse  # it takes a while to import, and few models have one
    from pytensor.sparse import math

    if isinstance(node.op, sparse.DenseFromSparse | sparse.SparseFromDense):
        return selections.identity
    if isinstance(node.op, math.Dot | math.StructuredDot | math.TrueDot):
        return _sparse_product
    return None


# ------------------------------------------------------------------------------ sums and products


def _rows_of(groups: Ints, n: int) -> Relation:
    """Relation in which each of n rows has the elements of one group."""
    ordered = np.all(groups[:-1] <= groups[1:])
    indices = np.arange(len(groups)) if ordered else np.argsort(groups, kind="stable")
    return Relation(indices, indptr_of(np.bincount(groups, minlength=n)))


def _groups(shape: tuple[int, ...], axes: tuple[int, ...]) -> Ints:
    """For each element of an array the element that it goes into when axes are reduced."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    return spread(kept, shape)


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    if axis is None or ndim == 0:  # NumPy lets a number be summed over an axis that it lacks
        return tuple(range(ndim))
    return tuple(a % ndim for a in (axis if isinstance(axis, tuple | list) else (axis,)))


def _reduced(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    shape = known.shapes[node.inputs[0]]
    axes = _axes(node.op.axis, len(shape))
    relation = _rows_of(_groups(shape, axes), known.size(node.outputs[0]))
    if isinstance(node.op, Sum):
        return [relation]
    return Blocks([relation], np.arange(known.size(node.outputs[0])), None)


def _cumulated(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    shape = known.shapes[node.inputs[0]]
    places = np.moveaxis(positions(shape), node.op.axis, -1)
    n = shape[node.op.axis]
    rows, columns = np.tril_indices(n)
    lines = places.reshape(-1, n) if places.size else places.reshape(0, n)
    # Rows in the order of the output, which is not that of the lines.
    by_output = _rows_of(lines[:, rows].ravel(), places.size)
    relation = Relation(lines[:, columns].ravel()[by_output.indices], by_output.indptr)
    if node.op.mode == "add":
        return [relation]
    return Blocks([relation], np.arange(places.size), None)


def _product(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    """A matrix product, batched or not: linear in the one factor that varies, if not both do."""
    left, right = (positions(known.shapes[v]) for v in node.inputs)
    # (…, n, m, k): element k of row n on the left, and of column m on the right.
    left, right = left[..., :, None, :], np.swapaxes(right, -1, -2)[..., None, :, :]
    shape = np.broadcast_shapes(left.shape, right.shape)
    n_out = int(np.prod(shape[:-1]))
    indptr = np.arange(n_out + 1) * shape[-1]
    sides = [np.broadcast_to(side, shape).ravel() for side in (left, right)]
    if all(live):
        patterns: list[Relation | None] = [Relation(side, indptr) for side in sides]
        return Blocks(patterns, np.arange(n_out), None)
    mine, other = (0, 1) if live[0] else (1, 0)
    fixed = node.inputs[other]
    if fixed in known.fixed:
        values = np.asarray(known.values[fixed], dtype=float).ravel()[sides[other]]
        relation = _without_zeros(sides[mine], indptr, values)
    else:
        relation = Relation(sides[mine], indptr, Coefficients(fixed, sides[other]))
    return [relation, None] if live[0] else [None, relation]


def _without_zeros(indices: Ints, indptr: Ints, values: Floats) -> Relation:
    kept = values != 0
    if not kept.all():
        indptr = indptr_of(kept)[indptr]
        indices, values = indices[kept], values[kept]
    return Relation(indices, indptr, Coefficients(values))


def _sparse_product(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations | None:
    """A product of a sparse matrix of data and a dense matrix, on either side."""
    mine, other = (0, 1) if live[0] else (1, 0)
    if all(live) or node.inputs[other] not in known.fixed:
        return None
    fixed = scipy.sparse.csr_matrix(known.values[node.inputs[other]])
    n, k = known.shapes[node.inputs[mine]]
    factors = (scipy.sparse.eye(n), fixed.T) if mine == 0 else (fixed, scipy.sparse.eye(k))
    full = scipy.sparse.kron(*factors).tocsr()
    relation = Relation(
        full.indices.astype(np.intp),
        full.indptr.astype(np.intp),
        Coefficients(full.data.astype(float)),
    )
    return [relation, None] if live[0] else [None, relation]


# ----------------------------------------------------------------------------------------- blocks


def _along_axis(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    """An Op that mixes the elements along an axis, which it keeps or reduces."""
    shape = known.shapes[node.inputs[0]]
    groups = _groups(shape, _axes(node.op.axis, len(shape)))
    n = int(groups.max(initial=-1)) + 1
    same = known.shapes[node.outputs[0]] == shape
    return Blocks([_rows_of(groups, n)], groups if same else np.arange(n), None)


def _blocks(node: Apply, output: int, known: Facts, live: list[bool]) -> Blocks:
    """All elements depend on all, but stay within an element of the batch in a Blockwise."""
    shape = known.shapes.get(node.outputs[output], ())
    batch: tuple[int, ...] = ()
    if isinstance(node.op, Blockwise):
        batch = shape[: node.op.batch_ndim(node)]
    n_batch = int(np.prod(batch))
    inputs: list[Relation | None] = []
    for var, on in zip(node.inputs, live, strict=True):
        if not on:
            inputs.append(None)
            continue
        mine = known.shapes.get(var, ())
        core = mine[len(batch) :]
        size = int(np.prod(core))
        rows = spread(mine[: len(batch)], batch)
        indices = (rows[:, None] * size + np.arange(size)).ravel()
        inputs.append(Relation(indices, np.arange(n_batch + 1) * size))
    block = np.repeat(np.arange(n_batch), int(np.prod(shape[len(batch) :])))
    core = node.op.core_op if isinstance(node.op, Blockwise) else node.op
    return Blocks(inputs, block, None if isinstance(core, _ALGEBRA) else op_name(node.op))


# Rules by Op. Those of the first table also hold for the elements of a batch.
_OF_BLOCKS: tuple[tuple[Any, _Rule], ...] = (
    (_SELECTIONS, selections.selection),
    (_IDENTITIES, selections.identity),
    (Dot, _product),
)
_RULES: tuple[tuple[Any, _Rule], ...] = (
    ((Join, MakeVector), selections.join),
    ((AdvancedIncSubtensor, IncSubtensor), selections.placed),
    (CAReduce, _reduced),
    (CumOp, _cumulated),
    ((*AXIS_OPS, SortOp), _along_axis),
)
