"""Graph surgery on log densities: checks per draw, data as inputs, parts that no draw changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytensor
import pytensor.tensor as pt
from pymc.logprob.utils import CheckParameterValue
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import toposort
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Dot
from pytensor.tensor.subtensor import AdvancedSubtensor
from pytensor.tensor.variable import TensorConstant, TensorVariable

from pymc_flows.modes import NUMPY

# Constants with more elements than this become function inputs: compilers embed constants in
# the code they generate, which takes seconds and memory for data of real size.
MAX_CONSTANT_SIZE = 1_000

# Ops that never need the value of an input while the graph is compiled.
_VALUE_FREE_OPS = (
    Elemwise,
    DimShuffle,
    Dot,
    Blockwise,
    AdvancedSubtensor,
    OpFromGraph,
)


def switch_parameter_checks(outputs: Sequence[Variable], *, keep: bool) -> list[Variable]:
    """Turn PyMC's parameter checks into switches, so that each draw answers for itself.

    A check is an ``all()`` over everything that it sees; vectorised as it is, one invalid draw
    would fail the whole batch. As a switch in the graph of a single draw it vectorises with it.

    Parameters
    ----------
    outputs : sequence of Variable
        Log densities of one draw.
    keep : bool
        False drops the checks (a model with ``check_bounds=False``).

    Returns
    -------
    list of Variable
        New graphs on the same inputs. A failed check gives −inf where it guards a log density
        and NaN where it guards something else, for that draw only.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    for node in fgraph.toposort():
        if not isinstance(node.op, CheckParameterValue):
            continue
        value, *conditions = node.inputs
        if keep:
            condition = conditions[0] if len(conditions) == 1 else pt.all(conditions)
            bad = -np.inf if node.op.can_be_replaced_by_ninf else np.nan
            switched = pt.switch(condition, value, pt.constant(bad, dtype="float32"))
            value = switched.astype(node.outputs[0].dtype)
        fgraph.replace(node.outputs[0], value, import_missing=True, reason="parameter check")
    return list(fgraph.outputs)


def frontier(outputs: Sequence[Variable], inputs: Iterable[Variable]) -> list[Variable]:
    """Computed variables that do not depend on ``inputs`` but feed a node that does.

    Outputs that do not depend on ``inputs`` at all are not listed.
    """
    dependent = set(inputs)
    found: dict[Variable, None] = {}
    for node in toposort(outputs):
        if dependent.isdisjoint(node.inputs):
            continue
        dependent.update(node.outputs)
        for var in node.inputs:
            if var not in dependent and var.owner is not None:
                found[var] = None
    return list(found)


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
        values = pytensor.function([], folded, mode=NUMPY)()
        for var, value in zip(folded, values, strict=True):
            constant = pt.constant(np.asarray(value), dtype=var.dtype)
            fgraph.replace(var, constant, import_missing=True, reason="constant part")
    for var in list(fgraph.variables):
        if not _is_large(var):
            continue
        if all(isinstance(node.op, _VALUE_FREE_OPS) for node, _ in fgraph.clients[var]):
            data = np.asarray(var.data)
            shared = pytensor.shared(data, name=var.name or "data", shape=data.shape)
            fgraph.replace(var, shared, import_missing=True, reason="large constant")
    return list(fgraph.outputs)


def _is_large(var: Variable) -> bool:
    return isinstance(var, TensorConstant) and var.data.size > MAX_CONSTANT_SIZE


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
