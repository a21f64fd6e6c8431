"""Whether JAX can run a graph: by its Ops where that is certain, else by tracing it.

PyTensor's conversion to JAX fails for some Ops and for shapes that are not constants, and says so
only when the function is called; tracing finds out without compiling.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import RLock

import numpy as np
import pytensor
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.traversal import graph_inputs, toposort
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.modes import training_mode
from pymc_flows.backends.ops import ops_inside, ops_of
from pymc_flows.backends.products import DataProduct
from pymc_flows.support.compat import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    Alloc,
    AllocEmpty,
    ARange,
    Blockwise,
    CAReduce,
    CumOp,
    DimShuffle,
    Dot,
    Elemwise,
    IncSubtensor,
    Join,
    LogSoftmax,
    MakeVector,
    Reshape,
    ScalarFromTensor,
    ScalarLoop,
    Shape,
    Shape_i,
    Softmax,
    SpecifyShape,
    Split,
    Subtensor,
    TensorFromScalar,
    ask_for_jax_cache,
    jax_function,
    jax_precision,
)

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
# Of these, scalars and vectors of integers are lengths, shapes or places of slices.
_TAKES_SHAPES = (Alloc, AllocEmpty, ARange, Reshape, Split, Subtensor, IncSubtensor)
_SAFE_BLOCKWISE_IF_STATIC = (*_SAFE_BLOCKWISE, AllocEmpty, Subtensor, IncSubtensor)

# What compiles faster is not kept.
LEAST_SECONDS = 0.1
# Held while JAX's configuration, which all threads share, is that of a block.
_CACHING = RLock()


def has_jax() -> bool:
    """Tell whether JAX is installed, without importing it."""
    return importlib.util.find_spec("jax") is not None


def is_plain(outputs: Sequence[Variable]) -> bool:
    """Whether a graph has only Ops of which it is certain that JAX runs them."""
    roots = [v for v in graph_inputs(outputs) if isinstance(v, TensorVariable)]
    static = all(None not in v.type.shape for v in roots)
    nodes = list(toposort(outputs))
    # All that values decide, and not shapes and constants alone.
    variable = {v for v in roots if not isinstance(v, Constant)}
    for node in nodes:
        if not isinstance(node.op, Shape | Shape_i) and not variable.isdisjoint(node.inputs):
            variable.update(node.outputs)
    return all(_is_plain(node, variable, static=static) for node in nodes)


def _is_plain(node: Apply, variable: Set[Variable], *, static: bool) -> bool:
    safe: tuple[type, ...] = _SAFE_IF_STATIC if static else _SAFE
    if isinstance(node.op, Blockwise):
        safe = _SAFE_BLOCKWISE_IF_STATIC if static else _SAFE_BLOCKWISE
    op, *inner = ops_inside(node.op)
    if not all(isinstance(x, safe) for x in inner or [op]):
        return False
    # Derivatives of special functions by their parameters are series, summed entry by entry.
    if any(isinstance(x, ScalarLoop) for x in ops_inside(node.op, scalars=True)):
        return False
    if isinstance(op, _TAKES_SHAPES):
        shapes = [v for v in node.inputs if v.type.ndim < 2 and v.type.dtype.startswith("int")]
        if not variable.isdisjoint(shapes):
            return False
    # The length of x[mask] depends on the values of the mask.
    indexed = isinstance(op, AdvancedSubtensor | AdvancedIncSubtensor)
    return not (indexed and any(v.type.dtype == "bool" for v in node.inputs[1:]))


def unknown_ops(outputs: Sequence[Variable]) -> list[str]:
    """Names of the Ops of a graph that have no conversion to JAX as they are."""
    from pymc_flows.support.compat import jax_funcify

    unknown = jax_funcify.dispatch(object)
    return sorted({str(op) for op in ops_of(outputs) if jax_funcify.dispatch(type(op)) is unknown})


def trace(z: TensorVariable, outputs: Sequence[Variable]) -> None:
    """Let JAX trace a graph of z, which compiles nothing; raises what it raises."""
    import jax

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fn = pytensor.function([z], outputs, mode=training_mode("jax"), on_unused_input="ignore")
        call, data = jax_function(fn)
        jax.eval_shape(lambda x: call(x, *data), np.zeros(z.type.shape, z.dtype))


def cache_folder() -> Path:
    """Where `kept_on_disk` keeps what JAX compiles."""
    return Path(pytensor.config.compiledir) / "jax"


@contextmanager
def kept_on_disk() -> Iterator[None]:
    """Let what JAX compiles in the block be found again by later processes of the same user.

    It is kept beside what PyTensor compiles, in ``pytensor.config.compiledir``, which tells
    machines and versions apart. A folder that the user has given to JAX, by
    ``JAX_COMPILATION_CACHE_DIR``, takes its place, and ``JAX_ENABLE_COMPILATION_CACHE=false``
    turns the cache off. Outside of the block JAX is as it was.
    """
    import jax

    config = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        yield
        return
    ours = {
        "jax_compilation_cache_dir": str(cache_folder()),
        "jax_persistent_cache_min_compile_time_secs": LEAST_SECONDS,
    }
    with _CACHING:
        before = {name: getattr(config, name) for name in ours}
        try:
            for name, value in ours.items():
                config.update(name, value)
            ask_for_jax_cache()  # JAX asks for the folder once
            yield
        finally:
            for name, value in before.items():
                config.update(name, value)
            ask_for_jax_cache()


def precision(dtype: str) -> AbstractContextManager[object]:
    """Set JAX to the precision of the fit.

    PyTensor sets it once, when it first meets JAX; a fit in the other precision would fail.
    """
    return jax_precision(double=dtype == "float64")
