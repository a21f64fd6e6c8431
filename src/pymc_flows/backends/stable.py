"""Forms of log densities that are finite, and have finite gradients, far from the data.

They are applied before gradients are taken. When a function is compiled it is too late: gradients
of values that are rounded to 0, 1 or infinity have become 0 · ∞ by then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor import scalar as ps
from pytensor.graph.basic import Apply
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.simplify import apply_rules, constant_value, is_elementwise
from pymc_flows.support.compat import (
    FILLS_AS_ALLOC,
    LIFTS_AXES,
    AdvancedSubtensor,
    CumOp,
    DimShuffle,
    Elemwise,
    Join,
    MakeVector,
    Subtensor,
    ViewOp,
    rewrite_graph,
)

# Allocations of computed shapes, and axes that are added before they are known to have length 1:
# PyTensor cannot vectorise what these rewrites make.
_NOT_IN_BATCHES = (FILLS_AS_ALLOC, LIFTS_AXES)


def stabilize(outputs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Give log densities of one draw the forms that are stable.

    Logarithms of probabilities that are joined, indexed, or differences of sigmoids are taken
    before these are rounded to 0 or 1. Then PyTensor's own stable forms (of softmax, erfc, sums of
    exponentials) are applied, as in PyMC's own gradients.
    """
    rules = (_log_of_chosen, _log_of_joined, _cumulated_product)
    found = apply_rules(outputs, rules)
    return rewrite_graph(
        found, include=("canonicalize", "stabilize"), exclude=_NOT_IN_BATCHES, clone=False
    )


def _log_of_chosen(node: Apply) -> TensorVariable | None:
    """log(p[…, y]) as (log p)[…, y], where log p has a stable form."""
    if not is_elementwise(node, ps.Log):
        return None
    steps = []
    var = node.inputs[0]
    while var.owner is not None and isinstance(
        var.owner.op, ViewOp | DimShuffle | AdvancedSubtensor | Subtensor
    ):
        steps.append(var.owner)
        var = var.owner.inputs[0]
    if not any(isinstance(step.op, AdvancedSubtensor) for step in steps):
        return None
    log_p = _logarithm(var.owner)
    for step in reversed(steps):
        if log_p is None:
            return None
        if not isinstance(step.op, ViewOp):
            log_p = step.op(log_p, *step.inputs[1:])
    return log_p


def _logarithm(node: Apply | None) -> TensorVariable | None:
    """The logarithm of exp(x), or of the probabilities of ordered categories."""
    if node is None or not isinstance(node.op, Elemwise):
        return None
    if is_elementwise(node, ps.Exp):
        return node.inputs[0]
    if not is_elementwise(node, ps.Sub):
        return None
    upper, lower = (x.owner for x in node.inputs)
    if upper is None or lower is None or not isinstance(upper.op, Subtensor):
        return None
    joined = upper.inputs[0]
    if joined is not lower.inputs[0] or joined.owner is None:
        return None
    if not isinstance(joined.owner.op, Join) or len(joined.owner.inputs) != 3:
        return None
    last = joined.ndim - 1
    shifted = joined[..., 1:].owner, joined[..., :-1].owner
    if joined.owner.op.axis != last or not all(map(_same_part, (upper, lower), shifted)):
        return None
    below, cumulated, above = joined.owner.inputs
    if (constant_value(below), constant_value(above)) != (0, 1) or not is_elementwise(
        cumulated.owner, ps.Sigmoid
    ):
        return None
    [x] = cumulated.owner.inputs
    inner = (
        -pt.softplus(-x[..., 1:]) - pt.softplus(x[..., :-1]) + pt.log1mexp(x[..., :-1] - x[..., 1:])
    )
    return pt.concatenate([-pt.softplus(-x[..., :1]), inner, -pt.softplus(x[..., -1:])], axis=last)


def _same_part(node: Apply, other: Apply) -> bool:
    return node.op == other.op and all(
        constant_value(x) == constant_value(y)
        for x, y in zip(node.inputs[1:], other.inputs[1:], strict=True)
    )


def _log_of_joined(node: Apply) -> TensorVariable | None:
    """The logarithm of parts that are joined: each part may have a stable form."""
    if not is_elementwise(node, ps.Log):
        return None
    joined = node.inputs[0].owner
    if joined is None or not isinstance(joined.op, Join | MakeVector):
        return None
    if any(v.dtype != node.outputs[0].dtype for v in joined.inputs):
        return None
    return joined.op(*map(pt.log, joined.inputs))


def _cumulated_product(node: Apply) -> TensorVariable | None:
    """A cumulated product without zeros: PyTensor divides its gradient by the factors."""
    if not isinstance(node.op, CumOp) or node.op.mode != "mul":
        return None
    [factors] = node.inputs
    if not factors.dtype.startswith("float"):
        return None
    tiny = np.asarray(np.finfo(factors.dtype).tiny, dtype=factors.dtype)
    return node.op(factors + tiny * pt.eq(factors, 0).astype(factors.dtype))
