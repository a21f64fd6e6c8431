"""Kernels of a block of planar layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.flows._stack_op import Kernels, StackOp

__all__ = ["planar_stack"]


class PlanarStack(StackOp):
    """Planar layers: parameters b (count,), s (count,), u_hat (count, dim) and w (count, dim).

    The activations h (count, n) are saved. With them the pullback walks back through the layers,
    z − h û at a time, so that no intermediate points have to be.
    """

    param_ranks = (1, 1, 2, 2)
    saved_rank = 2

    def forward(self, z: Any, b: Any, s: Any, u_hat: Any, w: Any) -> tuple[Any, Any, Any]:
        """Move points along the û of each layer in turn."""
        log_det = np.zeros(len(z), z.dtype)
        h = np.empty((len(b), len(z)), z.dtype)
        for k in range(len(b)):
            h[k] = np.tanh(z @ w[k] + b[k])
            z = z + h[k][:, None] * u_hat[k]
            square = h[k] ** 2
            log_det += np.log(square + (1 - square) * s[k])
        return z, log_det, h

    def backward(
        self, by_z: Any, by_log_det: Any, z_new: Any, saved: Any, *params: Any
    ) -> tuple[Any, ...]:
        """Walk back through the layers."""
        z, h = z_new, saved
        _, s, u_hat, w = params
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
        return by_z, by_b, by_s, by_u, by_w

    def numba_kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Explicit loops over layers, draws and dimensions."""

        @jit
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

        @jit
        def planar_stack_pullback(by_z_new, by_log_det, z_new, h, b, s, u_hat, w):  # type: ignore[no-untyped-def]
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

        return planar_stack, planar_stack_pullback


planar_stack = PlanarStack()
