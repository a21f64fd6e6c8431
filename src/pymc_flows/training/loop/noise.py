"""Base noise of many steps, drawn at once into one array, and data that differ by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np

from pymc_flows.backends.jax import precision

# In bytes. JAX uses arrays that begin at a multiple of it without a copy.
ALIGNMENT = 64

type Source = Callable[[np.random.Generator, int, tuple[int, ...], str], Any]
"""Takes (rng, n, shape, dtype); returns noise (steps, draws, dim), of which n steps are used."""


class Batches(Protocol):
    """Data of which each step sees a part."""

    def fill(self, step: int, arrays: Sequence[np.ndarray]) -> None:
        """Put the data of ``step`` and the steps after it into arrays (steps, ...)."""

    def state_dict(self) -> dict[str, Any]:
        """The state for a file, as JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""


def base_noise(backend: str) -> Source:
    """The source of base noise for a backend."""
    by_jax = backend == "jax" and is_on_accelerator()
    return standard_normal_by_jax if by_jax else standard_normal


def standard_normal(
    rng: np.random.Generator, n: int, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    """Base noise that NumPy draws; steps after the first ``n`` get zeros."""
    noise = aligned_zeros(shape, dtype)
    rng.standard_normal(out=noise[:n], dtype=noise.dtype)
    return noise


def aligned_zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array of zeros that JAX need not copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def is_on_accelerator() -> bool:
    """Whether JAX's default device is no CPU."""
    import jax  # slow to import

    device = jax.config.jax_default_device or jax.devices()[0]
    return bool(getattr(device, "platform", device) != "cpu")


def standard_normal_by_jax(
    rng: np.random.Generator, n: int, shape: tuple[int, ...], dtype: str
) -> Any:
    """Base noise that is drawn on the device where JAX computes; steps after ``n`` get zeros.

    The generator gives a key to each step: its noise does not depend on the steps per call.
    """
    words = np.zeros((shape[0], 2), np.uint32)
    words[:n] = rng.integers(2**32, size=(n, 2), dtype=np.uint32)
    with precision(dtype):
        return _by_keys()(words, n, shape[1:], dtype)


@cache
def _by_keys() -> Callable[[np.ndarray, int, tuple[int, ...], str], Any]:
    import jax

    def draw(words: np.ndarray, n: int, shape: tuple[int, ...], dtype: str) -> Any:
        keys = jax.random.wrap_key_data(jax.numpy.asarray(words), impl="threefry2x32")

        def fill(i: Any, noise: Any) -> Any:
            return noise.at[i].set(jax.random.normal(keys[i], shape, dtype))

        # All calls have the same length, but only n steps cost time.
        return jax.lax.fori_loop(0, n, fill, jax.numpy.zeros((len(words), *shape), dtype))

    return jax.jit(draw, static_argnums=(2, 3))
