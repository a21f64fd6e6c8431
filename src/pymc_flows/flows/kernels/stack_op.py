"""Blocks of repeated layers as one PyTensor Op, for numba.

Copied into a graph, each layer takes numba seconds to compile, and each node of a small graph takes
more time in a step than its arithmetic. As one Op, which takes the raw parameters of a block in one
vector, the block is one node and compiles in the same time for any number of repeats. JAX runs the
plain graphs of the layers, with which tests compare the kernels.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, grad_not_implemented
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import TensorVariable

from pymc_flows.backends.dispatch import on_first_use, source_key
from pymc_flows.flows.kernels import scalar

type Kernels = tuple[Callable[..., Any], Callable[..., Any]]


class StackOp(Op):
    """Apply the layers of a block in order.

    Inputs are z (n, dim) and theta (count · size,): the raw parameters of the block in alphabetical
    order, each (count, ...) and ravelled. Outputs are the new points (n, dim), the log-determinants
    (n,) in nats, and (count, ...) numbers that are saved for the pullback.
    """

    __props__: tuple[str, ...] = ()
    saved_core: ClassVar[str] = "(k,n)"
    """Axes of the saved numbers: k is the number of layers, n of points, d the dimension."""

    def layer_size(self, dim: Any) -> Any:
        """Number of parameters of one layer."""
        raise NotImplementedError

    @property
    def saved_rank(self) -> int:
        """Number of axes of the saved numbers."""
        return self.saved_core.count(",") + 1

    def saved_shape(self, count: Any, n: Any, dim: Any) -> tuple[Any, ...]:
        """Shape of the saved numbers; None for a length that is not known."""
        return (count, n, dim)[: self.saved_rank]

    def kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Return the forward map and its pullback as functions of arrays, compiled by ``jit``.

        ``forward(z, theta)`` gives the outputs of the Op, and ``pullback(by_z, by_log_det, z_new,
        saved, theta)`` the gradients with respect to z and theta. They contain neither sizes nor
        types, so one kernel serves all blocks of a kind.
        """
        raise NotImplementedError

    @property
    def gufunc_signature(self) -> str:
        """How the Op vectorises."""
        return f"(n,d),(m)->(n,d),(n),{self.saved_core}"

    def make_node(self, *inputs: Any) -> Apply:
        """Check ranks and types."""
        z, theta = _as_one_type(inputs, (2, 1))
        (n, dim), (size,) = z.type.shape, theta.type.shape
        count = None if size is None or dim is None else size // self.layer_size(dim)
        saved = self.saved_shape(count, n, dim)
        outputs = [pt.tensor(dtype=z.dtype, shape=shape) for shape in ((n, dim), (n,), saved)]
        return Apply(self, [z, theta], outputs)

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Shapes of the outputs."""
        (n, dim), (size,) = shapes
        count = size // self.layer_size(dim)
        return [(n, dim), (n,), self.saved_shape(count, n, dim)]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        """The saved numbers are not differentiated."""
        return [[True, True, False]] * len(node.inputs)

    def perform(self, node: Apply, inputs: Any, output_storage: Any) -> None:
        """Run the kernel without compiling it."""
        _run(self.kernels(_interpreted)[0], inputs, output_storage)

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[TensorVariable]:
        """Gradients with respect to z and the parameters."""
        by_z, by_log_det = (
            pt.zeros_like(out) if isinstance(ct.type, DisconnectedType) else ct
            for out, ct in zip(outputs[:2], cotangents[:2], strict=True)
        )
        z_new, _, saved = outputs
        return StackPullback(self)(by_z, by_log_det, z_new, saved, inputs[1], return_list=True)


class StackPullback(Op):
    """Pull cotangents of new points and log-determinant back through the layers of a `StackOp`."""

    __props__ = ("stack",)

    def __init__(self, stack: StackOp):
        self.stack = stack

    @property
    def gufunc_signature(self) -> str:
        """How the Op vectorises."""
        return f"(n,d),(n),(n,d),{self.stack.saved_core},(m)->(n,d),(m)"

    def make_node(self, *inputs: Any) -> Apply:
        """Check ranks and types."""
        variables = _as_one_type(inputs, (2, 1, 2, self.stack.saved_rank, 1))
        return Apply(self, variables, [variables[2].type(), variables[4].type()])

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Shapes of the outputs."""
        return [shapes[2], shapes[4]]

    def perform(self, node: Apply, inputs: Any, output_storage: Any) -> None:
        """Run the kernel without compiling it."""
        _run(self.stack.kernels(_interpreted)[1], inputs, output_storage)

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        """Raise: only the plain graphs have second derivatives."""
        return [
            grad_not_implemented(self, i, x, "second derivatives of a fused block")
            for i, x in enumerate(inputs)
        ]


def _interpreted[T: Callable[..., Any]](function: T) -> T:
    return function


def _run(kernel: Callable[..., Any], inputs: Any, output_storage: Any) -> None:
    for storage, value in zip(output_storage, kernel(*inputs), strict=True):
        storage[0] = np.array(value)


def _as_one_type(inputs: Sequence[Any], ranks: tuple[int, ...]) -> list[TensorVariable]:
    variables = [pt.as_tensor_variable(x) for x in inputs]
    if tuple(x.ndim for x in variables) != ranks or len({x.dtype for x in variables}) != 1:
        got = ", ".join(f"{x.dtype} of rank {x.ndim}" for x in variables)
        raise TypeError(f"expected inputs of one type and ranks {ranks}, got {got}")
    return variables


@on_first_use("numba")
def _register_numba() -> None:
    from pymc_flows.support.compat import numba_njit, register_funcify_and_cache_key

    def key(op: StackOp, part: str) -> str:
        # What a kernel computes does not depend on this module.
        sources = source_key(type(op).__module__) + source_key(scalar.__name__)
        props = tuple(getattr(op, name) for name in op.__props__)
        return f"{type(op).__qualname__} {props} {part} {sources}"

    @register_funcify_and_cache_key(StackOp)
    def _(op: StackOp, node: Apply, **_: Any) -> tuple[Any, str]:
        return op.kernels(numba_njit)[0], key(op, "forward")

    @register_funcify_and_cache_key(StackPullback)
    def _(op: StackPullback, node: Apply, **_: Any) -> tuple[Any, str]:
        return op.stack.kernels(numba_njit)[1], key(op.stack, "pullback")
