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

# Ops that a Blockwise may repeat.
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
# Integer scalars and vectors among their inputs are lengths, shapes or positions of slices.
_TAKES_SHAPES = (Alloc, AllocEmpty, ARange, Reshape, Split, Subtensor, IncSubtensor)
_SAFE_BLOCKWISE_IF_STATIC = (*_SAFE_BLOCKWISE, AllocEmpty, Subtensor, IncSubtensor)

# Programs that compile in less time are not kept on disk.
LEAST_SECONDS = 0.1
# Held while a block has changed JAX's configuration, which all threads share.
_CACHING = RLock()


def has_jax() -> bool:
    """Tell whether JAX is installed, without importing it."""
    return importlib.util.find_spec("jax") is not None


def is_plain(outputs: Sequence[Variable]) -> bool:
    """Whether JAX certainly runs all Ops of a graph."""
    roots = [v for v in graph_inputs(outputs) if isinstance(v, TensorVariable)]
    static = all(None not in v.type.shape for v in roots)
    nodes = list(toposort(outputs))
    # Everything that depends on more than shapes and constants.
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
    """Names of the Ops of a graph for which PyTensor has no conversion to JAX."""
    from pymc_flows.support.compat import jax_funcify

    unknown = jax_funcify.dispatch(object)
    return sorted({str(op) for op in ops_of(outputs) if jax_funcify.dispatch(type(op)) is unknown})


def trace(z: TensorVariable, outputs: Sequence[Variable]) -> None:
    """Let JAX trace a graph of z, without compiling it; raise whatever that raises."""
    import jax

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fn = pytensor.function([z], outputs, mode=training_mode("jax"), on_unused_input="ignore")
        call, data = jax_function(fn)
        jax.eval_shape(lambda x: call(x, *data), np.zeros(z.type.shape, z.dtype))


def cache_folder() -> Path:
    """The folder of `kept_on_disk`."""
    return Path(pytensor.config.compiledir) / "jax"


@contextmanager
def kept_on_disk() -> Iterator[None]:
    """Keep programs that JAX compiles in the block for later processes of the same user.

    They are kept in ``pytensor.config.compiledir``, which is specific to machine and versions. A
    folder that the user has given to JAX, by ``JAX_COMPILATION_CACHE_DIR``, takes its place, and
    ``JAX_ENABLE_COMPILATION_CACHE=false`` turns the cache off. After the block, JAX's configuration
    is as before.
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
    """Context in which JAX has the precision of a dtype.

    PyTensor sets the precision once, when it first uses JAX; a fit in the other one would fail.
    """
    return jax_precision(double=dtype == "float64")
