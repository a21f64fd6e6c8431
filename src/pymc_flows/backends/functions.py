"""Functions of graphs, which are compiled once for each structure and serve any data.

Models that are built alike have equal graphs, except for their data. Compiled functions therefore
take data as arguments, and a graph whose nodes, constants and types have been seen before is not
compiled again: for another data set, or for the same model in the next cell of a notebook.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, TypeGuard

import numpy as np
import pytensor
from pytensor import In, Out
from pytensor.compile.mode import Mode
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.op import Op
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import graph_inputs, toposort
from pytensor.tensor import TensorConstant
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.modes import NUMPY, is_compiled, is_of_jax
from pymc_flows.backends.ops import ops_inside, values_needed
from pymc_flows.support.compat import TensorSharedVariable, frozen_graph, jax_function
from pymc_flows.support.threads import BUILDING

# Most functions that are kept for later requests.
MAX_KEPT = 128
# Ops from here are equal only if they compute the same. Any other Op counts as equal to itself
# alone: it may hold data that its ``__props__`` do not name.
_KNOWN = frozenset({"pymc", "pymc_extras", "pymc_flows", "pytensor"})


def is_array(var: Variable) -> TypeGuard[TensorConstant]:
    """Whether a variable is a constant array, and not a sparse one."""
    return isinstance(var, TensorConstant) and isinstance(var.data, np.ndarray)


type Place = Callable[[list[Any]], list[Any]]
"""Converts data to what the backend takes, on its device."""


@dataclass
class Counts:
    """How many requested functions were found, compiled and kept, or compiled and not kept."""

    found: int = 0
    made: int = 0
    unkept: int = 0


class Bound:
    """A compiled function with data, which any number of threads may call.

    Data are constants, and shared variables, whose values are read at each call. Results that
    depend on data alone are computed once, and again when a shared variable has a new value.
    """

    def __init__(self, functions: _Functions, data: Sequence[Variable]):
        self._functions = functions
        self._data = [
            [var.data] if isinstance(var, Constant) else var.container.storage for var in data
        ]
        # Data and the arguments made from them, set together for other threads.
        self._prepared: tuple[list[Any], list[Any]] | None = None
        self._place: Place = functions.place

    def placed(self, place: Place) -> Bound:
        """The same function, whose data ``place`` turns into what the backend takes."""
        other = copy.copy(self)
        other._place, other._prepared = place, None
        return other

    def __call__(self, *args: Any) -> Any:
        """Compute."""
        return self._functions.main(*args, *self.arguments())

    def arguments(self) -> list[Any]:
        """Arguments of the compiled function for the data as they are now."""
        data = [storage[0] for storage in self._data]
        known = self._prepared
        if known is None or any(x is not y for x, y in zip(data, known[0], strict=True)):
            known = self._prepared = data, self._place(self._functions.prepare(data))
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is computed from data."""
        return {**self.__dict__, "_prepared": None}


def batched(functions: Sequence[Bound], axes: Sequence[int | None]) -> Callable[..., Any] | None:
    """One JAX function for several that differ only in their data; None if graphs differ, too.

    ``axes`` has for each argument the axis along which the functions have their own values, or None
    if they share it. Results have a leading axis for the functions.
    """
    first = functions[0]._functions
    if any(function._functions is not first for function in functions):
        return None
    import jax

    data, places = [], list(axes)
    for parts in zip(*(function.arguments() for function in functions), strict=True):
        is_one = all(x is parts[0] or np.array_equal(x, parts[0]) for x in parts)
        data.append(parts[0] if is_one else jax.numpy.stack(parts))
        places.append(None if is_one else 0)
    call = jax.jit(jax.vmap(first.main.of_jax, in_axes=tuple(places)))
    return lambda *args: call(*args, *data)


