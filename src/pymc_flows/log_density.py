"""A model's log density at arrays of points, outside of the training loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.scan.op import Scan
from pytensor.tensor.variable import TensorVariable

from pymc_flows._graphs import ops_of
from pymc_flows._jax import has_jax
from pymc_flows.density import ModelDensity
from pymc_flows.examine import plan_draws
from pymc_flows.modes import NUMPY, training_mode

# Points per call: functions are compiled for a fixed number.
ROWS = 64


class LogDensity:
    """Evaluates a model's log density, and its gradient, at any number of points.

    Nothing is compiled, but for models with a Scan, whose steps NumPy would take in Python: they
    run on JAX where it is installed.

    Parameters
    ----------
    density : ModelDensity
    """

    def __init__(self, density: ModelDensity):
        self._density = density
        self._functions: dict[tuple[int, bool], Callable[..., list[np.ndarray]]] = {}

    def value(self, points: np.ndarray) -> np.ndarray:
        """Log density (n,) at points (n, dim) of the unconstrained space, in nats."""
        [value] = self._call(points, with_grad=False)
        return value

    def value_and_grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density (n,) and its gradient (n, dim) at points (n, dim)."""
        value, gradient = self._call(points, with_grad=True)
        return value, gradient

    def _call(self, points: np.ndarray, *, with_grad: bool) -> list[np.ndarray]:
        n = 1 if len(points) == 1 else ROWS
        if (n, with_grad) not in self._functions:
            self._functions[n, with_grad] = self._function(n, with_grad=with_grad)
        function = self._functions[n, with_grad]
        padding = np.repeat(points[:1], -len(points) % n, axis=0)
        rows = np.concatenate([points, padding]).astype(pytensor.config.floatX)
        with np.errstate(all="ignore"):
            parts = [function(part) for part in rows.reshape(-1, n, self._density.dim)]
        return [
            np.concatenate([np.asarray(x, dtype=float) for x in part])[: len(points)]
            for part in zip(*parts, strict=True)
        ]

    @cached_property
    def _in_jax(self) -> bool:
        return has_jax() and any(isinstance(op, Scan) for op in ops_of(self._density.terms))

    def _function(self, n: int, *, with_grad: bool) -> Callable[..., list[np.ndarray]]:
        density = self._density
        z = pt.matrix("z", shape=(n, density.dim), dtype=pytensor.config.floatX)
        plan = plan_draws(density, n, density.start(), "jax" if self._in_jax else "numba")
        outputs: list[TensorVariable]
        if with_grad:
            (prior, data), gradient, _ = density.value_and_grad(
                z, weights=[1.0, 1.0], micro_batch=plan.micro_batch
            )
            outputs = [prior + data, gradient]
        else:
            evaluate = density.looped if plan.micro_batch is None else density.batched
            outputs = [sum(evaluate(z))]
        mode = training_mode("jax") if self._in_jax else NUMPY
        return pytensor.function([z], outputs, mode=mode, on_unused_input="ignore")
