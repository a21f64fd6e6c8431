"""Kernels of a block of radial layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.flows._stack_op import Kernels, StackOp

__all__ = ["radial_stack"]


class RadialStack(StackOp):
    """Radial layers: parameters alpha (count,), s (count,) = α + β and z_ref (count, dim).

    With r = ‖z − z_ref‖ and f = (s + r)/(α + r) the map is z_ref + f (z − z_ref) and the
    log-determinant (dim − 1) log f + log N − 2 log(α + r), N = r (r + 2α) + s α. The points that
    enter each layer are saved: walking back would divide by f, which may be tiny.
    """

    param_ranks = (1, 1, 2)
    saved_rank = 3

    def forward(self, z: Any, alpha: Any, s: Any, z_ref: Any) -> tuple[Any, Any, Any]:
        """Move points along their ray from each z_ref in turn."""
        points = np.empty((len(s), *z.shape), z.dtype)
        log_det = np.zeros(len(z), z.dtype)
        for k in range(len(s)):
            points[k] = z
            offset = z - z_ref[k]
            r = np.sqrt((offset**2).sum(axis=1))
            f = (s[k] + r) / (alpha[k] + r)
            z = z_ref[k] + f[:, None] * offset
            along = np.log(r * (r + 2 * alpha[k]) + s[k] * alpha[k]) - 2 * np.log(alpha[k] + r)
            log_det += (z.shape[1] - 1) * np.log(f) + along
        return z, log_det, points

    def backward(
        self, by_z: Any, by_log_det: Any, z_new: Any, saved: Any, *params: Any
    ) -> tuple[Any, ...]:
        """Pull back layer by layer."""
        alpha, s, z_ref = params
        by_alpha, by_s, by_ref = np.empty_like(alpha), np.empty_like(s), np.empty_like(z_ref)
        m = z_new.shape[1] - 1
        for k in reversed(range(len(s))):
            offset = saved[k] - z_ref[k]
            r = np.sqrt((offset**2).sum(axis=1))
            outer = alpha[k] + r
            f = (s[k] + r) / outer
            n = r * (r + 2 * alpha[k]) + s[k] * alpha[k]
            by_f = (by_z * offset).sum(axis=1) + by_log_det * m / f
            by_s[k] = (by_f / outer + by_log_det * alpha[k] / n).sum()
            by_alpha[k] = (-by_f * f / outer + by_log_det * ((2 * r + s[k]) / n - 2 / outer)).sum()
            gap = alpha[k] - s[k]
            by_r = by_f * gap / outer**2 + by_log_det * 2 * alpha[k] * gap / (n * outer)
            ray = by_r / np.where(r == 0, 1, r)
            by_offset = f[:, None] * by_z + ray[:, None] * offset
            by_ref[k] = (by_z - by_offset).sum(axis=0)
            by_z = by_offset
        return by_z, by_alpha, by_s, by_ref

    def numba_kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Explicit loops over layers, draws and dimensions."""

        @jit
        def radial_stack(z0, alpha, s, z_ref):  # type: ignore[no-untyped-def]
            n, dim = z0.shape
            count = len(s)
            zero = z0.dtype.type(0.0)
            two = z0.dtype.type(2.0)
            m = z0.dtype.type(dim - 1)
            z = z0.copy()
            points = np.empty((count, n, dim), z0.dtype)
            log_det = np.zeros(n, z0.dtype)
            for k in range(count):
                for i in range(n):
                    square = zero
                    for j in range(dim):
                        points[k, i, j] = z[i, j]
                        offset = z[i, j] - z_ref[k, j]
                        square += offset * offset
                    r = np.sqrt(square)
                    outer = alpha[k] + r
                    f = (s[k] + r) / outer
                    for j in range(dim):
                        z[i, j] = z_ref[k, j] + f * (z[i, j] - z_ref[k, j])
                    along = np.log(r * (r + two * alpha[k]) + s[k] * alpha[k])
                    log_det[i] += m * np.log(f) + along - two * np.log(outer)
            return z, log_det, points

        @jit
        def radial_stack_pullback(by_z_new, by_log_det, z_new, points, alpha, s, z_ref):  # type: ignore[no-untyped-def]
            n, dim = z_new.shape
            count = len(s)
            zero = z_new.dtype.type(0.0)
            two = z_new.dtype.type(2.0)
            m = z_new.dtype.type(dim - 1)
            by_z = by_z_new.copy()
            by_alpha, by_s = np.zeros(count, s.dtype), np.zeros(count, s.dtype)
            by_ref = np.zeros((count, dim), s.dtype)
            for k in range(count - 1, -1, -1):
                for i in range(n):
                    square = zero
                    along = zero
                    for j in range(dim):
                        offset = points[k, i, j] - z_ref[k, j]
                        square += offset * offset
                        along += by_z[i, j] * offset
                    r = np.sqrt(square)
                    outer = alpha[k] + r
                    f = (s[k] + r) / outer
                    norm = r * (r + two * alpha[k]) + s[k] * alpha[k]
                    by_f = along + by_log_det[i] * m / f
                    by_s[k] += by_f / outer + by_log_det[i] * alpha[k] / norm
                    by_alpha[k] += by_log_det[i] * ((two * r + s[k]) / norm - two / outer)
                    by_alpha[k] -= by_f * f / outer
                    gap = alpha[k] - s[k]
                    by_r = by_f * gap / (outer * outer)
                    by_r += by_log_det[i] * two * alpha[k] * gap / (norm * outer)
                    ray = by_r / r if r > zero else zero
                    for j in range(dim):
                        by_offset = f * by_z[i, j] + ray * (points[k, i, j] - z_ref[k, j])
                        by_ref[k, j] += by_z[i, j] - by_offset
                        by_z[i, j] = by_offset
            return by_z, by_alpha, by_s, by_ref

        return radial_stack, radial_stack_pullback


radial_stack = RadialStack()
