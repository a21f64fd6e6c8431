"""Kernels of a block of low-rank layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.flows.kernels.scalar import functions
from pymc_flows.flows.kernels.stack_op import Kernels, StackOp


class LowRankStack(StackOp):
    """Low-rank layers: raw parameters rho (count, dim), u and w (count, rank, dim).

    The points that enter each layer are saved; the pullback recomputes those between its factors.
    """

    __props__ = ("rank",)
    saved_core = "(k,n,d)"

    def __init__(self, rank: int):
        self.rank = rank

    def layer_size(self, dim: Any) -> Any:
        """``rho`` (dim,), ``u`` and ``w`` (rank, dim)."""
        return (1 + 2 * self.rank) * dim

    def kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Explicit loops over layers, draws, factors and dimensions."""
        rank = self.rank
        _, softplus, _, scales, unit, floor, _ = functions(jit)

        @jit
        def factor(u, w, u_hat, v):  # type: ignore[no-untyped-def]
            """Write û and v = w / ‖w‖; return s, ‖w‖, ds/dx, û − u along v, and its slope by x."""
            length = unit(w, floor(w.itemsize) ** 2, v)
            x = 0.0
            for j in range(len(w)):
                x += v[j] * u[j]
            s, slope, mirrored, mirrored_slope = softplus(x)
            if s < floor(w.itemsize):
                s, slope = floor(w.itemsize), 0.0
            for j in range(len(w)):
                u_hat[j] = u[j] + (mirrored - 1.0) * v[j]
            return s, length, slope, mirrored - 1.0, -mirrored_slope

        @jit
        def low_rank_stack(z0, theta):  # type: ignore[no-untyped-def]
            n, dim = z0.shape
            count = len(theta) // ((1 + 2 * rank) * dim)
            z = z0.copy()
            points = np.empty((count, n, dim), z0.dtype)
            log_det = np.zeros(n, z0.dtype)
            sigma = np.empty(dim, z0.dtype)
            slope = np.empty(dim, z0.dtype)
            u_hat = np.empty((rank, dim), z0.dtype)
            units = np.empty((rank, dim), z0.dtype)
            for k in range(count):
                scales(theta[k * dim : (k + 1) * dim], sigma, slope)
                us = theta[(count + k * rank) * dim : (count + (k + 1) * rank) * dim]
                begin = (count + count * rank + k * rank) * dim
                ws = theta[begin : begin + rank * dim]
                total = 0.0
                for j in range(dim):
                    total += np.log(sigma[j])
                for r in range(rank):
                    u, w = us[r * dim : (r + 1) * dim], ws[r * dim : (r + 1) * dim]
                    s, _, _, _, _ = factor(u, w, u_hat[r], units[r])
                    total += np.log(s)
                for i in range(n):
                    log_det[i] += total
                    for j in range(dim):
                        points[k, i, j] = z[i, j]
                    for r in range(rank):
                        part = 0.0
                        for j in range(dim):
                            part += z[i, j] * units[r, j]
                        for j in range(dim):
                            z[i, j] += part * u_hat[r, j]
                    for j in range(dim):
                        z[i, j] *= sigma[j]
            return z, log_det, points

        @jit
        def low_rank_stack_pullback(by_z_new, by_log_det, z_new, points, theta):  # type: ignore[no-untyped-def]
            n, dim = z_new.shape
            count = len(theta) // ((1 + 2 * rank) * dim)
            by_z = by_z_new.copy()
            by_theta = np.zeros(len(theta), z_new.dtype)
            sigma = np.empty(dim, z_new.dtype)
            slope = np.empty(dim, z_new.dtype)
            u_hat = np.empty((rank, dim), z_new.dtype)
            units = np.empty((rank, dim), z_new.dtype)
            path = np.empty((rank + 1, dim), z_new.dtype)
            parts = np.empty(rank, z_new.dtype)
            weight = 0.0
            for i in range(n):
                weight += by_log_det[i]
            for k in range(count - 1, -1, -1):
                of_rho = slice(k * dim, (k + 1) * dim)
                of_u = slice((count + k * rank) * dim, (count + (k + 1) * rank) * dim)
                begin = (count + count * rank + k * rank) * dim
                of_w = slice(begin, begin + rank * dim)
                us, ws = theta[of_u], theta[of_w]
                by_sigma, by_us, by_ws = by_theta[of_rho], by_theta[of_u], by_theta[of_w]
                scales(theta[of_rho], sigma, slope)
                for r in range(rank):
                    u, w = us[r * dim : (r + 1) * dim], ws[r * dim : (r + 1) * dim]
                    factor(u, w, u_hat[r], units[r])
                for i in range(n):
                    for j in range(dim):
                        path[0, j] = points[k, i, j]
                    for r in range(rank):
                        part = 0.0
                        for j in range(dim):
                            part += path[r, j] * units[r, j]
                        parts[r] = part
                        for j in range(dim):
                            path[r + 1, j] = path[r, j] + part * u_hat[r, j]
                    for j in range(dim):
                        by_sigma[j] += by_z[i, j] * path[rank, j]
                        by_z[i, j] *= sigma[j]
                    for r in range(rank - 1, -1, -1):
                        by_part = 0.0
                        for j in range(dim):
                            by_part += by_z[i, j] * u_hat[r, j]
                            by_us[r * dim + j] += parts[r] * by_z[i, j]
                        for j in range(dim):
                            by_ws[r * dim + j] += by_part * path[r, j]
                            by_z[i, j] += by_part * units[r, j]
                for j in range(dim):
                    by_sigma[j] = (by_sigma[j] + weight / sigma[j]) * slope[j]
                for r in range(rank):
                    of_r = slice(r * dim, (r + 1) * dim)
                    u, by_u, by_w, v = us[of_r], by_us[of_r], by_ws[of_r], units[r]
                    s, length, slope_s, along, slope_along = factor(u, ws[of_r], u_hat[r], v)
                    by_x = weight / s * slope_s
                    for j in range(dim):
                        by_x += by_u[j] * v[j] * slope_along
                    # With respect to v, then through the division by ‖w‖.
                    inside = 0.0
                    for j in range(dim):
                        by_w[j] += along * by_u[j] + by_x * u[j]
                        by_u[j] += by_x * v[j]
                        inside += by_w[j] * v[j]
                    for j in range(dim):
                        by_w[j] = (by_w[j] - inside * v[j]) / length if length > 0.0 else 0.0
            return by_z, by_theta

        return low_rank_stack, low_rank_stack_pullback
