"""Variables with named dimensions, those of `pymc.dims`, as tensors.

Their log densities, transforms and deterministics are graphs of xtensors, which PyTensor lowers to
graphs of tensors. Here that is done first, so that nothing else knows of names: the axes of a
tensor are the dims of the variable, in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import pymc as pm
import pytensor.tensor as pt
from pytensor.compile.mode import optdb
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import graph_inputs, toposort
from pytensor.tensor.variable import TensorVariable

from pymc_flows.support.compat import LOWER_NAMES, XTensorType, xtensor_from_tensor

__all__ = ["tensor_values", "tensors", "with_names_of"]


def has_names(var: Variable) -> bool:
    """Whether a variable has named dimensions."""
    return isinstance(var.type, XTensorType)


def tensor_values(model: pm.Model, shapes: Sequence[tuple[int, ...]]) -> tuple[TensorVariable, ...]:
    """Tensors of known shapes for the value variables of a model: themselves where they are some.

    What a graph makes of a shape is a constant then, which JAX and PyTensor's rewrites need.
    """
    return tuple(map(_tensor_value, model.value_vars, shapes))


# One for each variable and shape: graphs of one density of a model may be used with another's.
_VALUES: WeakKeyDictionary[Variable, dict[tuple[int, ...], TensorVariable]] = WeakKeyDictionary()


def _tensor_value(value: Variable, shape: tuple[int, ...]) -> TensorVariable:
    if not has_names(value) and value.type.shape == shape:
        return value
    known = _VALUES.setdefault(value, {})
    return known.setdefault(shape, pt.TensorType(value.type.dtype, shape)(value.name))


def with_names_of(template: Variable, value: Any) -> Variable:
    """A tensor with the named dimensions that a template has, if it has any."""
    if not has_names(template):
        return value
    return xtensor_from_tensor(value, dims=template.type.dims)


def tensors(
    outputs: Sequence[Variable], given: Mapping[Variable, Variable] | None = None
) -> list[TensorVariable]:
    """Graphs of tensors alone, whose inputs are replaced.

    Parameters
    ----------
    outputs : sequence of Variable
        Tensors or xtensors.
    given : mapping of Variable to TensorVariable, optional
        What takes the place of an input, with or without named dimensions.
    """
    given = {old: with_names_of(old, new) for old, new in (given or {}).items() if old is not new}
    found = [pt.as_tensor(var, allow_xtensor_conversion=True) for var in outputs]
    found = graph_replace(found, given, strict=False) if given else found
    if not _mentions_names(found):
        return found
    fgraph = FunctionGraph(outputs=found, clone=True, copy_inputs=False, copy_orphans=False)
    optdb.query(LOWER_NAMES).rewrite(fgraph)
    return list(fgraph.outputs)


def _mentions_names(outputs: Sequence[Variable]) -> bool:
    computed = (v for node in toposort(outputs) for v in node.outputs)
    return any(map(has_names, (*graph_inputs(outputs), *computed)))
