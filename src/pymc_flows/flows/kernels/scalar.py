"""Scalar functions for the kernels of blocks.

All compute in double precision, whatever the arrays of a kernel hold.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pymc_flows.flows.numerics import floor

# Convergent 12 of Lambert's continued fraction of tanh: x P(x²) / Q(x²). Up to |x| = 2.5 its
# relative error is 1.3e-16. Scaled to Q(0) = 1, so that three squarings stay in range.
_SCALE = 316234143225.0
_P0, _P1, _P2, _P3, _P4, _P5 = (
    c / _SCALE for c in (316234143225.0, 45831035250.0, 1571349780.0, 18378360.0, 75075.0, 78.0)
)
_Q1, _Q2, _Q3, _Q4, _Q5, _Q6 = (
    c / _SCALE for c in (151242416325.0, 9820936125.0, 192972780.0, 1351350.0, 3003.0, 1.0)
)
_FLOOR, _FLOOR_SINGLE = float(floor("float64")), float(floor("float32"))
_TINY, _TINY_SINGLE = (float(np.sqrt(np.finfo(t).tiny)) for t in ("float64", "float32"))


class Functions(NamedTuple):
    """The functions that `functions` returns."""

    tanh: Callable[[Any], Any]
    softplus: Callable[[Any], Any]
    positive: Callable[[Any, Any], Any]
    scales: Callable[[Any, Any, Any], Any]
    unit: Callable[[Any, Any, Any], Any]
    floor: Callable[[Any], Any]
    tiny: Callable[[Any], Any]


def functions(jit: Callable[..., Any]) -> Functions:
    """Return the functions, compiled by ``jit``.

    ``tanh(x)`` has neither branches nor calls of a library, so that loops over draws become vector
    instructions and are several times as fast. ``softplus(x)`` gives the softplus of x and its
    derivative, then the same at −x. ``positive(x, itemsize)`` gives max(softplus(x), floor) and its
    derivative, and ``scales(rho, sigma, slope)`` writes both for a vector. ``unit(v, smallest, u)``
    writes v / ‖v‖ to u and returns ‖v‖; if ‖v‖² is below ``smallest``, it writes the first axis and
    returns 0. For arrays with elements of ``itemsize`` bytes, ``floor(itemsize)`` is the smallest
    value of a positive parameter, and ``tiny(itemsize)`` the squared norm below which a vector
    counts as zero.
    """

    @jit
    def tanh(x):  # type: ignore[no-untyped-def]
        # From 20 on, tanh is 1 in double precision. NaN stays NaN.
        x = 20.0 if x > 20.0 else x
        x = -20.0 if x < -20.0 else x
        x = 0.125 * x
        y = x * x
        a = x * (_P0 + y * (_P1 + y * (_P2 + y * (_P3 + y * (_P4 + y * _P5)))))
        b = 1.0 + y * (_Q1 + y * (_Q2 + y * (_Q3 + y * (_Q4 + y * (_Q5 + y * _Q6)))))
        # tanh(2x) = 2 tanh(x) / (1 + tanh²(x)), three times, as a fraction.
        a, b = 2.0 * a * b, a * a + b * b
        a, b = 2.0 * a * b, a * a + b * b
        return 2.0 * a * b / (a * a + b * b)

    @jit
    def softplus(x):  # type: ignore[no-untyped-def]
        e = np.exp(-abs(x))
        small, one, other = np.log1p(e), 1.0 / (1.0 + e), e / (1.0 + e)
        if x > 0.0:
            return x + small, one, small, other
        return small, other, small - x, one

    @jit
    def floor_of(itemsize):  # type: ignore[no-untyped-def]
        return _FLOOR if itemsize == 8 else _FLOOR_SINGLE

    @jit
    def tiny_of(itemsize):  # type: ignore[no-untyped-def]
        return _TINY if itemsize == 8 else _TINY_SINGLE

    @jit
    def positive(x, itemsize):  # type: ignore[no-untyped-def]
        value, slope, _, _ = softplus(x)
        lowest = floor_of(itemsize)
        return (lowest, 0.0) if value < lowest else (value, slope)

    @jit
    def scales(rho, sigma, slope):  # type: ignore[no-untyped-def]
        for j in range(len(rho)):
            sigma[j], slope[j] = positive(rho[j], rho.itemsize)

    @jit
    def unit(v, smallest, u):  # type: ignore[no-untyped-def]
        square = 0.0
        for j in range(len(v)):
            square += v[j] * v[j]
        if square < smallest:
            u[:] = 0.0
            u[0] = 1.0
            return 0.0
        length = np.sqrt(square)
        for j in range(len(v)):
            u[j] = v[j] / length
        return length

    return Functions(tanh, softplus, positive, scales, unit, floor_of, tiny_of)
