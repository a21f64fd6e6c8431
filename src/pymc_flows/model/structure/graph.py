"""Terms of a log density in a form whose linear structure can be read, and facts about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytensor
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import toposort
from pytensor.raise_op import CheckAndRaise
from pytensor.scalar import Switch
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.graphs import as_tensor_of
from pymc_flows.backends.modes import NUMPY, no_compiler
from pymc_flows.backends.ops import op_name, random_inputs
from pymc_flows.backends.simplify import simplify
from pymc_flows.model.batching import NO_DERIVATIVE
from pymc_flows.model.logp import ModelDensity
from pymc_flows.support.compat import (
    CheckParameterValue,
    DimShuffle,
    Elemwise,
    LogSoftmax,
    LogSumExp,
    Shape,
    Shape_i,
    Softmax,
)

# Never opened: `relations` knows that they mix the elements along an axis.
AXIS_OPS = (Softmax, LogSoftmax, LogSumExp)
# Elementwise functions from here have all derivatives.
_BASIC = "pytensor.scalar.basic"
# The most bytes of values read off data that are kept.
MOST_BYTES = 20e6


@dataclass(frozen=True)
class Prepared:
    """Terms of a log density in a form whose structure can be read.

    Parameters
    ----------
    terms : dict of str to TensorVariable
        `ModelDensity.named_terms` without checks of parameters.
    checks : list of TensorVariable
        Conditions: if one of them is false anywhere, the density is zero.
    """

    terms: dict[str, TensorVariable]
    checks: list[TensorVariable]


_PREPARED: WeakKeyDictionary[ModelDensity, Prepared] = WeakKeyDictionary()


def prepared(density: ModelDensity) -> Prepared:
    """Take checks of parameters out of a log density, and open its inner graphs.

    A check depends on all elements of a parameter, but where the density is finite its result is
    always the same: it is no part of the structure.
    """
    found = _PREPARED.get(density)
    if found is None:
        checks: list[TensorVariable] = []
        named = density.named_terms
        with no_compiler():
            outputs = _opened(list(named.values()), checks)
            outputs = simplify([*outputs, *(checks if density.model.check_bounds else [])])
        terms = dict(zip(named, outputs, strict=False))
        found = Prepared(terms, outputs[len(terms) :])
        _PREPARED[density] = found
    return found


def _opened(
    outputs: Sequence[TensorVariable], checks: list[TensorVariable]
) -> list[TensorVariable]:
    """The same graphs without assertions, and with the inner graphs of Ops in place of the Ops."""
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    for node in fgraph.toposort():
        if isinstance(node.op, CheckAndRaise):
            value, *conditions = node.inputs
            if isinstance(node.op, CheckParameterValue):
                checks.extend(as_tensor_of(c) for c in conditions)
            fgraph.replace(node.outputs[0], value, import_missing=True, reason="check")
        elif (
            isinstance(node.op, OpFromGraph)
            and not isinstance(node.op, AXIS_OPS)
            and not is_elementwise(node)
        ):
            inner = node.op.fgraph.unfreeze()
            given = dict(zip(inner.inputs, node.inputs, strict=True))
            new = _opened(graph_replace(inner.outputs, given, strict=False), checks)
            for old, opened in zip(node.outputs, new, strict=True):
                fgraph.replace(old, opened, import_missing=True, reason="inner graph")
    return list(fgraph.outputs)


def is_elementwise(node: Apply) -> bool:
    """Whether each element of the outputs depends on the same element of each input only."""
    if isinstance(node.op, Elemwise):
        return True
    if not isinstance(node.op, OpFromGraph):
        return False
    return all(
        isinstance(inner.op, Elemwise)
        or (isinstance(inner.op, DimShuffle) and inner.op.is_left_expand_dims)
        for inner in node.op.fgraph.toposort()
    )


def is_switch(node: Apply) -> bool:
    """Whether a node chooses between two inputs."""
    return isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, Switch)


def dependents(outputs: Sequence[Variable], inputs: Iterable[Variable]) -> list[Apply]:
    """Nodes of a graph that depend on the values of ``inputs``, inputs before outputs.

    The shape of an input is not a value.
    """
    known = set(inputs)
    nodes = []
    for node in toposort(outputs, blockers=known):
        if isinstance(node.op, Shape | Shape_i) or known.isdisjoint(node.inputs):
            continue
        known.update(node.outputs)
        nodes.append(node)
    return nodes


def live_variables(nodes: Iterable[Apply], inputs: Iterable[Variable]) -> set[Variable]:
    """The inputs and all outputs of nodes that depend on them."""
    return {*inputs, *(v for node in nodes for v in node.outputs)}


def why_not_twice(density: ModelDensity, inputs: Collection[Variable]) -> str:
    """Name a term, and an elementwise Op of it without second derivatives by ``inputs``, if any.

    PyTensor computes the derivatives of some functions, such as incomplete gammas, as series.
    """
    for name, term in prepared(density).terms.items():
        nodes = dependents([term], inputs)
        live = live_variables(nodes, inputs)
        for node in filter(is_elementwise, nodes):
            if not _is_twice_differentiable(node, live):
                return f"PyTensor has no second derivative of {op_name(node.op)}, in {name}"
    return ""


def _is_twice_differentiable(node: Apply, live: set[Variable]) -> bool:
    if isinstance(node.op, Elemwise) and type(node.op.scalar_op).__module__ == _BASIC:
        return True
    inputs = [v.type() for v in node.inputs]
    wrt = [x for x, v in zip(inputs, node.inputs, strict=True) if v in live]
    options = {"disconnected_inputs": "ignore", "return_disconnected": "none"}
    try:
        for first in pytensor.grad(node.op(*inputs).sum(), wrt, **options):
            if first is not None:
                pytensor.grad(first.sum(), wrt, **options)
    except NO_DERIVATIVE:
        return False
    return True


class Readings:
    """Values that have been read off data, to find out later whether the data still give them.

    Large values are not kept, and count as changed.
    """

    def __init__(self) -> None:
        self._read: list[tuple[Callable[[np.ndarray | None], list[Any]], list[Any]]] = []
        self._bytes = 0

    @property
    def are_kept(self) -> bool:
        """Whether they are small enough to be kept."""
        return self._bytes <= MOST_BYTES

    def are_current(self, near: np.ndarray | None) -> bool:
        """Whether the present data, and a point (dim,), give the same values."""
        return self.are_kept and all(_same(evaluate(near), found) for evaluate, found in self._read)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the results of `read` inside a ``with`` block."""
        token = _READINGS.set(self)
        try:
            yield
        finally:
            _READINGS.reset(token)

    def add(self, evaluate: Callable[[np.ndarray | None], list[Any]], found: list[Any]) -> None:
        """Record a result, and the function that computes it."""
        self._bytes += sum(getattr(value, "nbytes", 0) for value in found)
        self._read = [*self._read, (evaluate, found)] if self.are_kept else []


