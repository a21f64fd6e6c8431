"""Kernels of a block of planar layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.flows.kernels.scalar import functions
from pymc_flows.flows.kernels.stack_op import Kernels, StackOp

# Number of layers whose determinants are multiplied before the logarithm is taken: each determinant
# lies between the floor, 1e-15, and the largest wᵀu, about 1e12.
_PER_LOG = 8


class PlanarStack(StackOp):
    """Planar layers: raw parameters b (count,), u (count, dim) and w (count, dim).

    The activations h (count, n) are saved. With them the pullback undoes one layer after the other,
    z − h û, so that no points need to be saved. After them come five numbers by which a layer's
    parameters are constrained: with few draws, computing these takes half of the time.
    """

    saved_core = "(k,s)"

    def layer_size(self, dim: Any) -> Any:
        """``b`` (), ``u`` (dim,) and ``w`` (dim,)."""
        return 2 * dim + 1

    def saved_shape(self, count: Any, n: Any, dim: Any) -> tuple[Any, ...]:
        """(count, n + 5)."""
        return (count, None if n is None else n + 5)

    def kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Explicit loops over layers, dimensions and, innermost, draws."""
        tanh, softplus, positive, _, _, _, tiny = functions(jit)

        @jit
        def products(u, w, itemsize):  # type: ignore[no-untyped-def]
            """Return wᵀu and ‖w‖², which is 0 if it is too small."""
            x = 0.0
            square = 0.0
            for j in range(len(u)):
                x += w[j] * u[j]
                square += w[j] * w[j]
            return x, 0.0 if square < tiny(itemsize) else square

        @jit
        def constrained(x, square, itemsize):  # type: ignore[no-untyped-def]
            """Return s, the factor of w in û, and the derivatives of both by x."""
            if square == 0.0:
                return 1.0, 0.0, 0.0, 0.0
            s, slope = positive(x, itemsize)
            _, _, mirrored, mirrored_slope = softplus(x)
            return s, (mirrored - 1.0) / square, slope, -mirrored_slope / square

        @jit
        def planar_stack(z0, theta):  # type: ignore[no-untyped-def]
            n, dim = z0.shape
            count = len(theta) // (2 * dim + 1)
            per_log = _PER_LOG if z0.itemsize == 8 else 1
            z_new = np.empty((n, dim), z0.dtype)
            log_det = np.zeros(n, z0.dtype)
            h = np.empty((count, n + 5), z0.dtype)
            work = np.empty((dim + 2, n), z0.dtype)
            z, a, det = work[:dim], work[dim], work[dim + 1]
            for i in range(n):
                det[i] = 1.0
                for j in range(dim):
                    z[j, i] = z0[i, j]
            for k in range(count):
                u = theta[count + k * dim : count + (k + 1) * dim]
                w = theta[count + (count + k) * dim : count + (count + k + 1) * dim]
                x, square = products(u, w, z0.itemsize)
                s, along, s_slope, along_slope = constrained(x, square, z0.itemsize)
                h[k, n], h[k, n + 1], h[k, n + 2] = square, s, along
                h[k, n + 3], h[k, n + 4] = s_slope, along_slope
                for i in range(n):
                    a[i] = theta[k]
                for j in range(dim):
                    for i in range(n):
                        a[i] += w[j] * z[j, i]
                for i in range(n):
                    t = tanh(a[i])
                    h[k, i] = t
                    det[i] *= t * t + (1.0 - t * t) * s
                for j in range(dim):
                    u_hat = u[j] + along * w[j]
                    for i in range(n):
                        z[j, i] += h[k, i] * u_hat
                if (k + 1) % per_log == 0 or k + 1 == count:
                    for i in range(n):
                        log_det[i] += np.log(det[i])
                        det[i] = 1.0
            for i in range(n):
                for j in range(dim):
                    z_new[i, j] = z[j, i]
            return z_new, log_det, h

        @jit
        def planar_stack_pullback(by_z_new, by_log_det, z_new, h, theta):  # type: ignore[no-untyped-def]
            n, dim = z_new.shape
            count = h.shape[0]
            by_z0 = np.empty((n, dim), z_new.dtype)
            by_theta = np.empty(len(theta), z_new.dtype)
            work = np.empty((2 * dim + 1, n), z_new.dtype)
            z, by_z, by_a = work[:dim], work[dim : 2 * dim], work[2 * dim]
            for i in range(n):
                for j in range(dim):
                    z[j, i] = z_new[i, j]
                    by_z[j, i] = by_z_new[i, j]
            for k in range(count - 1, -1, -1):
                of_u = slice(count + k * dim, count + (k + 1) * dim)
                of_w = slice(count + (count + k) * dim, count + (count + k + 1) * dim)
                u, w, by_u, by_w = theta[of_u], theta[of_w], by_theta[of_u], by_theta[of_w]
                square, s, along = h[k, n], h[k, n + 1], h[k, n + 2]
                s_slope, along_slope = h[k, n + 3], h[k, n + 4]
                for i in range(n):
                    by_a[i] = 0.0
                for j in range(dim):
                    u_hat = u[j] + along * w[j]
                    by_u_hat = 0.0
                    for i in range(n):
                        z[j, i] -= h[k, i] * u_hat
                        by_a[i] += by_z[j, i] * u_hat
                        by_u_hat += h[k, i] * by_z[j, i]
                    by_u[j] = by_u_hat
                by_b = 0.0
                by_s = 0.0
                for i in range(n):
                    t = h[k, i]
                    q = 1.0 - t * t
                    by_det = by_log_det[i] / (t * t + q * s)
                    by_s += by_det * q
                    by_a[i] = (by_a[i] + 2.0 * t * (1.0 - s) * by_det) * q
                    by_b += by_a[i]
                by_theta[k] = by_b
                by_along = 0.0
                for j in range(dim):
                    of_layer = 0.0
                    for i in range(n):
                        of_layer += by_a[i] * z[j, i]
                        by_z[j, i] += by_a[i] * w[j]
                    by_w[j] = of_layer
                    by_along += by_u[j] * w[j]
                if square > 0.0:
                    by_x = by_along * along_slope + by_s * s_slope
                    by_square = -by_along * along / square
                    for j in range(dim):
                        by_w[j] += along * by_u[j] + by_x * u[j] + 2.0 * by_square * w[j]
                        by_u[j] += by_x * w[j]
            for i in range(n):
                for j in range(dim):
                    by_z0[i, j] = by_z[j, i]
            return by_z0, by_theta

        return planar_stack, planar_stack_pullback
