"""Kernels of a block of Householder layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.flows._stack_op import Kernels, StackOp

__all__ = ["householder_stack"]


class HouseholderStack(StackOp):
    """Householder layers: parameter u (count, dim), of unit rows.

    The projections p = uᵀz (count, n) are saved. With them the pullback walks back through the
    layers, z + 2pu at a time, so that no intermediate points have to be.
    """

    param_ranks = (2,)
    saved_rank = 2

    def forward(self, z: Any, u: Any) -> tuple[Any, Any, Any]:
        """Reflect points along each u in turn."""
        p = np.empty((len(u), len(z)), z.dtype)
        for k in range(len(u)):
            p[k] = z @ u[k]
            z = z - 2 * p[k][:, None] * u[k]
        return z, np.zeros(len(z), z.dtype), p

    def backward(
        self, by_z: Any, by_log_det: Any, z_new: Any, saved: Any, *params: Any
    ) -> tuple[Any, ...]:
        """Walk back through the layers."""
        z, p = z_new, saved
        (u,) = params
        by_u = np.empty_like(u)
        for k in reversed(range(len(u))):
            z = z + 2 * p[k][:, None] * u[k]
            by_p = by_z @ u[k]
            by_u[k] = -2 * (p[k] @ by_z + by_p @ z)
            by_z = by_z - 2 * by_p[:, None] * u[k]
        return by_z, by_u

    def numba_kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Explicit loops over layers, draws and dimensions."""

        @jit
        def householder_stack(z0, u):  # type: ignore[no-untyped-def]
            n, dim = z0.shape
            count = len(u)
            zero = z0.dtype.type(0.0)
            two = z0.dtype.type(2.0)
            z = z0.copy()
            p = np.empty((count, n), z0.dtype)
            for k in range(count):
                for i in range(n):
                    part = zero
                    for j in range(dim):
                        part += z[i, j] * u[k, j]
                    p[k, i] = part
                    for j in range(dim):
                        z[i, j] -= two * part * u[k, j]
            return z, np.zeros(n, z0.dtype), p

        @jit
        def householder_stack_pullback(by_z_new, by_log_det, z_new, p, u):  # type: ignore[no-untyped-def]
            n, dim = z_new.shape
            count = len(u)
            zero = z_new.dtype.type(0.0)
            two = z_new.dtype.type(2.0)
            z = z_new.copy()
            by_z = by_z_new.copy()
            by_u = np.zeros((count, dim), u.dtype)
            for k in range(count - 1, -1, -1):
                for i in range(n):
                    part = p[k, i]
                    by_p = zero
                    for j in range(dim):
                        by_p += by_z[i, j] * u[k, j]
                    for j in range(dim):
                        z[i, j] += two * part * u[k, j]
                        by_u[k, j] -= two * (part * by_z[i, j] + by_p * z[i, j])
                        by_z[i, j] -= two * by_p * u[k, j]
            return by_z, by_u

        return householder_stack, householder_stack_pullback


householder_stack = HouseholderStack()
