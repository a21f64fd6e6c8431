"""Base noise of many steps, drawn at once into one array."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# In bytes. JAX takes an array that begins at a multiple of it as it is, and copies any other.
ALIGNMENT = 64

type Source = Callable[[np.random.Generator, np.ndarray], object]


def standard_normal(rng: np.random.Generator, out: np.ndarray) -> None:
    """Fill an array with base noise."""
    rng.standard_normal(out=out, dtype=out.dtype)


def aligned_zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array of zeros that JAX need not copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
