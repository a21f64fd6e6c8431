"""Graphs rewritten into elementwise and linear Ops, as far as possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedGrad, ZeroGrad, disconnected_grad
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import toposort
from pytensor.tensor.variable import TensorVariable

from pymc_flows.support.compat import (
    Blockwise,
    Dot,
    LogSoftmax,
    LogSumExp,
    Shape,
    Shape_i,
    Softmax,
    SolveBase,
)

# A product of two matrices that both vary becomes a sum of products if these are no more.
_MAX_PRODUCTS = 20_000_000


def expanded(outputs: Sequence[TensorVariable], inputs: Iterable[Variable]) -> list[TensorVariable]:
    """Rewrite the parts of graphs that depend on ``inputs`` into elementwise and linear Ops.

    Softmax and log-sum-exp become sums of exponentials, products of two matrices that vary become
    sums of products, and solutions of linear systems with a constant matrix become products with
    its inverse.

    Parameters
    ----------
    outputs : sequence of TensorVariable
    inputs : iterable of Variable
        Variables that vary.

    Returns
    -------
    list of TensorVariable
        Equal graphs on the same inputs.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    live = set(inputs)
    for node in fgraph.toposort():
        if not differentiable(node, live):
            continue
        live.update(node.outputs)
        new = _expansion(node, live)
        if new is not None:
            live.add(new)
            fgraph.replace(node.outputs[0], new, import_missing=True, reason="expansion")
    return list(fgraph.outputs)


def differentiable(node: Apply, live: set[Variable]) -> bool:
    """Whether derivatives with respect to ``live`` variables pass through a node."""
    return (
        not live.isdisjoint(node.inputs)
        and not isinstance(node.op, Shape | Shape_i | DisconnectedGrad | ZeroGrad)
        and any(str(getattr(v.type, "dtype", "")).startswith("float") for v in node.outputs)
    )


def live_nodes(outputs: Sequence[Variable], inputs: Iterable[Variable]) -> list[Apply]:
    """Nodes that derivatives with respect to ``inputs`` pass through, in topological order."""
    live = set(inputs)
    found = []
    for node in toposort(outputs, blockers=live.copy()):
        if differentiable(node, live):
            live.update(node.outputs)
            found.append(node)
    return found


def _expansion(node: Apply, live: set[Variable]) -> TensorVariable | None:
    op = node.op
    core = op.core_op if isinstance(op, Blockwise) else op
    if isinstance(op, Softmax):
        weights = _shifted_exp(node.inputs[0], op.axis)[0]
        return weights / weights.sum(axis=op.axis, keepdims=True)
    if isinstance(op, LogSoftmax):
        weights, shift = _shifted_exp(node.inputs[0], op.axis)
        return node.inputs[0] - (shift + pt.log(weights.sum(axis=op.axis, keepdims=True)))
    if isinstance(op, LogSumExp):
        weights, shift = _shifted_exp(node.inputs[0], op.axis)
        return pt.log(weights.sum(axis=op.axis)) + pt.squeeze(shift, axis=op.axis)
    if isinstance(core, Dot) and live.issuperset(node.inputs):
        left, right = node.inputs
        left, right = left[..., :, None, :], pt.swapaxes(right, -1, -2)[..., None, :, :]
        shapes = left.type.shape, right.type.shape
        is_known = not any(None in shape for shape in shapes)
        if is_known and np.prod(np.broadcast_shapes(*shapes)) > _MAX_PRODUCTS:
            return None
        return (left * right).sum(axis=-1)
    if isinstance(core, SolveBase) and node.inputs[0] not in live:
        return _solved(core, *node.inputs[:2])
    return None


def _shifted_exp(
    x: TensorVariable, axis: int | tuple[int, ...]
) -> tuple[TensorVariable, TensorVariable]:
    """exp(x − max x), and the maximum, whose derivatives cancel and are left out."""
    highest = pt.max(x, axis=axis, keepdims=True)
    shift = disconnected_grad(pt.switch(pt.isinf(highest), 0.0, highest))
    return pt.exp(x - shift), shift


def _solved(op: SolveBase, matrix: TensorVariable, right: TensorVariable) -> TensorVariable:
    """The solution of A x = b as A⁻¹ b, linear in b."""
    eye = pt.eye(matrix.shape[-1], dtype=matrix.dtype)
    props = {name: getattr(op, name) for name in op.__props__} | {"b_ndim": 2}
    inverse = Blockwise(type(op)(**props))(matrix, eye)
    return (inverse @ right[..., None])[..., 0] if op.b_ndim == 1 else inverse @ right
