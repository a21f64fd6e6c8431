"""Every name of PyMC, PyTensor and JAX that may change without notice, imported in this one place.

Such a name begins with an underscore, lives in a submodule that the library's reference does not
document, or is an attribute of something internal. A comment says why it is needed and what to use
instead once it is gone. All were read in PyMC 6.4.0, PyTensor 3.3.7 and JAX 0.12, and compared with
PyMC 6.3.2; differences between these are handled here. ``tests/support/test_compat.py`` tests what
the package assumes of them, names of rewrites included.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

# PyMC's converter of draws to a DataTree: dims, coords and groups as `pm.sample` gives them.
# Instead: `pymc.to_inference_data`, once it takes arrays.
from pymc.backends.arviz import DataTreeConverter

# The container that PyMC's approximations return with ``return_inferencedata=False``.
# Instead: nothing, once PyMC drops it.
from pymc.backends.base import MultiTrace

# The one backend of `MultiTrace`; filled with draws that exist already. Instead: as above.
from pymc.backends.ndarray import NDArray

# The Op that `pymc.Minibatch` returns; its inputs are all the data. Instead: none.
from pymc.data import MinibatchOp

# Adds the draw axis to a random variable. Instead: `vectorize_graph` of its parameters.
from pymc.distributions.shape_utils import change_dist_size

# `Model.initial_point` with some of the values given. Instead: a model with initvals of its own.
from pymc.initial_point import make_initial_point_fn

# The transform that consists of others. Instead: it moves with `pymc.logprob.transforms`.
from pymc.logprob.transforms import ChainedTransform

# The Op of PyMC's parameter checks, which become switches here. Instead: any `CheckAndRaise`.
from pymc.logprob.utils import CheckParameterValue, replace_rvs_by_values

# PyMC's progress bar and its colours. Instead: `rich.progress.Progress`, `rich.theme.Theme`.
from pymc.progress_bar import CustomProgress, default_progress_theme

# The updates of the generators in a graph. Instead: walk `RandomVariable` nodes.
from pymc.pytensorf import collect_default_updates

# The answer of a step method to "can you sample this?". Instead: an integer from 0 to 3.
from pymc.step_methods.compound import Competence

# A `numpy.random.Generator` from a step's ``rng``, copied. Instead: `numpy.random.default_rng`.
from pymc.util import get_random_generator

# The Op of an observed variable with ``total_size=``. Instead: none; it says how to scale ELBOs.
from pymc.variational.minibatch_rv import MinibatchRandomVariable

# The base class of the objective's operator. Instead: it goes with PyMC's `KLqp`.
from pymc.variational.operators import KL

# What PyMC's variational classes are made of. Instead: they go with PyMC's `Approximation`.
from pymc.variational.opvi import ObjectiveFunction, node_property

# The class of compiled functions, subclassed to be safe in threads. Instead: `locked` around each.
from pytensor.compile.executor import Function

# Makes functions of a given class; also subclassed to keep the C compiler away. Instead: nothing
# if ``cxx`` is empty.
from pytensor.compile.maker import FunctionMaker

# The Op that names a deterministic, and its base. Instead: Ops whose ``view_map`` is {0: [0]}.
from pytensor.compile.ops import TypeCastingOp, ViewOp

# Inner graph of an `OpFromGraph` node in place of the node. Instead: `graph_replace` of its graph.
from pytensor.compile.rewriting import inline_ofg_node

# Graphs that are equal if their nodes, constants and types are, made by `frozen_graph`. Instead: a
# key of one's own from a walk through the graph.
from pytensor.graph.fg import FrozenFunctionGraph

# Registers the vectorisation of an Op, and has the general one. Instead: ``gufunc_signature``.
from pytensor.graph.replace import _vectorize_node as vectorize_node

# Rewrites a graph by a query. Instead: a `FunctionGraph`, and `optdb.query(...).rewrite` of it.
from pytensor.graph.rewriting.utils import rewrite_graph

# What an Op without a derivative raises. Instead: its base, `Exception`.
from pytensor.graph.utils import MethodNotDefined

# `JITLinker` tells which modes compile. Instead: the names of modes, where users give no mode of
# their own. `Linker` is the type of a mode's linker. Instead: no annotation. `PerformLinker` runs a
# graph node by node; ours has other thunks for most nodes. Instead: the linker "py", more slowly.
from pytensor.link.basic import JITLinker, Linker, PerformLinker

# Says which node raised an error. Instead: the error as it is.
from pytensor.link.utils import raise_with_op

# The linker that calls back after each node. Instead: a `Mode` with linker "py" and timings.
from pytensor.link.vm import VMLinker

# A loop of scalars, and the base of all Ops with a graph of scalars. Instead: their new places.
from pytensor.scalar.basic import ScalarInnerGraphOp
from pytensor.scalar.loop import ScalarLoop

# A loop; models, draws and backends are asked for it. Instead: its name in the new place.
from pytensor.scan.op import Scan

# Ops, to say which of them JAX runs and which a rewrite changes. Instead: their new places.
from pytensor.tensor.basic import (
    Alloc,
    AllocEmpty,
    ARange,
    ExtractDiag,
    Join,
    MakeVector,
    ScalarFromTensor,
    Split,
    TensorFromScalar,
)
from pytensor.tensor.blockwise import Blockwise, vectorize_node_fallback
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.exceptions import NotScalarConstantError
from pytensor.tensor.extra_ops import CumOp, Repeat
from pytensor.tensor.linalg.solvers.core import SolveBase
from pytensor.tensor.math import All, Dot, Max, Min, Sum

# Random variables, and the type of their generators. Instead: their new places.
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomGeneratorType

# Ops, as above.
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape

# Data that a model can change. Instead: `SharedVariable` with a `TensorVariable` type.
from pytensor.tensor.sharedvar import TensorSharedVariable

# Ops, as above.
from pytensor.tensor.sort import SortOp
from pytensor.tensor.special import LogSoftmax, LogSumExp, Softmax
from pytensor.tensor.subtensor import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    IncSubtensor,
    Subtensor,
    unflatten_index_variables,
)

# Named dimensions, to and from tensors. Instead: their new places.
from pytensor.xtensor.basic import xtensor_from_tensor
from pytensor.xtensor.type import XTensorType

# ---------------------------------------------------------------------------- rewrites, by name
# A query for a rewrite that does not exist is no error in PyTensor: these are tested by effect.

# PyMC's: a failed parameter check gives −inf, not an exception. Instead: `switch_parameter_checks`.
CHECKS_AS_SWITCHES = "local_check_parameter_to_ninf_switch"
# PyTensor's: ``second(x, y)``, frequent in gradients, as an allocation. Instead: nothing, at a cost
# in time: NumPy's mode evaluates it number by number.
FILLS_AS_ALLOC = "local_second_to_alloc"

# PyTensor's: new axes of a result become axes of its inputs. Instead: nothing, once
# `vectorize_graph` takes its own graphs of sums that are zero.
LIFTS_AXES = "local_dimshuffle_lift"
# PyTensor's, left out: cheaper products with a matrix that is diagonal or selects rows. The search
# takes almost half of the time of rewriting a network. Instead: nothing, once it is quick.
STRUCTURED_PRODUCTS = ("dot_diag_to_elemwise", "selection_dot_to_indexing")

# PyTensor's, left out: a part of a slice becomes one slice. The first fails and prints a traceback
# where it computes a place beyond 127 with constants of 8 bits. Instead: nothing, once it does not.
MERGED_SLICES = ("local_subtensor_merge_slice", "local_subtensor_merge_integer")

# PyTensor's: named dimensions to axes, as PyMC's own log densities of `pymc.dims` have it. Instead:
# the lowering of each Op.
LOWER_NAMES = "+lower_xtensor"

# ------------------------------------------------------- names whose modules import numba or JAX

_LAZY = {
    # Tells functions that run on JAX. Instead: the name of the mode.
    "JAXLinker": "pytensor.link.jax.linker",
    # Register the implementation of an Op. Instead: PyTensor's page on extending a backend.
    "jax_funcify": "pytensor.link.jax.dispatch",
    "jax_typify": "pytensor.link.jax.dispatch",
    "numba_njit": "pytensor.link.numba.dispatch.basic",
    "register_funcify_and_cache_key": "pytensor.link.numba.dispatch.basic",
}


def __getattr__(name: str) -> Any:
    """Import a name of `_LAZY` when it is first asked for, so only inside functions."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ------------------------------------------------------------------------ attributes of internals


