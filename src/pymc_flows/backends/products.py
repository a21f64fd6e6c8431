"""Products of a model's data matrices with vectors, for all draws at once.

A regression spends its time in X β and, for the gradient, Xᵀ r. PyTensor's own products need Xᵀ
as a separate array: the compiled loop keeps X twice, or with several draws copies it in every step,
which takes up to twice the time. Here one Op reads the same X both ways.

Linear systems are here, too: NumPy solves for all rows that share a matrix at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.dispatch import on_first_use, source_key
from pymc_flows.backends.rewrites import TAGS
from pymc_flows.support.compat import (
    Blockwise,
    DimShuffle,
    Dot,
    SolveBase,
    vectorize_node,
    vectorize_node_fallback,
)


class DataProduct(Op):
    """Multiply vectors by a matrix that they share: v (..., p) and X (n, p) to X v (..., n).

    Parameters
    ----------
    is_transposed : bool
        Multiply by Xᵀ: v (..., n) to (..., p).
    """

    __props__ = ("is_transposed",)

    def __init__(self, *, is_transposed: bool):
        self.is_transposed = is_transposed

    @property
    def gufunc_signature(self) -> str:
        """Signature by which the Op vectorises where each batch has its own matrix."""
        return "(n,p),(n)->(p)" if self.is_transposed else "(n,p),(p)->(n)"

    @property
    def _axis(self) -> int:
        """Axis of the matrix that remains in the result."""
        return 1 if self.is_transposed else 0

    def make_node(self, matrix: Any, vectors: Any) -> Apply:
        """Refuse other ranks and types."""
        matrix, vectors = pt.as_tensor_variable(matrix), pt.as_tensor_variable(vectors)
        if matrix.ndim != 2 or vectors.ndim < 1 or matrix.dtype != vectors.dtype:
            raise TypeError(
                f"expected a matrix and vectors of one type, got {matrix.type} and {vectors.type}"
            )
        shape = (*vectors.type.shape[:-1], matrix.type.shape[self._axis])
        return Apply(self, [matrix, vectors], [pt.tensor(dtype=matrix.dtype, shape=shape)])

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Shape of the product."""
        matrix, vectors = shapes
        return [(*vectors[:-1], matrix[self._axis])]

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Multiply in NumPy."""
        matrix, vectors = inputs
        output_storage[0][0] = np.asarray(vectors @ (matrix if self.is_transposed else matrix.T))

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[TensorVariable]:
        """Gradients with respect to the matrix and the vectors."""
        matrix, vectors = inputs
        [by_product] = cotangents
        rows, columns = by_product, vectors
        if self.is_transposed:
            rows, columns = columns, rows
        rows, columns = (x.reshape((-1, x.shape[-1])) for x in (rows, columns))
        other = DataProduct(is_transposed=not self.is_transposed)
        return [rows.T @ columns, other(matrix, by_product)]


@vectorize_node.register(DataProduct)
def _vectorize(op: DataProduct, node: Apply, matrix: Variable, vectors: Variable) -> Apply:
    if matrix.type.ndim == 2:
        return op.make_node(matrix, vectors)
    return vectorize_node_fallback(op, node, matrix, vectors)


def join_products(
    outputs: Sequence[TensorVariable], inputs: Iterable[Variable]
) -> list[TensorVariable]:
    """Replace products of a vector and a matrix that all draws share by `DataProduct`.

    The graphs are log densities of one draw, whose variables are ``inputs``.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    dependent = set(inputs)
    for node in fgraph.toposort():
        if not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
        new = _product(node, dependent)
        if new is not None and node.outputs[0].type.is_super(new.type):
            fgraph.replace(node.outputs[0], new, import_missing=True, reason="product with data")
            dependent.add(new)
    return list(fgraph.outputs)


def _product(node: Apply, dependent: set[Variable]) -> TensorVariable | None:
    """`DataProduct` for a node that squeezes matrix @ column or row @ matrix; None for others."""
    axis = _dropped(node)
    product = node.inputs[0].owner if axis is not None else None
    if product is None or not _is_dot(product.op):
        return None
    # The vector got an axis for the product, which the node drops again.
    matrix, vector = product.inputs if axis == 1 else product.inputs[::-1]
    if matrix in dependent or vector.owner is None or _added(vector.owner) != axis:
        return None
    [vector] = vector.owner.inputs
    if matrix.dtype != vector.dtype or not matrix.dtype.startswith("float"):
        return None
    is_transposed = axis == 0
    if matrix.owner is not None and _order(matrix.owner) == (1, 0):
        [matrix], is_transposed = matrix.owner.inputs, not is_transposed
    return DataProduct(is_transposed=is_transposed)(matrix, vector)


