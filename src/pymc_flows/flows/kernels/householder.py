"""Kernels of a block of Householder layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.flows.kernels.scalar import functions
from pymc_flows.flows.kernels.stack_op import Kernels, StackOp


class HouseholderStack(StackOp):
    """Householder layers: raw parameter v (count, dim).

    The projections p = uᵀz (count, n) on the unit vectors u = v / ‖v‖ are saved. With them the
    pullback undoes one layer after the other, z + 2pu, so that no points need to be saved.
    """

    def layer_size(self, dim: Any) -> Any:
        """``v`` (dim,)."""
        return dim

    def kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Explicit loops over layers, draws and dimensions."""
        unit, tiny = functions(jit).unit, functions(jit).tiny

        @jit
        def householder_stack(z0, theta):  # type: ignore[no-untyped-def]
            n, dim = z0.shape
            count = len(theta) // dim
            z = z0.copy()
            p = np.empty((count, n), z0.dtype)
            u = np.empty(dim, z0.dtype)
            for k in range(count):
                unit(theta[k * dim : (k + 1) * dim], tiny(z0.itemsize), u)
                for i in range(n):
                    part = 0.0
                    for j in range(dim):
                        part += z[i, j] * u[j]
                    p[k, i] = part
                    for j in range(dim):
                        z[i, j] -= 2.0 * part * u[j]
            return z, np.zeros(n, z0.dtype), p

        @jit
        def householder_stack_pullback(by_z_new, by_log_det, z_new, p, theta):  # type: ignore[no-untyped-def]
            n, dim = z_new.shape
            z = z_new.copy()
            by_z = by_z_new.copy()
            by_theta = np.zeros(len(theta), z_new.dtype)
            u = np.empty(dim, z_new.dtype)
            for k in range(p.shape[0] - 1, -1, -1):
                length = unit(theta[k * dim : (k + 1) * dim], tiny(z.itemsize), u)
                by_u = by_theta[k * dim : (k + 1) * dim]
                for i in range(n):
                    part = p[k, i]
                    by_p = 0.0
                    for j in range(dim):
                        by_p += by_z[i, j] * u[j]
                    for j in range(dim):
                        z[i, j] += 2.0 * part * u[j]
                        by_u[j] -= 2.0 * (part * by_z[i, j] + by_p * z[i, j])
                        by_z[i, j] -= 2.0 * by_p * u[j]
                # Through the division by ‖v‖: only the part orthogonal to u counts.
                along = 0.0
                for j in range(dim):
                    along += by_u[j] * u[j]
                for j in range(dim):
                    by_u[j] = (by_u[j] - along * u[j]) / length if length > 0.0 else 0.0
            return by_z, by_theta

        return householder_stack, householder_stack_pullback