_READINGS: ContextVar[Readings | None] = ContextVar("readings", default=None)


def read(evaluate: Callable[[np.ndarray | None], list[Any]], near: np.ndarray | None) -> list[Any]:
    """Compute values that depend on data, near a point (dim,) or the start of the density."""
    found, readings = evaluate(near), _READINGS.get()
    if readings is not None:
        readings.add(evaluate, found)
    return found


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(
        a is b or (np.shape(a) == np.shape(b) and bool(np.all((a == b) | ((a != a) & (b != b)))))
        for a, b in zip(some, others, strict=True)
    )


@dataclass(frozen=True)
class Facts:
    """Shapes and constant values of a graph's variables at one point.

    Parameters
    ----------
    shapes : dict of Variable to tuple
    values : dict of Variable to value
        Values of variables that do not vary.
    fixed : set of Variable
        Those of ``values`` that depend on no value variable and are not random.
    """

    shapes: dict[Variable, tuple[int, ...]]
    values: dict[Variable, Any]
    fixed: frozenset[Variable]

    def size(self, var: Variable) -> int:
        """Number of elements."""
        return int(np.prod(self.shapes[var], dtype=np.int64))

    def joined(self, other: Facts) -> Facts:
        """These facts and others."""
        return Facts(
            self.shapes | other.shapes, self.values | other.values, self.fixed | other.fixed
        )


def facts(
    density: ModelDensity,
    nodes: Sequence[Apply],
    depends: set[Variable],
    outputs: Sequence[Variable] = (),
    near: np.ndarray | None = None,
) -> Facts:
    """Evaluate what the relations of ``nodes`` need: one pass of NumPy, nothing compiled.

    Parameters
    ----------
    density : ModelDensity
    nodes : sequence of Apply
    depends : set of Variable
        Variables that vary: only their shapes are needed.
    outputs : sequence of Variable
        Further variables whose shapes are needed.
    near : ndarray, shape (dim,), optional
        Where they are evaluated; by default the start point of the density.
    """
    shaped: dict[Variable, None] = dict.fromkeys(outputs)
    wanted: dict[Variable, None] = {}
    for node in nodes:
        variables = *node.inputs, *node.outputs
        shaped.update(dict.fromkeys(v for v in variables if hasattr(v.type, "shape")))
        if is_switch(node) or not is_elementwise(node):
            needed = node.inputs[:1] if is_switch(node) else node.inputs
            wanted.update(dict.fromkeys(v for v in needed if v not in depends))
    known = values_of(density, list(wanted), near)
    shapes = {v: v.type.shape for v in shaped if None not in v.type.shape}
    shapes |= {v: slot.shape for v, slot in zip(density.values, density.slots, strict=True)}
    open_shapes = [v for v in shaped if v not in shapes]
    found = _evaluated(density, [v.shape for v in open_shapes], near)
    shapes |= {v: tuple(map(int, s)) for v, s in zip(open_shapes, found, strict=True)}
    return Facts(shapes | known.shapes, known.values, known.fixed)


def values_of(
    density: ModelDensity, variables: Sequence[Variable], near: np.ndarray | None = None
) -> Facts:
    """Evaluate variables at a point (dim,), by default the start point of a density."""
    values = {v: v.data for v in variables if isinstance(v, Constant)}
    computed = [v for v in variables if v not in values and hasattr(v.type, "dtype")]
    values |= dict(zip(computed, _evaluated(density, computed, near), strict=True))
    inputs = [*density.values, *random_inputs(list(values))]
    varying = live_variables(dependents(list(values), inputs), inputs)
    shapes = {v: tuple(getattr(value, "shape", ())) for v, value in values.items()}
    return Facts(shapes, values, frozenset(values).difference(varying))


def _evaluated(
    density: ModelDensity, outputs: Sequence[Variable], near: np.ndarray | None
) -> list[Any]:
    if not outputs:
        return []
    fn = function_of(density.values, list(outputs), mode=NUMPY)

    def evaluate(near: np.ndarray | None) -> list[Any]:
        with np.errstate(all="ignore"):
            found: list[Any] = fn(*density.split(density.start() if near is None else near))
        return found

    return read(evaluate, near)
