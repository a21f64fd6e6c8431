"""Graph surgery on log densities: checks by draw, batched joins, known sizes, data as inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
from pymc_flows.backends.ops import is_graph_of, ops_inside, values_needed
from pymc_flows.support.compat import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    AllocEmpty,
    ARange,
    Blockwise,
    CAReduce,
    CheckParameterValue,
    DimShuffle,
    Dot,
    Elemwise,
    Join,
    ScalarFromTensor,
    Scan,
    Shape,
    Shape_i,
    TensorSharedVariable,
    rebuild_scan,
)

# Constants with more elements than this become function inputs: the compiled function then serves
# other data of the same shape. Compilers embed constants in their code, too, which takes seconds
# and memory for data of real size.
MAX_CONSTANT_SIZE = 1


# ------------------------------------------------------------------------------------------ checks


def switch_parameter_checks(
    outputs: Sequence[Variable], inputs: Iterable[Variable], *, keep: bool
) -> list[Variable]:
    """Turn checks of parameters, in log densities of one draw, into switches.

    A check is an ``all()`` over everything that it sees; vectorised as it is, one invalid draw
    would fail the whole batch. As a switch in the graph of a single draw it vectorises with it.
    Checks inside a Scan become switches too.

    ``inputs`` are the variables of a draw. A failed check of PyMC's gives −inf where it guards a
    log density and NaN where it guards something else, for that draw only; any other assertion
    about the values of a draw gives NaN. Assertions about data and shapes stay. Without ``keep``,
    PyMC's checks are dropped (a model with ``check_bounds=False``).
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    dependent = set(inputs)
    for node in fgraph.toposort():
        if isinstance(node.op, Shape | Shape_i):
            continue  # shapes do not depend on the draw
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
    """The tensor that a scalar was made from, which vectorises, where there is one."""
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
    """Replace batches of Ops that are graphs of elementwise Ops by their inner graphs.

    PyTensor vectorises such an Op, the log of a sum of two exponentials for example, as a loop over
    draws; its inner graph takes all draws at once.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    for node in fgraph.toposort():
        op = node.op.core_op if isinstance(node.op, Blockwise) else None
        if op is None or not is_graph_of(op, (Elemwise,)):
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


# ---------------------------------------------------------------------------------- known sizes


@dataclass(frozen=True)
class Pin:
    """A shared variable whose value, or shape alone, decided the length of an array of a graph."""

    variable: TensorSharedVariable
    shape: tuple[int, ...]
    value: np.ndarray | None = None

    def holds(self) -> bool:
        """Whether the variable is still as it was."""
        now = self.variable.get_value(borrow=True)
        return np.shape(now) == self.shape and (
            self.value is None or np.array_equal(now, self.value)
        )


def fix_lengths(
    outputs: Sequence[TensorVariable], inputs: Sequence[TensorVariable]
) -> tuple[list[TensorVariable], list[Pin]]:
    """Replace lengths of loops and arrays, and masks, that depend on data by their present values.

    JAX must know them before it runs: the length of ``x[mask]``, of ``arange(n)``, of a loop over
    rows, of the parts of a join. In shared data, which users can replace, they are not constant.

    ``inputs`` have known shapes, and no length may depend on their values.

    Returns
    -------
    outputs : list of TensorVariable
        Equal graphs, as long as the pins hold.
    pins : list of Pin
        The data that lengths and masks were computed from.
    """
    pins: dict[tuple[Variable, bool], Pin] = {}
    for wanted in (_lengths, _joined):
        known: list[TensorVariable] = []
        for var in wanted(outputs):
            found = _decisive(var, by_value=wanted is _lengths)
            if found is not None:
                known.append(var)
                pins.update(found)
        if not known:
            continue
        zeros = [np.zeros(v.type.shape, v.type.dtype) for v in inputs]
        values = function_of(list(inputs), known, mode=NUMPY)(*zeros)
        given = {
            var: pt.constant(value, dtype=var.type.dtype)
            if wanted is _lengths
            else pt.specify_shape(var, np.shape(value))
            for var, value in zip(known, values, strict=True)
        }
        outputs = clone_replace(list(outputs), given, rebuild_strict=False)
    return list(outputs), list(pins.values())


def _lengths(outputs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Tensors whose values are lengths, and masks, whose values decide on a length."""
    found: dict[TensorVariable, None] = {}
    for node in toposort(outputs):
        if isinstance(node.op, ARange | AllocEmpty):
            taken = node.inputs
        elif isinstance(node.op, Scan):
            taken = [v for v in node.inputs if v.type.dtype == "int64" and v.type.ndim == 0]
        elif isinstance(node.op, AdvancedSubtensor | AdvancedIncSubtensor):
            taken = [v for v in node.inputs[1:] if v.type.dtype == "bool"]
        else:
            continue
        found.update(dict.fromkeys(v for v in taken if not isinstance(v, Constant)))
    return list(found)


def _joined(outputs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Parts of joins with unknown shapes, by which the gradient of the join is split."""
    joins = [node for node in toposort(outputs) if isinstance(node.op, Join)]
    parts = [v for node in joins for v in node.inputs if None in v.type.shape]
    return list(dict.fromkeys(parts))


def _decisive(length: TensorVariable, *, by_value: bool) -> dict[tuple[Variable, bool], Pin] | None:
    """The data that a value or a shape depends on, by variable and whether by its value.

    None if it depends on anything else.
    """
    pins: dict[tuple[Variable, bool], Pin] = {}
    seen, ahead = set[tuple[Variable, bool]](), [(length, by_value)]
    while ahead:
        var, by_value = ahead.pop()
        shape = getattr(var.type, "shape", None)
        if (var, by_value) in seen or isinstance(var, Constant):
            continue
        if not by_value and shape is not None and None not in shape:
            continue
        seen.add((var, by_value))
        node = var.owner
        if node is None:
            if not isinstance(var, TensorSharedVariable):
                return None
            now = var.get_value(borrow=True)
            pins[var, by_value] = Pin(var, np.shape(now), np.array(now) if by_value else None)
        elif isinstance(node.op, Shape | Shape_i):
            ahead.append((node.inputs[0], False))
        else:
            ahead.extend((v, by_value or _is_length(node, v)) for v in node.inputs)
    return pins


def _is_length(node: Apply, var: Variable) -> bool:
    """Whether the shape of a node's output may depend on the value of this input."""
    if isinstance(node.op, AdvancedSubtensor | AdvancedIncSubtensor):
        return var.type.dtype == "bool"
    if isinstance(node.op, Elemwise | CAReduce | DimShuffle | Dot | Blockwise):
        return False
    dtype = getattr(var.type, "dtype", "int64")
    return dtype == "bool" or dtype.startswith(("int", "uint"))


def fold_sizes(outputs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Compute sizes that depend on constants alone, so that they are part of types.

    JAX must know all shapes before it runs, also those of arrays that a loop fills. Only integers
    of 64 bits, as sizes are, are computed: narrower ones of data may overflow where PyTensor's
    rewrites would widen them.
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
    """Compute subgraphs of large data alone, and hold large arrays in shared variables.

    In the new graphs no constant above `MAX_CONSTANT_SIZE` feeds an Op that can take a variable
    instead.
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
    """Largest float subgraphs of constants, at least one of them large.

    Subgraphs of small constants are left to PyTensor: its rewrites also rescue small integers
    (3 * 10**2 overflows in int8), which evaluating such a part on its own would not.
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
