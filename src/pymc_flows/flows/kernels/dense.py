"""Kernels of a block of layers that scale and shift by a dense network."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.flows.kernels.scalar import functions
from pymc_flows.flows.kernels.stack_op import Kernels, StackOp


class DenseStack(StackOp):
    """Layers that shift coordinates by t(z) and scale them by exp(s(z)), with a masked network.

    Parameters are the constrained matrices of the networks, dense0 (count, dim + 1, hidden) to the
    last (count, hidden + 1, 2 dim), with biases in the last row. Masked entries are 0, so one
    kernel serves coupling and autoregressive layers. For each layer it saves, one after the other,
    the points that enter it (n, dim), the hidden units and their slopes (n, hidden) of each level,
    and s (n, dim).

    Parameters
    ----------
    hidden, depth, clip, activation, shift
        Options of `MaskedAffine`.
    """

    __props__ = ("hidden", "depth", "clip", "activation", "shift")
    saved_core = "(k,s)"

    def __init__(self, hidden: int, depth: int, clip: float, activation: str, shift: str):
        self.hidden = hidden
        self.depth = depth
        self.clip = clip
        self.activation = activation
        self.shift = shift

    def layer_size(self, dim: Any) -> Any:
        """Number of entries of all matrices of one network."""
        sizes = [dim, *[self.hidden] * self.depth, 2 * dim]
        return sum((a + 1) * b for a, b in itertools.pairwise(sizes))

    def saved_shape(self, count: Any, n: Any, dim: Any) -> tuple[Any, ...]:
        """(count, size)."""
        size = None if n is None or dim is None else 2 * n * (dim + self.depth * self.hidden)
        return (count, size)

    def kernels(self, jit: Callable[..., Any]) -> Kernels:
        """Products of matrices, one layer after the other, and explicit loops for all else.

        Sums and copies of whole arrays would check shapes, and numba takes seconds to compile the
        text of that error.
        """
        hidden, depth, clip = self.hidden, self.depth, float(self.clip)
        is_before = self.shift == "before"
        tanh = functions(jit).tanh
        activate = _activation(self.activation, jit, tanh)

        @jit
        def starts(level, k, count, dim):  # type: ignore[no-untyped-def]
            """Place of a matrix in theta; its number of rows without the bias, and of columns."""
            rows = hidden if level else dim
            columns = hidden if level < depth else 2 * dim
            before = (dim + 1) * hidden + (level - 1) * (hidden + 1) * hidden if level else 0
            return count * before + k * (rows + 1) * columns, rows, columns

        @jit
        def matrix(theta, start, rows, columns):  # type: ignore[no-untyped-def]
            """Part of a vector as a matrix, without a copy."""
            return theta[start : start + rows * columns].reshape((rows, columns))

        @jit
        def dense_stack(z0, theta):  # type: ignore[no-untyped-def]
            n, dim = z0.shape
            theta = np.ascontiguousarray(theta)
            start, rows, columns = starts(depth, 0, 1, dim)
            count = len(theta) // (start + (rows + 1) * columns)
            z = z0.copy()
            log_det = np.zeros(n, z0.dtype)
            saved = np.empty((count, 2 * n * (dim + depth * hidden)), z0.dtype)
            for k in range(count):
                x = matrix(saved[k], 0, n, dim)
                for i in range(n):
                    for j in range(dim):
                        x[i, j] = z[i, j]
                for level in range(depth):
                    start, rows, columns = starts(level, k, count, dim)
                    y = np.dot(x, matrix(theta, start, rows, columns))
                    bias = theta[start + rows * columns : start + (rows + 1) * columns]
                    x = matrix(saved[k], n * (dim + 2 * level * hidden), n, hidden)
                    slope = matrix(saved[k], n * (dim + (2 * level + 1) * hidden), n, hidden)
                    for i in range(n):
                        for j in range(hidden):
                            x[i, j], slope[i, j] = activate(y[i, j] + bias[j])
                start, rows, columns = starts(depth, k, count, dim)
                y = np.dot(x, matrix(theta, start, rows, columns))
                bias = theta[start + rows * columns : start + (rows + 1) * columns]
                s = matrix(saved[k], n * (dim + 2 * depth * hidden), n, dim)
                for i in range(n):
                    for j in range(dim):
                        s[i, j] = clip * tanh((y[i, j] + bias[j]) / clip)
                        shift, stretch = y[i, dim + j] + bias[dim + j], np.exp(s[i, j])
                        if is_before:
                            z[i, j] = (z[i, j] + shift) * stretch
                        else:
                            z[i, j] = z[i, j] * stretch + shift
                        log_det[i] += s[i, j]
            return z, log_det, saved

        @jit
        def dense_stack_pullback(by_z_new, by_log_det, z_new, saved, theta):  # type: ignore[no-untyped-def]
            n, dim = z_new.shape
            theta = np.ascontiguousarray(theta)
            count = len(saved)
            by_z = by_z_new.copy()
            by_theta = np.empty(len(theta), z_new.dtype)
            by_out = np.empty((n, 2 * dim), z_new.dtype)
            after = z_new
            for k in range(count - 1, -1, -1):
                z = matrix(saved[k], 0, n, dim)
                s = matrix(saved[k], n * (dim + 2 * depth * hidden), n, dim)
                for i in range(n):
                    for j in range(dim):
                        stretch = np.exp(s[i, j])
                        scaled = after[i, j] if is_before else z[i, j] * stretch
                        by_s = by_z[i, j] * scaled + by_log_det[i]
                        by_out[i, j] = by_s * (1.0 - (s[i, j] / clip) ** 2)
                        by_out[i, dim + j] = by_z[i, j] * (stretch if is_before else 1.0)
                        by_z[i, j] *= stretch
                by_y = by_out
                for level in range(depth, -1, -1):
                    start, rows, columns = starts(level, k, count, dim)
                    below = max(level - 1, 0)
                    x = z
                    if level > 0:
                        x = matrix(saved[k], n * (dim + 2 * below * hidden), n, hidden)
                    np.dot(x.T, by_y, matrix(by_theta, start, rows, columns))
                    by_bias = by_theta[start + rows * columns : start + (rows + 1) * columns]
                    by_bias[:] = 0.0
                    for i in range(n):
                        for j in range(columns):
                            by_bias[j] += by_y[i, j]
                    by_x = np.dot(by_y, matrix(theta, start, rows, columns).T)
                    if level == 0:
                        for i in range(n):
                            for j in range(dim):
                                by_z[i, j] += by_x[i, j]
                    else:
                        slope = matrix(saved[k], n * (dim + (2 * below + 1) * hidden), n, hidden)
                        for i in range(n):
                            for j in range(hidden):
                                by_x[i, j] *= slope[i, j]
                    by_y = by_x
                after = z
            return by_z, by_theta

        return dense_stack, dense_stack_pullback


def _activation(word: str, jit: Callable[..., Any], tanh: Callable[..., Any]) -> Callable[..., Any]:
    """A function of hidden units that returns value and slope."""
    if word == "tanh":

        @jit
        def activate(x):  # type: ignore[no-untyped-def]
            value = tanh(x)
            return value, 1.0 - value * value

    elif word == "relu":

        @jit
        def activate(x):  # type: ignore[no-untyped-def]
            # At 0 the slope is 1, as PyTensor's gradient has it; NaN stays NaN.
            return x if x >= 0.0 else 0.0 * x, 1.0 if x >= 0.0 else 0.0

    else:

        @jit
        def activate(x):  # type: ignore[no-untyped-def]
            small = np.exp(-abs(x))
            sigmoid = (1.0 if x > 0.0 else small) / (1.0 + small)
            return x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))

    return activate
