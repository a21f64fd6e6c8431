"""Which elements of its inputs each element of an Op's output is computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytensor.tensor as pt
import scipy.sparse as sp
from pytensor import sparse
from pytensor.compile.ops import TypeCastingOp, ViewOp
from pytensor.graph.basic import Apply, Variable
from pytensor.sparse import math as sparse_math
from pytensor.tensor.basic import (
    Alloc,
    ExtractDiag,
    Join,
    MakeVector,
    ScalarFromTensor,
    Split,
    TensorFromScalar,
)
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle
from pytensor.tensor.extra_ops import CumOp, Repeat
from pytensor.tensor.math import Dot, Sum
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.sort import SortOp
from pytensor.tensor.subtensor import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    IncSubtensor,
    Subtensor,
    unflatten_index_variables,
)

from pymc_flows.model.structure.graph import AXIS_OPS, Facts, is_elementwise

type Ints = npt.NDArray[np.intp]

# They only copy elements of their first input, whatever the others say.
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
_PLACES = (AdvancedIncSubtensor, IncSubtensor)
_JOINS = (Join, MakeVector)
_IDENTITIES = (
    ScalarFromTensor,
    TensorFromScalar,
    TypeCastingOp,
    ViewOp,
    sparse.DenseFromSparse,
    sparse.SparseFromDense,
)
_SPARSE_DOTS = (sparse_math.Dot, sparse_math.StructuredDot, sparse_math.TrueDot)


@dataclass(frozen=True)
class Factors:
    """Numbers that the elements of an input are multiplied by, one for each entry of a relation.

    Parameters
    ----------
    source : ndarray or Variable
        The numbers, or the variable that has them at each evaluation.
    index : ndarray of int, optional
        Positions of the entries in the flattened source; None where they are aligned.
    """

    source: npt.NDArray[np.float64] | Variable
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
    factors : Factors, optional
        Values of the entries; None where they are 1, or where only the pattern is known.
    """

    indices: Ints
    indptr: Ints | None = None
    factors: Factors | None = None


@dataclass(frozen=True)
class Blocks:
    """An output that depends on its inputs in ways unknown, block by block.

    Parameters
    ----------
    inputs : list of Relation or None
        Which elements of an input each block reads; None where the input does not matter.
    block : ndarray of int
        The block of each element of the output.
    name : str or None
        Of the Op, if nothing is known about it; None where blocks say all there is to say.
    """

    inputs: list[Relation | None]
    block: Ints
    name: str | None


type Relations = list[Relation | None] | Blocks


def relations(node: Apply, output: int, known: Facts, depends: set[Variable]) -> Relations:
    """Return how an output depends on each input: linearly, or by blocks.

    Parameters
    ----------
    node : Apply
    output : int
        Position among the outputs.
    known : Facts
    depends : set of Variable
        What is not constant.

    Returns
    -------
    list of Relation or None
        An entry for each input, None where nothing that is not constant comes from it, where the
        output is linear in the inputs; for an elementwise Op the elements alone.
    Blocks
        Otherwise.
    """
    live = [v in depends for v in node.inputs]
    if is_elementwise(node):
        shape = known.shapes[node.outputs[output]]
        return [
            Relation(spread(known.shapes[v], shape)) if on else None
            for v, on in zip(node.inputs, live, strict=True)
        ]
    rule = _rule(node)
    if rule is not None:
        found = rule(node, output, known, live)
        if found is not None:
            return found
    return _blocks(node, output, known, live)


def spread(shape: tuple[int, ...], into: tuple[int, ...]) -> Ints:
    """Return the flat indices of an array of a shape, broadcast to another one."""
    index = np.arange(int(np.prod(shape)), dtype=np.intp).reshape(shape)
    return index.ravel() if shape == into else np.broadcast_to(index, into).ravel()


type _Rule = Callable[[Apply, int, Facts, list[bool]], Relations | None]


