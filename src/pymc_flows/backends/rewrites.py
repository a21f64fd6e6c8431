"""Rewrites for single backends where PyTensor's own form is slow, and a barrier for compilers."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor import scalar as ps
from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.dispatch import on_first_use, source_key
from pymc_flows.backends.node_by_node import arrays
from pymc_flows.support.compat import Dot, Elemwise, ScalarInnerGraphOp, ScalarLoop

# Tags of the rewrites that a mode includes, by backend.
TAGS = {
    "numba": "pymc_flows_numba",
    "jax": "pymc_flows_jax",
    # For both modes that run a graph node by node, `NUMPY` and `PLAIN`.
    "python": "pymc_flows_python",
}
# After all rewrites that simplify, which would undo these, and before fusion (at 49).
_POSITION = 48.5


class QuickDot(Op):
    """The product of two matrices of floats; gradients are taken before it is put in."""

    __props__ = ()

    def make_node(self, x: Any, y: Any) -> Apply:
        """Shape and type of the product."""
        x, y = pt.as_tensor_variable(x), pt.as_tensor_variable(y)
        shape = (x.type.shape[0], y.type.shape[1])
        return Apply(self, [x, y], [pt.tensor(dtype=x.dtype, shape=shape)])

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Shape of the product."""
        return [(shapes[0][0], shapes[1][1])]

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Multiply in NumPy."""
        output_storage[0][0] = np.dot(*inputs)


class Materialize(Op):
    """Return the input; compilers fuse no operations across this Op.

    Without it, operations around a gradient would be fused in another way where the gradient is
    recorded, and the last bit of the step would change.
    """

    __props__ = ()
    view_map = {0: [0]}  # noqa: RUF012 - the name and kind that PyTensor reads

    def make_node(self, x: Any) -> Apply:
        """Same type out as in."""
        x = pt.as_tensor_variable(x)
        return Apply(self, [x], [x.type()])

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Same shape out as in."""
        return list(shapes)

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Hand the array on."""
        output_storage[0][0] = inputs[0]


_materialize = Materialize()


def materialize(x: Variable) -> TensorVariable:
    """Return ``x`` behind an identity that compilers do not look through."""
    return _materialize(x)


@node_rewriter([Dot])
def _quick_dot(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """Avoid PyTensor's product, which numba compiles for 15 seconds per layout of the inputs."""
    x, y = node.inputs
    if not x.dtype == y.dtype == node.outputs[0].dtype or x.dtype not in ("float32", "float64"):
        return None
    product = QuickDot()(x, y)
    return [product] if node.outputs[0].type.is_super(product.type) else None


class PlainSoftplus(ps.UnaryScalarOp):
    """The softplus in one form for all numbers; PyTensor's has five, and JAX computes them all."""

    def impl(self, x: Any) -> Any:
        """Compute it in NumPy."""
        return arrays.softplus(x)


class PlainSigmoid(ps.UnaryScalarOp):
    """The sigmoid by exp(−|x|), which it shares with the softplus."""

    def impl(self, x: Any) -> Any:
        """Compute it in NumPy."""
        return arrays.sigmoid(x)


_PLAIN = {
    scalar_op: Elemwise(plain(ps.upgrade_to_float, name=plain.__name__))
    for scalar_op, plain in ((ps.Softplus, PlainSoftplus), (ps.Sigmoid, PlainSigmoid))
}


