"""A block of planar layers as one PyTensor Op, for numba.

Copied into the graph, every layer costs numba seconds of compilation. As one Op with a kernel of its
own a block compiles in the same time for any number of repeats. The plain graph of `Planar` is the
reference that tests compare with, and what JAX runs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, grad_not_implemented
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import TensorVariable

from pymc_flows.flows._dispatch import on_first_use, source_key

__all__ = ["planar_stack"]


class PlanarStack(Op):
    """Apply planar layers with constrained, stacked parameters in order.

    Inputs are z (n, dim), b (count,), s (count,), u_hat (count, dim) and w (count, dim); outputs
    are the new points (n, dim), the log-determinant (n,) in nats, and the activations h (count, n).
    The pullback needs nothing else: with h at hand it walks back through the layers, z − h û at a
    time, so that no intermediate points are stored.
    """

    __props__ = ()
    gufunc_signature = "(n,d),(k),(k),(k,d),(k,d)->(n,d),(n),(k,n)"

    def make_node(self, *inputs: Any) -> Apply:
        """Check ranks and types."""
        z, b, s, u_hat, w = _as_one_type(inputs, (2, 1, 1, 2, 2))
        n, count = z.type.shape[0], b.type.shape[0]
        shapes = (z.type.shape, (n,), (count, n))
        outputs = [pt.tensor(dtype=z.dtype, shape=shape) for shape in shapes]
        return Apply(self, [z, b, s, u_hat, w], outputs)

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Shapes of the outputs."""
        (n, dim), (count,) = shapes[:2]
        return [(n, dim), (n,), (count, n)]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        """Activations are saved for the pullback, not differentiated."""
        return [[True, True, False]] * 5

    def perform(self, node: Apply, inputs: Any, output_storage: Any) -> None:
        """Run on NumPy."""
        z, b, s, u_hat, w = inputs
        log_det = np.zeros(len(z), z.dtype)
        h = np.empty((len(b), len(z)), z.dtype)
        for k in range(len(b)):
            h[k] = np.tanh(z @ w[k] + b[k])
            z = z + h[k][:, None] * u_hat[k]
            square = h[k] ** 2
            log_det += np.log(square + (1 - square) * s[k])
        for storage, value in zip(output_storage, (np.array(z), log_det, h), strict=True):
            storage[0] = value

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[TensorVariable]:
        """Gradients w.r.t. the five inputs."""
        _, _, s, u_hat, w = inputs
        z_new, log_det, h = outputs
        by_z, by_log_det = (
            pt.zeros_like(out) if isinstance(ct.type, DisconnectedType) else ct
            for out, ct in zip((z_new, log_det), cotangents, strict=False)
        )
        return list(_planar_stack_pullback(by_z, by_log_det, z_new, h, s, u_hat, w))