class _Functions:
    """The compiled functions of a graph: the main one, and one that prepares data for it.

    ``how`` are further arguments of `pytensor.function`.
    """

    def __init__(
        self,
        given: Sequence[In],
        wanted: Sequence[Out],
        data: Sequence[Variable],
        mode: Mode | str,
        how: dict[str, Any],
    ):
        parts = _data_parts([x.variable for x in given], [x.variable for x in wanted], data)
        stands_for = {var: var.type(name=var.name) for var in [*data, *parts]}
        ends = graph_replace([x.variable for x in wanted], stands_for, strict=False)
        used = set(graph_inputs(ends))
        self._direct = [i for i, var in enumerate(data) if stands_for[var] in used]
        arguments = [stands_for[v] for v in [*(data[i] for i in self._direct), *parts]]
        inputs = [*given, *map(In, arguments)]
        outputs = [Out(x, borrow=old.borrow) for x, old in zip(ends, wanted, strict=True)]
        self.main = _Shared(lambda: pytensor.function(inputs, outputs, mode=mode, **how), mode)
        self.place: Place = _as_jax_arrays if is_of_jax(mode) else list
        self._parts = None
        if parts:
            leaves = [stands_for[v] for v in data]
            graphs = graph_replace(parts, dict(zip(data, leaves, strict=True)), strict=False)
            self._parts = _Shared(
                lambda: pytensor.function(leaves, graphs, mode=NUMPY, on_unused_input="ignore"),
                NUMPY,
            )

    def prepare(self, data: Sequence[Any]) -> list[Any]:
        """Arguments of `main` for the values of the data."""
        found = [data[i] for i in self._direct]
        if self._parts is not None:
            with np.errstate(all="ignore"):
                found += self._parts(*data)
        return [_read_only(array) for array in found]


def _read_only(array: Any) -> Any:
    """Integers as what may be kept in another form: data are replaced, never written into."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        return array
    found = array.view()
    found.flags.writeable = False
    return found


def _as_jax_arrays(arrays: list[Any]) -> list[Any]:
    import jax

    return [jax.numpy.asarray(x) for x in arrays]


class _Shared:
    """A function that ``make`` compiles, again for each thread that would have to wait for it."""

    def __init__(self, make: Callable[[], Any], mode: Any):
        self._make = make
        self._waits = not is_compiled(mode)  # threads would wait for Python in any case
        self._functions = [(make(), RLock())]

    def __call__(self, *args: Any) -> Any:
        function, lock = self._take()
        try:
            return function(*args)
        finally:
            lock.release()

    @property
    def of_jax(self) -> Callable[..., Any]:
        """The function of JAX behind it."""
        call: Callable[..., Any] = jax_function(self._functions[0][0])[0]
        return call

    def _take(self) -> tuple[Any, Any]:
        """A function that no other thread is using, and its lock, which is held."""
        for function, lock in self._functions:
            if lock.acquire(blocking=False):
                return function, lock
        if self._waits:
            function, lock = self._functions[0]
        else:
            with BUILDING:
                function, lock = self._make(), RLock()
                self._functions.append((function, lock))
        lock.acquire()
        return function, lock

    def __getstate__(self) -> dict[str, Any]:
        """Pickle one function; PyTensor makes it anew from its graph."""
        [function, _], *_ = self._functions
        return {"waits": self._waits, "function": function}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; further functions are copies."""
        function = state["function"]
        self._make, self._waits = function.copy, state["waits"]
        self._functions = [(function, RLock())]


_KEPT: OrderedDict[tuple[Any, ...], tuple[_Functions, list[Op]]] = OrderedDict()
_COUNTS = Counts()


