"""Kernels of a block of lower-triangular layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.flows.kernels.scalar import functions
from pymc_flows.flows.kernels.stack_op import Kernels, StackOp


class TrilStack(StackOp):
    """Triangular layers: raw parameters lower (count, dim (dim − 1)/2) and rho (count, dim).

    The points that enter each layer are saved. Loops run over the packed rows of N, without zeros.
    """

    saved_core = "(k,n,d)"

    def layer_size(self, dim: Any) -> Any:
        """``lower`` (dim (dim − 1)/2,) and ``rho`` (dim,)."""
        return dim * (dim + 1) // 2

    def kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Explicit loops over layers, draws and packed rows."""
        scales = functions(jit).scales

        @jit
        def tril_stack(z0, theta):  # type: ignore[no-untyped-def]
            n, dim = z0.shape
            size = dim * (dim - 1) // 2
            count = len(theta) // (size + dim)
            z = z0.copy()
            points = np.empty((count, n, dim), z0.dtype)
            log_det = np.zeros(n, z0.dtype)
            sigma = np.empty(dim, z0.dtype)
            slope = np.empty(dim, z0.dtype)
            for k in range(count):
                lower = theta[k * size : (k + 1) * size]
                start = count * size + k * dim
                scales(theta[start : start + dim], sigma, slope)
                total = 0.0
                for i in range(dim):
                    total += np.log(sigma[i])
                for s in range(n):
                    log_det[s] += total
                    for i in range(dim):
                        points[k, s, i] = z[s, i]
                    row = 0
                    for i in range(dim):
                        part = points[k, s, i]
                        for j in range(i):
                            part += lower[row + j] * points[k, s, j]
                        z[s, i] = sigma[i] * part
                        row += i
            return z, log_det, points

        @jit
        def tril_stack_pullback(by_z_new, by_log_det, z_new, points, theta):  # type: ignore[no-untyped-def]
            n, dim = z_new.shape
            size = dim * (dim - 1) // 2
            count = len(theta) // (size + dim)
            by_z = by_z_new.copy()
            by_theta = np.zeros(len(theta), z_new.dtype)
            sigma = np.empty(dim, z_new.dtype)
            slope = np.empty(dim, z_new.dtype)
            weight = 0.0
            for s in range(n):
                weight += by_log_det[s]
            for k in range(count - 1, -1, -1):
                lower = theta[k * size : (k + 1) * size]
                by_lower = by_theta[k * size : (k + 1) * size]
                start = count * size + k * dim
                by_sigma = by_theta[start : start + dim]
                scales(theta[start : start + dim], sigma, slope)
                for s in range(n):
                    row = 0
                    for i in range(dim):
                        part = points[k, s, i]
                        by_inner = by_z[s, i] * sigma[i]
                        # Row i is the last to read by_z[s, i], and the first to add to those left.
                        for j in range(i):
                            part += lower[row + j] * points[k, s, j]
                            by_lower[row + j] += by_inner * points[k, s, j]
                            by_z[s, j] += by_inner * lower[row + j]
                        by_sigma[i] += by_z[s, i] * part
                        by_z[s, i] = by_inner
                        row += i
                for i in range(dim):
                    by_sigma[i] = (by_sigma[i] + weight / sigma[i]) * slope[i]
            return by_z, by_theta

        return tril_stack, tril_stack_pullback
