"""Monotone rational-quadratic splines between two corners of a square, the identity outside.

With η = (y − y₀) / h and ξ = (x − x₀) / w in a bin of width w, height h and mean slope s = h / w,
and slopes d₀ and d₁ at its ends, eq. 4 and 5 of [1]_ are

    η = (s ξ² + d₀ ξ(1 − ξ)) / (s (ξ² + (1 − ξ)²) + (d₀ + d₁) ξ(1 − ξ)),
    dy/dx = s² (d₁ ξ² + 2 s ξ(1 − ξ) + d₀ (1 − ξ)²) / denominator²,

written so that no term is negative.

References
----------
.. [1] Durkan, Bekasov, Murray & Papamakarios, Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.
"""

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Pair
from pymc_flows.flows.checks import check_int
from pymc_flows.flows.numerics import inverse_softplus

# Smallest share of the square for a bin's width and height, and smallest slope at a knot, as in the
# paper's code. Quotients of shares bound slopes within bins; their squares are far inside float32.
_MIN_SHARE = 1e-3
_MIN_SLOPE = 1e-3
# Raw value of the slope 1.
_RAW_SLOPE_ONE = float(np.log(np.expm1(1 - _MIN_SLOPE)))

_MAX_BINS = 256


def check_bins(word: str, bins: int) -> None:
    """Check the number of bins."""
    check_int(word, "bins", bins, 2, _MAX_BINS)


def spline_table(raw: TensorVariable, bins: int, bound: float) -> TensorVariable:
    """Bins of splines: left x, width, lower y, height, left slope, right slope.

    Parameters
    ----------
    raw : TensorVariable, shape (..., 3 bins - 1)
        Any numbers: ``bins`` of widths, ``bins`` of heights, slopes of inner knots. At 0 the spline
        is the identity.

    Returns
    -------
    TensorVariable, shape (..., 6, bins)
    """
    x = _knots(raw[..., :bins], bins, bound)
    y = _knots(raw[..., bins : 2 * bins], bins, bound)
    one = np.asarray(1.0, raw.dtype)
    shift = np.asarray(_RAW_SLOPE_ONE, raw.dtype)
    inner = np.asarray(_MIN_SLOPE, raw.dtype) + pt.softplus(raw[..., 2 * bins :] + shift)
    end = pt.full_like(raw[..., :1], one)
    slopes = pt.concatenate([end, inner, end], axis=-1)
    rows = [x[..., :-1], pt.diff(x), y[..., :-1], pt.diff(y), slopes[..., :-1], slopes[..., 1:]]
    return pt.stack(rows, axis=-2)


def _knots(raw: TensorVariable, bins: int, bound: float) -> TensorVariable:
    """Ascending knots from exactly -bound to exactly bound, (..., bins + 1)."""
    dtype = raw.dtype
    rest = np.asarray(1 - bins * _MIN_SHARE, dtype)
    shares = np.asarray(_MIN_SHARE, dtype) + rest * _softmax(raw)
    # The last knot is given, so that rounding cannot move it.
    inner = np.asarray(2 * bound, dtype) * pt.cumsum(shares[..., :-1], axis=-1)
    end = pt.full_like(raw[..., :1], np.asarray(bound, dtype))
    return pt.concatenate([-end, inner - np.asarray(bound, dtype), end], axis=-1)


def _softmax(raw: TensorVariable) -> TensorVariable:
    # PyTensor's Op has an inner graph, which is slow where nothing is compiled.
    size = pt.exp(raw - disconnected_grad(raw).max(axis=-1, keepdims=True))
    return size / size.sum(axis=-1, keepdims=True)


def raw_of_knots(x: np.ndarray, y: np.ndarray, slopes: np.ndarray, bound: float) -> np.ndarray:
    """Raw parameters of splines through given knots: the inverse of `spline_table`.

    Parameters
    ----------
    x, y : ndarray, shape (..., bins - 1)
        Inner knots, ascending, between −bound and bound. Bins that are narrower or lower than the
        smallest share of the square are made larger.
    slopes : ndarray, shape (..., bins - 1)
        Positive slopes at these knots.
    bound : float

    Returns
    -------
    ndarray, shape (..., 3 bins - 1)
    """
    inner = np.maximum(slopes - _MIN_SLOPE, _MIN_SLOPE)
    raw_slopes = inverse_softplus(inner) - _RAW_SLOPE_ONE
    return np.concatenate([_raw_of_shares(x, bound), _raw_of_shares(y, bound), raw_slopes], axis=-1)