def _is_dot(op: Op) -> bool:
    return isinstance(op.core_op if isinstance(op, Blockwise) else op, Dot)


def _order(node: Apply) -> tuple[int | str, ...]:
    return tuple(node.op.new_order) if isinstance(node.op, DimShuffle) else ()


def _dropped(node: Apply) -> int | None:
    """The axis of a matrix that a node drops."""
    axes: dict[tuple[int | str, ...], int] = {(0,): 1, (1,): 0}
    is_matrix = isinstance(node.op, DimShuffle) and node.op.input_ndim == 2
    return axes.get(_order(node)) if is_matrix else None


def _added(node: Apply) -> int | None:
    """The axis that a node adds to a vector."""
    axes: dict[tuple[int | str, ...], int] = {(0, "x"): 1, ("x", 0): 0}
    return axes.get(_order(node))


@node_rewriter([Blockwise])
def _one_system_for_all_rows(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """Solve together for right-hand sides (…, k) that share a matrix, as the columns of one.

    The Python linker would solve for each alone. JAX does this itself.
    """
    core = node.op.core_op
    if not isinstance(core, SolveBase) or core.b_ndim != 1:
        return None
    matrix, rows = node.inputs
    last = rows.type.ndim - 1
    ones = zip(matrix.type.broadcastable[:last], rows.type.broadcastable[:last], strict=True)
    shared = [i for i, (of_matrix, of_rows) in enumerate(ones) if of_matrix and not of_rows]
    if not shared:
        return None
    others = [i for i in range(last) if i != shared[-1]]
    order = [*others, last, shared[-1]]
    system = Blockwise(type(core)(**{**core._props_dict(), "b_ndim": 2}))
    found = system(matrix.dimshuffle([*others, last, last + 1]), rows.dimshuffle(order))
    return [found.dimshuffle([order.index(i) for i in range(last + 1)])]


optdb.register(
    "pymc_flows_one_system", in2out(_one_system_for_all_rows), TAGS["python"], position=48.4
)


@on_first_use("numba")
def _register_numba() -> None:
    from pymc_flows.support.compat import numba_njit, register_funcify_and_cache_key

    @register_funcify_and_cache_key(DataProduct)
    def _(op: DataProduct, node: Apply, **_: Any) -> tuple[Any, str]:
        shape = f"{op.is_transposed} {node.inputs[1].type.ndim}"
        key = f"DataProduct {shape} {source_key(__name__)}"
        if node.inputs[1].type.ndim == 1 and op.is_transposed:

            @numba_njit
            def product(matrix, vectors):  # type: ignore[no-untyped-def]
                return np.dot(vectors, matrix)

        elif node.inputs[1].type.ndim == 1:

            @numba_njit
            def product(matrix, vectors):  # type: ignore[no-untyped-def]
                return np.dot(matrix, vectors)

        elif op.is_transposed:

            @numba_njit
            def product(matrix, vectors):  # type: ignore[no-untyped-def]
                rows = np.ascontiguousarray(vectors).reshape((-1, vectors.shape[-1]))
                return np.dot(rows, matrix).reshape((*vectors.shape[:-1], matrix.shape[1]))

        else:

            @numba_njit
            def product(matrix, vectors):  # type: ignore[no-untyped-def]
                rows = np.ascontiguousarray(vectors).reshape((-1, vectors.shape[-1]))
                return np.dot(rows, matrix.T).reshape((*vectors.shape[:-1], matrix.shape[0]))

        return product, key


@on_first_use("jax")
def _register_jax() -> None:
    from jax.lax import dot_general

    from pymc_flows.support.compat import jax_funcify

    @jax_funcify.register(DataProduct)
    def _(op: DataProduct, **_: Any) -> Any:
        axis = 0 if op.is_transposed else 1

        def product(matrix: Any, vectors: Any) -> Any:
            # Not v @ X.T: the transposed matrix would become an array of its own.
            return dot_general(vectors, matrix, (((vectors.ndim - 1,), (axis,)), ((), ())))

        return product