def compiled_graph(function: Any) -> Any:
    """The rewritten `FunctionGraph` that a compiled function runs.

    Instead of its ``maker``: rewrite the graph with `pytensor.graph.rewrite_graph`.
    """
    return function.maker.fgraph


def frozen_graph(inputs: Sequence[Any], outputs: Sequence[Any]) -> FrozenFunctionGraph:
    """A graph that can be hashed, and equals another one with the same nodes.

    Inputs may be constants or shared variables; only their types count.
    """
    return FrozenFunctionGraph.from_io(inputs, outputs)


def query_of_mode(mode: Any) -> Any:
    """The rewrites of a mode, to make another mode with them. Instead: its ``optimizer``."""
    return mode.provided_optimizer


def jax_function(function: Any) -> tuple[Callable[..., Any], list[Any]]:
    """The JAX function behind one that PyTensor compiled, and its data after the given inputs.

    Instead: `pytensor.wrap_jax` the other way round, or let the compiled function itself fail.
    """
    return function.vm.jit_fn, [container.storage[0] for container in function.input_storage[1:]]


def jax_precision(*, double: bool) -> AbstractContextManager[object]:
    """Set the precision of JAX inside a block."""
    import jax

    # `jax.experimental.enable_x64` before JAX 0.8, `jax.enable_x64` since.
    home = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return home.enable_x64(double)


def shard_map(function: Callable[..., Any], mesh: Any, inputs: Any, outputs: Any) -> Any:
    """Run a function on each device of a mesh, on its part of the inputs, without checks."""
    import jax

    # `jax.experimental.shard_map` before JAX 0.8, `jax.shard_map` since.
    if hasattr(jax, "shard_map"):
        how = {"mesh": mesh, "in_specs": inputs, "out_specs": outputs}
        return jax.shard_map(function, check_vma=False, **how)
    home = importlib.import_module("jax.experimental.shard_map")
    return home.shard_map(function, mesh, inputs, outputs, check_rep=False)


def ask_for_jax_cache() -> None:
    """Make JAX look up the folder of its persistent cache again, which it does only once.

    Instead: set ``jax_compilation_cache_dir`` before anything is compiled, for the whole process.
    """
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


def rebuild_scan(op: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """The same Scan with another inner graph, whose inputs and outputs have the same meaning.

    Instead: ``op.clone_with_new_graph``, once there is such a method.
    """
    return Scan(
        inputs,
        outputs,
        op.info,
        mode=op.mode,
        truncate_gradient=op.truncate_gradient,
        name=op.name,
        allow_gc=op.allow_gc,
        strict=op.strict,
    )


def kill_workers(pool: Any) -> None:
    """End the processes of a `concurrent.futures.ProcessPoolExecutor`, also those at work.

    Instead of its ``_processes``: its method ``kill_workers``, from Python 3.14 on.
    """
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
