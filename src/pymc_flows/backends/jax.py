"""Whether JAX can run a graph: by its Ops where that is certain, else by tracing it.

PyTensor's conversion to JAX fails for some Ops and for shapes that are not constants, and says so
only when the function is called; tracing finds out without compiling.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module

import numpy as np
import pytensor
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import graph_inputs, toposort
from pytensor.tensor.basic import (
    Alloc,
    AllocEmpty,
    ARange,
    Join,
    MakeVector,
    ScalarFromTensor,
    Split,
    TensorFromScalar,
)
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.extra_ops import CumOp
from pytensor.tensor.math import Dot
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape
from pytensor.tensor.special import LogSoftmax, Softmax
from pytensor.tensor.subtensor import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    IncSubtensor,
    Subtensor,
)
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.graphs import ops_inside, ops_of
from pymc_flows.backends.modes import training_mode
from pymc_flows.backends.products import DataProduct

# Of a Blockwise, what it repeats.
_SAFE_BLOCKWISE = (Elemwise, CAReduce, DimShuffle, Dot, DataProduct)
_SAFE = (
    *_SAFE_BLOCKWISE,
    Softmax,
    LogSoftmax,
    CumOp,
    Shape,
    Shape_i,
    SpecifyShape,
    MakeVector,
    Join,
    ScalarFromTensor,
    TensorFromScalar,
)
# These take shapes or slices, which JAX must know: they are safe where no shape can change.
_SAFE_IF_STATIC = (
    *_SAFE,
    Alloc,
    AllocEmpty,
    ARange,
    Reshape,
    Split,
    Subtensor,
    IncSubtensor,
    AdvancedSubtensor,
    AdvancedIncSubtensor,
)
_SAFE_BLOCKWISE_IF_STATIC = (*_SAFE_BLOCKWISE, AllocEmpty, Subtensor, IncSubtensor)


def has_jax() -> bool:
    """Tell whether JAX is installed, without importing it."""
    return importlib.util.find_spec("jax") is not None


def is_plain(outputs: Sequence[Variable]) -> bool:
    """Whether a graph has only Ops of which it is certain that JAX runs them."""
    roots = [v for v in graph_inputs(outputs) if isinstance(v, TensorVariable)]
    static = all(None not in v.type.shape for v in roots)
    return all(_is_plain(node, static=static) for node in toposort(outputs))


def _is_plain(node: Apply, *, static: bool) -> bool:
    safe: tuple[type, ...] = _SAFE_IF_STATIC if static else _SAFE
    if isinstance(node.op, Blockwise):
        safe = _SAFE_BLOCKWISE_IF_STATIC if static else _SAFE_BLOCKWISE
    op, *inner = ops_inside(node.op)
    if not all(isinstance(x, safe) for x in inner or [op]):
        return False
    # The length of x[mask] depends on the values of the mask.
    indexed = isinstance(op, AdvancedSubtensor | AdvancedIncSubtensor)
    return not (indexed and any(v.type.dtype == "bool" for v in node.inputs[1:]))


def unknown_ops(outputs: Sequence[Variable]) -> list[str]:
    """Names of the Ops of a graph that have no conversion to JAX as they are."""
    from pytensor.link.jax.dispatch import jax_funcify

    unknown = jax_funcify.dispatch(object)
    return sorted({str(op) for op in ops_of(outputs) if jax_funcify.dispatch(type(op)) is unknown})


def trace(z: TensorVariable, outputs: Sequence[Variable]) -> None:
    """Let JAX trace a graph of z, which compiles nothing; raises what it raises."""
    import jax

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fn = pytensor.function([z], outputs, mode=training_mode("jax"), on_unused_input="ignore")
        data = [container.storage[0] for container in fn.input_storage[1:]]
        jax.eval_shape(lambda x: fn.vm.jit_fn(x, *data), np.zeros(z.type.shape, z.dtype))


def precision(dtype: str) -> AbstractContextManager[object]:
    """Set JAX to the precision of the fit.

    PyTensor sets it once, when it first meets JAX; a fit in the other precision would fail.
    """
    import jax

    # Its place before JAX 0.8.
    home = jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")
    return home.enable_x64(dtype == "float64")
