"""PyTensor modes: how graphs are turned into functions.

Compile time is the first thing a user feels, so only the training function goes through a
compiling backend. Everything that is called a few times on whole arrays (a start check, draws,
log densities) runs on `NUMPY`: no compilation, one NumPy call per node, all draws at once.
"""

import copyreg
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import RLock
from typing import Any

import pytensor
from pytensor.compile.mode import Mode, get_mode, optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

from pymc_flows.backends.node_by_node.linker import ArrayLinker
from pymc_flows.backends.ops import is_graph_of
from pymc_flows.backends.rewrites import TAGS
from pymc_flows.support.compat import (
    CHECKS_AS_SWITCHES,
    FILLS_AS_ALLOC,
    MERGED_SLICES,
    STRUCTURED_PRODUCTS,
    Alloc,
    Blockwise,
    CAReduce,
    DimShuffle,
    Elemwise,
    Function,
    FunctionMaker,
    JITLinker,
    Linker,
    VMLinker,
    query_of_mode,
)
from pymc_flows.support.garbage import fewer_collections
from pymc_flows.support.threads import BUILDING

BACKENDS = ("numba", "jax")


@contextmanager
def no_compiler() -> Iterator[None]:
    """Keep PyTensor from compiling C code, which takes a second or two for each new Op.

    Stack traces of variables that rewrites make are not kept either: they name no line of a user.

    The settings are global, so only one thread at a time may be in such a block: two that overlap
    would each restore what they found, and the compiler could stay switched off.
    """
    flags = pytensor.config.change_flags(cxx="", traceback__limit=0)
    with BUILDING, fewer_collections(), flags:
        yield


class SafeFunction(Function):
    """A compiled function that threads call one after the other.

    Its arguments and results go through its own storage: simultaneous calls would mix them up.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._lock = RLock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for calls of other threads, then compute."""
        with self._lock:
            return super().__call__(*args, **kwargs)


# PyTensor pickles its own class in the same way, by the maker of the function.
copyreg.pickle(SafeFunction, copyreg.dispatch_table[Function])


def locked[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Let threads call a function of another mode than ours one after the other."""
    lock = RLock()

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with lock:
            return function(*args, **kwargs)

    return call


class _Maker(FunctionMaker):
    """Makes functions that threads can share, without the C compiler.

    PyTensor would compile Ops with an inner graph (a softmax, a Scan) in C: the Python linker
    whenever it meets one, and every mode when it folds constants.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        with no_compiler():
            super().__init__(*args, **kwargs)
        self.function_class = SafeFunction

    def create(self, *args: Any, **kwargs: Any) -> Any:
        """Link the graph."""
        with no_compiler():
            return super().create(*args, **kwargs)


class _Mode(Mode):
    @property
    def function_maker(self) -> type[FunctionMaker]:
        return _Maker


# Ops that take a batch as they take one element: entry by entry, or along their own axes.
_IN_BATCHES = (Elemwise, DimShuffle, CAReduce, Alloc)


@node_rewriter([Blockwise])
def _opened_in_numpy(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """Open batches of Ops such as the log of a sum of exponentials along an axis.

    In NumPy their inner graph takes all draws at once; compilers are better at the Ops as they are.
    """
    if not is_graph_of(node.op.core_op, _IN_BATCHES):
        return None
    inner = node.op.core_op.fgraph.unfreeze()
    opened = vectorize_graph(inner.outputs, dict(zip(inner.inputs, node.inputs, strict=True)))
    fits = all(old.type.is_super(new.type) for old, new in zip(node.outputs, opened, strict=True))
    return opened if fits else None


# Before all rewrites that simplify.
optdb.register("pymc_flows_open_batches", in2out(_opened_in_numpy), TAGS["python"], position=0.5)


# "stabilize" keeps the numerically careful forms (log1p, logsumexp, ...) that a model's author
# relies on; a leftover parameter check becomes -inf instead of an exception, as everywhere in PyMC.
NUMPY = _Mode(
    linker=ArrayLinker(),
    optimizer=RewriteDatabaseQuery(
        include=["fast_compile", "stabilize", CHECKS_AS_SWITCHES, TAGS["python"]],
        exclude=[*STRUCTURED_PRODUCTS, *MERGED_SLICES],
    ),
)
# Nearly the graph as it was written: ready at once. Gradients are full of fills, which NumPy would
# compute number by number.
PLAIN = _Mode(
    linker=ArrayLinker(),
    optimizer=RewriteDatabaseQuery(include=[FILLS_AS_ALLOC, TAGS["python"]]),
)


def relinked(mode: Mode, linker: Linker | str) -> Mode:
    """Return a mode of our kind, with the rewrites of ``mode`` and another linker."""
    return _Mode(linker, query_of_mode(mode))


def metered(mode: Mode, callback: Callable[..., None]) -> Mode:
    """Return `NUMPY` or `PLAIN` with a callback after each node.

    It gets ``node=``, ``thunk=``, ``storage_map=`` and ``compute_map=``.
    """
    return relinked(mode, VMLinker(use_cloop=False, c_thunks=False, callback=callback))


def is_compiled(mode: Mode | str) -> bool:
    """Whether a mode compiles the whole graph to machine code."""
    return isinstance(get_mode(mode).linker, JITLinker)


def is_of_jax(mode: Mode | str) -> bool:
    """Whether functions of a mode run on JAX."""
    from pymc_flows.support.compat import JAXLinker

    return isinstance(get_mode(mode).linker, JAXLinker)


@lru_cache
def training_mode(backend: str) -> Mode:
    """Return the mode that compiles the training loop on ``backend`` ("numba" or "jax")."""
    mode = get_mode(backend.upper())
    return relinked(mode, mode.linker).including(CHECKS_AS_SWITCHES, TAGS[backend])
