"""Graph surgery on log densities: checks per draw, data as inputs, parts that no draw changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace, graph_replace, vectorize_graph
from pytensor.graph.traversal import toposort
from pytensor.raise_op import CheckAndRaise
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of, is_array
from pymc_flows.backends.modes import NUMPY
from pymc_flows.backends.ops import is_elementwise_graph, ops_inside, values_needed
from pymc_flows.support.compat import (
    Blockwise,
    CheckParameterValue,
    Join,
    ScalarFromTensor,
    Scan,
    Shape,
    Shape_i,
    rebuild_scan,
)

# Constants with more elements than this become function inputs: what is compiled then serves other
# data of the same shape. And compilers embed constants in the code they generate, which takes
# seconds and memory for data of real size.
MAX_CONSTANT_SIZE = 1


# ------------------------------------------------------------------------------------------ checks


def switch_parameter_checks(
    outputs: Sequence[Variable], inputs: Iterable[Variable], *, keep: bool
) -> list[Variable]:
    """Turn checks of parameters into switches, so that each draw answers for itself.

    A check is an ``all()`` over everything that it sees; vectorised as it is, one invalid draw
    would fail the whole batch. As a switch in the graph of a single draw it vectorises with it.
    Checks inside a Scan are turned too.

    Parameters
    ----------
    outputs : sequence of Variable
        Log densities of one draw.
    inputs : iterable of Variable
        What a draw consists of.
    keep : bool
        False drops PyMC's checks (a model with ``check_bounds=False``).

    Returns
    -------
    list of Variable
        New graphs on the same inputs. A failed check of PyMC's gives −inf where it guards a log
        density and NaN where it guards something else, for that draw only; so does any other
        assertion about the values of a draw. Assertions about data and shapes stay.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    dependent = set(inputs)
    for node in fgraph.toposort():
        if isinstance(node.op, Shape | Shape_i):
            continue  # a draw has no say in its shape
        if not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
        for old, new in zip(node.outputs, _switched(node, dependent, keep=keep), strict=True):
            if new is not old:
                fgraph.replace(old, new, import_missing=True, reason="parameter check")
                dependent.add(new)
    return list(fgraph.outputs)


def _switched(node: Apply, dependent: set[Variable], *, keep: bool) -> list[Variable]:
    """Outputs of a node without its checks; the node's own outputs if it has none."""
    if isinstance(node.op, CheckAndRaise):
        value, *conditions = node.inputs
        if isinstance(node.op, CheckParameterValue):
            if not keep:
                return [value]
            bad = -np.inf if node.op.can_be_replaced_by_ninf else np.nan
        elif dependent.isdisjoint(conditions):
            return node.outputs
        else:
            bad = np.nan
        if not isinstance(value, TensorVariable) or not value.dtype.startswith("float"):
            return node.outputs
        condition = pt.all([as_tensor_of(c) for c in conditions])
        return [pt.switch(condition, value, np.asarray(bad, dtype=value.dtype))]
    if not isinstance(node.op, Scan | OpFromGraph):
        return node.outputs
    if not any(isinstance(op, CheckAndRaise) for op in ops_inside(node.op)):
        return node.outputs
    inner = node.op.fgraph.unfreeze()
    results = switch_parameter_checks(inner.outputs, inner.inputs, keep=keep)
    if isinstance(node.op, OpFromGraph):
        given = dict(zip(inner.inputs, node.inputs, strict=True))
        return graph_replace(results, given, strict=False)
    return rebuild_scan(node.op, inner.inputs, results).make_node(*node.inputs).outputs


def as_tensor_of(condition: Variable) -> TensorVariable:
    """The tensor behind a scalar: that one vectorises."""
    if condition.owner is not None and isinstance(condition.owner.op, ScalarFromTensor):
        return condition.owner.inputs[0]
    return pt.as_tensor_variable(condition)


# ----------------------------------------------------------------------------------------- batches


def join_batches(outputs: Sequence[Variable]) -> list[Variable]:
    """Turn each batch of joins in a vectorised graph into one join of batches.

    Where only some of its inputs depend on the draw, PyTensor vectorises a join as a loop over
    draws, whose gradient JAX cannot run. Broadcasting the others gives an ordinary join.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    for node in fgraph.toposort():
        if not (isinstance(node.op, Blockwise) and isinstance(node.op.core_op, Join)):
            continue
        n = node.op.batch_ndim(node)
        batch = pt.broadcast_shape(
            *(_static_shape(v)[:n] for v in node.inputs), arrays_are_shapes=True
        )
        inputs = [pt.broadcast_to(v, (*batch, *_static_shape(v)[n:])) for v in node.inputs]
        joined = pt.join(node.op.core_op.axis + n, *inputs)
        fgraph.replace(node.outputs[0], joined, import_missing=True, reason="join of batches")
    return list(fgraph.outputs)


def open_batches(outputs: Sequence[Variable]) -> list[Variable]:
    """Put the inner graphs of elementwise Ops in the place of batches of these.

    PyTensor has some Ops that are graphs of elementwise ones, such as the log of a sum of two
    exponentials. It vectorises one as a loop over draws; its inner graph takes all of them at once.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    for node in fgraph.toposort():
        op = node.op.core_op if isinstance(node.op, Blockwise) else None
        if op is None or not is_elementwise_graph(op):
            continue
        inner = op.fgraph.unfreeze()
        if any(v.type.ndim for v in inner.inputs):
            continue
        opened = vectorize_graph(inner.outputs, dict(zip(inner.inputs, node.inputs, strict=True)))
        for old, new in zip(node.outputs, opened, strict=True):
            fgraph.replace(old, new, import_missing=True, reason="elementwise Op")
    return list(fgraph.outputs)


