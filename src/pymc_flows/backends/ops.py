"""The Ops of a graph: which there are, what they need, and which one an error is about."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import HasInnerGraph, Op
from pytensor.graph.traversal import graph_inputs, toposort
from pytensor.raise_op import CheckAndRaise

from pymc_flows.support.compat import (
    AdvancedSubtensor,
    Blockwise,
    CAReduce,
    DimShuffle,
    Dot,
    Elemwise,
    Join,
    MakeVector,
    RandomGeneratorType,
    ScalarFromTensor,
    Scan,
    TensorFromScalar,
)

# Ops that run the same code for all values: of any inputs, and of inputs other than masks.
_OF_ANY_VALUES = (
    Elemwise,
    DimShuffle,
    CAReduce,
    MakeVector,
    Join,
    CheckAndRaise,
    ScalarFromTensor,
    TensorFromScalar,
)
_OF_ANY_NUMBERS = (*_OF_ANY_VALUES, Dot, Blockwise, AdvancedSubtensor, Scan)


def ops_inside(op: Op, *, scalars: bool = False) -> list[Op]:
    """The Op itself, or the one that a Blockwise repeats, and all Ops of its inner graph.

    With ``scalars`` also those that an Elemwise applies to each entry.
    """
    op = op.core_op if isinstance(op, Blockwise) else op
    inner = [node.op for node in op.fgraph.toposort()] if isinstance(op, HasInnerGraph) else []
    if scalars and isinstance(op, Elemwise):
        inner.append(op.scalar_op)
    return [op, *(found for other in inner for found in ops_inside(other, scalars=scalars))]


def ops_of(outputs: Sequence[Variable]) -> list[Op]:
    """All Ops of a graph and of its inner graphs."""
    return [op for node in toposort(outputs) for op in ops_inside(node.op)]


def has_loop(outputs: Sequence[Variable]) -> bool:
    """Whether a graph or an inner graph has a Scan, which NumPy would step through in Python."""
    return any(isinstance(op, Scan) for op in ops_of(outputs))


def loops_in_batches(outputs: Sequence[Variable]) -> list[Op]:
    """The Scans that a vectorised graph repeats, batch element by batch element."""
    return [
        op
        for node in toposort(outputs)
        if isinstance(node.op, Blockwise)
        for op in ops_inside(node.op)
        if isinstance(op, Scan)
    ]


def random_inputs(outputs: Sequence[Variable]) -> list[Variable]:
    """The random generators of a graph: of minibatches, simulators and other random variables.

    A graph with one is random.
    """
    return [v for v in graph_inputs(outputs) if isinstance(v.type, RandomGeneratorType)]


def values_needed(outputs: Sequence[Variable]) -> set[Variable]:
    """Variables of a graph whose values are needed to compile it.

    These are shapes, masks, and everything that they are computed from.
    """
    found: set[Variable] = set()
    for node in reversed(list(toposort(outputs))):
        for var in node.inputs:
            if not hasattr(var.type, "dtype"):
                continue
            safe = _OF_ANY_VALUES if var.type.dtype == "bool" else _OF_ANY_NUMBERS
            if isinstance(node.op, safe) or is_graph_of(node.op, (Elemwise,)):
                is_needed = not found.isdisjoint(node.outputs)
            else:  # no float is a shape
                is_needed = not var.type.dtype.startswith(("float", "complex"))
            if is_needed:
                found.add(var)
    return found


def is_graph_of(op: Op, kinds: tuple[type[Op], ...]) -> bool:
    """Whether an Op is a graph of Ops of these kinds."""
    return isinstance(op, OpFromGraph) and all(
        isinstance(node.op, kinds) for node in op.fgraph.toposort()
    )


def op_name(op: Op) -> str:
    """The name of an Op without its properties; of a Blockwise, that of what it repeats."""
    core = op.core_op if isinstance(op, Blockwise) else op
    return re.sub(r"\{.*", "", str(core), flags=re.DOTALL)


def failing_op(error: Exception) -> str:
    """Name the Op that an error is about, with the error's first line."""
    found = re.search(r"Apply node that caused the error: (?:Blockwise\{)?([^\s({[]+)", str(error))
    name = found.group(1) if found else _innermost_op(error)
    return f"{name} fails ({brief(error)})"


def _innermost_op(error: Exception) -> str:
    """The innermost Op that a conversion to JAX had, itself or its node, as a local variable."""
    name, trace = "an Op", error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            op = value.op if isinstance(value, Apply) else value
            if isinstance(op, Op):
                name = op_name(op)
        trace = trace.tb_next
    return name


def brief(error: BaseException) -> str:
    """Class of an exception, and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty; its repr without one."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
