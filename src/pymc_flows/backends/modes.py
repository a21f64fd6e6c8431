"""PyTensor modes: how graphs are turned into functions.

Compile time is the first thing a user feels, so only the training function goes through a
compiling backend. Everything that is called a few times on whole arrays (a start check, draws,
log densities) runs on `NUMPY`: no compilation, one NumPy call per node, all draws at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytensor
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

from pymc_flows.backends.rewrites import TAGS
from pymc_flows.support.compat import (
    CHECKS_AS_SWITCHES,
    FILLS_AS_ALLOC,
    FunctionMaker,
    VMLinker,
    query_of_mode,
)

BACKENDS = ("numba", "jax")


@contextmanager
def no_compiler() -> Iterator[None]:
    """Keep PyTensor from compiling C code, which takes a second or two for each new Op."""
    with pytensor.config.change_flags(cxx=""):
        yield


class _Maker(FunctionMaker):
    """Makes functions without the C compiler.

    PyTensor runs Ops with an inner graph (a softmax, a Scan) through it, Op by Op: the Python
    linker whenever it meets one, and every mode when it folds constants.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        with no_compiler():
            super().__init__(*args, **kwargs)

    def create(self, *args: Any, **kwargs: Any) -> Any:
        """Link the graph."""
        with no_compiler():
            return super().create(*args, **kwargs)


class _Mode(Mode):
    @property
    def function_maker(self) -> type[FunctionMaker]:
        return _Maker


# "stabilize" keeps the numerically careful forms (log1p, logsumexp, ...) that a model's author
# relies on; a leftover parameter check becomes -inf instead of an exception, as everywhere in PyMC.
NUMPY = _Mode(
    linker="py",
    optimizer=RewriteDatabaseQuery(
        include=["fast_compile", "stabilize", CHECKS_AS_SWITCHES, TAGS["numpy"]]
    ),
)
# The graph as it was written: ready at once. Gradients are full of fills, which NumPy would do
# number by number.
PLAIN = _Mode(linker="py", optimizer=RewriteDatabaseQuery(include=[FILLS_AS_ALLOC]))


def metered(mode: Mode, callback: Callable[..., None]) -> Mode:
    """Return `NUMPY` or `PLAIN` with a callback after each node.

    It gets ``node=``, ``thunk=``, ``storage_map=`` and ``compute_map=``.
    """
    linker = VMLinker(use_cloop=False, c_thunks=False, callback=callback)
    return _Mode(linker, query_of_mode(mode))


def training_mode(backend: str) -> Mode:
    """Return the mode that compiles the training loop on ``backend`` ("numba" or "jax")."""
    mode = get_mode(backend.upper())
    return _Mode(mode.linker, query_of_mode(mode)).including(CHECKS_AS_SWITCHES, TAGS[backend])