def _rule(node: Apply) -> _Rule | None:
    op = node.op.core_op if isinstance(node.op, Blockwise) else node.op
    if isinstance(op, _SELECTIONS):
        return _selection
    if isinstance(op, _JOINS) and not isinstance(node.op, Blockwise):
        return _join
    if isinstance(op, _PLACES) and not isinstance(node.op, Blockwise):
        return _placed
    if isinstance(op, _IDENTITIES):
        return _identity
    if isinstance(op, CAReduce):
        return _reduced
    if isinstance(op, CumOp):
        return _cumulated
    if isinstance(op, Dot):
        return _product
    if isinstance(op, _SPARSE_DOTS):
        return _sparse_product
    if isinstance(op, AXIS_OPS):
        return _along_axis
    if isinstance(op, SortOp):
        return _sorted
    return None


# ------------------------------------------------------------------------------------- selections


def _run(node: Apply, output: int, first: list[npt.NDArray[Any]], known: Facts) -> Any:
    """Run an Op on index arrays in the place of its first inputs."""
    rest = [known.values[v] for v in node.inputs[len(first) :]]
    new = node.op.make_node(
        *(pt.constant(a) for a in first),
        *(
            v.type.make_constant(a) if hasattr(v.type, "make_constant") else v
            for v, a in zip(node.inputs[len(first) :], rest, strict=True)
        ),
    )
    storage: list[list[Any]] = [[None] for _ in new.outputs]
    new.op.perform(new, [*first, *rest], storage)
    return storage[output][0]


def _positions(node: Apply, known: Facts) -> npt.NDArray[np.intp]:
    shape = known.shapes[node.inputs[0]]
    return np.arange(int(np.prod(shape)), dtype=np.intp).reshape(shape)