class PlanarStackPullback(Op):
    """Pull cotangents back through the layers.

    Inputs are the cotangents of the new points (n, dim) and of the log-determinant (n,), then the
    new points, h, s, û and w; outputs are the gradients w.r.t. z, b, s, û and w.
    """

    __props__ = ()
    gufunc_signature = "(n,d),(n),(n,d),(k,n),(k),(k,d),(k,d)->(n,d),(k),(k),(k,d),(k,d)"

    def make_node(self, *inputs: Any) -> Apply:
        """Check ranks and types."""
        variables = _as_one_type(inputs, (2, 1, 2, 2, 1, 2, 2))
        _, _, z, _, s, u_hat, w = variables
        outputs = [x.type() for x in (z, s, s, u_hat, w)]
        return Apply(self, variables, outputs)

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Shapes of the outputs."""
        return [shapes[2], shapes[4], shapes[4], shapes[5], shapes[6]]

    def perform(self, node: Apply, inputs: Any, output_storage: Any) -> None:
        """Run on NumPy."""
        by_z, by_log_det, z, h, s, u_hat, w = inputs
        by_b, by_s = np.empty_like(s), np.empty_like(s)
        by_u, by_w = np.empty_like(u_hat), np.empty_like(w)
        for k in reversed(range(len(s))):
            z = z - h[k][:, None] * u_hat[k]
            square = h[k] ** 2
            by_det = by_log_det / (square + (1 - square) * s[k])
            by_s[k] = by_det @ (1 - square)
            by_u[k] = h[k] @ by_z
            by_h = by_z @ u_hat[k] + 2 * h[k] * (1 - s[k]) * by_det
            by_a = by_h * (1 - square)
            by_b[k] = by_a.sum()
            by_w[k] = by_a @ z
            by_z = by_z + by_a[:, None] * w[k]
        results = (np.array(by_z), by_b, by_s, by_u, by_w)
        for storage, value in zip(output_storage, results, strict=True):
            storage[0] = value

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        """Refuse: the plain graph has second derivatives."""
        return [
            grad_not_implemented(self, i, x, "second derivatives of the fused planar block")
            for i, x in enumerate(inputs)
        ]


def _as_one_type(inputs: Sequence[Any], ranks: tuple[int, ...]) -> list[TensorVariable]:
    variables = [pt.as_tensor_variable(x) for x in inputs]
    if tuple(x.ndim for x in variables) != ranks or len({x.dtype for x in variables}) != 1:
        got = ", ".join(f"{x.dtype} of rank {x.ndim}" for x in variables)
        raise TypeError(f"expected inputs of one type and ranks {ranks}, got {got}")
    return variables


_planar_stack = PlanarStack()
_planar_stack_pullback = PlanarStackPullback()


def planar_stack(
    z: TensorVariable,
    b: TensorVariable,
    s: TensorVariable,
    u_hat: TensorVariable,
    w: TensorVariable,
) -> tuple[TensorVariable, TensorVariable]:
    """Apply a block of planar layers.

    Parameters
    ----------
    z : TensorVariable, shape (n, dim)
    b, s : TensorVariable, shape (count,)
    u_hat, w : TensorVariable, shape (count, dim)
        Constrained parameters.

    Returns
    -------
    z_new : TensorVariable, shape (n, dim)
    log_det : TensorVariable, shape (n,)
    """
    z_new, log_det, _ = _planar_stack(z, b, s, u_hat, w)
    return z_new, log_det


@on_first_use("numba")
def _register_numba() -> None:
    from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_and_cache_key

    # No sizes and no types are baked in: one compiled kernel per type serves every block.
    @numba_njit
    def planar_stack(z0, b, s, u_hat, w):  # type: ignore[no-untyped-def]
        n, dim = z0.shape
        count = len(b)
        one = z0.dtype.type(1.0)
        z = z0.copy()
        log_det = np.zeros(n, z0.dtype)
        h = np.empty((count, n), z0.dtype)
        for k in range(count):
            for i in range(n):
                a = b[k]
                for j in range(dim):
                    a += z[i, j] * w[k, j]
                t = np.tanh(a)
                h[k, i] = t
                for j in range(dim):
                    z[i, j] += t * u_hat[k, j]
                log_det[i] += np.log(t * t + (one - t * t) * s[k])
        return z, log_det, h

    @numba_njit
    def planar_stack_pullback(by_z_new, by_log_det, z_new, h, s, u_hat, w):  # type: ignore[no-untyped-def]
        n, dim = z_new.shape
        count = len(s)
        zero = z_new.dtype.type(0.0)
        one = z_new.dtype.type(1.0)
        two = z_new.dtype.type(2.0)
        z = z_new.copy()
        by_z = by_z_new.copy()
        by_b, by_s = np.empty(count, s.dtype), np.empty(count, s.dtype)
        by_u, by_w = np.zeros((count, dim), s.dtype), np.zeros((count, dim), s.dtype)
        for k in range(count - 1, -1, -1):
            sum_b = zero
            sum_s = zero
            for i in range(n):
                t = h[k, i]
                q = one - t * t
                by_det = by_log_det[i] / (t * t + q * s[k])
                sum_s += by_det * q
                by_h = two * t * (one - s[k]) * by_det
                for j in range(dim):
                    by_h += by_z[i, j] * u_hat[k, j]
                    by_u[k, j] += t * by_z[i, j]
                    z[i, j] -= t * u_hat[k, j]
                by_a = by_h * q
                sum_b += by_a
                for j in range(dim):
                    by_w[k, j] += by_a * z[i, j]
                    by_z[i, j] += by_a * w[k, j]
            by_b[k] = sum_b
            by_s[k] = sum_s
        return by_z, by_b, by_s, by_u, by_w

    key = source_key(__name__)

    @register_funcify_and_cache_key(PlanarStack)
    def _(op: PlanarStack, node: Apply, **_: Any) -> tuple[Any, str]:
        return planar_stack, f"PlanarStack {key}"

    @register_funcify_and_cache_key(PlanarStackPullback)
    def _(op: PlanarStackPullback, node: Apply, **_: Any) -> tuple[Any, str]:
        return planar_stack_pullback, f"PlanarStackPullback {key}"