def _static_shape(var: TensorVariable) -> tuple[TensorVariable | int, ...]:
    return tuple(var.shape[i] if n is None else n for i, n in enumerate(var.type.shape))


# -------------------------------------------------------------------------------------- fixed parts


def frontier(outputs: Sequence[Variable], inputs: Iterable[Variable]) -> list[TensorVariable]:
    """Computed tensors that do not depend on ``inputs`` but feed a node that does.

    Outputs that do not depend on ``inputs`` at all are not listed. What is not a tensor (an index,
    a slice) is not either, but the tensors that it comes from are.
    """
    dependent = set(inputs)
    found: dict[TensorVariable, None] = {}

    def visit(var: Variable) -> None:
        if var in dependent or var.owner is None:
            return
        if isinstance(var, TensorVariable):
            found[var] = None
        else:
            for parent in var.owner.inputs:
                visit(parent)

    for node in toposort(outputs):
        if not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
            for var in node.inputs:
                visit(var)
    return list(found)


# ---------------------------------------------------------------------------------- known sizes


def fold_sizes(outputs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Compute the sizes that a graph makes of constants alone, so that types know of them.

    JAX must know the shapes of all arrays, also of those that a loop fills, before it runs.

    Parameters
    ----------
    outputs : sequence of TensorVariable

    Returns
    -------
    list of TensorVariable
        Equal graphs. Only integers of 64 bits are computed, as sizes are: narrower ones of data may
        overflow where PyTensor's rewrites would widen them.
    """
    constant: set[Variable] = set()
    found: dict[TensorVariable, None] = {}
    for node in toposort(outputs):
        if all(isinstance(v, Constant) or v in constant for v in node.inputs) and all(
            isinstance(v, TensorVariable) and v.dtype == "int64" and v.ndim <= 1
            for v in node.outputs
        ):
            constant.update(node.outputs)
        else:
            found.update(dict.fromkeys(v for v in node.inputs if v in constant))
    if not found:
        return list(outputs)
    values = function_of([], list(found), mode=NUMPY)()
    known = {v: pt.constant(x, dtype="int64") for v, x in zip(found, values, strict=True)}
    return clone_replace(list(outputs), known, rebuild_strict=False)


# -------------------------------------------------------------------------------------- large data


def lift_constants(outputs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Compute what depends on large data alone, and hold large arrays in shared variables.

    Parameters
    ----------
    outputs : sequence of TensorVariable
        Log densities of one draw.

    Returns
    -------
    list of TensorVariable
        Equal graphs in which no constant above `MAX_CONSTANT_SIZE` feeds an Op that can take
        a variable instead.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    folded = _large_constant_parts(fgraph.outputs)
    if folded:
        values = function_of([], folded, mode=NUMPY)()
        for var, value in zip(folded, values, strict=True):
            part = np.asarray(value, dtype=var.dtype)
            held = pytensor.shared(part, "part", shape=part.shape, borrow=True)
            fgraph.replace(var, held, import_missing=True, reason="part of data alone")
    lifted: dict[object, Variable] = {}  # equal data once, as compilers would merge constants
    needed = values_needed(fgraph.outputs)
    for var in list(fgraph.variables):
        if _is_large(var) and var not in needed:
            key = var.signature()
            if key not in lifted:
                name = var.name or "data"
                lifted[key] = pytensor.shared(var.data, name, shape=var.data.shape, borrow=True)
                lifted[key].tag.is_constant = True
            fgraph.replace(var, lifted[key], import_missing=True, reason="large constant")
    return list(fgraph.outputs)


def _is_large(var: Variable) -> bool:
    return is_array(var) and var.data.size > MAX_CONSTANT_SIZE


def _large_constant_parts(outputs: Sequence[Variable]) -> list[TensorVariable]:
    """Largest float subgraphs that are computed from large constants and nothing variable.

    What comes from small constants alone is left to PyTensor: its rewrites also rescue small
    integers (3 * 10**2 overflows in int8), which evaluating such a part on its own would not.
    """
    constant: set[Variable] = set()
    large: set[Variable] = set()
    found: dict[Variable, None] = {}
    for node in toposort(outputs):
        if node.inputs and all(isinstance(v, Constant) or v in constant for v in node.inputs):
            constant.update(node.outputs)
            if any(v in large or _is_large(v) for v in node.inputs):
                large.update(node.outputs)
        else:
            found.update(dict.fromkeys(v for v in node.inputs if v in large))
    return [v for v in found if isinstance(v, TensorVariable) and v.dtype.startswith("float")]