def function_of(
    inputs: Sequence[Variable | In],
    outputs: Variable | Sequence[Variable | Out],
    *,
    mode: Mode | str,
    trust_input: bool = False,
    **more: Any,
) -> Callable[..., Any]:
    """Make a function as `pytensor.function` does, or find the one of an equal graph.

    Arrays of floats, arrays of integers that are no shapes, and shared variables are data: the
    function takes those of the graph that is given, which no other caller sees.

    Parameters
    ----------
    inputs : sequence of Variable or In
        Unused ones are ignored.
    outputs : Variable or sequence of Variable or Out
    mode : Mode or str
    trust_input : bool
        Whether to skip the check that arguments have the types of the inputs.
    **more
        Other arguments of `pytensor.function`; such a function is not kept.

    Returns
    -------
    callable
    """
    given = [x if isinstance(x, In) else In(x) for x in inputs]
    is_one = isinstance(outputs, Variable)
    wanted = [x if isinstance(x, Out) else Out(x) for x in ([outputs] if is_one else outputs)]
    starts, ends = [x.variable for x in given], [x.variable for x in wanted]
    data = None if more else _data(starts, ends)
    how = {"trust_input": trust_input, "on_unused_input": "ignore", **more}
    if data is None:
        with BUILDING:
            _COUNTS.unkept += 1
        return pytensor.function(list(inputs), outputs, mode=mode, **how)
    foreign = _foreign_ops(ends)
    key = (
        frozen_graph([*starts, *data], ends),
        tuple(map(id, foreign)),
        mode,
        tuple(x.borrow for x in (*given, *wanted)),
        trust_input,
    )
    with BUILDING:  # no further lock: a thread that holds this one may ask for functions
        found = _KEPT.get(key)
        if found is None:
            _COUNTS.made += 1
            found = _KEPT[key] = _Functions(given, wanted, data, mode, how), foreign
            if len(_KEPT) > MAX_KEPT:
                _KEPT.popitem(last=False)
        else:
            _COUNTS.found += 1
            _KEPT.move_to_end(key)
    bound = Bound(found[0], data)
    return _Only(bound) if is_one else bound


class _Only:
    """The only output of a function."""

    def __init__(self, function: Bound):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        [found] = self._function(*args)
        return found


def counts() -> Counts:
    """How often functions were found and made in this process so far."""
    with BUILDING:
        return Counts(_COUNTS.found, _COUNTS.made, _COUNTS.unkept)


def forget() -> None:
    """Keep no function any longer: what is asked for next is compiled."""
    with BUILDING:
        _KEPT.clear()


def _data(inputs: Sequence[Variable], outputs: Sequence[Variable]) -> list[Variable] | None:
    """Data of a graph, in the order of the graph; None if a function of it cannot be shared."""
    nodes = toposort(outputs, blockers=inputs)
    leaves = [v for node in nodes for v in node.inputs if v.owner is None]
    needed, found = values_needed(outputs), list[Variable]()
    for var in dict.fromkeys([*leaves, *(v for v in outputs if v.owner is None)]):
        if var in inputs:
            continue
        if isinstance(var, TensorSharedVariable):
            found.append(var)
        elif isinstance(var, SharedVariable) or not isinstance(var, Constant):
            return None  # a random generator keeps state; PyTensor refuses a missing input
        elif is_array(var) and var.data.size > 1 and var not in needed:
            found.append(var)
    return found


def _foreign_ops(outputs: Sequence[Variable]) -> list[Op]:
    """Ops whose equality is not known to mean that they compute the same."""
    found: dict[int, Op] = {}
    for node in toposort(outputs):
        for op in ops_inside(node.op, scalars=True):
            if type(op).__module__.partition(".")[0] not in _KNOWN:
                found[id(op)] = op
    return list(found.values())


def _data_parts(
    inputs: Sequence[Variable], outputs: Sequence[Variable], data: Sequence[Variable]
) -> list[TensorVariable]:
    """Variables that a graph computes from data alone, no larger than the data, and no shapes."""
    known, largest = set(data), max((_size(v) or 0 for v in data), default=0)
    varies, needed = set(inputs), values_needed(outputs)
    used: dict[TensorVariable, None] = {}
    for node in toposort(outputs):
        if varies.isdisjoint(node.inputs):
            if not known.isdisjoint(node.inputs):
                known.update(node.outputs)
            continue
        varies.update(node.outputs)
        used |= {
            var: None
            for var in node.inputs
            if var in known and var.owner is not None and isinstance(var, TensorVariable)
        }
    return [
        var
        for var in used
        if (size := _size(var)) is not None and size <= largest and var not in needed
    ]


def _size(var: Variable) -> int | None:
    """Number of elements, if it is known."""
    return None if None in var.type.shape else int(np.prod(var.type.shape))