def _raw_of_shares(knots: np.ndarray, bound: float) -> np.ndarray:
    end = np.full((*knots.shape[:-1], 1), bound)
    shares = np.diff(np.concatenate([-end, knots, end], axis=-1)) / (2 * bound)
    # At least half of the smallest share, so that the logarithm is finite.
    excess = np.maximum(shares - _MIN_SHARE, _MIN_SHARE / 2)
    raw: np.ndarray = np.log(excess)
    return raw - raw.mean(axis=-1, keepdims=True)


def transform(z: TensorVariable, table: TensorVariable, bound: float) -> Pair:
    """Values and log-slopes of splines at z (...), with tables (..., 6, bins) that broadcast."""
    x, is_inside = _into_box(z, bound)
    left, width, low, height, d0, d1 = _pick(x, table, row=0)
    xi = (x - left) / width
    slope = height / width
    mixed = xi * (1 - xi)
    eta = (slope * pt.sqr(xi) + d0 * mixed) / _denominator(xi, slope, d0, d1)
    log_slope = _log_slope(xi, slope, d0, d1)
    return pt.switch(is_inside, low + height * eta, z), pt.switch(is_inside, log_slope, 0)


def transform_back(y: TensorVariable, table: TensorVariable, bound: float) -> Pair:
    """Inverse of `transform`, and the log-slopes of the forward map there.

    ξ is the root of a quadratic equation (eq. 6 to 8 of the paper). With u = d₀(1 − η) − d₁η its
    discriminant is u² + 4s²η(1 − η), in which nothing cancels. Which form of the root has no
    cancellation either depends on the sign of u.
    """
    inner, is_inside = _into_box(y, bound)
    left, width, low, height, d0, d1 = _pick(inner, table, row=2)
    eta = (inner - low) / height
    slope = height / width
    u = d0 * (1 - eta) - d1 * eta
    root = pt.sqrt(pt.sqr(u) + 4 * pt.sqr(slope) * eta * (1 - eta))
    rising, falling = 2 * slope * eta, 2 * slope * (1 - eta)
    is_early = pt.ge(disconnected_grad(u), 0)
    # Each form is evaluated only where its denominator is not a difference.
    size = root + pt.abs(u)
    xi = pt.switch(is_early, rising / (rising + size), size / (size + falling))
    return (
        pt.switch(is_inside, left + width * xi, y),
        pt.switch(is_inside, _log_slope(xi, slope, d0, d1), 0),
    )


def _into_box(z: TensorVariable, bound: float) -> Pair:
    """Points, with 0 in place of those outside of the square, and which ones are inside."""
    is_inside = pt.lt(pt.abs(disconnected_grad(z)), np.asarray(bound, z.dtype))
    return pt.switch(is_inside, z, 0), is_inside


def _pick(x: TensorVariable, table: TensorVariable, *, row: int) -> tuple[TensorVariable, ...]:
    """Six numbers (...) of the bin of each x (...); ``row`` of the table has the left ends."""
    ends = disconnected_grad(table[..., row, :])
    is_beyond = pt.ge(disconnected_grad(x)[..., None], ends)
    # The last bin whose left end is not beyond x.
    is_last = pt.concatenate([~is_beyond[..., 1:], pt.ones_like(is_beyond[..., :1])], axis=-1)
    is_here = is_beyond & is_last
    return tuple(pt.switch(is_here, table[..., k, :], 0).sum(axis=-1) for k in range(6))


def _denominator(
    xi: TensorVariable, slope: TensorVariable, d0: TensorVariable, d1: TensorVariable
) -> TensorVariable:
    return slope * (pt.sqr(xi) + pt.sqr(1 - xi)) + (d0 + d1) * (xi * (1 - xi))


def _log_slope(
    xi: TensorVariable, slope: TensorVariable, d0: TensorVariable, d1: TensorVariable
) -> TensorVariable:
    mixed = 2 * slope * (xi * (1 - xi))
    numerator = d1 * pt.sqr(xi) + mixed + d0 * pt.sqr(1 - xi)
    return pt.log(numerator) + 2 * (pt.log(slope) - pt.log(_denominator(xi, slope, d0, d1)))
