"""Questions about the Ops of a graph: which there are, and which one an error is about."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import HasInnerGraph, Op
from pytensor.graph.traversal import graph_inputs, toposort

from pymc_flows.support.compat import Blockwise, RandomGeneratorType, Scan

__all__ = [
    "failing_op",
    "first_line",
    "has_loop",
    "loops_in_batches",
    "op_name",
    "ops_inside",
    "ops_of",
    "random_inputs",
]


def ops_inside(op: Op) -> list[Op]:
    """The Op itself, or the one that a Blockwise repeats, and all Ops of its inner graph."""
    op = op.core_op if isinstance(op, Blockwise) else op
    inner = [node.op for node in op.fgraph.toposort()] if isinstance(op, HasInnerGraph) else []
    return [op, *(found for other in inner for found in ops_inside(other))]


def ops_of(outputs: Sequence[Variable]) -> list[Op]:
    """All Ops of a graph and of its inner graphs."""
    return [op for node in toposort(outputs) for op in ops_inside(node.op)]


def has_loop(outputs: Sequence[Variable]) -> bool:
    """Whether a graph, or an inner graph of it, has a Scan, which NumPy would step in Python."""
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
    """The random generators that a graph draws from: it is random if there is one.

    Minibatches, simulators and other random variables all draw from a generator.
    """
    return [v for v in graph_inputs(outputs) if isinstance(v.type, RandomGeneratorType)]


def op_name(op: Op) -> str:
    """The name of an Op without its properties; of a Blockwise, that of what it repeats."""
    core = op.core_op if isinstance(op, Blockwise) else op
    return re.sub(r"\{.*", "", str(core), flags=re.DOTALL)


def failing_op(error: Exception) -> str:
    """Name the Op that an error is about, with the error's first line."""
    found = re.search(r"Apply node that caused the error: (?:Blockwise\{)?([^\s({[]+)", str(error))
    name = found.group(1) if found else _innermost_op(error)
    return f"{name} fails ({type(error).__name__}: {first_line(error)})"


def _innermost_op(error: Exception) -> str:
    """The Op whose conversion to JAX was running: its functions close over the Op or its node."""
    name, trace = "an Op", error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            op = value.op if isinstance(value, Apply) else value
            if isinstance(op, Op):
                name = op_name(op)
        trace = trace.tb_next
    return name


def first_line(error: Exception) -> str:
    """The first line of an error that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
