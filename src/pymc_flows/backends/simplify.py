"""Simpler forms of log densities that PyTensor's rewrites would not find.

They are applied before gradients are taken, so that these are simpler, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np
import pytensor.tensor as pt
from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import ancestors, graph_inputs
from pytensor.tensor import get_underlying_scalar_constant_value
from pytensor.tensor.variable import TensorConstant, TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY
from pymc_flows.support.compat import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    All,
    CAReduce,
    DimShuffle,
    Elemwise,
    MakeVector,
    NotScalarConstantError,
    unflatten_index_variables,
)

type Rule = Callable[[Apply], TensorVariable | None]

# Ops that conditions consist of.
_LOGICAL = (All, DimShuffle, Elemwise, MakeVector)


def simplify(outputs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Simplify log densities of one draw.

    A switch whose condition is constant becomes one of its branches. Checks that a sigmoid lies
    between 0 and 1 are dropped. The two logarithms of a Bernoulli variable with such a probability,
    log σ(x) and log(1 − σ(x)), become one function of ±x. A constant mask becomes indices, whose
    number JAX must know. A scalar's sum along an axis is the scalar.
    """
    return apply_rules(outputs, (_certain, _decided, _bernoulli, _indexed, _reduced))


def apply_rules(outputs: Sequence[TensorVariable], rules: Sequence[Rule]) -> list[TensorVariable]:
    """Apply rules, one after the other, to all nodes of graphs.

    A rule gets a node, and returns a variable that replaces its only output, or None.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    for rule in rules:
        for node in fgraph.toposort():
            if node not in fgraph.apply_nodes or len(node.outputs) > 1:
                continue
            [old] = node.outputs
            if not isinstance(old, TensorVariable):
                continue
            new = rule(node)
            if new is not None and old.type.is_super(new.type):
                fgraph.replace(old, new, import_missing=True, reason="simpler form")
    return list(fgraph.outputs)


def _reduced(node: Apply) -> TensorVariable | None:
    """Replace what NumPy allows and PyTensor cannot vectorise, as `pm.CAR` has it."""
    if not isinstance(node.op, CAReduce) or not node.op.axis or node.inputs[0].type.ndim:
        return None
    return node.inputs[0].astype(node.outputs[0].type.dtype)


def _decided(node: Apply) -> TensorVariable | None:
    """switch(condition, a, b) with a condition that is the same for all of the data.

    A choice between constants stays: it is data, too, and differs for other data of the same model.
    """
    if not is_elementwise(node, ps.Switch):
        return None
    condition, if_true, if_false = node.inputs
    if all(isinstance(v, Constant) for v in graph_inputs([if_true, if_false])):
        return None
    if not all(
        isinstance(v, Constant) if v.owner is None else isinstance(v.owner.op, _LOGICAL)
        for v in ancestors([condition])
    ):
        return None
    value = function_of([], condition, mode=NUMPY)()
    if value.all():
        return if_true
    return None if value.any() else if_false


def _certain(node: Apply) -> TensorVariable | None:
    """all(σ(x) ≥ 0) and all(σ(x) ≤ 1)."""
    if not isinstance(node.op, All):
        return None
    compared = node.inputs[0].owner
    for scalar_op, bound in ((ps.GE, 0), (ps.LE, 1)):
        if is_elementwise(compared, scalar_op):
            value, limit = compared.inputs
            if is_elementwise(value.owner, ps.Sigmoid) and constant_value(limit) == bound:
                return pt.constant(np.ones((1,) * node.out.ndim, dtype=bool))
    return None


def _bernoulli(node: Apply) -> TensorVariable | None:
    """switch(y, log σ(x), log(1 − σ(x))) is −softplus(−x) where y, and −softplus(x) elsewhere."""
    if not is_elementwise(node, ps.Switch):
        return None
    y, log_p, log_q = node.inputs
    if not is_elementwise(log_p.owner, ps.Log):
        return None
    [p] = log_p.owner.inputs
    if not is_elementwise(p.owner, ps.Sigmoid):
        return None
    [x] = p.owner.inputs
    if _complement(log_q.owner) is not p:
        return None
    sign = pt.switch(y, np.asarray(-1, dtype=x.dtype), np.asarray(1, dtype=x.dtype))
    return -pt.softplus(sign * x)


def _complement(node: Apply | None) -> Variable | None:
    """The p of log(1 − p), as PyMC 6.4 writes it, or of log1p(−p), as before."""
    if node is None or not (is_elementwise(node, ps.Log) or is_elementwise(node, ps.Log1p)):
        return None
    inner = node.inputs[0].owner
    if is_elementwise(node, ps.Log1p):
        return inner.inputs[0] if inner is not None and is_elementwise(inner, ps.Neg) else None
    if inner is None or not is_elementwise(inner, ps.Sub):
        return None
    one, p = inner.inputs
    return p if constant_value(one) == 1 else None


def is_elementwise(node: Apply | None, scalar_op: type) -> bool:
    """Whether a node applies a scalar function to each entry of arrays."""
    return (
        node is not None
        and isinstance(node.op, Elemwise)
        and isinstance(node.op.scalar_op, scalar_op)
    )


def constant_value(var: Variable) -> float | None:
    """The value that all entries of a constant share; None if there is no such value."""
    try:
        return float(get_underlying_scalar_constant_value(var))
    except NotScalarConstantError:
        return None


def _indexed(node: Apply) -> TensorVariable | None:
    """Replace masks by indices, in x[mask] and where x[mask] is set or incremented."""
    if not isinstance(node.op, AdvancedSubtensor | AdvancedIncSubtensor):
        return None
    is_read = isinstance(node.op, AdvancedSubtensor)
    array, variables = node.inputs[0], node.inputs[1 if is_read else 2 :]
    if not any(_is_known_mask(v) for v in variables):
        return None
    indices: list[object] = []
    for index in unflatten_index_variables(variables, node.op.idx_list):
        indices.extend(np.nonzero(index.data) if _is_known_mask(index) else [index])
    found = array[tuple(indices)]
    if is_read:
        return found
    change = pt.set_subtensor if node.op.set_instead_of_inc else pt.inc_subtensor
    return change(found, node.inputs[1])


def _is_known_mask(index: object) -> TypeGuard[TensorConstant]:
    return isinstance(index, TensorConstant) and index.dtype == "bool" and index.ndim > 0