def _selection(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations | None:
    if not all(v in known.fixed for v in node.inputs[1:]):
        return None
    picked = _run(node, output, [_positions(node, known)], known)
    rest: list[Relation | None] = [None] * (len(node.inputs) - 1)
    return [Relation(np.asarray(picked, dtype=np.intp).ravel()), *rest]


def _identity(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    return [Relation(_positions(node, known).ravel())]


def _from_codes(codes: npt.NDArray[np.intp], sizes: list[int], live: list[bool]) -> Relations:
    """Relations of an output each of whose elements is one of all elements of all inputs."""
    found: list[Relation | None] = []
    begin = 0
    for size, on in zip(sizes, live, strict=True):
        mine = (codes >= begin) & (codes < begin + size)
        indptr = np.concatenate([[0], np.cumsum(mine)])
        found.append(Relation(codes[mine] - begin, indptr) if on else None)
        begin += size
    return found


def _join(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    sizes = [known.size(v) for v in node.inputs]
    starts = np.cumsum([0, *sizes])
    arrays = [
        np.arange(a, b).reshape(known.shapes[v])
        for a, b, v in zip(starts[:-1], starts[1:], node.inputs, strict=True)
    ]
    if isinstance(node.op, MakeVector):
        codes = np.concatenate([a.ravel() for a in arrays])
    else:
        codes = np.concatenate(arrays, axis=node.op.axis).ravel()
    return _from_codes(codes, sizes, live)


def _placed(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations | None:
    """An array x after x[index] = y, or x[index] += y."""
    if not all(v in known.fixed for v in node.inputs[2:]):
        return None
    x, y = node.inputs[:2]
    size = known.size(x)
    rest: list[Relation | None] = [None] * (len(node.inputs) - 2)
    positions = _positions(node, known)
    index = tuple(
        np.asarray(i) if np.ndim(i) else i
        for i in unflatten_index_variables(
            [known.values[v] for v in node.inputs[2:]], node.op.idx_list
        )
    )
    target = np.asarray(positions[index])
    source = spread(known.shapes[y], target.shape)
    if node.op.set_instead_of_inc:
        codes = positions.ravel().copy()
        codes[target.ravel()] = size + source
        found = _from_codes(codes, [size, known.size(y)], live[:2])
        return [*found, *rest] if isinstance(found, list) else found
    order = np.argsort(target.ravel(), kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(target.ravel(), minlength=size))])
    return [
        Relation(positions.ravel()) if live[0] else None,
        Relation(source[order], indptr) if live[1] else None,
        *rest,
    ]


# ------------------------------------------------------------------------------ sums and products


def _rows_of(groups: Ints, n: int) -> Relation:
    """Each of n rows has the elements whose group it is."""
    counts = np.bincount(groups, minlength=n)
    ordered = np.all(groups[:-1] <= groups[1:])
    indices = np.arange(len(groups)) if ordered else np.argsort(groups, kind="stable")
    return Relation(indices, np.concatenate([[0], np.cumsum(counts)]))


def _groups(shape: tuple[int, ...], axes: tuple[int, ...]) -> Ints:
    """The element of an array, reduced along axes, that each of its elements goes into."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    return spread(kept, shape)


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    if axis is None:
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
    positions = np.moveaxis(_positions(node, known), node.op.axis, -1)
    n = shape[node.op.axis]
    rows, columns = np.tril_indices(n)
    lines = positions.reshape(-1, n) if positions.size else positions.reshape(0, n)
    indices = lines[:, columns].ravel()
    # Rows in the order of the output, which is not that of the lines.
    targets = lines[:, rows].ravel()
    order = np.argsort(targets, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(targets, minlength=positions.size))])
    relation = Relation(indices[order], indptr)
    if node.op.mode == "add":
        return [relation]
    return Blocks([relation], np.arange(positions.size), None)


def _product(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    """A matrix product, batched or not: linear in one of its factors, if not in both."""
    left, right = (_positions_of(known.shapes[v]) for v in node.inputs)
    # (…, n, m, k): element k of row n of the left one, and of column m of the right one.
    left, right = left[..., :, None, :], np.swapaxes(right, -1, -2)[..., None, :, :]
    batch = np.broadcast_shapes(left.shape[:-3], right.shape[:-3])
    shape = (*batch, left.shape[-3], right.shape[-2], left.shape[-1])
    n_terms = shape[-1]
    n_out = int(np.prod(shape[:-1]))
    indptr = np.arange(n_out + 1) * n_terms
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
        relation = Relation(sides[mine], indptr, Factors(fixed, sides[other]))
    return [relation, None] if live[0] else [None, relation]


def _positions_of(shape: tuple[int, ...]) -> Ints:
    return np.arange(int(np.prod(shape)), dtype=np.intp).reshape(shape)


def _without_zeros(indices: Ints, indptr: Ints, values: npt.NDArray[np.float64]) -> Relation:
    kept = values != 0
    if not kept.all():
        indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
        indices, values = indices[kept], values[kept]
    return Relation(indices, indptr, Factors(values))


def _sparse_product(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations | None:
    """A product of a sparse matrix of data and a dense matrix, on either side."""
    if all(live):
        return None
    mine, other = (0, 1) if live[0] else (1, 0)
    if node.inputs[other] not in known.fixed:
        return None
    fixed = sp.csr_matrix(known.values[node.inputs[other]])
    n, k = known.shapes[node.inputs[mine]]
    full = sp.kron(sp.eye(n), fixed.T) if mine == 0 else sp.kron(fixed, sp.eye(k))
    full = full.tocsr()
    relation = Relation(
        full.indices.astype(np.intp), full.indptr.astype(np.intp), Factors(full.data.astype(float))
    )
    return [relation, None] if live[0] else [None, relation]


# ----------------------------------------------------------------------------------------- blocks


def _along_axis(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    shape = known.shapes[node.inputs[0]]
    axes = _axes(node.op.axis, len(shape))
    groups = _groups(shape, axes)
    n = int(groups.max(initial=-1)) + 1
    same = known.shapes[node.outputs[0]] == shape
    return Blocks([_rows_of(groups, n)], groups if same else np.arange(n), None)


def _sorted(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations | None:
    axis = node.inputs[1]
    if axis not in known.fixed:
        return None
    shape = known.shapes[node.inputs[0]]
    groups = _groups(shape, _axes(int(known.values[axis]), len(shape)))
    return Blocks([_rows_of(groups, int(groups.max(initial=-1)) + 1), None], groups, None)


def _blocks(node: Apply, output: int, known: Facts, live: list[bool]) -> Blocks:
    """All elements depend on all, within an element of the batch if the Op is a Blockwise."""
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
    return Blocks(inputs, block, op_name(node))


def op_name(node: Apply) -> str:
    """Name an Op for a person: its class, and what it repeats or calls."""
    op = node.op.core_op if isinstance(node.op, Blockwise) else node.op
    return type(op).__name__
