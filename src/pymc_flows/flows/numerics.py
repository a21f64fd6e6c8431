"""Floors, safe norms, and other helpers of layers.

Conditions of switches are cut off from gradients: PyTensor would pass a zero of type ``floatX``
back through them, which promotes the gradients of a float32 flow.
"""

import math

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad
from pytensor.tensor import TensorVariable

# At the rounding of 1 + x in float64 and well above it in float32, and large enough that the
# reciprocal of the square, which gradients contain, is finite in either type.
_FLOORS: dict[str, np.floating] = {"float32": np.float32(1e-6), "float64": np.float64(1e-15)}

INVERSE_SOFTPLUS_ONE = math.log(math.e - 1)
"""The raw value whose softplus is 1."""


def inverse_softplus(value: np.ndarray) -> np.ndarray:
    """Raw values with these positive numbers as softplus."""
    raw: np.ndarray = value + np.log(-np.expm1(-value))
    return raw


def floor(dtype: str) -> np.floating:
    """Smallest value of a positive parameter, as a scalar of its type.

    A Python float would not do: PyTensor takes ``1e-15`` for float64 and promotes a float32 graph.

    Parameters
    ----------
    dtype : {'float32', 'float64'}
        Type of the parameter.
    """
    try:
        return _FLOORS[dtype]
    except KeyError:
        raise TypeError(f"flows compute in {' or '.join(_FLOORS)}, got {dtype}") from None


def positive(raw: TensorVariable) -> TensorVariable:
    """``softplus(raw)``, never less than the floor."""
    return pt.maximum(pt.softplus(raw), floor(raw.dtype))


def squared_norm(vectors: TensorVariable) -> TensorVariable:
    """Sum of squares over the last axis."""
    return pt.sqr(vectors).sum(axis=-1)


def is_zero_square(square: TensorVariable) -> TensorVariable:
    """Whether a squared norm is too small to divide by.

    The gradient of ``x / square`` contains ``1 / square**2``, so the bound is the square root of
    the smallest normal number: vectors shorter than 1e-77 (float64) or 3e-10 (float32) count as
    zero.
    """
    return pt.lt(disconnected_grad(square), np.sqrt(np.finfo(square.dtype).tiny))


def norm(vectors: TensorVariable) -> TensorVariable:
    """Euclidean norm over the last axis; its gradient at the zero vector is zero, not NaN."""
    square = squared_norm(vectors)
    is_zero = pt.eq(disconnected_grad(square), 0)
    # The inner switch keeps the infinite slope of sqrt at 0 out of the unselected branch.
    return pt.switch(is_zero, 0, pt.sqrt(pt.switch(is_zero, 1, square)))


def unit_vector(vectors: TensorVariable) -> TensorVariable:
    """Vectors over the last axis divided by their norm; a zero vector becomes the first axis."""
    square = squared_norm(vectors)[..., None]
    is_zero = is_zero_square(square)
    length = pt.sqrt(pt.switch(is_zero, 1, square))
    return pt.switch(is_zero, first_axis(vectors), vectors / length)


def first_axis(vectors: TensorVariable) -> TensorVariable:
    """The unit vector (dim,) of the first axis of vectors (..., dim), of their type."""
    return pt.eq(pt.arange(event_dim(vectors)), 0).astype(vectors.dtype)


def event_dim(vectors: TensorVariable) -> int | TensorVariable:
    """Length of the last axis: an int where it is static."""
    dim = vectors.type.shape[-1]
    return vectors.shape[-1] if dim is None else dim


def zeros_of_batch(points: TensorVariable) -> TensorVariable:
    """Zeros of the batch shape of ``points`` (..., dim): the log-determinant of an isometry."""
    return pt.zeros_like(points[..., 0])


def log_det_of_scale(points: TensorVariable, sigma: TensorVariable) -> TensorVariable:
    """Log-determinants Σ log σ, of the batch shape of ``points`` (..., dim)."""
    return zeros_of_batch(points) + pt.log(sigma).sum()


def unit_directions(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Draw ``count`` directions uniformly from the unit sphere: an array (count, dim)."""
    directions = rng.standard_normal((count, dim))
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)