@node_rewriter([Elemwise])
def _plain_forms(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """Choose forms that later rewrites leave alone."""
    plain = _PLAIN.get(type(node.op.scalar_op))
    if plain is None or not node.outputs[0].dtype.startswith("float"):
        return None
    return [plain(node.inputs[0].astype(node.outputs[0].dtype))]


# Functions of arrays for scalar Ops that would otherwise run in Python, number by number, at half a
# microsecond each, or whose function in SciPy is slower.
ON_ARRAYS = {
    scalar_op: (name, arity, 1)
    for scalar_op, name, arity in (
        (ps.Clip, "clip", 3),
        (ps.Softplus, f"{arrays.__name__}.softplus", 1),
        (ps.Sigmoid, f"{arrays.__name__}.sigmoid", 1),
        (ps.Log1mexp, f"{arrays.__name__}.log1mexp", 1),
        (ps.TriGamma, f"{arrays.__name__}.trigamma", 1),
    )
}


@node_rewriter([Elemwise])
def _on_arrays(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """Run a scalar function in NumPy by one of arrays."""
    spec = ON_ARRAYS.get(type(node.op.scalar_op))
    if spec is None or node.op.nfunc_spec == spec:
        return None
    return [Elemwise(node.op.scalar_op, nfunc_spec=spec)(*node.inputs)]


# Most operands of one call of a NumPy function, its result included.
MAX_OPERANDS = 32
# Associative and commutative operations of any number of operands.
_OF_MANY = (ps.Add, ps.Mul, ps.AND, ps.OR, ps.XOR)


@node_rewriter([Elemwise])
def _few_operands(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """Split an operation of very many operands into several of fewer."""
    if len(node.inputs) < MAX_OPERANDS or not isinstance(node.op.scalar_op, _OF_MANY):
        return None
    # The result may have a wider type than the operands; partial results would overflow.
    dtype = node.outputs[0].dtype
    left = [x if x.dtype == dtype else x.astype(dtype) for x in node.inputs]
    size = MAX_OPERANDS - 1
    while len(left) > size:
        groups = [left[i : i + size] for i in range(0, len(left), size)]
        left = [node.op(*group) if len(group) > 1 else group[0] for group in groups]
    return [node.op(*left)]


# Arrays to arrays, as many as an Op has outputs.
type Function = Callable[..., Sequence[np.ndarray]]


class _Work(threading.local):
    """Work of the loops of a thread: how many numbers the Ops of their steps were applied to."""

    done = 0


_WORK = _Work()


def loop_work() -> int:
    """Work of all `ArrayLoop` of this thread so far: steps times numbers times Ops of a step."""
    return _WORK.done


class ArrayLoop(Op):
    """A loop of scalars for each element of its inputs, which are broadcast.

    PyTensor writes derivatives of incomplete gamma, incomplete beta and hypergeometric functions as
    loops over the terms of a series, number by number. Here each step is taken at once for all
    numbers that still need it, which is some fifty times faster than Python.
    """

    __props__ = ("loop",)

    def __init__(self, loop: ScalarLoop):
        self.loop = loop

    def make_node(self, *inputs: Any) -> Apply:
        """Outputs have the types and shapes of PyTensor's own form."""
        node = Elemwise(self.loop).make_node(*inputs)
        return Apply(self, node.inputs, [x.type() for x in node.outputs])

    @cached_property
    def _step(self) -> Function:
        return _of_arrays(self.loop.fgraph)

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Run the loops."""
        with np.errstate(all="ignore"):
            found = self._run(*np.broadcast_arrays(*inputs))
        for storage, value, output in zip(output_storage, found, node.outputs, strict=True):
            storage[0] = value.astype(output.type.dtype, copy=False)

    def _run(self, steps: np.ndarray, *inputs: np.ndarray) -> list[np.ndarray]:
        shape, is_while = steps.shape, self.loop.is_while
        n_ops = len(self.loop.fgraph.apply_nodes)
        n_states = len(self.loop.outputs) - is_while
        results = [np.array(x, order="C").ravel() for x in inputs[:n_states]]
        has_ended = np.ones(steps.size, dtype=bool)
        left = np.flatnonzero(steps.ravel() > 0)
        most = steps.ravel()[left]
        states = [x[left] for x in results]
        fixed = [np.ravel(x)[left] for x in inputs[n_states:]]
        done = 0
        while left.size:
            _WORK.done += left.size * n_ops
            states = list(self._step(*states, *fixed))
            until = states.pop() if is_while else np.zeros(left.shape, dtype=bool)
            done += 1
            stops = until | (most <= done)
            if not stops.any():
                continue
            places, goes_on = left[stops], ~stops
            for result, state in zip(results, states, strict=True):
                result[places] = state[stops]
            has_ended[places] = until[stops]
            left, most = left[goes_on], most[goes_on]
            states, fixed = ([x[goes_on] for x in some] for some in (states, fixed))
        if is_while:
            results.append(has_ended)
        return [x.reshape(shape) for x in results]


def _of_arrays(graph: Any) -> Function:
    """Make a function of arrays, all of one shape (n,), of a graph of scalars."""
    slots: dict[Variable, int] = {}
    constants: list[tuple[int, Any]] = []
    program: list[tuple[Function, list[int], list[tuple[int, str]]]] = []

    def slot(var: Variable) -> int:
        if var not in slots:
            slots[var] = len(slots)
            if hasattr(var, "data"):
                constants.append((slots[var], np.asarray(var.data)))
        return slots[var]

    inputs = [slot(x) for x in graph.inputs]
    for node in graph.toposort():
        given = [slot(x) for x in node.inputs]
        program.append((_function_of(node), given, [(slot(x), x.type.dtype) for x in node.outputs]))
    outputs = [slot(x) for x in graph.outputs]

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        values: list[Any] = [None] * len(slots)
        for k, array in [*zip(inputs, arrays, strict=True), *constants]:
            values[k] = array
        for function, given, places in program:
            found = function(*(values[k] for k in given))
            for (k, dtype), value in zip(places, found, strict=True):
                values[k] = np.asarray(value).astype(dtype, copy=False)
        size = arrays[0].shape
        return [np.broadcast_to(values[k], size) for k in outputs]

    return run


def _function_of(node: Apply) -> Function:
    """A function of arrays for a node of scalars."""
    op = node.op
    if isinstance(op, ScalarLoop):
        nested = ArrayLoop(op)
        return lambda *arrays: nested._run(*np.broadcast_arrays(*arrays))
    if isinstance(op, ScalarInnerGraphOp):
        return _of_arrays(op.fgraph)
    if isinstance(op, ps.Cast | ps.Identity):
        return lambda x: [x]
    spec = getattr(op, "nfunc_spec", None) or ON_ARRAYS.get(type(op))
    if spec is None:
        each = np.vectorize(op.impl, otypes=[node.outputs[0].type.dtype])
        return lambda *arrays: [each(*arrays)]
    module, _, name = spec[0].rpartition(".")
    function = getattr(importlib.import_module(module or "numpy"), name)
    return lambda *arrays: [function(*arrays)]


@node_rewriter([Elemwise])
def _array_loops(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """Run a loop of scalars for whole arrays."""
    if not isinstance(node.op.scalar_op, ScalarLoop):
        return None
    return ArrayLoop(node.op.scalar_op)(*node.inputs, return_list=True)


optdb.register("pymc_flows_array_loops", in2out(_array_loops), TAGS["python"], position=48.4)
optdb.register("pymc_flows_few_operands", in2out(_few_operands), TAGS["python"], position=48.6)
optdb.register("pymc_flows_on_arrays", in2out(_on_arrays), TAGS["python"], position=_POSITION)
optdb.register("pymc_flows_quick_dot", in2out(_quick_dot), TAGS["numba"], position=_POSITION)
optdb.register("pymc_flows_plain_forms", in2out(_plain_forms), TAGS["jax"], position=_POSITION)


@on_first_use("numba")
def _register_numba() -> None:
    from numba.extending import overload

    from pymc_flows.support.compat import numba_njit, register_funcify_and_cache_key

    def contiguous(x):  # type: ignore[no-untyped-def]
        """Copy what is not in order in memory; numba does so too, and warns."""

    @overload(contiguous)
    def _(x):  # type: ignore[no-untyped-def]
        if x.layout == "A":
            return lambda x: np.ascontiguousarray(x)
        return lambda x: x

    @numba_njit
    def product(x, y):  # type: ignore[no-untyped-def]
        return np.dot(contiguous(x), contiguous(y))

    @register_funcify_and_cache_key(QuickDot)
    def _(op: QuickDot, node: Apply, **_: Any) -> tuple[Any, str]:
        return product, f"QuickDot {source_key(__name__)}"

    @numba_njit
    def identity(x):  # type: ignore[no-untyped-def]
        return x

    @register_funcify_and_cache_key(Materialize)
    def _(op: Materialize, node: Apply, **_: Any) -> tuple[Any, str]:
        return identity, f"Materialize {source_key(__name__)}"


@on_first_use("jax")
def _register_jax() -> None:
    import jax.numpy as jnp
    from jax.lax import optimization_barrier

    from pymc_flows.support.compat import jax_funcify

    def softplus(x: Any) -> Any:
        return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))

    def sigmoid(x: Any) -> Any:
        small = jnp.exp(-jnp.abs(x))
        return jnp.where(x < 0, small, 1) / (1 + small)

    @jax_funcify.register(PlainSoftplus)
    def _(op: PlainSoftplus, **_: Any) -> Any:
        return softplus

    @jax_funcify.register(PlainSigmoid)
    def _(op: PlainSigmoid, **_: Any) -> Any:
        return sigmoid

    @jax_funcify.register(Materialize)
    def _(op: Materialize, **_: Any) -> Any:
        return optimization_barrier
