"""Log densities with gradients at any number of points, compiled where that pays."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.jax import has_jax
from pymc_flows.backends.modes import NUMPY, training_mode
from pymc_flows.errors import BackendError
from pymc_flows.model.examine import DrawPlan, plan_draws
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity

_log = logging.getLogger(__name__)

# Points of one call; fewer where they would take more memory than `plan_draws` allows.
ROWS = 256
# Seconds that calls take in all before the gradient is compiled: about what compiling takes.
PATIENCE = {"jax": 2.0, "numba": 10.0}
# Points by which a compiled gradient is timed.
TIMED = 4
# It is never compiled if a point takes fewer seconds than this.
FAST = 5e-4


type Gradient = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Log density (n,) and its gradient (n, dim) at points (n, dim), in nats."""


def batched_gradient(density: ModelDensity) -> BatchedGradient:
    """Return the `BatchedGradient` of a density, which is made once and kept with it."""
    found: BatchedGradient | None = density.kept.get("gradient")
    if found is None:
        found = density.kept["gradient"] = BatchedGradient(density)
    return found


class BatchedGradient:
    """Evaluates a log density and its gradient.

    At first it computes in NumPy, since compiling takes longer than all calls of most models. If
    calls turn out to be slow, as with special functions that NumPy lacks, JAX or numba takes over,
    unless it is no faster.

    Parameters
    ----------
    density : ModelDensity
    """

    def __init__(self, density: ModelDensity):
        self._density = density
        self._seconds, self._points = 0.0, 0
        self._chosen: Gradient | None = None  # once it is known which one is faster
        self._near: np.ndarray | None = None  # the first point, where plans are tried out

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density (n,) and its gradient (n, dim) at points (n, dim), in nats."""
        if self._chosen is not None:
            return self._chosen(points)
        if self._near is None:
            self._near = points[0].copy()
        evaluate = self._plain  # made before it is timed
        before = time.perf_counter()
        found = evaluate(points)
        self._seconds += time.perf_counter() - before
        self._points += len(points)
        is_slow = self._seconds > max(FAST * self._points, min(PATIENCE.values()))
        if is_slow and self._rows is not None and self._seconds > PATIENCE[self._backend]:
            self._chosen = self._faster(points[:TIMED])
        return found

    def _faster(self, points: np.ndarray) -> Gradient:
        """Compile the gradient; return it, or that of NumPy if it takes less time."""
        compiled = self._compile()
        compiled(points[:1])
        before = time.perf_counter()
        compiled(points)
        each = (time.perf_counter() - before) / len(points)
        usual = self._seconds / self._points
        _log.info(
            "A gradient takes %.2g ms in NumPy, %.2g ms compiled by %s.",
            1000 * usual,
            1000 * each,
            self._backend,
        )
        return compiled if each < usual else self._plain

    @cached_property
    def _backend(self) -> str:
        if not has_jax():
            return "numba"
        try:
            self._plan("jax", 1)
        except BackendError:
            return "numba"
        return "jax"

    @cached_property
    def _rows(self) -> int | None:
        """Points of one call, or None if the density must be looped over."""
        return self._plan("numba", ROWS).micro_batch

    def _plan(self, backend: str, rows: int) -> DrawPlan:
        near = self._density.start() if self._near is None else self._near
        return plan_draws(self._density, rows, near.astype(pytensor.config.floatX), backend)

    @cached_property
    def _plain(self) -> Gradient:
        if self._rows is None:
            return partial(_in_parts, LogDensity(self._density).value_and_grad, 1)
        return partial(_in_parts, self._function(None, NUMPY), self._rows)

    def _compile(self) -> Gradient:
        """Compile a function of one point: on CPUs, XLA gathers and scatters slowly in batches.

        A multilevel regression with 60,000 rows takes 3 ms a point alone, 17 ms in a batch of 32.
        """
        return partial(_in_parts, self._function(1, training_mode(self._backend)), 1)

    def _function(self, rows: int | None, mode: Mode) -> Any:
        density = self._density
        z = pt.matrix("z", shape=(rows, density.dim), dtype=pytensor.config.floatX)
        total = sum(density.batched(z))
        gradient = pytensor.grad(total.sum(), z, disconnected_inputs="ignore")
        return function_of([z], [total, gradient], mode=mode)


def _in_parts(function: Any, rows: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Call a function with at most ``rows`` points at a time."""
    values, gradients = [], []
    for begin in range(0, len(points), rows):
        value, gradient = function(points[begin : begin + rows].astype(pytensor.config.floatX))
        values.append(np.asarray(value, dtype=float))
        gradients.append(np.asarray(gradient, dtype=float))
    return np.concatenate(values), np.concatenate(gradients)
