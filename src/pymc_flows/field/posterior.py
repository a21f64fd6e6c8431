"""The log density of a model, split into hyperparameters and the field given them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import numpy as np
import pytensor
import pytensor.tensor as pt
from scipy import sparse

from pymc_flows._jax import has_jax
from pymc_flows.density import ModelDensity
from pymc_flows.examine import plan_draws
from pymc_flows.field.options import Evaluations
from pymc_flows.log_density import LogDensity
from pymc_flows.modes import NUMPY, training_mode

_log = logging.getLogger(__name__)

# Points of one call; fewer where they would take more memory than `plan_draws` allows.
ROWS = 256
# A gradient that takes longer than this without a compiler, in CPU seconds, is compiled.
SLOW = 0.02

type Gradient = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Structured(Protocol):
    """What is needed of the structure of a model: flat indices, and groups of the field."""

    @property
    def hyperparameters(self) -> np.ndarray:
        """Indices of the hyperparameters in the flat vector."""

    @property
    def field(self) -> np.ndarray:
        """Indices of the field in the flat vector."""

    @property
    def groups(self) -> np.ndarray:
        """Group of each element of the field, −1 in the separator."""


type Curved = Callable[[np.ndarray], sparse.csc_matrix]
type Grouped = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Posterior:
    """Evaluates the log density, its gradient and its curvature in the field, and counts.

    Parameters
    ----------
    density : ModelDensity
    structure : Structured
    curvature : callable
        −∇² log p over the field (n_field, n_field) at a point (dim,), with a fixed pattern.
    grouped : callable
        At points (n, dim): what all groups share (n,), and what depends on one (n, n_groups), of
        the log density, in nats.
    """

    def __init__(
        self,
        density: ModelDensity,
        structure: Structured,
        curvature: Curved,
        grouped: Grouped,
    ):
        self.density = density
        self.hyper = np.asarray(structure.hyperparameters, dtype=int)
        self.field = np.asarray(structure.field, dtype=int)
        self.groups = np.asarray(structure.groups, dtype=int)
        self.n_groups = int(self.groups.max(initial=-1)) + 1
        self.evaluations = Evaluations()
        self._curvature, self._grouped = curvature, grouped
        self._seconds: list[float] = []
        self._compiled: Gradient | None = None

    @property
    def n_hyper(self) -> int:
        """Number of hyperparameters."""
        return len(self.hyper)

    @property
    def n_field(self) -> int:
        """Number of elements of the field."""
        return len(self.field)

    def join(self, hyper: np.ndarray, field: np.ndarray) -> np.ndarray:
        """Points (n, dim) from both parts, (n, n_hyper) and (n, n_field), either broadcast."""
        hyper, field = np.atleast_2d(hyper), np.atleast_2d(field)
        points = np.empty((max(len(hyper), len(field)), self.density.dim))
        points[:, self.hyper], points[:, self.field] = hyper, field
        return points

    def value_and_grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density (n,) and its gradient (n, dim), in nats; not finite where it is not."""
        self.evaluations.gradients += len(points)
        return self._timed(points) if self._compiled is None else self._compiled(points)

    def by_group(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density in parts: shared (n,) and by group (n, n_groups), in nats."""
        self.evaluations.densities += len(points)
        return self._grouped(points)

    def curvature(self, point: np.ndarray) -> sparse.csc_matrix:
        """−∇² log p (n_field, n_field) at a point (dim,)."""
        self.evaluations.curvatures += 1
        return self._curvature(point)

    # ------------------------------------------------------------------------ gradients in batches

    def _timed(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = time.process_time()
        found = self._plain(points)
        self._seconds.append((time.process_time() - before) / len(points))
        if len(self._seconds) >= 4 and min(self._seconds) > SLOW:
            self._compiled = self._compile()
        return found

    @cached_property
    def _rows(self) -> int | None:
        """Points of one call, or None if the density must be looped over."""
        plan = plan_draws(self.density, ROWS, self.density.start(), "numba")
        return plan.micro_batch

    @cached_property
    def _plain(self) -> Gradient:
        if self._rows is not None:
            return self._function(NUMPY)
        evaluate = LogDensity(self.density).value_and_grad

        def one_by_one(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            values, gradients = zip(*(evaluate(point[None]) for point in points), strict=True)
            return np.concatenate(values), np.concatenate(gradients)

        return one_by_one

    def _compile(self) -> Gradient:
        backend = "jax" if has_jax() else "numba"
        _log.info("A gradient takes %.2g s without a compiler: compiling.", min(self._seconds))
        return self._plain if self._rows is None else self._function(training_mode(backend))

    def _function(self, mode: object) -> Gradient:
        density, rows = self.density, self._rows
        z = pt.matrix("z", shape=(None, density.dim), dtype=pytensor.config.floatX)
        total = sum(density.batched(z))
        gradient = pytensor.grad(total.sum(), z, disconnected_inputs="ignore")
        function = pytensor.function([z], [total, gradient], mode=mode)

        def evaluate(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            parts = []
            for begin in range(0, len(points), rows):
                part = points[begin : begin + rows].astype(pytensor.config.floatX)
                with np.errstate(all="ignore"):
                    parts.append([np.asarray(x, dtype=float) for x in function(part)])
            values, gradients = zip(*parts, strict=True)
            return np.concatenate(values), np.concatenate(gradients)

        return evaluate
