"""Kernels of a block of radial layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.flows.kernels.scalar import functions
from pymc_flows.flows.kernels.stack_op import Kernels, StackOp


class RadialStack(StackOp):
    """Radial layers: raw parameters a (count,), b (count,) and z_ref (count, dim).

    With r = ‖z − z_ref‖ and f = (s + r)/(α + r) the map is z_ref + f (z − z_ref) and the
    log-determinant (dim − 1) log f + log N − 2 log(α + r), N = r (r + 2α) + s α. The points that
    enter each layer are saved: undoing a layer would divide by f, which may be tiny.
    """

    saved_core = "(k,n,d)"

    def layer_size(self, dim: Any) -> Any:
        """``a`` (), ``b`` () and ``z_ref`` (dim,)."""
        return dim + 2

    def kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Explicit loops over layers, draws and dimensions."""
        positive = functions(jit).positive

        @jit
        def radial_stack(z0, theta):  # type: ignore[no-untyped-def]
            n, dim = z0.shape
            count = len(theta) // (dim + 2)
            m = dim - 1.0
            z = z0.copy()
            points = np.empty((count, n, dim), z0.dtype)
            log_det = np.zeros(n, z0.dtype)
            for k in range(count):
                alpha, _ = positive(theta[k], z0.itemsize)
                s, _ = positive(theta[count + k], z0.itemsize)
                ref = theta[2 * count + k * dim : 2 * count + (k + 1) * dim]
                for i in range(n):
                    square = 0.0
                    for j in range(dim):
                        points[k, i, j] = z[i, j]
                        offset = z[i, j] - ref[j]
                        square += offset * offset
                    r = np.sqrt(square)
                    outer = alpha + r
                    f = (s + r) / outer
                    for j in range(dim):
                        z[i, j] = ref[j] + f * (z[i, j] - ref[j])
                    along = np.log(r * (r + 2.0 * alpha) + s * alpha)
                    log_det[i] += m * np.log(f) + along - 2.0 * np.log(outer)
            return z, log_det, points

        @jit
        def radial_stack_pullback(by_z_new, by_log_det, z_new, points, theta):  # type: ignore[no-untyped-def]
            n, dim = z_new.shape
            count = points.shape[0]
            m = dim - 1.0
            by_z = by_z_new.copy()
            by_theta = np.zeros(len(theta), z_new.dtype)
            for k in range(count - 1, -1, -1):
                alpha, alpha_slope = positive(theta[k], z_new.itemsize)
                s, s_slope = positive(theta[count + k], z_new.itemsize)
                of_ref = slice(2 * count + k * dim, 2 * count + (k + 1) * dim)
                ref, by_ref = theta[of_ref], by_theta[of_ref]
                by_alpha = 0.0
                by_s = 0.0
                for i in range(n):
                    square = 0.0
                    along = 0.0
                    for j in range(dim):
                        offset = points[k, i, j] - ref[j]
                        square += offset * offset
                        along += by_z[i, j] * offset
                    r = np.sqrt(square)
                    outer = alpha + r
                    f = (s + r) / outer
                    norm = r * (r + 2.0 * alpha) + s * alpha
                    by_f = along + by_log_det[i] * m / f
                    by_s += by_f / outer + by_log_det[i] * alpha / norm
                    by_alpha += by_log_det[i] * ((2.0 * r + s) / norm - 2.0 / outer)
                    by_alpha -= by_f * f / outer
                    gap = alpha - s
                    by_r = by_f * gap / (outer * outer)
                    by_r += by_log_det[i] * 2.0 * alpha * gap / (norm * outer)
                    ray = by_r / r if r > 0.0 else 0.0
                    for j in range(dim):
                        by_offset = f * by_z[i, j] + ray * (points[k, i, j] - ref[j])
                        by_ref[j] += by_z[i, j] - by_offset
                        by_z[i, j] = by_offset
                by_theta[k] = by_alpha * alpha_slope
                by_theta[count + k] = by_s * s_slope
            return by_z, by_theta

        return radial_stack, radial_stack_pullback
