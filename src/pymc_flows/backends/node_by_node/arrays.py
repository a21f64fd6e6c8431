"""Functions of arrays for scalar Ops that have none in NumPy, or a slow one in SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Numbers of a part.
PART = 16_384


def softplus(x: Any, out: np.ndarray | None = None) -> Any:
    """Return log(1 + exp(x)); `np.logaddexp` takes much longer."""
    return _by_parts(x, out, _softplus)


def _softplus(x: np.ndarray, out: np.ndarray) -> None:
    np.negative(np.abs(x, out=out), out=out)
    np.log1p(np.exp(out, out=out), out=out)
    out += np.maximum(x, 0)


def sigmoid(x: Any, out: np.ndarray | None = None) -> Any:
    """Return 1 / (1 + exp(−x)); `scipy.special.expit` takes much longer."""
    with np.errstate(over="ignore"):  # of exp(−x): the result is 0
        return _by_parts(x, out, _sigmoid)


def _sigmoid(x: np.ndarray, out: np.ndarray) -> None:
    np.exp(np.negative(x, out=out), out=out)
    out += 1
    np.reciprocal(out, out=out)


# Functions that write their results into row-major memory that is given to them.
WITH_MEMORY = (softplus, sigmoid)


def _by_parts(
    x: Any, out: np.ndarray | None, compute: Callable[[np.ndarray, np.ndarray], None]
) -> Any:
    """Compute part by part, so that what is between two steps stays in the caches."""
    x = np.asarray(x)
    order: Any = "F" if x.flags.fnc and out is None else "C"
    found = np.empty(x.shape, np.result_type(x, np.float32), order) if out is None else out
    flat, parts = x.reshape(-1, order=order), found.reshape(-1, order=order)
    for begin in range(0, x.size, PART):
        compute(flat[begin : begin + PART], parts[begin : begin + PART])
    return found if x.ndim else found[()]


def log1mexp(x: Any) -> Any:
    """Return log(1 - exp(x)) of an array of negative numbers (Maechler 2012)."""
    with np.errstate(all="ignore"):
        return np.where(x < -math.log(2), np.log1p(-np.exp(x)), np.log(-np.expm1(x)))


def trigamma(x: Any) -> Any:
    """Second derivative of the logarithm of the gamma function."""
    from scipy import special  # slow to import

    return special.polygamma(1, x)
